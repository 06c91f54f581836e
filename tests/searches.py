"""A home with finished searches, to be registered."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from health_predict.adapters.tracking import CHALLENGER, Tracking
from health_predict.settings import Settings
from health_predict.stages.register import RegisterResult, register
from tests.conftest import Parts
from tests.homes import copied

LogSearch = Callable[..., str]


@dataclass(frozen=True)
class Searches:
    """A home with finished searches by name, of which two are registered; nothing is champion or challenger."""

    settings: Settings
    parents: Mapping[str, str]
    results: Mapping[str, RegisterResult]


@pytest.fixture(scope="module")
def made(
    log_search: LogSearch, parts: Parts, mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Searches:
    settings = Settings(home=tmp_path_factory.mktemp("searches") / "home")
    settings.home.mkdir()
    shutil.copy(mlflow_database, settings.home / "mlflow.db")
    parents = {
        "one": log_search(settings, "LogisticRegression"),
        "other": log_search(settings, "LogisticRegression"),
        "both": log_search(settings, "LogisticRegression", "LightGBM", source="synthetic"),
        "elsewhere": log_search(settings, "LogisticRegression", dataset="e" * 64),
    }
    results = {name: run(settings, parents[name], parts, settings.home.parent) for name in ("one", "other")}
    Tracking(settings).delete_alias(CHALLENGER)
    return Searches(settings, parents, results)


@pytest.fixture
def searches(made: Searches, tmp_path: Path) -> Searches:
    """A copy for one test."""
    return replace(made, settings=Settings(home=copied(made.settings.home, tmp_path / "home")))


def run(settings: Settings, parent: str, parts: Parts, tmp_path: Path) -> RegisterResult:
    return register(
        settings, parent_run_id=parent, validation=parts.validation, test=parts.test, card=tmp_path / "card.html"
    )
