"""hpo on a real Ray and a real MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from health_predict.adapters import ray
from health_predict.adapters.mlflow import Tracking
from health_predict.core.errors import StateError, UnreachableError
from health_predict.core.families import FAMILIES, choose
from health_predict.settings import Settings
from health_predict.stages.hpo import hpo, search_digest
from tests.conftest import Parts

IDENTITY = {"dataset_digest": "d" * 64, "dataset_source": "custom"}


def run(settings: Settings, parts: Parts, tmp_path: Path) -> Any:
    return hpo(
        settings, **IDENTITY, train=parts.train, validation=parts.validation, leaderboard=tmp_path / "board.html"
    )


def test_a_search_is_logged_whole_and_done_once(
    make_settings: Callable[..., Settings], parts: Parts, tmp_path: Path
) -> None:
    settings = make_settings(families=("LogisticRegression", "LightGBM"), trials=2, git_commit="abc")
    tracking = Tracking(settings)
    # given a parent and a child that a killed search left running
    digest = search_digest(settings, IDENTITY["dataset_digest"], choose(settings.families))
    left = tracking.start_search("search", {"search_digest": digest}, {})

    # when the search runs
    result = run(settings, parts, tmp_path)

    # then there is one child a trial and one Best_ run a family, and nothing is left running
    children = tracking.children(result.parent_run_id)
    assert sorted(child.name for child in children) == [
        "Best_LightGBM_Model",
        "Best_LogisticRegression_Model",
        "LightGBM-000",
        "LightGBM-001",
        "LogisticRegression-000",
        "LogisticRegression-001",
    ]
    assert {child.status for child in children} == {"FINISHED"}
    assert tracking.runs("attributes.status = 'RUNNING'") == []
    assert tracking.run(left).status == "KILLED"
    # and a Best_ run says what it is and holds model and preprocessor
    best = next(child for child in children if child.name == "Best_LogisticRegression_Model")
    assert best.tags["baseline"] == "true"
    assert {name: best.tags[name] for name in ("family", "git_commit", "dataset_digest", "stage")} == {
        "family": "LogisticRegression",
        "git_commit": "abc",
        "dataset_digest": "d" * 64,
        "stage": "hpo",
    }
    assert 0.4 < best.metrics["validation_auc"] < 0.9
    assert tracking.preprocessor_matches(best.run_id, tracking.load_run_pipeline(best.run_id))
    # and the page shows every trial
    page = (tmp_path / "board.html").read_text()
    assert all(child.name in page for child in children if child.tags["role"] == "trial")
    # and no process of Ray is left
    assert not [p for p in psutil.Process(os.getpid()).children(recursive=True) if "ray" in " ".join(p.cmdline())]

    # when it runs again, nothing new is made
    again = run(settings, parts, tmp_path)
    assert (again.parent_run_id, again.reused) == (result.parent_run_id, True)
    assert len(tracking.children(result.parent_run_id)) == len(children)


def test_the_search_digest_changes_with_what_matters(make_settings: Callable[..., Settings]) -> None:
    families = choose(())
    base = search_digest(make_settings(), "d", families)
    assert base == search_digest(make_settings(serving_port=4000), "d", families)
    others = {
        search_digest(make_settings(), "e", families),
        search_digest(make_settings(trials=7), "d", families),
        search_digest(make_settings(seed=1), "d", families),
        search_digest(make_settings(), "d", choose(("XGBoost",))),
    }
    assert len(others | {base}) == 5


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on() -> None:
    # given an objective that raises for one family and dies for another; being a closure, it travels by value, and
    # the actors need not import this module
    def broken(family: str, parameters: Mapping[str, Any], data: ray.Prepared, seed: int) -> Mapping[str, float]:
        if family == "XGBoost":
            raise ValueError(f"no luck with {family}")
        if family == "RandomForest":
            os._exit(1)
        return {"auc": 0.6, "average_precision": 0.2, "f1": 0.2, "brier": 0.1}

    rows, labels = np.zeros((4, 2), dtype=np.float32), np.ones(4, dtype=np.int8)
    points = [("XGBoost", 0, {}), ("RandomForest", 0, {}), ("LightGBM", 0, {"num_leaves": 4})]
    ended: list[ray.Trial] = []
    raised, died, fine = ray.search(
        points, broken, ray.Prepared(rows, labels, rows, labels), seed=1, cpus=1, done=ended.append
    )
    assert raised.error == "ValueError: no luck with XGBoost"
    assert "died" in died.error
    assert (fine.error, fine.metrics["auc"], fine.parameters) == ("", 0.6, {"num_leaves": 4})
    assert len(ended) == 3


def test_a_search_without_any_success_names_the_first_cause() -> None:
    failed = [ray.Trial("XGBoost", index, {}, {}, 0.0, f"cause {index}") for index in range(2)]
    with pytest.raises(StateError, match="all 2 trials failed, the first one with: cause 0"):
        ray.collected(failed)


def test_a_cluster_that_is_not_there_is_named() -> None:
    rows, labels = np.zeros((4, 2), dtype=np.float32), np.ones(4, dtype=np.int8)
    with pytest.raises(UnreachableError, match="HEALTH_PREDICT_RAY_ADDRESS"):
        ray.search(
            [("XGBoost", 0, FAMILIES["XGBoost"].first)],
            lambda *_: {},
            ray.Prepared(rows, labels, rows, labels),
            seed=1,
            address="127.0.0.1:1",
            done=lambda trial: None,
        )
