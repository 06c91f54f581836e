"""`health-predict mlflow-ui`: MLflow's pages over the runs and models of the settings."""

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
from typing import NoReturn

import typer

from health_predict.commands.progress import console_of, working
from health_predict.errors import UnreachableError
from health_predict.settings import load_settings

START_SECONDS = 300
END_SECONDS = 10
PATIENCE_SECONDS = 0.2


def mlflow_ui(port: int) -> None:
    """Serve MLflow's pages on loopback until interrupted."""
    settings, began = load_settings(), time.monotonic()
    with working(console_of(), "opening MLflow's store"):
        from health_predict.adapters.tracking import Tracking  # with MLflow: seconds
        from health_predict.adapters.tracking.connection import libraries_without_percent

        page = Tracking(settings).page  # creates an empty store, so that the pages are there before the first run
    if settings.tracking_uri.startswith(("http://", "https://")):
        typer.echo(f"MLflow's pages: {settings.tracking_uri}/{page}")
        return
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    if libraries := libraries_without_percent():
        environment["PYTHONPATH"] = libraries
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("127.0.0.1", port))
        except OSError:
            raise UnreachableError(f"port {port} is taken", f"health-predict mlflow-ui --port {port + 1}") from None
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--backend-store-uri", settings.tracking_uri]
    command += ["--default-artifact-root", (settings.home / "mlartifacts").as_uri()]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    log = settings.home / "mlflow-ui.log"
    with suppress(KeyboardInterrupt), _running(command, environment, log) as server:
        with working(console_of(), "starting MLflow's pages"):
            _wait(server, url, log)
        typer.echo(f"MLflow's pages: {url}/{page} (after {time.monotonic() - began:.0f} s; Ctrl+C ends them)")
        server.wait()
        _fail(log)


@contextmanager
def _running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that ends with this process, however it is told to; what it says goes to its log."""
    with log.open("wb") as output:
        # In a session of its own, since on Ctrl+C its processes would each print where they were.
        server = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310 # our own address
            return
        if server.poll() is not None or time.monotonic() > deadline:
            _fail(log)
        time.sleep(PATIENCE_SECONDS)


def _fail(log: Path) -> NoReturn:
    raise UnreachableError("MLflow's server does not run", f"its last words are in {log}")
