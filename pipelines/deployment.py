"""The deployment pipeline: from a model version to an endpoint that serves it."""

from typing import Any, NamedTuple

from kfp import dsl

from health_predict.components import bento_build, ecr_push, keep, rollout
from health_predict.pipelines.descriptions import described
from health_predict.pipelines.wiring import name_gate, wire


class DeploymentOutputs(NamedTuple):
    """Values of a run."""

    outcome: str


@dsl.pipeline(name="deployment", description="Build the Bento of a model version, push its image, roll it out.")
@described(bento_build, rollout)
def deployment(model_version: str) -> DeploymentOutputs:
    """bento_build, ecr_push, rollout."""
    bento = wire(bento_build(model_version=model_version), "Build the Bento", memory="1Gi", retries=1)
    image = wire(ecr_push(model_version=model_version, bento=bento.outputs["bento"]), "Push the image", retries=1)
    served = wire(rollout(image_uri=image.output, model_version=model_version), "Roll out", minutes=60, retries=0)
    return DeploymentOutputs(served.outputs["outcome"])


def deployed_if_promoted(model_version: Any, decision: Any) -> Any:
    """The outcome, as a pipeline's value: of the deployment when the decision is `promote`, else nothing changes."""
    with dsl.If(decision == "promote", name="promoted"):
        deployed = deployment(model_version=model_version)
    with dsl.Else(name="not-promoted"):
        kept = wire(keep(gate="decision", value=decision, expected="reject"), "Keep what serves")
    outcome = dsl.OneOf(deployed.outputs["outcome"], kept.outputs["outcome"])
    name_gate(outcome, "Promote?")
    return outcome
