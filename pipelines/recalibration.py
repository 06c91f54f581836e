from typing import NamedTuple

from kfp import dsl

from components import keep, recalibrate, register
from pipelines.deployment import deployment
from pipelines.wiring import wire


class RecalibrationOutputs(NamedTuple):
    """Values of a run."""

    model_version: str
    decision: str
    outcome: str


@dsl.pipeline(
    name="recalibration",
    description="Fit the champion's map from score to risk anew and, when it passes its gates, bring it into service.",
)
def recalibration(labelled_batches: int) -> RecalibrationOutputs:
    """recalibrate, register, then deployment when the decision is `promote`.

    Args:
        labelled_batches: How many batches have known outcomes.
    """
    renewed = wire(recalibrate(labelled_batches=labelled_batches), "recalibrate", memory="1Gi", retries=1)
    registered = wire(
        register(
            parent_run_id=renewed.outputs["parent_run_id"],
            validation=renewed.outputs["validation"],
            test=renewed.outputs["test"],
        ),
        "register",
        memory="1Gi",
        retries=1,
    )
    with dsl.If(registered.outputs["decision"] == "promote", name="promoted"):
        deployed = deployment(model_version=registered.outputs["model_version"])
    with dsl.Else(name="not-promoted"):
        kept = wire(keep(gate="decision", value=registered.outputs["decision"], expected="reject"), "keep what serves")
    outcome = dsl.OneOf(deployed.outputs["outcome"], kept.outputs["outcome"])
    return RecalibrationOutputs(registered.outputs["model_version"], registered.outputs["decision"], outcome)
