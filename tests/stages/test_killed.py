"""Every stage that writes state is killed with -9 at each thing it says, and run on: it ends as if it never was.

The search is killed in `tests/test_end_to_end.py`, the rollout in `test_rollout.py`: they have processes of their own.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from tests.forks import ended

STAGES: Mapping[str, Callable[..., Any]] = {
    "split": split,
    "register": register,
    "bento_build": bento_build,
    "ecr_push": ecr_push,
    "drift": drift,
}
MOST_LINES = 40


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
        code = ended(die, stage, lines, settings, arguments)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
    assert deaths > 0
    return STAGES[stage](settings, **arguments)


def leftovers(home: Path) -> list[Path]:
    return list(home.rglob("*.part"))


SPLIT_FILES = ("train", "validation", "test", "batches", "profile")


def split_arguments(out: Path) -> dict[str, Any]:
    return {"labelled_batches": 0, **{name: out / name for name in SPLIT_FILES}}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Calm:
    """A split that nobody disturbed, not to be changed."""

    folder: Path
    settings: Settings
    digest: str

    def again(self, home: Path) -> Settings:
        return _splitting(self.folder, home)


def _splitting(folder: Path, home: Path) -> Settings:
    return Settings(home=home, data_source=str(folder / "raw.csv"), initial_share=0.8, future_batches=2)


@pytest.fixture(scope="module")
def calm(cohort: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    folder = tmp_path_factory.mktemp("calm")
    cohort.head(1500).to_csv(folder / "raw.csv", index=False)
    settings = _splitting(folder, folder / "home")
    return Calm(folder, settings, split(settings, **split_arguments(folder / "out")).dataset_digest)


def test_split(calm: Calm, tmp_path: Path) -> None:
    # when it is killed at every line
    settings = calm.again(tmp_path / "home")
    result = run_with_deaths("split", settings, split_arguments(tmp_path / "out"))
    # then the same files with the same bytes are there, and nothing else
    assert result.dataset_digest == calm.digest
    found, expected = tree(settings.home / "storage"), tree(calm.settings.home / "storage")
    assert found.keys() == expected.keys()
    assert {name for name in expected if name.endswith(".parquet") and found[name] != expected[name]} == set()
    assert leftovers(settings.home) == []


def split_and_die(settings: Settings, out: Path, writes: int) -> None:
    """Kill this process between writing a file and giving it its name."""
    replace, left = Path.replace, iter(range(writes - 1, -1, -1))

    def stop(self: Path, target: str | Path) -> Path:
        if not next(left):
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = stop  # type: ignore[method-assign]
    split(settings, **split_arguments(out))


@pytest.mark.parametrize("writes", [1, 6, 9])
def test_split_between_writing_and_naming_a_file(writes: int, calm: Calm, tmp_path: Path) -> None:
    # when a run is killed there
    settings, expected = calm.again(tmp_path / "home"), tree(calm.settings.home / "storage")
    assert ended(split_and_die, settings, tmp_path / "out", writes) == -signal.SIGKILL
    # then every key that is there is whole
    storage = open_storage(settings.storage)
    for key in storage.keys(""):
        assert storage.read(key) == expected[key]
    # and a repeat ends in the same state
    split(settings, **split_arguments(tmp_path / "out"))
    assert {key: storage.read(key) for key in storage.keys("")} == expected
    found, parts = tree(tmp_path / "out"), SPLIT_FILES[:3]
    assert {name: found[name] for name in parts} == {name: tree(calm.folder / "out")[name] for name in parts}


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
