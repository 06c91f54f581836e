"""The pipelines: the same functions run here under `health-predict pipeline run` and in a cluster."""

from pipelines.deployment import deployment
from pipelines.monitoring import monitoring
from pipelines.readmission import readmission
from pipelines.recalibration import recalibration
from pipelines.recorded import recorded
from pipelines.training import training

PIPELINES = {
    "training": training,
    "deployment": deployment,
    "readmission": readmission,
    "recalibration": recalibration,
    "monitoring": monitoring,
}

__all__ = ["PIPELINES", "deployment", "monitoring", "readmission", "recalibration", "recorded", "training"]
