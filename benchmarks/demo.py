"""How long `health-predict demo` takes on the real data: from nothing, and again when nothing has changed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.parts import results, servers


def main() -> None:
    """Run the demo twice in a home of its own, then stop its endpoint; print and keep the seconds."""
    with tempfile.TemporaryDirectory(prefix="bench-demo-") as home:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEALTH_PREDICT_")}
        environment |= {"HEALTH_PREDICT_HOME": home, "HEALTH_PREDICT_SERVING_PORT": str(servers.free_port())}
        if copy := os.environ.get("HEALTH_PREDICT_DATA_COPY"):
            environment["HEALTH_PREDICT_DATA_COPY"] = copy
        command = [str(Path(sys.executable).with_name("health-predict"))]
        seconds = []
        try:
            for _ in range(2):
                began = time.monotonic()
                subprocess.run([*command, "demo"], env=environment, check=True)
                seconds.append(time.monotonic() - began)
        finally:
            subprocess.run([*command, "down"], env=environment, check=False)
    results.save("demo", {"first_seconds": round(seconds[0], 1), "again_seconds": round(seconds[1], 1)})


if __name__ == "__main__":
    main()
