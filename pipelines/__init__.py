"""The pipelines: the same functions run here under `health-predict pipeline run` and in a cluster."""

from health_predict.pipelines.deployment import deployment
from health_predict.pipelines.monitoring import monitoring
from health_predict.pipelines.readmission import readmission
from health_predict.pipelines.recalibration import recalibration
from health_predict.pipelines.recorded import recorded
from health_predict.pipelines.training import training

PIPELINES = {
    "training": training,
    "deployment": deployment,
    "readmission": readmission,
    "recalibration": recalibration,
    "monitoring": monitoring,
}

__all__ = ["PIPELINES", "deployment", "monitoring", "readmission", "recalibration", "recorded", "training"]
