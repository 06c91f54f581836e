from typing import List, NamedTuple

from kfp import dsl

from components import drift, keep, settle
from pipelines.readmission import readmission
from pipelines.recalibration import recalibration
from pipelines.wiring import name_gate, wire


class MonitoringOutputs(NamedTuple):
    """Values of a run."""

    verdict: str
    action: str
    outcome: str


@dsl.pipeline(
    name="monitoring",
    description="Judge one batch, and recalibrate or retrain when that is what the policy makes of the verdict.",
)
def monitoring(
    batch: int = -1,
    policy: str = "",
    data_source: str = "",
    initial_share: float = 0.2,
    future_batches: int = 16,
    salt: str = "readmission",
    families: List[str] = [],  # noqa: B006 (KFP reads the default and does not share it)
    trials: int = 6,
    seed: int = 17,
) -> MonitoringOutputs:
    """drift; then by its action recalibration, readmission on all labelled data, or nothing; then settle.

    Args:
        batch: Number of the batch, from 0; -1 takes the next one that was not handled.
        policy: never, every, scheduled or drift; empty takes the one of the settings.
        data_source: Path or URI of the raw CSV; empty takes the one of the settings.
        initial_share: Share of encounters that train the first model.
        future_batches: How many batches the remaining encounters make.
        salt: Salt of the patient split.
        families: Model families to search; empty takes all.
        trials: Trials of each family.
        seed: Seed of the search.

    Returns:
        verdict: steady, recalibrate or retrain.
        action: none, recalibrate or retrain.
        outcome: deployed, unchanged, lost or quarantined.
    """
    watched = wire(drift(batch=batch, policy=policy), "Judge the batch", memory="1Gi")
    with dsl.If(watched.outputs["action"] == "retrain", name="retrain"):
        retrained = readmission(
            data_source=data_source,
            initial_share=initial_share,
            future_batches=future_batches,
            salt=salt,
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
    settled = wire(
        settle(batch=watched.outputs["batch"], batch_digest=watched.outputs["batch_digest"], done=done),
        "Close the batch",
    )
    return MonitoringOutputs(watched.outputs["verdict"], watched.outputs["action"], settled.outputs["outcome"])
