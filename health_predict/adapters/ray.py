"""Ray Tune: the trials of all families with one `Tuner`, whose actors stay from one trial to the next.

A `Searcher` asks `core/model/search.py` for the next point, a `Stopper` ends a trial that falls short of what it must
reach, and a `Callback` hands each trial that ended to the caller. Nothing of a search is left with Ray: MLflow holds
what one is continued from.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir, mkdtemp
from typing import Any
from urllib.parse import urlsplit

import ray
from ray import tune
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper
from ray.util.queue import Empty, Queue
from threadpoolctl import threadpool_limits

import health_predict
from health_predict.adapters.files import gone, short_folder
from health_predict.core.model.search import (
    METRICS,
    FamilySearch,
    Point,
    Prepared,
    Trial,
    TrialReport,
    libraries,
    run_trial,
    winner,
)
from health_predict.errors import SettingsError, StateError, UnreachableError

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 256 * 1024**2
WORKER_SECONDS = 300.0
START_ATTEMPTS = 3  # of half a minute each, which no setting of Ray's makes longer
POLL_SECONDS = 1.0
ATTEMPTS = 2  # of a trial whose process died: a node may be lost, too
DIED = f"its process died {ATTEMPTS} times: it may have been out of memory"
# Ray would phone home and print what users cannot act on; and it would give way to everything else that runs here, so
# that a search beside other work would stand still. The workers that it starts ahead have no runtime environment, so
# that no trial could run in them.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",
}
TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # with it, `verbose=0` would print all the same
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end a search as if it were whole
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
# Where its home has this file, Ray does not ask the addresses of three clouds whether it runs in one of them.
CLOUD_FILE = "ray_bootstrap_config.yaml"
# The longest path that Ray puts into its folder.
LONGEST_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"

# Fits a point and reports how it does. Must be importable where trials run.
RunTrial = Callable[[Point, Prepared, int, int, Callable[[TrialReport], object]], None]


@dataclass(frozen=True, slots=True)
class Resources:
    """Where trials run, how many of them at once, and what each gets.

    On this machine, with `cpus` cores (0: all), or on the Ray cluster at `address`.
    """

    at_once: int
    cpus: int = 0
    address: str = ""
    trial_cpus: int = 1
    trial_memory_mb: int = 0

    @property
    def room(self) -> int:
        """How many trials run at once. Raises SettingsError when none fits on this machine."""
        if self.address:
            return self.at_once
        cpus = self.cpus or os.cpu_count() or 1
        if self.trial_cpus > cpus:
            raise SettingsError(
                f"a trial asks for {self.trial_cpus} cores, the search has {cpus}",
                "lower HEALTH_PREDICT_TRIAL_CPUS or raise HEALTH_PREDICT_SEARCH_CPUS",
            )
        return min(self.at_once, cpus // self.trial_cpus)

    @property
    def of_a_trial(self) -> dict[str, float]:
        """What Tune sets aside for one trial."""
        memory = {"memory": self.trial_memory_mb * 1024**2} if self.trial_memory_mb else {}
        return {"cpu": self.trial_cpus, **memory}


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
    with _started(resources), ThreadPoolExecutor(1, "search-log") as writer:
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


@contextmanager
def _started(resources: Resources) -> Iterator[None]:
    """Ray, of our own or the cluster that is there already; it ends with the block."""
    os.environ.update({name: os.environ.get(name, value) for name, value in RAY_ENVIRONMENT.items()})
    room = resources.room
    if not resources.address:
        _check_shared_memory()
    folder = _short_folder()
    # For the workers to work in: theirs is a folder to import from, and would be the person's own.
    nowhere = mkdtemp(dir=folder)
    try:
        try:
            if resources.address:
                _connect(resources.address, nowhere)
            else:
                os.environ["RAY_TMPDIR"] = folder  # the argument of `ray.init` for it is a private one
                _start(room * resources.trial_cpus, folder, nowhere)
        except Exception as error:
            remedy = "check HEALTH_PREDICT_RAY_ADDRESS" if resources.address else "see `health-predict doctor`"
            raise UnreachableError(f"Ray did not start: {_first_line(error)}", remedy) from error
        if resources.address:
            _check_libraries(resources)
        else:
            _check_memory(resources)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _home(folder: str) -> Iterator[None]:
    """The home of the processes that Ray starts meanwhile."""
    (Path(folder) / CLOUD_FILE).write_text("{}\n", encoding="utf-8")
    before = os.environ.get("HOME")
    os.environ["HOME"] = folder
    try:
        yield
    finally:
        del os.environ["HOME"]
        os.environ.update({} if before is None else {"HOME": before})


def _check_shared_memory() -> None:
    """Ray looks for it on Linux, however little there is."""
    if sys.platform == "linux" and not os.access("/dev/shm", os.R_OK | os.W_OK):  # noqa: S108 - Ray writes there
        raise StateError(
            "there is no /dev/shm that can be written to, which Ray needs",
            "mount it (`mount -t tmpfs tmpfs /dev/shm`), or name a Ray cluster as HEALTH_PREDICT_RAY_ADDRESS",
        )


def _start(cpus: int, folder: str, nowhere: str) -> None:
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())  # else Ray keeps one in the person's home
    for left in reversed(range(START_ATTEMPTS)):
        try:
            with _home(folder):
                ray.init(
                    address="local",  # whatever RAY_ADDRESS says
                    num_cpus=cpus,
                    # Ray puts the program into a shell line as it is.
                    runtime_env={"working_dir": nowhere, "py_executable": shlex.quote(sys.executable)},
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
            return
        except Exception as error:
            ray.shutdown()
            if not left or "timed out" not in str(error):
                raise
            log.warning("this machine is busy: Ray did not start within its half minute; trying again")


def _connect(address: str, nowhere: str) -> None:
    where = urlsplit(address if "://" in address else f"ray://{address}")
    if where.hostname and where.port:  # Ray itself would try for minutes
        socket.create_connection((where.hostname, where.port), timeout=10).close()
    ray.init(
        address=address,
        # The workers run this code, whatever version of it their image holds.
        runtime_env={"py_modules": [str(Path(health_predict.__path__[0]))], "working_dir": nowhere},
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


def _short_folder() -> str:
    """A new folder in which Ray's sockets have paths that the system takes; those of killed searches are removed."""
    folder = short_folder(f"hp-{os.getpid()}-", LONGEST_SOCKET, (os.environ.get("RAY_TMPDIR", ""), gettempdir()))
    for left in Path(folder).parent.glob("hp-[0-9]*-*"):
        if gone(left.name.split("-")[1]):
            shutil.rmtree(left, ignore_errors=True)
    return folder


