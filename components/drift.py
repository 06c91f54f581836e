from typing import NamedTuple

from kfp import dsl

from components.image import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def drift(
    batch: int,
    report: dsl.Output[dsl.HTML],
    evidently: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> NamedTuple("DriftOutputs", [("verdict", str)]):  # type: ignore[valid-type]
    """Compare one future batch with what the champion was trained on.

    Args:
        batch: Number of the batch, from 0.
        report: Findings and verdict in words.
        evidently: Evidently's own report.
        metrics: The figures behind the verdict.
    """
    from pathlib import Path

    from health_predict.stages.drift import drift as stage
    from health_predict.stages.task import task

    with task("drift") as settings:
        result = stage(
            settings,
            batch=int(batch),
            report=Path(report.path),
            evidently=Path(evidently.path),
            metrics=Path(metrics.path),
        )
        for name, value in result.metrics.items():
            metrics.log_metric(name, value)
    return (result.verdict.value,)
