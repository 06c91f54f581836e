"""MLflow: runs of a search, and the model registry."""

from health_predict.adapters.tracking.model_registry import (
    CHALLENGER,
    CHAMPION,
    REGISTERED,
    REGISTERED_CODE,
    ModelVersion,
    Tracking,
    champion_of,
)
from health_predict.adapters.tracking.runs import CARD, EVALUATION, RunRecord, trial_name
from health_predict.adapters.tracking.tags import ApprovalState, Role, Tag, VersionStage

__all__ = [
    "CARD",
    "CHALLENGER",
    "CHAMPION",
    "EVALUATION",
    "REGISTERED",
    "REGISTERED_CODE",
    "ApprovalState",
    "ModelVersion",
    "Role",
    "RunRecord",
    "Tag",
    "Tracking",
    "VersionStage",
    "champion_of",
    "trial_name",
]
