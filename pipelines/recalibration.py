"""The recalibration pipeline: the champion's calibration and threshold fitted anew, then deployment."""

from typing import NamedTuple

from kfp import dsl

from health_predict.components import recalibrate, register, rollout
from health_predict.pipelines.deployment import deployed_if_promoted
from health_predict.pipelines.descriptions import described
from health_predict.pipelines.wiring import wire


class RecalibrationOutputs(NamedTuple):
    """Values of a run."""

    model_version: str
    decision: str
    dataset_source: str
    outcome: str


@dsl.pipeline(
    name="recalibration",
    description="Fit the champion's map from score to risk anew and, when it passes its gates, bring it into service.",
)
@described(recalibrate, register, rollout)
def recalibration(labelled_batches: int) -> RecalibrationOutputs:
    """recalibrate, register, then deployment when the decision is `promote`."""
    renewed = wire(recalibrate(labelled_batches=labelled_batches), "Recalibrate the champion", memory="1Gi", retries=1)
    registered = wire(
        register(
            parent_run_id=renewed.outputs["parent_run_id"],
            validation=renewed.outputs["validation"],
            test=renewed.outputs["test"],
        ),
        "Register and ask the gates",
        memory="1Gi",
        retries=1,
    )
    version, decision = registered.outputs["model_version"], registered.outputs["decision"]
    outcome = deployed_if_promoted(version, decision)
    return RecalibrationOutputs(version, decision, renewed.outputs["dataset_source"], outcome)
