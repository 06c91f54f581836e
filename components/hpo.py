"""The hpo stage as a KFP component."""

from typing import List, NamedTuple

from kfp import dsl

from health_predict.components.image import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def hpo(  # KFP takes inputs one by one, and describes them in the docstring
    dataset_digest: str,
    dataset_source: str,
    families: List[str],
    trials: str,
    seed: str,
    train: dsl.Input[dsl.Dataset],
    validation: dsl.Input[dsl.Dataset],
    leaderboard: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> NamedTuple("HpoOutputs", [("parent_run_id", str)]):  # type: ignore[valid-type]
    """Search over the model families with Ray Tune and log every trial in MLflow.

    Args:
        dataset_digest: Digest of the data set.
        dataset_source: Where the data came from: uci, custom or synthetic.
        families: Model families to search; empty is as in the settings.
        trials: Trials of each family; empty is as in the settings.
        seed: Seed of the search; empty is as in the settings.
        train: Training encounters.
        validation: Validation encounters.

    Returns:
        leaderboard: Every trial and the best model of each family.
        metrics: Validation metrics of the best model of each family.
        parent_run_id: MLflow run of the search, the parent of its trials.
    """
    from pathlib import Path

    from health_predict.stages.hpo import hpo as stage
    from health_predict.stages.task import task

    with task("hpo", families=tuple(families), trials=trials, seed=seed) as settings:
        result = stage(
            settings,
            dataset_digest=dataset_digest,
            dataset_source=dataset_source,
            train=Path(train.path),
            validation=Path(validation.path),
            leaderboard=Path(leaderboard.path),
        )
        for family, found in result.best_metrics.items():
            for name in ("auc", "average_precision", "f1"):
                metrics.log_metric(f"{family}_{name}", found[name])
    return (result.parent_run_id,)
