"""What an operator may set for the service: the one place of this Bento that reads the environment.

The library reads its environment in `health_predict.settings`; a Bento runs without the library, so it has a place
of its own. The names are the same.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

PREDICTION_LOG = "HEALTH_PREDICT_PREDICTION_LOG"


class ServiceSettings(msgspec.Struct, frozen=True):
    """Values that differ by place."""

    prediction_log: Path | None
    """Folder of the prediction log; None: predictions are not logged."""
    metrics_folder: Path | None
    """Folder that the workers of one endpoint share their counts in (prometheus_client's multiprocess mode)."""


def load_settings() -> ServiceSettings:
    """The settings of this process."""
    log = os.environ.get(PREDICTION_LOG, "")
    shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
    return ServiceSettings(
        prediction_log=Path(log).expanduser().absolute() if log else None,
        metrics_folder=Path(shared) if shared else None,
    )
