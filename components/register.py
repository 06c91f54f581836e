"""The register stage as a KFP component."""

from typing import NamedTuple

from kfp import dsl

from health_predict.components.image import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def register(
    parent_run_id: str,
    validation: dsl.Input[dsl.Dataset],
    test: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    roc: dsl.Output[dsl.ClassificationMetrics],
    model_card: dsl.Output[dsl.HTML],
) -> NamedTuple("RegisterOutputs", [("model_version", str), ("decision", str)]):  # type: ignore[valid-type]
    """Register the best model of a search and decide whether it may replace the champion.

    Args:
        parent_run_id: Parent run of the search.
        validation: Validation encounters, which the gates look at.
        test: Test encounters, read once for the card.

    Returns:
        metrics: Test metrics with their intervals.
        roc: ROC curve and confusion matrix on the test set.
        model_card: The model card.
        model_version: Version in MLflow's registry.
        decision: promote, wait (a person has to approve it) or reject.
    """
    from pathlib import Path

    from health_predict.adapters.contracts import contract_of
    from health_predict.stages.register import register as stage
    from health_predict.stages.task import task

    with task("register") as settings:
        result = stage(
            settings,
            parent_run_id=parent_run_id,
            validation=Path(validation.path),
            test=Path(test.path),
            card=Path(model_card.path),
        )
        for name, estimate in result.test_metrics.items():
            metrics.log_metric(name, estimate.value)
            metrics.log_metric(f"{name}_low", estimate.low)
            metrics.log_metric(f"{name}_high", estimate.high)
        roc.log_roc_curve(*result.roc)
        event = contract_of(settings).outcome.event
        roc.log_confusion_matrix([f"no {event}", event], result.confusion)
    return (result.model_version, result.decision.value)
