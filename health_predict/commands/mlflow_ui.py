"""`health-predict mlflow-ui`: MLflow's pages over the runs and models of the settings."""

from __future__ import annotations

import os
import socket
import sys

import typer

from health_predict.commands.progress import console_of, working
from health_predict.errors import UnreachableError
from health_predict.settings import load_settings


def mlflow_ui(port: int) -> None:
    """Serve MLflow's pages on loopback until interrupted."""
    settings = load_settings()
    if settings.tracking_uri.startswith(("http://", "https://")):
        typer.echo(f"MLflow's pages: {settings.tracking_uri}")
        return
    with working(console_of(), "opening MLflow's store"):
        from health_predict.adapters.tracking import Tracking  # with MLflow: seconds
        from health_predict.adapters.tracking.connection import libraries_without_percent

        Tracking(settings)  # creates an empty store, so that the pages are there before the first run
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    if libraries := libraries_without_percent():
        environment["PYTHONPATH"] = libraries
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("127.0.0.1", port))
        except OSError:
            raise UnreachableError(f"port {port} is taken", f"health-predict mlflow-ui --port {port + 1}") from None
    typer.echo(f"MLflow's pages: http://127.0.0.1:{port} (starting, about ten seconds; Ctrl+C ends it)")
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--backend-store-uri", settings.tracking_uri]
    command += ["--default-artifact-root", (settings.home / "mlartifacts").as_uri()]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # Becomes the server, so that a signal to this process ends it.
    os.execve(sys.executable, command, environment)  # noqa: S606
