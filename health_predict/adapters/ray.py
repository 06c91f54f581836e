"""Ray Tune: the trials of all families with one `Tuner`, whose actors stay from one trial to the next.

A `Searcher` asks `core/model/search.py` for the next point, a `Stopper` ends a trial that falls short of what it must
reach, and a `Callback` hands each trial that ended to the caller. Nothing of a search is left with Ray: MLflow holds
what one is continued from.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper
from ray.util.queue import Empty, Queue
from threadpoolctl import threadpool_limits

from health_predict.adapters.ray_session import Resources, started
from health_predict.core.model.search import (
    METRICS,
    FamilySearch,
    Point,
    Prepared,
    Trial,
    TrialReport,
    run_trial,
    winner,
)
from health_predict.errors import StateError

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
ATTEMPTS = 2  # of a trial whose process died: a node may be lost, too
DIED = f"its process died {ATTEMPTS} times: it may have been out of memory"
TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # with it, `verbose=0` would print all the same
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end a search as if it were whole
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
# Fits a point and reports how it does. Must be importable where trials run.
RunTrial = Callable[[Point, Prepared, int, int, Callable[[TrialReport], object]], None]


@dataclass(slots=True)
class Progress:
    """Where a search is: numbers of trials, the best AUC of each family, seconds left."""

    total: int
    done: int
    running: int
    stopped: int
    failed: int
    best: dict[str, float] = field(default_factory=dict)
    seconds_left: float | None = None


Tell = Callable[[Trial, Progress], object]


def search(
    searches: Sequence[FamilySearch],
    data: Prepared,
    *,
    resources: Resources,
    seed: int,
    seconds: float = 0,
    done: Tell,
    run: RunTrial = run_trial,
) -> list[Trial]:
    """Do all trials of these searches; `done` is called with each as it ends.

    It is called in a thread beside this one, so that trials go on while MLflow is slow. After `seconds` (0: no limit)
    no further trial is drawn. A trial that raises, or whose process dies twice, is recorded with its reason; when all
    failed, raises StateError with the first cause. Raises UnreachableError when Ray does not start.
    """
    with started(resources), ThreadPoolExecutor(1, "search-log") as writer:
        written: list[Future[object]] = []
        errors: list[str] = []

        def tell(trial: Trial, progress: Progress) -> None:
            errors.extend([trial.error] if trial.error else [])
            _raise_first(written)
            written.append(writer.submit(done, trial, progress))

        points = Points(searches, seconds)
        there = "://" in resources.address
        try:
            trials = (_tune_there if there else _tune)(points, data, resources, seed, run, tell)
        except BaseException:
            writer.shutdown(wait=False, cancel_futures=True)
            _raise_first(written)  # what could not be written is the cause of what Tune raised
            raise
    for write in written:
        write.result()
    if all(trial.error for trial in trials):
        first = f", the first one with: {errors[0]}" if errors else ""
        raise StateError(f"all {len(trials)} trials failed{first}", "see the log of the stage")
    return trials


def _raise_first(written: Sequence[Future[object]]) -> None:
    for write in written:
        if write.done() and not write.cancelled():
            write.result()


class Points(Searcher):  # type: ignore[misc]
    """Proposes the points of all families in turns, and takes their results."""

    def __init__(self, searches: Sequence[FamilySearch], seconds: float) -> None:
        super().__init__()
        self._searches = {search.family.name: search for search in searches}
        self._seconds = seconds
        self._began = 0.0  # by the clock of the process that asks first
        self._under_way: dict[str, Point] = {}  # by Tune's id of the trial

    def suggest(self, trial_id: str) -> Any:
        """The next point; None while all families wait for trials that they learn from."""
        self._began = self._began or time.monotonic()
        if self._seconds and time.monotonic() - self._began >= self._seconds:
            return Searcher.FINISHED
        for search in sorted(self._searches.values(), key=lambda search: search.begun):
            if point := search.next():
                self._under_way[trial_id] = point
                return {"point": point}
        spent = all(search.begun == search.trials for search in self._searches.values())
        return Searcher.FINISHED if spent else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take the result of a trial."""
        point = self._under_way.pop(trial_id)
        self._searches[point.family].end(_trial(point, result or {}, DIED if error else ""))

    def save(self, checkpoint_path: str) -> None:
        """Store nothing: MLflow holds what a search is continued from."""

    def trials(self) -> list[Trial]:
        """All that ended."""
        return [trial for search in self._searches.values() for trial in search.ended.values()]

    def progress(self, running: int) -> Progress:
        """Where the search is while so many trials are running."""
        ended = self.trials()
        total = sum(search.trials for search in self._searches.values())
        gone = time.monotonic() - self._began
        left = gone / len(ended) * (total - len(ended))
        winners = {name: winner(search.ended.values()) for name, search in self._searches.items()}
        return Progress(
            total,
            len(ended),
            running,
            sum(trial.stopped for trial in ended),
            sum(bool(trial.error) for trial in ended),
            {name: best.metrics["auc"] for name, best in winners.items() if best},
            min(left, max(0.0, self._seconds - gone)) if self._seconds else left,
        )


