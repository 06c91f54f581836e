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
from health_predict.adapters.tracking.runs import EVALUATION, RunRecord, trial_name
from health_predict.adapters.tracking.tags import Role, Tag, VersionStage

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "EVALUATION",
    "REGISTERED",
    "REGISTERED_CODE",
    "ModelVersion",
    "Role",
    "RunRecord",
    "Tag",
    "Tracking",
    "VersionStage",
    "champion_of",
    "trial_name",
]
