"""Trials on a real Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from health_predict.adapters import ray, ray_session
from health_predict.core.model.families import FAMILIES
from health_predict.core.model.search import METRICS, FamilySearch, Point, Prepared, Trial, TrialReport, winner
from health_predict.errors import SettingsError, StateError, UnreachableError
from health_predict.surroundings import surroundings
from tests.processes import carriers, wait_for

EMPTY = Prepared(*(np.zeros((4, 2), dtype=np.float32), np.ones(4, dtype=np.int8)) * 2)
Report = Callable[[TrialReport], object]


def searches(*names: str, trials: int = 1, concurrency: int = 1) -> list[FamilySearch]:
    return [FamilySearch(FAMILIES[name], trials=trials, concurrency=concurrency, seed=1) for name in names]


def searched(families: Sequence[FamilySearch], run: Any, done: Any = lambda *event: None, **values: Any) -> list[Trial]:
    resources = ray_session.Resources(**{"at_once": 2, "cpus": 2, **values})
    return ray.search(families, EMPTY, resources=resources, seed=1, done=done, run=run)


def test_a_trial_that_falls_short_is_stopped_and_learned_from() -> None:
    # given trials of which each is worse than those before
    def worse(point: Point, data: Prepared, seed: int, threads: int, report: Report) -> None:
        auc = 0.9 - point.index / 10
        for rungs in ((auc,), (auc, auc), (auc, auc)):
            report(TrialReport({**dict.fromkeys(METRICS, 0.5), "auc": auc + len(rungs) / 100}, rungs))

    seen: list[tuple[Trial, ray.Progress]] = []
    trials = searched(searches("XGBoost", trials=4), worse, done=lambda *event: seen.append(event))

    # then the first one ran to its end, and the others to their first rung, which the next one learns from
    assert [(trial.index, trial.stopped, len(trial.rungs)) for trial in trials] == [
        (0, False, 2),
        (1, True, 1),
        (2, True, 1),
        (3, True, 1),
    ]
    # and each was told of as it ended
    assert [trial for trial, _ in seen] == trials
    assert [(progress.done, progress.stopped, progress.running) for _, progress in seen] == [
        (1, 0, 0),
        (2, 1, 0),
        (3, 2, 0),
        (4, 3, 0),
    ]
    assert seen[-1][1].best == {"XGBoost": pytest.approx(0.92)}
    assert all(trial.seconds > 0 for trial in trials)


def test_trials_run_in_processes_that_stay_each_on_its_cores_and_one_that_fails_is_recorded() -> None:
    # Local, so that the actors need not import this module and all that its fixtures do.
    def some_break(point: Point, data: Prepared, seed: int, threads: int, report: Report) -> None:
        from threadpoolctl import threadpool_info

        if point.family == "XGBoost":
            raise MemoryError(f"no luck with {point.family}")
        if point.family == "RandomForest":
            os._exit(1)
        used = max(pool["num_threads"] for pool in threadpool_info())
        report(TrialReport({**dict.fromkeys(METRICS, 0.6), "brier": os.getpid(), "f1": used}, ()))

    ended: dict[str, Trial] = {}
    seen: list[ray.Progress] = []

    def done(trial: Trial, progress: ray.Progress) -> None:
        ended[trial.family] = trial
        seen.append(progress)

    # when a trial raises, and the process of another dies
    families = [*searches("XGBoost", "RandomForest"), *searches("LightGBM", "LogisticRegression", trials=4)]
    trials = searched(families, some_break, done)

    # then both are recorded with their reason
    assert ended["XGBoost"].error == "MemoryError: no luck with XGBoost"
    assert ended["RandomForest"].error.startswith("its process died 2 times")
    assert (seen[-1].done, seen[-1].failed) == (10, 2)
    assert seen[-1].best == {"LightGBM": 0.6, "LogisticRegression": 0.6}
    # and the others are whole, in the two processes that there are, and in those that took the place of one that died
    whole = [trial for trial in trials if not trial.error]
    assert winner(trials) in whole and len(whole) == 8
    assert len({trial.metrics["brier"] for trial in whole}) <= 4
    assert {trial.metrics["f1"] for trial in whole} == {1}


def test_a_search_ends_with_what_could_not_be_written() -> None:
    def works(point: Point, data: Prepared, seed: int, threads: int, report: Report) -> None:
        report(TrialReport(dict.fromkeys(METRICS, 0.6), ()))

    def fail(trial: Trial, progress: ray.Progress) -> None:
        raise UnreachableError("the disk is full", "")

    with pytest.raises(UnreachableError, match="disk"):
        searched(searches("LightGBM"), works, fail)


def test_ray_is_our_own_in_a_short_folder_and_the_first_cause_is_named_when_no_trial_succeeds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, awkward: Path
) -> None:
    def broken(point: Point, data: Prepared, seed: int, threads: int, report: Report) -> None:
        raise ValueError("no luck")

    # given a temporary folder whose path Ray's sockets cannot have, the address of some cluster, a module of the
    # person's own in the folder where they are, which would be run, an interpreter in an awkward folder, and a home
    # that cannot be written
    monkeypatch.setenv("HOME", "/proc/nope")
    monkeypatch.setattr(sys, "executable", str(awkward))
    (tmp_path / "threadpoolctl.py").write_text("raise RuntimeError('mine')")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ("ü" * 40)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")

    # when a search runs in which all fails, then it says so, and leaves no folder
    with pytest.raises(StateError, match="all 1 trials failed, the first one with: ValueError: no luck"):
        searched(searches("LightGBM"), broken)
    assert list(folder.iterdir()) == []


LISTENING = """
import os, subprocess, sys
import psutil, ray
from health_predict.adapters import ray_session

