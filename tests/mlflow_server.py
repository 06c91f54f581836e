"""MLflow's own server, for what a store in a file does not show."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Server:
    """MLflow's server on one port, which may be killed and started again."""

    def __init__(self, database: Path, artifacts: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._database = database
        self._artifacts = artifacts

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = {"host": "127.0.0.1", "port": self.port, "workers": 1, "artifacts-destination": self._artifacts}
        options["backend-store-uri"] = f"sqlite:///{self._database}"
        command = [sys.executable, "-m", "mlflow", "server"]
        command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = self._database.with_suffix(".log")
        with log.open("a") as output:
            self._process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        end = time.monotonic() + 300
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            assert self._process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """End all its processes at once."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(60)


@contextmanager
def mlflow_server(database: Path, artifacts: Path) -> Iterator[Server]:
    """A server that runs."""
    server = Server(database, artifacts)
    try:
        server.start()
        yield server
    finally:
        server.kill()
