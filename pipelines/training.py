"""The training pipeline: data, search, model version."""

from typing import List, NamedTuple

from kfp import dsl

from health_predict.components import hpo, register, split
from health_predict.pipelines.descriptions import described
from health_predict.pipelines.wiring import wire


class TrainingOutputs(NamedTuple):
    """Values of a run."""

    model_version: str
    decision: str
    dataset_source: str


@dsl.pipeline(name="training", description="Split the data, search over the model families, register the best.")
@described(split, hpo, register)
def training(  # KFP takes inputs one by one
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
) -> TrainingOutputs:
    """split, hpo, register."""
    data = wire(
        split(
            data_source=data_source,
            data_sha256=data_sha256,
            replace_data=replace_data,
            initial_share=initial_share,
            future_batches=future_batches,
            salt=salt,
            labelled_batches=labelled_batches,
        ),
        "Split the data",
        memory="1Gi",
    )
    search = wire(
        hpo(
            dataset_digest=data.outputs["dataset_digest"],
            dataset_source=data.outputs["dataset_source"],
            families=families,
            trials=trials,
            seed=seed,
            train=data.outputs["train"],
            validation=data.outputs["validation"],
        ),
        "Search over the models",
        cpu="500m",  # as much as it gets; more would keep it off a node of two processors
        memory="2Gi",
        minutes=360,
    )
    registered = wire(
        register(
            parent_run_id=search.outputs["parent_run_id"],
            validation=data.outputs["validation"],
            test=data.outputs["test"],
        ),
        "Register and ask the gates",
        memory="1Gi",
        retries=1,
    )
    return TrainingOutputs(
        registered.outputs["model_version"], registered.outputs["decision"], data.outputs["dataset_source"]
    )
