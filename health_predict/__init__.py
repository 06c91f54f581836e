"""The whole life of one model of a hospital's outcomes."""

import os

# onnxruntime counts its users over the network unless told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
