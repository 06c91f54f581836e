"""The recalibrate stage as a KFP component."""

from typing import NamedTuple

from kfp import dsl

from health_predict.components.image import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def recalibrate(
    labelled_batches: int,
    validation: dsl.Output[dsl.Dataset],
    test: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> NamedTuple("RecalibrateOutputs", [("parent_run_id", str), ("dataset_source", str)]):  # type: ignore[valid-type]
    """Fit the champion's map from score to risk, and its threshold, on the newest outcomes.

    Args:
        labelled_batches: How many batches have known outcomes, such as 4.

    Returns:
        validation: Encounters that the gates look at.
        test: Encounters that are read once for the card.
        metrics: The new map.
        parent_run_id: MLflow run that holds the recalibrated model.
        dataset_source: What data the champion stands on: uci, custom or synthetic.
    """
    from pathlib import Path

    from health_predict.stages.recalibrate import recalibrate as stage
    from health_predict.stages.task import task

    with task("recalibrate") as settings:
        result = stage(
            settings,
            labelled_batches=int(labelled_batches),
            validation=Path(validation.path),
            test=Path(test.path),
        )
        for name in ("intercept", "slope", "rows"):
            metrics.log_metric(name, getattr(result, name))
    return (result.parent_run_id, result.dataset_source)
