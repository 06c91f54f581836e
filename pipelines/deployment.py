"""The deployment pipeline: from a model version to an endpoint that serves it."""

from typing import Any, NamedTuple

from kfp import dsl

from health_predict.components import bento_build, ecr_push, keep, rollout
from health_predict.pipelines.descriptions import described
from health_predict.pipelines.wiring import may_roll_out, name_gate, wire, with_token


class DeploymentOutputs(NamedTuple):
    """Values of a run."""

    outcome: str


@dsl.pipeline(name="deployment", description="Build the Bento of a model version, push its image, roll it out.")
@described(bento_build, rollout)
def deployment(model_version: str, approved_by: str = "", approval_why: str = "") -> DeploymentOutputs:
    """bento_build, ecr_push, rollout."""
    build = bento_build(model_version=model_version, approved_by=approved_by, approval_why=approval_why)
    bento = wire(build, "Build the Bento", memory="1Gi", retries=1)
    image = wire(ecr_push(model_version=model_version, bento=bento.outputs["bento"]), "Push the image", retries=1)
    served = wire(rollout(image_uri=image.output, model_version=model_version), "Roll out", minutes=60, retries=0)
    with_token(served)
    may_roll_out(served)
    return DeploymentOutputs(served.outputs["outcome"])


def deployed_if_promoted(model_version: Any, decision: Any) -> Any:
    """The outcome, as a pipeline's value: of the deployment after `promote`, `waiting` after `wait`, else unchanged."""
    with dsl.If(decision == "promote", name="promoted"):
        deployed = deployment(model_version=model_version)
    with dsl.Elif(decision == "wait", name="waits"):
        waits = wire(keep(gate="decision", value=decision, expected="wait", result="waiting"), "Wait for approval")
    with dsl.Else(name="not-promoted"):
        kept = wire(keep(gate="decision", value=decision, expected="reject"), "Keep what serves")
    outcome = dsl.OneOf(deployed.outputs["outcome"], waits.outputs["outcome"], kept.outputs["outcome"])
    name_gate(outcome, "Promote?")
    return outcome
