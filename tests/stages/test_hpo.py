"""hpo on a real Ray and a real MLflow."""

from __future__ import annotations

import html
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from health_predict.adapters import ray
from health_predict.adapters.mlflow import CHOSEN, REASON, Tracking
from health_predict.core.calibration import CalibratedClassifier
from health_predict.core.errors import SettingsError, StateError, UnreachableError
from health_predict.core.families import FAMILIES, choose
from health_predict.core.search import METRICS, FamilySearch, Point, Prepared, Trial, run_trial
from health_predict.settings import Settings
from health_predict.stages.hpo import hpo, search_digest
from tests.conftest import Parts

IDENTITY = {"dataset_digest": "d" * 64, "dataset_source": "custom"}


def run(settings: Settings, parts: Parts, tmp_path: Path) -> Any:
    return hpo(
        settings, **IDENTITY, train=parts.train, validation=parts.validation, leaderboard=tmp_path / "board.html"
    )


def test_a_search_is_logged_whole_and_done_once(
    make_settings: Callable[..., Settings], parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(families=("LogisticRegression", "LightGBM"), trials=2, git_commit="abc")
    tracking = Tracking(settings)
    # given a search that was killed after one trial, in the middle of another
    digest = search_digest(settings, IDENTITY["dataset_digest"], choose(settings.families))
    tags = {"search_digest": digest, **IDENTITY, "git_commit": "abc"}
    left = tracking.start_search("search", tags, {"seed": settings.seed})
    first = FAMILIES["LogisticRegression"].first
    tags = {"family": "LogisticRegression", "trial": "0", "stopped_early": "false"}
    finished = tracking.log_trial(
        left, "LogisticRegression-000", tags, first, {**dict.fromkeys(METRICS, 0.99), "seconds": 1.0}
    )
    tracking._create_child(left, "LightGBM-000", {"family": "LightGBM"}, "trial")

    # when the search runs
    result = run(settings, parts, tmp_path)

    # then it went on where it was: the same parent, the finished trial as it is
    assert result.parent_run_id == left
    assert tracking.run(finished).metrics["auc"] == 0.99
    # and there is one child a trial and one Best_ run a family, and nothing is left running
    found = tracking.children(result.parent_run_id)
    assert sorted(child.name for child in found) == [
        "Best_LightGBM_Model",
        "Best_LogisticRegression_Model",
        "LightGBM-000",
        "LightGBM-001",
        "LogisticRegression-000",
        "LogisticRegression-001",
    ]
    assert {child.status for child in found} == {"FINISHED"}
    assert tracking.runs("attributes.status = 'RUNNING'") == []
    # and a Best_ run says what it is and holds model and preprocessor
    best = next(child for child in found if child.name == "Best_LogisticRegression_Model")
    assert best.tags["baseline"] == "true"
    assert best.params["trial"] == "0"
    assert {name: best.tags[name] for name in ("family", "git_commit", "dataset_digest", "stage")} == {
        "family": "LogisticRegression",
        "git_commit": "abc",
        "dataset_digest": "d" * 64,
        "stage": "hpo",
    }
    assert 0.4 < best.metrics["validation_auc"] < 0.9
    assert tracking.preprocessor_matches(best.run_id, tracking.load_run_pipeline(best.run_id))
    # and its risks passed through a map that was fitted out of fold
    estimator = tracking.load_run_pipeline(best.run_id).named_steps["estimator"]
    assert isinstance(estimator, CalibratedClassifier)
    assert (estimator.intercept, estimator.slope) != (0.0, 1.0)
    # and the search says which model it ended with, and why, as its page does
    search = tracking.run(left)
    assert search.tags[CHOSEN] in {child.run_id for child in found if child.tags["role"] == "best"}
    assert html.escape(search.tags[REASON], quote=False) in (tmp_path / "board.html").read_text()
    # and a family that grows in rounds has a learning curve
    grown = next(child for child in found if child.name == "Best_LightGBM_Model")
    curve = tracking.curve(grown.run_id, "curve_validation_auc")
    assert len(curve) == 8
    assert curve[-1] == (int(grown.params["n_estimators"]), pytest.approx(grown.metrics["validation_auc"], abs=1e-9))
    # and the page shows every trial
    page = (tmp_path / "board.html").read_text()
    assert all(child.name in page for child in found if child.tags["role"] == "trial")
    # and no process of Ray is left
    assert not [name for name in children().values() if "ray" in name]

    # when it runs again, nothing new is made, and Ray does not start
    page_of_the_search = (tmp_path / "board.html").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(ray, "Cluster", None)
        again = run(settings, parts, tmp_path)
    assert (again.parent_run_id, again.reused) == (result.parent_run_id, True)
    assert again.best_metrics == result.best_metrics
    assert (tmp_path / "board.html").read_bytes() == page_of_the_search
    # and the same where only MLflow knows that it is done
    shutil.rmtree(settings.home / "searches")
    again = run(settings, parts, tmp_path)
    assert (again.parent_run_id, again.reused) == (result.parent_run_id, True)
    assert len(tracking.children(result.parent_run_id)) == len(found)


def test_the_search_digest_changes_with_what_matters(make_settings: Callable[..., Settings]) -> None:
    families = choose(())
    base = search_digest(make_settings(), "d", families)
    assert base == search_digest(make_settings(serving_port=4000), "d", families)
    others = {
        search_digest(make_settings(), "e", families),
        search_digest(make_settings(trials=7), "d", families),
        search_digest(make_settings(seed=1), "d", families),
        search_digest(make_settings(search_concurrency=3), "d", families),
        search_digest(make_settings(), "d", choose(("XGBoost",))),
    }
    assert len(others | {base}) == 6


EMPTY = Prepared(*(np.zeros((4, 2), dtype=np.float32), np.ones(4, dtype=np.int8)) * 2)


def one_trial_of(*names: str) -> Callable[[], tuple[list[FamilySearch], Prepared]]:
    """A plan of a trial of each family."""
    return lambda: ([FamilySearch(FAMILIES[name], trials=1, concurrency=1, seed=1) for name in names], EMPTY)


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on() -> None:
    # Local, so that the actors need not import this module and all that its fixtures do.
    def broken(point: Point, *job: object) -> tuple[Mapping[str, float], tuple[float, ...], bool]:
        if point.family == "XGBoost":
            raise MemoryError(f"no luck with {point.family}")
        if point.family == "RandomForest":
            os._exit(1)
        return dict.fromkeys(METRICS, 0.6), (), False

    ended: dict[str, Trial] = {}
    seen: list[ray.Progress] = []

    def done(trial: Trial, progress: ray.Progress) -> None:
        ended[trial.family] = trial
        seen.append(progress)

    # given room for one trial
    with ray.Cluster(at_once=3, cpus=2, trial_cpus=2) as cluster:
        # when a trial raises, and the process of another dies
        searches = cluster.search(
            one_trial_of("XGBoost", "RandomForest", "LightGBM"), run_trial=broken, seed=1, done=done
        )
        # then both are recorded with their reason, and the others are whole
        assert ended["XGBoost"].error == "MemoryError: no luck with XGBoost"
        assert ended["RandomForest"].error.startswith("its process died 2 times")
        assert (ended["LightGBM"].error, ended["LightGBM"].metrics["auc"]) == ("", 0.6)
        assert [search.best() for search in searches] == [None, None, ended["LightGBM"]]
        assert (seen[-1].done, seen[-1].failed, seen[-1].best) == (3, 2, {"LightGBM": 0.6})
        assert {progress.running for progress in seen} == {0}
        # when no trial succeeds, the first cause is named
        with pytest.raises(StateError, match="all 1 trials failed, the first one with: MemoryError: no luck"):
            cluster.search(one_trial_of("XGBoost"), run_trial=broken, seed=1, done=done)
        # when what is told of a trial cannot be written, the search ends with that
        with pytest.raises(UnreachableError, match="disk"):
            cluster.search(one_trial_of("LightGBM"), run_trial=broken, seed=1, done=fail)


def test_processes_start_while_the_search_is_planned() -> None:
    # Local, so that the actors need not import this module and all that its fixtures do.
    def whose(point: Point, *job: object) -> tuple[Mapping[str, float], tuple[float, ...], bool]:
        from threadpoolctl import threadpool_info

        threads = max(pool["num_threads"] for pool in threadpool_info())
        return {**dict.fromkeys(METRICS, 0.6), "pid": os.getpid(), "threads": threads}, (), False

    started: set[int] = set()

    def plan() -> tuple[list[FamilySearch], Prepared]:
        # given a plan that takes until there are the processes of two trials
        await_processes(started, 2)
        return one_trial_of("XGBoost", "RandomForest", "LightGBM", "LogisticRegression")()

    ended: list[Trial] = []
    with ray.Cluster(at_once=2, cpus=2) as cluster:
        # when it is carried out, then the trials run in those processes, each on its one core
        cluster.search(plan, run_trial=whose, seed=1, done=lambda trial, progress: ended.append(trial))
        assert len(ended) == 4
        assert {trial.metrics["pid"] for trial in ended} <= started
        assert {trial.metrics["threads"] for trial in ended} == {1}
        # and no other ever waited for a trial
        assert not [name for name in children().values() if name.startswith("ray::IDLE")]
        # and Ray runs without the processes that have nothing to do here
        idle = ("monitor.py", "dashboard.py", "log_monitor.py")
        assert not [name for name in children().values() if any(f"/{script}" in name for script in idle)]
        # when there is nothing to do, nothing is done
        assert cluster.search(lambda: None, run_trial=whose, seed=1, done=fail) == ()
        # when no plan can be made, the search ends with the reason
        with pytest.raises(UnreachableError, match="MLflow"):
            cluster.search(no_plan, run_trial=whose, seed=1, done=fail)


def test_a_process_that_has_to_wait_for_a_trial_stays(tmp_path: Path) -> None:
    # Local, so that the actors need not import this module and all that its fixtures do.
    def whose(point: Point, *job: object) -> tuple[Mapping[str, float], tuple[float, ...], bool]:
        # given a trial that outlasts the one beside it, and two that run at the same time
        (tmp_path / f"began-{point.index}").touch()
        while not (tmp_path / ("told-1", "began-1", "began-3", "began-2")[point.index]).exists():
            os.sched_yield()
        return {**dict.fromkeys(METRICS, 0.6), "pid": os.getpid()}, (), False

    started: set[int] = set()

    def plan() -> tuple[list[FamilySearch], Prepared]:
        await_processes(started, 2)
        return [FamilySearch(FAMILIES["XGBoost"], trials=4, concurrency=2, seed=1)], EMPTY

    pids: list[float] = []
    running: list[int] = []

    def done(trial: Trial, progress: ray.Progress) -> None:
        if trial.index == 1:
            # until both processes are at work, one of them at nothing
            while sum(name.split(" ")[0].endswith(".train") for name in children().values()) < 2:
                os.sched_yield()
        (tmp_path / f"told-{trial.index}").touch()
        pids.append(trial.metrics["pid"])
        running.append(progress.running)

    # when the third trial, which learns from the first, has to wait for it
    with ray.Cluster(at_once=2, cpus=2) as cluster:
        cluster.search(plan, run_trial=whose, seed=1, done=done)
    # then all ran in the processes that were there, and waiting is no trial
    assert set(pids) == started
    assert running == [1, 0, 1, 0]


def await_processes(found: set[int], number: int) -> None:
    """Add the processes of trials to those found, until there are so many."""
    while len(found) < number:
        found.update(pid for pid, name in children().items() if name.startswith("ray::Fit"))


def children() -> dict[int, str]:
    """Command lines of all processes below this one."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found[process.pid] = " ".join(process.cmdline())
    return found


def no_plan() -> None:
    raise UnreachableError("MLflow is away", "")


def fail(trial: Trial, progress: ray.Progress) -> None:
    raise UnreachableError("the disk is full", "")


def test_a_trial_that_never_fits_is_refused() -> None:
    with pytest.raises(SettingsError, match="HEALTH_PREDICT_TRIAL_CPUS"):
        ray.Cluster(at_once=1, cpus=1, trial_cpus=2)


def test_a_cluster_that_is_not_there_is_named() -> None:
    with (
        ray.Cluster(at_once=1, address="127.0.0.1:1") as cluster,
        pytest.raises(UnreachableError, match="HEALTH_PREDICT_RAY_ADDRESS"),
    ):
        cluster.search(one_trial_of(), run_trial=run_trial, seed=1, done=fail)
