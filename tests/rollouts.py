"""A home with two versions that can be rolled out, and what serves there."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import Pipeline

from health_predict.adapters.serving.processes import ProcessTarget
from health_predict.adapters.tracking import CHALLENGER, CHAMPION, Tracking
from health_predict.core.data.cohort import load_part, save_csv, target
from health_predict.core.model.features import EncounterFeatures
from health_predict.settings import Settings
from health_predict.stages.bento_build import bento_build
from health_predict.stages.ecr_push import ecr_push
from health_predict.stages.rollout import RolloutResult, rollout
from health_predict.stages.split import split
from tests.cohorts import synthesize
from tests.contracts import DIABETES


@dataclass(frozen=True)
class Built:
    """A home with a split dataset and two versions of a model, built and pushed."""

    settings: Settings
    tracking: Tracking
    target: ProcessTarget
    images: dict[str, str]

    def rollout(self, version: str, **changes: Any) -> RolloutResult:
        settings = self.settings.model_copy(update=changes)
        report = self.settings.home / "rollout.html"
        report.unlink(missing_ok=True)
        return rollout(settings, image_uri=self.images[version], model_version=version, report=report)

    def report(self) -> str:
        return (self.settings.home / "rollout.html").read_text()

    def champion(self) -> str:
        champion = self.tracking.by_alias(CHAMPION)
        return champion.version if champion else ""

    def stage(self, version: str) -> str:
        return self.tracking.version(version).tags.get("stage", "")

    def served(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.settings.serving_port, timeout=20)
        try:
            connection.request("GET", "/health")
            return str(json.loads(connection.getresponse().read())["model_version"])
        finally:
            connection.close()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Path:
    """A home in which both versions are built and pushed."""
    home = tmp_path_factory.mktemp("built") / "home"
    home.mkdir()
    shutil.copy(mlflow_database, home / "mlflow.db")
    data = home.parent / "data.csv"
    save_csv(synthesize(3000, seed=5), data)
    settings = Settings(home=home, data_source=str(data), git_commit="c" * 40, future_batches=2, initial_share=0.6)
    parts = {name: home.parent / f"{name}.parquet" for name in ("train", "validation", "test")}
    dataset = split(
        settings, labelled_batches=0, **parts, batches=home.parent / "b.json", profile=home.parent / "p.html"
    )
    for number, depth in (("1", 2), ("2", 3)):
        register_forest(settings, parts, dataset.dataset_digest, depth)
        archive = home.parent / f"{number}.tar"
        bento_build(settings, model_version=number, bento=archive)
        ecr_push(settings, bento=archive, model_version=number)
    return home


def register_forest(settings: Settings, parts: dict[str, Path], dataset: str, depth: int) -> None:
    """Fit a small forest to the dataset and register it: another version for each depth."""
    tracking = Tracking(settings)
    train = load_part(parts["train"])
    features = EncounterFeatures(DIABETES).fit(train)
    forest = RandomForestClassifier(20, max_depth=depth, random_state=1).fit(
        features.transform(train), target(train, DIABETES)
    )
    tags = {
        "contract_digest": DIABETES.digest,
        "dataset_digest": dataset,
        "dataset_source": "synthetic",
        "git_commit": "c" * 40,
        "family": "RandomForest",
    }
    parent = tracking.start_search("search", tags, {})
    pipeline = Pipeline([("features", features), ("estimator", forest)])
    run = tracking.log_best(parent, "RandomForest", pipeline, tags, {"threshold": "0.1"}, {}, {})
    tracking._client.set_terminated(run)
    tracking.end_search(parent, {})
    tracking.register(run, {**tags, "run_id": run, "threshold": "0.1", "stage": "Staging"}, "")


@pytest.fixture(scope="module")
def shared(original: Path) -> Iterator[Built]:
    """The endpoint outlives a test, as it outlives a command: each test says in its `given` what it needs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    settings = Settings(home=original, serving_port=port, git_commit="c" * 40)
    tracking = Tracking(settings)
    images = {number: tracking.version(number).tags["image_uri"] for number in ("1", "2")}
    built = Built(settings, tracking, ProcessTarget(settings), images)
    yield built
    built.target.stop()


@pytest.fixture
def down(shared: Built) -> Built:
    """Nothing serves and nothing is champion."""
    shared.target.stop()
    for alias in (CHAMPION, CHALLENGER):
        shared.tracking.delete_alias(alias)
    for number in shared.images:
        shared.tracking.tag_version(number, {"stage": "Staging"})
    return shared


@pytest.fixture
def first(shared: Built) -> Built:
    """Version 1 serves and is champion."""
    shared.rollout("1")
    return shared
