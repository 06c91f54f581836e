"""The readmission pipeline: training, then deployment of what passed its gates."""

from typing import List, NamedTuple

from kfp import dsl

from health_predict.pipelines.deployment import deployed_if_promoted, deployment
from health_predict.pipelines.descriptions import described
from health_predict.pipelines.training import training


class ReadmissionOutputs(NamedTuple):
    """Values of a run."""

    model_version: str
    decision: str
    dataset_source: str
    outcome: str


@dsl.pipeline(name="readmission", description="Train a model and, when it passes its gates, bring it into service.")
@described(training, deployment)
def readmission(  # KFP takes inputs one by one
    data_source: str = "",
    data_sha256: str = "",
    replace_data: bool = False,
    initial_share: str = "",
    future_batches: str = "",
    salt: str = "",
    labelled_batches: int = 0,
    families: List[str] = [],  # noqa: B006 (KFP reads the default and does not share it)
    trials: str = "",
    seed: str = "",
) -> ReadmissionOutputs:
    """training, then deployment when the decision is `promote`."""
    trained = training(
        data_source=data_source,
        data_sha256=data_sha256,
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
