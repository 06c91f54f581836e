"""Every stage that writes state is killed with -9 at each thing it says, and run on: it ends as if it never was.

The search is killed in `tests/test_end_to_end.py`, the rollout in `test_rollout.py`: they have processes of their own.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from health_predict.adapters.data.batches import Batches
from health_predict.adapters.images import open_registry
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import CHAMPION, Tracking
from health_predict.core.data.cohort import load_part
from health_predict.settings import Settings
from health_predict.stages.bento_build import bento_build
from health_predict.stages.drift import drift
from health_predict.stages.ecr_push import ecr_push
from health_predict.stages.register import register
from health_predict.stages.settle import settle
from health_predict.stages.split import split
from tests.conftest import Parts
from tests.feed import logged

STAGES: Mapping[str, Callable[..., Any]] = {
    "split": split,
    "register": register,
    "bento_build": bento_build,
    "ecr_push": ecr_push,
    "drift": drift,
}
MOST_LINES = 40

# A server that has imported once what the stages import when they need it; its children start in milliseconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    [
        "tests.stages.test_killed",
        "health_predict.adapters.evidently",
        "bentoml",
        "evidently.presets",
        "lightgbm",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "mlflow.sklearn",
        "onnxmltools",
        "onnxruntime",
        "skl2onnx",
        "sklearn.pipeline",
    ]
)


class DyingHandler(logging.Handler):
    """Kills its own process at the nth record."""

    def __init__(self, records: int) -> None:
        super().__init__(logging.INFO)
        self.left = records

    def emit(self, record: logging.LogRecord) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def die(stage: str, lines: int, settings: Settings, arguments: dict[str, Any]) -> None:
    logging.getLogger("health_predict").setLevel(logging.INFO)
    logging.getLogger("health_predict").addHandler(DyingHandler(lines))
    STAGES[stage](settings, **arguments)


def run_with_deaths(stage: str, settings: Settings, arguments: dict[str, Any]) -> Any:
    """Kill the stage at its first line, run it again and kill it at its second, and so on; the last result."""
    deaths = 0
    for lines in range(1, MOST_LINES):
        process = processes.Process(target=die, args=(stage, lines, settings, arguments))
        process.start()
        process.join(120)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        deaths += 1
    assert deaths > 0
    return STAGES[stage](settings, **arguments)


def leftovers(home: Path) -> list[Path]:
    return list(home.rglob("*.part"))


@pytest.fixture
def raw(cohort: pd.DataFrame, tmp_path: Path) -> Path:
    file = tmp_path / "raw.csv"
    cohort.to_csv(file, index=False)
    return file


def test_split(make_settings: Callable[..., Settings], raw: Path, tmp_path: Path) -> None:
    def files(folder: str) -> dict[str, Any]:
        names = ("train", "validation", "test", "batches", "profile")
        return {"labelled_batches": 0, **{name: tmp_path / folder / name for name in names}}

    def made(settings: Settings) -> dict[str, bytes]:
        storage = settings.home / "storage"
        return {str(path.relative_to(storage)): path.read_bytes() for path in storage.rglob("*") if path.is_file()}

    values = {"data_source": str(raw), "initial_share": 0.8, "future_batches": 2}
    calm = make_settings(home=tmp_path / "calm", **values)
    expected = split(calm, **files("calm-out"))
    # when it is killed at every line
    settings = make_settings(home=tmp_path / "killed", **values)
    result = run_with_deaths("split", settings, files("out"))
    # then the same files with the same bytes are there, and nothing else
    assert result.dataset_digest == expected.dataset_digest
    assert set(made(settings)) == set(made(calm))
    for name, content in made(calm).items():
        if name.endswith(".parquet"):
            assert made(settings)[name] == content
    assert leftovers(settings.home) == []


def test_register_bento_build_ecr_push_and_drift(
    settings: Settings, parts: Parts, log_search: Callable[..., str], tmp_path: Path
) -> None:
    tracking = Tracking(settings)
    parent = log_search(settings, "LogisticRegression")
    dataset = f"datasets/{tracking.run(parent).tags['dataset_digest']}"
    storage = open_storage(settings.storage)
    for name, file in (("train", parts.train), ("validation", parts.validation)):
        storage.upload(file, f"{dataset}/{name}.parquet")

    # register: one version, one decision, no run left open
    registered = run_with_deaths(
        "register",
        settings,
        {"parent_run_id": parent, "validation": parts.validation, "test": parts.test, "card": tmp_path / "card.html"},
    )
    [version] = tracking.versions()
    assert version.tags["decision"] == registered.decision.value
    assert tracking.runs("attributes.status = 'RUNNING'") == []

    # bento_build: the digest of an undisturbed build of the same version
    arguments = {
        "model_version": version.version,
        "bento": tmp_path / "bento.tar",
    }
    built = run_with_deaths("bento_build", settings, arguments)
    assert tracking.version(version.version).tags["bento_digest"] == built.digest
    calm = Settings(home=tmp_path / "calm", mlflow_tracking_uri=settings.tracking_uri, storage_uri=settings.storage)
    assert bento_build(calm, **{**arguments, "bento": tmp_path / "calm.tar"}).digest == built.digest
    assert (tmp_path / "calm.tar").read_bytes() == (tmp_path / "bento.tar").read_bytes()

    # ecr_push: one image, whole
    pushed = run_with_deaths("ecr_push", settings, {"bento": tmp_path / "bento.tar", "model_version": version.version})
    open_registry(settings).verify(pushed)
    assert tracking.version(version.version).tags["image_uri"] == pushed

    # drift: what arrived is there once, one decision, one end of it, and the reports it stands for
    tracking.set_alias(CHAMPION, version.version)
    outputs = {name: tmp_path / name for name in ("report", "evidently", "metrics")}
    batch = load_part(parts.test)
    logged(storage, "log", batch, datetime.now(UTC))
    settings = settings.model_copy(update={"window": str(len(batch))})
    watched = run_with_deaths("drift", settings, outputs)
    state = Batches(settings).arrivals.state()
    assert (state.arrived, state.repeated, state.windows.number) == (len(batch), 0, 1)
    assert len(storage.keys("monitoring/live/decisions/")) == 1
    assert settle(settings, batch=0, batch_digest=watched.batch_digest) == "unchanged" or watched.action != "none"
    assert len(storage.keys("monitoring/live/settled/")) == 1
    assert all(file.stat().st_size for file in outputs.values())
    assert leftovers(settings.home) == []
