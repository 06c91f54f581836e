from typing import List, NamedTuple

from kfp import dsl

from pipelines.deployment import deployed_if_promoted
from pipelines.training import training


class ReadmissionOutputs(NamedTuple):
    """Values of a run."""

    model_version: str
    decision: str
    outcome: str


@dsl.pipeline(name="readmission", description="Train a model and, when it passes its gates, bring it into service.")
def readmission(
    data_source: str = "",
    initial_share: float = 0.2,
    future_batches: int = 16,
    salt: str = "readmission",
    labelled_batches: int = 0,
    families: List[str] = [],  # noqa: B006 (KFP reads the default and does not share it)
    trials: int = 6,
    seed: int = 17,
) -> ReadmissionOutputs:
    """training, then deployment when the decision is `promote`.

    Args:
        data_source: Path or URI of the raw CSV; empty takes the one of the settings.
        initial_share: Share of encounters that train the first model.
        future_batches: How many batches the remaining encounters make.
        salt: Salt of the patient split.
        labelled_batches: How many future batches have labels by now.
        families: Model families to search; empty takes all.
        trials: Trials of each family.
        seed: Seed of the search.

    Returns:
        model_version: Version in MLflow's registry.
        decision: promote or reject.
        outcome: deployed or unchanged; a rollout that was undone fails.
    """
    trained = training(
        data_source=data_source,
        initial_share=initial_share,
        future_batches=future_batches,
        salt=salt,
        labelled_batches=labelled_batches,
        families=families,
        trials=trials,
        seed=seed,
    )
    version, decision = trained.outputs["model_version"], trained.outputs["decision"]
    return ReadmissionOutputs(version, decision, deployed_if_promoted(version, decision))
