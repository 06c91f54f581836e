"""The pipeline `monitoring` in one process: the same stages in the same order, without a process for each.

Importing MLflow and scikit-learn costs seconds; a simulation pays them once. It also runs where no cluster's pipelines
do: beside a model that a cluster serves.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from health_predict.core.monitoring.policy import Action, Settlement
from health_predict.core.promotion import Decision
from health_predict.settings import Settings
from health_predict.stages.bento_build import bento_build
from health_predict.stages.drift import drift
from health_predict.stages.ecr_push import ecr_push
from health_predict.stages.hpo import hpo
from health_predict.stages.recalibrate import recalibrate
from health_predict.stages.register import RegisterResult, register
from health_predict.stages.rollout import rollout
from health_predict.stages.settle import settle
from health_predict.stages.split import SplitResult, split


def monitoring(settings: Settings) -> None:
    """drift; then by its action recalibration, readmission on all labelled data, or nothing; then settle."""
    with tempfile.TemporaryDirectory(prefix="health-predict-monitoring-") as folder:
        work = Path(folder)
        pages: dict[str, Any] = {
            "report": work / "drift.html",
            "evidently": work / "evidently.html",
            "metrics": work / "drift.json",
        }
        watched = drift(settings, **pages)
        made = None
        if watched.action is Action.RETRAIN:
            made = readmission(settings, watched.labelled_batches, work)
        elif watched.action is Action.RECALIBRATE:
            labelled = watched.labelled_batches
            renewed = recalibrate(settings, labelled_batches=labelled, **_parts(work, "validation", "test"))
            made = _judged(settings, renewed.parent_run_id, work)
        done = Settlement.WAITING if made and made.decision is Decision.WAIT else ""
        settle(settings, batch=watched.batch, batch_digest=watched.batch_digest, done=done)


def readmission(settings: Settings, labelled_batches: int, work: Path) -> RegisterResult:
    """split, hpo, register, and the deployment when the decision is `promote`; files go to `work`."""
    data = dataset(settings, labelled_batches, work)
    search = hpo(
        settings,
        dataset_digest=data.dataset_digest,
        dataset_source=data.dataset_source,
        leaderboard=work / "leaderboard.html",
        **_parts(work, "train", "validation"),
    )
    return _judged(settings, search.parent_run_id, work)


def dataset(settings: Settings, labelled_batches: int, work: Path) -> SplitResult:
    """split; files go to `work`."""
    return split(
        settings,
        labelled_batches=labelled_batches,
        train=work / "train.parquet",
        validation=work / "validation.parquet",
        test=work / "test.parquet",
        batches=work / "batches.json",
        profile=work / "profile.html",
    )


def _parts(work: Path, *names: str) -> dict[str, Path]:
    return {name: work / f"{name}.parquet" for name in names}


def _judged(settings: Settings, parent_run_id: str, work: Path) -> RegisterResult:
    parts = _parts(work, "validation", "test")
    registered = register(settings, parent_run_id=parent_run_id, card=work / "card.html", **parts)
    if registered.decision is Decision.PROMOTE:
        deploy(settings, registered.model_version, work)
    return registered


def deploy(settings: Settings, model_version: str, work: Path) -> None:
    """bento_build, ecr_push, rollout."""
    bento_build(settings, model_version=model_version, bento=work / "bento.tar")
    pushed = ecr_push(settings, bento=work / "bento.tar", model_version=model_version)
    rollout(settings, image_uri=pushed, model_version=model_version, report=work / "rollout.html")
