"""Readmission within 30 days of diabetic in-patients: the whole life of one model."""

import os

# onnxruntime counts its users over the network unless told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