def _check_memory(resources: Resources) -> None:
    there = int(ray.cluster_resources().get("memory", 0)) // 1024**2
    if resources.trial_memory_mb > there:
        raise SettingsError(
            f"a trial asks for {resources.trial_memory_mb} MiB, Ray has {there} here",
            "lower HEALTH_PREDICT_TRIAL_MEMORY_MB",
        )


def _check_libraries(resources: Resources) -> None:
    """Compare what a search depends on with what a worker of the cluster has."""
    try:
        asked = ray.remote(libraries).options(num_cpus=resources.trial_cpus).remote()
        theirs = ray.get(asked, timeout=WORKER_SECONDS)
    except ray.exceptions.GetTimeoutError as error:
        raise UnreachableError(
            f"no processor of the Ray cluster was free within {WORKER_SECONDS:.0f} s",
            "add workers to it, or wait for what runs there",
        ) from error
    except ray.exceptions.RayError as error:
        raise UnreachableError(
            f"Ray starts no worker: {_first_line(error)}", "the workers need this project's training libraries"
        ) from error
    ours = libraries()
    different = [f"{name} {theirs[name]} instead of {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if different:
        raise StateError(
            f"the workers of the Ray cluster have {', '.join(different)}",
            "give them the image or the lock file of this version",
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
