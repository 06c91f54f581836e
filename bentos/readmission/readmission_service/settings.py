"""What an operator may set for the service: the one place of this Bento that reads the environment.

The library reads its environment in `health_predict.settings`; a Bento runs without the library, so it has a place
of its own. The names are the same.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

PREFIX = "HEALTH_PREDICT_"
MEBIBYTE = 1024 * 1024


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Values that differ by place."""

    prediction_log: Path | None = None
    """Folder of the prediction log; None: predictions are not logged."""
    prediction_log_limit: int = 1024 * MEBIBYTE
    """Bytes that the folder may hold."""
    prediction_log_seconds: float = 60.0
    """Age at which a file of the log is finished."""
    storage_uri: str = ""
    """Where finished files go; empty: they stay."""
    s3_endpoint_url: str = ""
    threads: int = 1
    """Native threads of a worker's model."""
    batch_rows: int = 10_000
    batch_bytes: int = 32 * MEBIBYTE
    """The largest batch, in encounters and in bytes of its body."""
    metrics_folder: Path | None = None
    """Folder that the workers of one endpoint share their counts in (prometheus_client's multiprocess mode)."""


def load_settings() -> ServiceSettings:
    """The settings of this process. Raises ValueError that names a variable with an impossible value."""
    log = _text("PREDICTION_LOG")
    limit = _number("PREDICTION_LOG_LIMIT_MB", 1024, least=0)
    shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
    return ServiceSettings(
        prediction_log=Path(log).expanduser().absolute() if log and limit else None,
        prediction_log_limit=limit * MEBIBYTE,
        prediction_log_seconds=_number("PREDICTION_LOG_SECONDS", 60, least=1),
        storage_uri=_text("STORAGE_URI"),
        s3_endpoint_url=_text("S3_ENDPOINT_URL"),
        threads=_number("SERVING_THREADS", 1, least=1),
        batch_rows=_number("SERVING_BATCH_ROWS", 10_000, least=1),
        batch_bytes=_number("SERVING_BATCH_MB", 32, least=1) * MEBIBYTE,
        metrics_folder=Path(shared) if shared else None,
    )


def _text(name: str) -> str:
    return os.environ.get(PREFIX + name, "").strip()


def _number(name: str, default: int, *, least: int) -> int:
    text = _text(name)
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise ValueError(f"{PREFIX}{name} is {text!r}: set a whole number from {least}")
    return int(text)
