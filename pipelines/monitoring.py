"""The monitoring pipeline: what arrived is judged, and what follows from that is done."""

from typing import List, NamedTuple

from kfp import dsl

from health_predict.components import drift, keep, settle
from health_predict.pipelines.descriptions import described
from health_predict.pipelines.readmission import readmission
from health_predict.pipelines.recalibration import recalibration
from health_predict.pipelines.wiring import name_gate, wire


class MonitoringOutputs(NamedTuple):
    """Values of a run."""

    verdict: str
    action: str
    outcome: str
    dataset_source: str


@dsl.pipeline(
    name="monitoring",
    description="Judge what arrived, and recalibrate or retrain when that is what the policy makes of the verdict.",
)
@described(settle, drift, readmission)
def monitoring(
    policy: str = "",
    families: List[str] = [],  # noqa: B006 (KFP reads the default and does not share it)
    trials: str = "",
    seed: str = "",
) -> MonitoringOutputs:
    """drift; then by its action recalibration, readmission on all labelled data, or nothing; then settle."""
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    watched = wire(drift(policy=policy, run_id=run_id), "Judge what arrived", memory="1Gi")
    with dsl.If(watched.outputs["action"] == "retrain", name="retrain"):
        retrained = readmission(
            labelled_batches=watched.outputs["labelled_batches"],
            families=families,
            trials=trials,
            seed=seed,
        )
    with dsl.Elif(watched.outputs["action"] == "recalibrate", name="recalibrate"):
        recalibrated = recalibration(labelled_batches=watched.outputs["labelled_batches"])
    with dsl.Else(name="none"):
        kept = wire(keep(gate="action", value=watched.outputs["action"], expected="none"), "Keep what serves")
    done = dsl.OneOf(retrained.outputs["outcome"], recalibrated.outputs["outcome"], kept.outputs["outcome"])
    name_gate(done, "What to do?")
    digest = watched.outputs["batch_digest"]
    settled = wire(
        settle(batch=watched.outputs["batch"], batch_digest=digest, done=done, run_id=run_id), "Close the batch"
    )
    verdict, action = watched.outputs["verdict"], watched.outputs["action"]
    return MonitoringOutputs(verdict, action, settled.outputs["outcome"], watched.outputs["dataset_source"])
