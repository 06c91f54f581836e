from typing import List, NamedTuple

from kfp import dsl

from components import drift, keep
from pipelines.readmission import readmission
from pipelines.wiring import wire


class MonitoringOutputs(NamedTuple):
    """Values of a run."""

    verdict: str
    outcome: str


@dsl.pipeline(
    name="monitoring",
    description="Compare one batch with the champion's reference and retrain when that is the verdict.",
)
def monitoring(
    batch: int,
    labelled_batches: int,
    data_source: str = "",
    initial_share: float = 0.2,
    future_batches: int = 16,
    salt: str = "readmission",
    families: List[str] = [],  # noqa: B006 (KFP reads the default and does not share it)
    trials: int = 6,
    seed: int = 17,
) -> MonitoringOutputs:
    """drift, then readmission on all labelled data unless the verdict is `steady`.

    Args:
        batch: Number of the batch, from 0.
        labelled_batches: How many future batches a retraining may use.
        data_source: Path or URI of the raw CSV; empty takes the one of the settings.
        initial_share: Share of encounters that train the first model.
        future_batches: How many batches the remaining encounters make.
        salt: Salt of the patient split.
        families: Model families to search; empty takes all.
        trials: Trials of each family.
        seed: Seed of the search.
    """
    watched = wire(drift(batch=batch), "drift", memory="1Gi")
    retraining = {
        "data_source": data_source,
        "initial_share": initial_share,
        "future_batches": future_batches,
        "salt": salt,
        "labelled_batches": labelled_batches,
        "families": families,
        "trials": trials,
        "seed": seed,
    }
    with dsl.If(watched.outputs["verdict"] == "retrain", name="retrain"):
        retrained = readmission(**retraining)
    # A retraining on newer labels recalibrates too.
    with dsl.Elif(watched.outputs["verdict"] == "recalibrate", name="recalibrate"):
        recalibrated = readmission(**retraining)
    with dsl.Else(name="steady"):
        kept = wire(keep(gate="verdict", value=watched.outputs["verdict"], expected="steady"), "keep what serves")
    outcome = dsl.OneOf(retrained.outputs["outcome"], recalibrated.outputs["outcome"], kept.outputs["outcome"])
    return MonitoringOutputs(watched.outputs["verdict"], outcome)
