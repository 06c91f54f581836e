"""The drift stage as a KFP component."""

from typing import NamedTuple

from kfp import dsl

from health_predict.components.image import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def drift(
    policy: str,
    run_id: str,
    report: dsl.Output[dsl.HTML],
    evidently: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> NamedTuple(  # type: ignore[valid-type]
    "DriftOutputs",
    [
        ("verdict", str),
        ("action", str),
        ("batch", int),
        ("batch_digest", str),
        ("labelled_batches", int),
        ("dataset_source", str),
    ],
):
    """Take in what arrived, compare the batch that is due with what the champion learned from, decide what to do.

    Args:
        policy: never, every, scheduled or drift; empty takes the one of the settings.
        run_id: Kubeflow's id of the run, whose turn it is until `settle`.

    Returns:
        report: Findings and verdict in words.
        evidently: Evidently's own report.
        metrics: The figures behind the verdict.
        verdict: steady, recalibrate or retrain: what the batch says.
        action: none, recalibrate or retrain: what the policy makes of it.
        batch: Number of the batch; -1 when nothing was due.
        batch_digest: Digest of what was looked at.
        labelled_batches: How many batches have known outcomes.
        dataset_source: What data the champion stands on: uci, custom or synthetic.
    """
    from pathlib import Path

    from health_predict.stages.drift import drift as stage
    from health_predict.stages.task import task

    with task("drift", policy=policy) as settings:
        result = stage(
            settings,
            run_id=run_id,
            report=Path(report.path),
            evidently=Path(evidently.path),
            metrics=Path(metrics.path),
        )
        for name, value in result.metrics.items():
            metrics.log_metric(name, value)
    return (
        result.verdict.value,
        result.action.value,
        result.batch,
        result.batch_digest,
        result.labelled_batches,
        result.dataset_source,
    )
