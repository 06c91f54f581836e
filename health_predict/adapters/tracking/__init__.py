"""MLflow: runs of a search, and the model registry."""

from health_predict.adapters.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    REGISTERED,
    REGISTERED_CODE,
    ModelVersion,
    Tracking,
    champion_of,
)
from health_predict.adapters.tracking.runs import CHOSEN, EVALUATION, REASON, RunRecord

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "CHOSEN",
    "EVALUATION",
    "REASON",
    "REGISTERED",
    "REGISTERED_CODE",
    "ModelVersion",
    "RunRecord",
    "Tracking",
    "champion_of",
]