class ShortOfCutoff(Stopper):  # type: ignore[misc]
    """Stops a trial whose AUC at a rung is below what its point must reach there."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        point: Point = result["config"]["point"]
        return point.falls_short(result.get("rungs", ()))

    def stop_all(self) -> bool:
        """Never: `Points` says when a search is over."""
        return False


class HandOver(tune.Callback):  # type: ignore[misc]
    """Hands each trial that ended to the caller. Tune tells the searcher first."""

    def __init__(self, points: Points, tell: Tell) -> None:
        self._points = points
        self._tell = tell

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune stores its callbacks to restore a Tuner, which nobody does here

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial is done once more."""
        point = trial.config["point"]
        log.warning("the process of %s-%03d died; trying once more", point.family, point.index)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Hand over one that ran to its end or was stopped."""
        self._hand_over(trials, trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Hand over one whose process died for good."""
        self._hand_over(trials, trial, DIED)

    def _hand_over(self, trials: list[Any], trial: Any, died: str = "") -> None:
        running = sum(other.status == "RUNNING" for other in trials if other is not trial)
        self._tell(_trial(trial.config["point"], trial.last_result, died), self._points.progress(running))


def _trial(point: Point, result: dict[str, Any], died: str) -> Trial:
    """A trial as Tune's last result tells of it."""
    seconds = result.get("time_total_s", 0.0)
    if error := died or result.get("error"):
        return Trial(point.family, point.index, point.parameters, {}, seconds, error=error)
    metrics, rungs = {name: result[name] for name in METRICS}, tuple(result["rungs"])
    return Trial(point.family, point.index, point.parameters, metrics, seconds, rungs, point.falls_short(rungs))


def _tune(points: Points, data: Prepared, resources: Resources, seed: int, run: RunTrial, tell: Tell) -> list[Trial]:
    """Run the Tuner in this process."""
    os.environ.update(TUNE_ENVIRONMENT, TUNE_MAX_PENDING_TRIALS_PG=str(resources.room))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    fit = tune.with_parameters(_fit, data=data, seed=seed, threads=resources.trial_cpus, run=run)
    with TemporaryDirectory(prefix="hp-tune-") as folder:
        tune.Tuner(
            tune.with_resources(fit, resources.of_a_trial),
            tune_config=tune.TuneConfig(search_alg=points, num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                verbose=0,
                stop=ShortOfCutoff(),
                callbacks=[HandOver(points, tell)],
                failure_config=tune.FailureConfig(max_failures=ATTEMPTS - 1),
            ),
        ).fit()
    return points.trials()


def _fit(config: dict[str, Any], data: Prepared, seed: int, threads: int, run: RunTrial) -> None:
    """One trial, in an actor."""

    def report(so_far: TrialReport) -> None:
        tune.report({**so_far.metrics, "rungs": so_far.rungs})

    try:
        with threadpool_limits(threads):
            run(config["point"], data, seed, threads, report)
    except Exception as error:
        # Of what is raised Tune ends the actor; another one would have to import everything again.
        tune.report({"error": f"{type(error).__name__}: {error}"[:300]})


def _tune_there(
    points: Points, data: Prepared, resources: Resources, seed: int, run: RunTrial, tell: Tell
) -> list[Trial]:
    """Run the Tuner in a task on a cluster to which only Ray's client port leads; a queue brings what ended."""
    ended = Queue()
    task = ray.remote(num_cpus=0)(_tune)
    future = task.remote(points, data, resources, seed, run, lambda *event: ended.put(event))
    over = False
    while not over:
        # Looked at before the queue, so that nothing that was sent in between is left there.
        over = bool(ray.wait([future], timeout=0)[0])
        with suppress(Empty):
            while True:
                tell(*ended.get(block=not over, timeout=POLL_SECONDS))
    trials: list[Trial] = ray.get(future)
    return trials
