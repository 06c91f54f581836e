from typing import NamedTuple

from kfp import dsl

from components.image import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def split(
    data_source: str,
    initial_share: float,
    future_batches: int,
    salt: str,
    labelled_batches: int,
    train: dsl.Output[dsl.Dataset],
    validation: dsl.Output[dsl.Dataset],
    test: dsl.Output[dsl.Dataset],
    batches: dsl.Output[dsl.Artifact],
    profile: dsl.Output[dsl.HTML],
) -> NamedTuple("SplitOutputs", [("dataset_digest", str), ("dataset_source", str)]):  # type: ignore[valid-type]
    """Cut the raw data into initial and future encounters, and the patients into train, validation and test.

    Args:
        data_source: Path or URI of the raw CSV; empty takes the one of the settings.
        initial_share: Share of encounters, in order of their number, that train the first model.
        future_batches: How many batches the remaining encounters make.
        salt: Salt of the patient split.
        labelled_batches: How many future batches have labels by now and join the initial data.

    Returns:
        train: Training encounters, Parquet.
        validation: Validation encounters, Parquet.
        test: Test encounters, Parquet.
        batches: Manifest of the data set, with the addresses of its future batches.
        profile: Data profile.
        dataset_digest: Digest of the data set.
        dataset_source: uci, custom or synthetic.
    """
    from pathlib import Path

    from health_predict.stages.split import split as stage
    from health_predict.stages.task import task

    with task(
        "split", data_source=data_source, initial_share=initial_share, future_batches=future_batches, salt=salt
    ) as settings:
        result = stage(
            settings,
            labelled_batches=labelled_batches,
            train=Path(train.path),
            validation=Path(validation.path),
            test=Path(test.path),
            batches=Path(batches.path),
            profile=Path(profile.path),
        )
    return (result.dataset_digest, result.dataset_source)
