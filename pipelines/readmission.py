from typing import List, NamedTuple

from kfp import dsl

from health_predict.pipelines.deployment import deployed_if_promoted
from health_predict.pipelines.training import training


class ReadmissionOutputs(NamedTuple):
    """Values of a run."""

    model_version: str
    decision: str
    dataset_source: str
    outcome: str


@dsl.pipeline(name="readmission", description="Train a model and, when it passes its gates, bring it into service.")
def readmission(  # KFP takes inputs one by one, and describes them in the docstring
    data_source: str = "",
    replace_data: bool = False,
    initial_share: str = "",
    future_batches: str = "",
    salt: str = "",
    labelled_batches: int = 0,
    families: List[str] = [],  # noqa: B006 (KFP reads the default and does not share it)
    trials: str = "",
    seed: str = "",
) -> ReadmissionOutputs:
    """training, then deployment when the decision is `promote`.

    Args:
        data_source: Path or URI of the raw CSV; empty is as in the settings, else the champion's, else UCI's.
        replace_data: Whether other data than the champion's may take their place; false is as the settings say.
        initial_share: Share of encounters that train the first model; empty is as in the settings or, with labelled
            batches, in the champion's dataset.
        future_batches: How many batches the remaining encounters make; empty likewise.
        salt: Salt of the patient split; empty likewise.
        labelled_batches: How many batches have labels by now.
        families: Model families to search; empty is as in the settings.
        trials: Trials of each family; empty is as in the settings.
        seed: Seed of the search; empty is as in the settings.

    Returns:
        model_version: Version in MLflow's registry.
        decision: promote or reject.
        dataset_source: What the data are: uci, custom or synthetic.
        outcome: deployed or unchanged; a rollout that was undone fails.
    """
    trained = training(
        data_source=data_source,
        replace_data=replace_data,
        initial_share=initial_share,
        future_batches=future_batches,
        salt=salt,
        labelled_batches=labelled_batches,
        families=families,
        trials=trials,
        seed=seed,
    )
    version, decision = trained.outputs["model_version"], trained.outputs["decision"]
    outcome = deployed_if_promoted(version, decision)
    return ReadmissionOutputs(version, decision, trained.outputs["dataset_source"], outcome)
