"""The split stage as a KFP component."""

from typing import NamedTuple

from kfp import dsl

from health_predict.components.image import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def split(  # KFP takes inputs one by one, and describes them in the docstring
    data_source: str,
    data_sha256: str,
    replace_data: bool,
    initial_share: str,
    future_batches: str,
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
        data_source: Path or URI of the raw CSV; empty is as in the settings, else the champion's, else published data.
        data_sha256: SHA-256 of the CSV file, unpacked; in a cluster a data source needs it.
        replace_data: Whether other data than the champion's may take their place; false is as the settings say.
        initial_share: Share of encounters, in order of their number, that train the first model; empty is as in the
            settings or, with labelled batches, in the champion's dataset.
        future_batches: How many batches the remaining encounters make; empty likewise.
        salt: Salt of the patient split; empty likewise.
        labelled_batches: How many batches have labels by now and join the initial data.

    Returns:
        train: Training encounters, Parquet.
        validation: Validation encounters, Parquet.
        test: Test encounters, Parquet.
        batches: Manifest of the data set, with the addresses of its future batches.
        profile: Data profile.
        dataset_digest: Digest of the data set.
        dataset_source: What the data are: uci, custom or synthetic.
    """
    from pathlib import Path

    from health_predict.stages.split import split as stage
    from health_predict.stages.task import task

    cut = {"initial_share": initial_share, "future_batches": future_batches, "salt": salt}
    data = {"data_source": data_source, "data_sha256": data_sha256, "replace_data": replace_data or ""}
    with task("split", **data, **cut) as settings:
        result = stage(
            settings,
            labelled_batches=labelled_batches,
            given=[name for name, value in cut.items() if value],
            train=Path(train.path),
            validation=Path(validation.path),
            test=Path(test.path),
            batches=Path(batches.path),
            profile=Path(profile.path),
        )
    return (result.dataset_digest, result.dataset_source)