STRANGER = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR')"
if __name__ == "__main__":
    with ray_session.started(ray_session.Resources(at_once=1, cpus=1)):
        address = ray.get_runtime_context().gcs_address
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    print("listens", connection.laddr.ip)
        environment = {**os.environ, "RAY_AUTH_TOKEN": "a guess", "RAY_AUTH_MODE": "token"}
        stranger = subprocess.run([sys.executable, "-c", STRANGER, address], env=environment, timeout=120)
        print("stranger", stranger.returncode)
"""


def test_ray_listens_for_this_machine_only_and_asks_for_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a person who has told Ray to ask nobody for a token
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    environment = {**os.environ, **surroundings()}
    # when a search has Ray started, and somebody else on this machine tries to take part
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # then it listens on loopback alone, and lets nobody in without its token
    listens = {line.split()[1] for line in lines if line.startswith("listens")}
    assert listens and listens <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert lines[-1].startswith("stranger") and lines[-1] != "stranger 0", done.stderr


def test_a_budget_in_seconds_ends_a_search() -> None:
    points = ray.Points(searches("LogisticRegression", trials=5, concurrency=5), seconds=1e-9)
    assert points.suggest("one") == ray.Searcher.FINISHED


def test_families_take_turns_and_wait_for_what_they_learn_from() -> None:
    points = ray.Points(searches("LogisticRegression", "XGBoost", trials=2), seconds=0)
    # when more is asked for than may be under way
    first = [points.suggest(name) for name in ("a", "b", "c")]
    assert [point and point["point"].family for point in first] == ["LogisticRegression", "XGBoost", None]
    # then what ended leads to the next
    points.on_trial_complete("b", error=True)
    assert points.suggest("d")["point"].family == "XGBoost"


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("/tmp", "/tmp/"), ("/tmp/slurm/user.name/job.12345678.0/tmp", "/tmp/"), ("/tmp/ü", "/tmp/")],
)
def test_ray_s_folder_is_short(folder: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", folder)
    found = ray_session._short_folder()
    Path(found).rmdir()
    assert found.startswith(expected)


WITHOUT_SHARED_MEMORY = """
import os
import psutil, ray
from health_predict.adapters import ray_session

if __name__ == "__main__":
    with ray_session.started(ray_session.Resources(at_once=1, cpus=1)):
        print(os.environ["RAY_TMPDIR"])
        print(ray.get(ray.remote(lambda values: sum(values)).remote(ray.put(range(4)))))
        for process in psutil.Process().children(recursive=True):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    print("listens", connection.laddr.ip)
    print("left", [process.name() for process in psutil.Process().children(recursive=True)])
"""


def test_a_machine_without_shared_memory_is_searched_on(tmp_path: Path) -> None:
    # given a machine whose shared memory cannot be written to
    private = ["unshare", "--user", "--map-root-user", "--mount"]
    hide = "mount -t tmpfs -o ro none /dev/shm"
    if subprocess.run([*private, "sh", "-c", hide], capture_output=True).returncode:
        pytest.skip("skipped: this system gives nobody a view of the disk of their own")
    # when a search has Ray started there
    done = subprocess.run(
        [*private, "sh", "-c", f'{hide} && exec "$@"', "sh", sys.executable, "-c", WITHOUT_SHARED_MEMORY],
        env={**os.environ, **surroundings()},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    # then its workers share objects, it listens on loopback alone, and nothing of it is left
    assert done.returncode == 0, done.stderr
    folder, answer, *listens, left = done.stdout.splitlines()
    assert (answer, left, Path(folder).exists()) == ("6", "left []", False)
    assert listens and {line.split()[1] for line in listens} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


KILLED = """
import os, sys
from pathlib import Path
from health_predict.adapters.ray_head import head

with head(1, 128 * 1024**2, Path(os.environ["RAY_TMPDIR"])):
    os.kill(os.getpid(), 9)
"""


def test_ray_s_head_ends_with_a_search_that_was_killed() -> None:
    with tempfile.TemporaryDirectory(prefix="hp-test-") as folder:
        ours = {"RAY_TMPDIR": folder, "HOME": folder, "RAY_AUTH_TOKEN": "0" * 64, **ray_session.RAY_ENVIRONMENT}
        killed = subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, **surroundings(), **ours})
        assert killed.returncode == -9
        wait_for(lambda: not carriers("RAY_TMPDIR", folder), seconds=60)


def test_what_a_killed_search_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given the folders of a process that is gone and of one that lives
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = [Path(tempfile.mkdtemp(prefix=f"hp-{pid}-", dir="/tmp")) for pid in (gone.pid, os.getpid())]
    # when a search begins
    Path(ray_session._short_folder()).rmdir()
    # then
    assert [folder.exists() for folder in left] == [False, True]
    left[1].rmdir()


def test_a_trial_that_never_fits_is_refused() -> None:
    with pytest.raises(SettingsError, match="HEALTH_PREDICT_TRIAL_CPUS"):
        searched(searches("XGBoost"), None, at_once=1, cpus=1, trial_cpus=2)
    with pytest.raises(SettingsError, match="HEALTH_PREDICT_TRIAL_MEMORY_MB"):
        searched(searches("XGBoost"), None, trial_memory_mb=10**9)


def test_a_cluster_that_is_not_there_is_named() -> None:
    with pytest.raises(UnreachableError, match="HEALTH_PREDICT_RAY_ADDRESS"):
        searched(searches("XGBoost"), None, address="127.0.0.1:1")
