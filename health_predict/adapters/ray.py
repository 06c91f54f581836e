"""Ray: the trials of all families on reused actors that share one copy of the data.

Process starts and imports cost more than most trials. So the actors stay, import what they need while the driver
still prepares the data, and read the matrices from Ray's object store without a copy. As soon as a family's trials
have ended its winner is fitted once more, beside the trials of the others.

Ray's actors and not `ray.tune.Tuner`, for three reasons. Tune's schedulers and searchers act on whichever trial
reports first, so that one seed gives different winners on different machines (`core/search.py` says what is done
instead). Under `ray://` its loop runs inside the cluster and wants storage that all nodes share, where this one
stays in the driver: it writes each trial to MLflow at once and needs nothing of the cluster but processors. And
importing it costs each process four CPU-seconds more than Ray itself.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import health_predict
from health_predict.core.errors import SettingsError, StateError, UnreachableError
from health_predict.core.search import FamilySearch, Point, Prepared, Refit, Refitted, Trial

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 256 * 1024**2
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - not to write there: Ray does
# What a search's result depends on besides our own code, and what fitted models are pickled with.
LIBRARIES = ("scikit-learn", "xgboost", "lightgbm", "numpy", "pandas", "scipy", "optuna")
IMPORTS = ("sklearn.ensemble", "sklearn.linear_model", "xgboost", "lightgbm", "health_predict.core.evaluation")
START_SECONDS = 300.0
POLL_SECONDS = 2.0
ATTEMPTS = 2  # of a trial whose process died: a node may be lost, too

Job = Point | Refit
# What an actor runs; both must be importable there.
RunTrial = Callable[[Point, Prepared, int, int], tuple[Mapping[str, float], tuple[float, ...], bool]]
RunRefit = Callable[[Refit, Prepared, int, int], Refitted]


@dataclass(slots=True)
class Progress:
    """Where a search is: numbers of trials, the best AUC of each family, seconds left (None: not known yet)."""

    total: int
    done: int = 0
    running: int = 0
    stopped: int = 0
    failed: int = 0
    best: dict[str, float] = field(default_factory=dict)
    seconds_left: float | None = None


class Pool:
    """Actors on a Ray of our own, or on the cluster at `address`; ends with its block.

    `cpus` cores are used here (0: all); `trial_cpus` and `trial_memory_mb` are what one trial gets. Raises
    UnreachableError when Ray does not start, SettingsError when a trial does not fit.
    """

    def __init__(
        self,
        *,
        cpus: int = 0,
        address: str = "",
        trial_cpus: int = 1,
        trial_memory_mb: int = 0,
        seed: int,
        imports: tuple[str, ...] = IMPORTS,
    ) -> None:
        self._imports = imports
        self._cpus = cpus or os.cpu_count() or 1
        self._address = address
        self._trial_cpus = trial_cpus
        self._trial_memory = trial_memory_mb * 1024**2
        if not address and trial_cpus > self._cpus:
            raise SettingsError(
                f"a trial asks for {trial_cpus} cores, the search has {self._cpus}",
                "lower HEALTH_PREDICT_TRIAL_CPUS or raise HEALTH_PREDICT_SEARCH_CPUS",
            )
        self._seed = seed
        self._idle: list[Any] = []
        self._actors = 0

    def __enter__(self) -> Pool:
        self._ray_context = _ray(self._cpus, self._address)
        self._ray = self._ray_context.__enter__()
        try:
            room = self._room()
            if not room and not self._address:
                raise SettingsError(
                    f"a trial asks for {self._trial_memory // 1024**2} MiB, more than Ray has here",
                    "lower HEALTH_PREDICT_TRIAL_MEMORY_MB",
                )
            # A cluster gets the others when there are trials for them.
            for _ in range(1 if self._address else room):
                self._idle.append(self._actor())
        except BaseException:
            self._ray_context.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *raised: Any) -> None:
        self._ray_context.__exit__(*raised)

    def _room(self) -> int:
        """How many trials fit at once."""
        total = self._ray.cluster_resources()
        room = int(total.get("CPU", 0) // self._trial_cpus)
        if self._trial_memory:
            room = min(room, int(total.get("memory", 0) // self._trial_memory))
        return room

    def _actor(self) -> Any:
        self._actors += 1
        needs: dict[str, Any] = {"num_cpus": self._trial_cpus, "max_restarts": 0}
        if self._trial_memory:
            needs["memory"] = self._trial_memory
        return self._ray.remote(Worker).options(**needs).remote(self._imports)

    def search(
        self,
        searches: Sequence[FamilySearch],
        data: Prepared,
        *,
        run_trial: RunTrial,
        run_refit: RunRefit,
        recorded: Mapping[tuple[str, int], Trial] | None = None,
        refitted_before: Collection[str] = (),
        seconds: float = 0,
        done: Callable[[Trial, Progress], None],
        refitted: Callable[[Refitted], None],
    ) -> None:
        """Run all trials, then each family's winner once more.

        Trials in `recorded` and the winners of families in `refitted_before` are taken as they are. `done` is called
        with every other one as it ends, `refitted` with every winner, both in one thread beside this one, so that
        trials go on while MLflow is slow. After `seconds` (0: no limit) no further trial begins. A trial that
        raises, or whose process dies twice, is recorded with its reason; when all failed, raises StateError with
        the first cause.
        """
        ray = self._ray
        shared = ray.put(data)
        self._check_libraries()
        agenda = _Agenda(searches, recorded or {}, refitted_before, seconds)
        running: dict[Any, tuple[Any, Job, int]] = {}  # with the number of attempts
        again: list[tuple[Job, int]] = []
        writes: list[Future[None]] = []
        with ThreadPoolExecutor(1, "search-log") as writer:
            try:
                while True:
                    while again or agenda.pending:
                        if (actor := self._free(len(again) + len(agenda.pending))) is None:
                            break
                        job, attempts = again.pop() if again else (agenda.pending.pop(0), 0)
                        run = run_trial if isinstance(job, Point) else run_refit
                        reference = actor.run.remote(run, job, shared, self._seed, self._trial_cpus)
                        running[reference] = (actor, job, attempts + 1)
                    if not running:
                        break
                    for reference in ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)[0]:
                        actor, job, attempts = running.pop(reference)
                        outcome, took, alive = self._outcome(reference)
                        if alive:
                            self._idle.append(actor)
                        else:
                            self._actors -= 1
                            if attempts < ATTEMPTS:
                                log.warning("the process of %s died; trying once more", _name(job))
                                again.append((job, attempts))
                                continue
                        if isinstance(job, Point):
                            trial = _trial(job, outcome, took)
                            progress = agenda.end(trial, [item for _, item, _ in running.values()])
                            writes.append(writer.submit(done, trial, progress))
                        elif isinstance(outcome, Refitted):
                            writes.append(writer.submit(refitted, outcome))
                        else:
                            raise StateError(f"{_name(job)} could not be fitted again: {outcome}", "search again")
                    for write in writes:
                        if write.done():
                            write.result()
                for write in writes:
                    write.result()
            except BaseException:
                writer.shutdown(wait=False, cancel_futures=True)
                raise
        _require_success([trial for search in searches for trial in search.ended.values()])

    def _free(self, wanted: int) -> Any:
        """An actor without a job, a new one while there is room; None when all are busy."""
        if self._idle:
            return self._idle.pop()
        # Asked each time: a cluster may have grown.
        return self._actor() if self._actors < max(1, self._room()) else None

    def _outcome(self, reference: Any) -> tuple[Any, float, bool]:
        """What a job gave or the text of its failure, its seconds, and whether its actor lives."""
        errors = self._ray.exceptions
        try:
            return (*self._ray.get(reference), True)
        except errors.RayTaskError as error:
            # What it was sent, or what it answered, could not be read.
            return f"{type(error.cause).__name__}: {error.cause}"[:300], 0.0, True
        except errors.RayError as error:
            out_of_memory = "memory" in f"{type(error).__name__} {error}".lower()
            reason = "out of memory" if out_of_memory else type(error).__name__
            return f"its process died {ATTEMPTS} times: {reason}", 0.0, False

    def _check_libraries(self) -> None:
        try:
            theirs = self._ray.get(self._idle[0].libraries.remote(), timeout=START_SECONDS)
        except self._ray.exceptions.GetTimeoutError as error:
            raise UnreachableError(
                f"no processor of the Ray cluster was free within {START_SECONDS:.0f} s",
                "add workers to it, or wait for what runs there",
            ) from error
        except self._ray.exceptions.RayError as error:
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


class _Agenda:
    """What is still to be done, in its order, and how far it got."""

    def __init__(
        self,
        searches: Sequence[FamilySearch],
        recorded: Mapping[tuple[str, int], Trial],
        refitted_before: Collection[str],
        seconds: float,
    ) -> None:
        self.pending: list[Job] = []
        self._searches = {search.family.name: search for search in searches}
        self._recorded = recorded
        self._refits = set(refitted_before)
        self._began = time.monotonic()
        self._seconds = seconds
        self._progress = Progress(sum(search.trials for search in searches))
        self._refill(())

    def end(self, trial: Trial, running: Collection[Job]) -> Progress:
        """Take the result of a trial and put on the agenda what follows from it."""
        self._count(trial)
        self._refill(running)
        gone = time.monotonic() - self._began
        left = gone / self._progress.done * (self._progress.total - self._progress.done)
        return replace(
            self._progress,
            running=sum(isinstance(job, Point) for job in running),
            best=dict(self._progress.best),
            seconds_left=min(left, max(0.0, self._seconds - gone)) if self._seconds else left,
        )

    def _count(self, trial: Trial) -> None:
        progress = self._progress
        self._searches[trial.family].end(trial)
        progress.done += 1
        progress.stopped += trial.stopped
        progress.failed += bool(trial.error)
        if not trial.error and not trial.stopped:
            progress.best[trial.family] = max(trial.metrics["auc"], progress.best.get(trial.family, 0.0))

    def _refill(self, running: Collection[Job]) -> None:
        over = bool(self._seconds) and time.monotonic() - self._began >= self._seconds
        if over:
            self.pending = [job for job in self.pending if isinstance(job, Refit)]
        for name, search in self._searches.items():
            while not over and (wave := search.wave()):
                for point in wave:
                    known = self._recorded.get((name, point.index))
                    if known is not None and _same(known.parameters, point.parameters):
                        self._count(replace(known, parameters=point.parameters))  # recorded as text
                    else:
                        self.pending.append(point)
            best = search.best()
            busy = any(_family(job) == name for job in (*self.pending, *running))
            if best is not None and name not in self._refits and not busy and (search.finished or over):
                self._refits.add(name)
                self.pending.append(Refit(best))
        # Families in turn, so that every one has a result early; winners as soon as they are known.
        self.pending.sort(key=lambda job: job.index if isinstance(job, Point) else -1)


class Worker:
    """An actor: keeps its imports from one trial to the next."""

    def __init__(self, imports: Sequence[str]) -> None:
        # While the driver prepares the data.
        for name in imports:
            import_module(name)

    def libraries(self) -> dict[str, str]:
        """Versions of what a result depends on."""
        return libraries()

    def run(self, run: Callable[..., Any], job: Job, data: Prepared, seed: int, threads: int) -> tuple[Any, float]:
        """What `run` gives for a job, or the text of what it raised, and the seconds it took."""
        began = time.monotonic()
        try:
            outcome = run(job, data, seed, threads)
        except Exception as error:
            # A failure that is answered keeps the actor; a raised one would say no more.
            outcome = f"{type(error).__name__}: {error}"[:300]
        return outcome, time.monotonic() - began


def libraries() -> dict[str, str]:
    """Versions of the libraries that a search's result depends on, in this process."""
    return {name: version(name) for name in LIBRARIES}


def _trial(point: Point, outcome: Any, seconds: float) -> Trial:
    if isinstance(outcome, str):
        return Trial(point.family, point.index, point.parameters, {}, seconds, error=outcome)
    metrics, rungs, stopped = outcome
    return Trial(point.family, point.index, point.parameters, metrics, seconds, rungs, stopped)


def _require_success(trials: Sequence[Trial]) -> None:
    if all(trial.error for trial in trials):
        first = f", the first one with: {trials[0].error}" if trials else ""
        raise StateError(f"all {len(trials)} trials failed{first}", "see the log of the stage")


def _same(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    return {name: str(value) for name, value in recorded.items()} == {name: str(v) for name, v in asked.items()}


def _family(job: Job) -> str:
    return job.family if isinstance(job, Point) else job.trial.family


def _name(job: Job) -> str:
    return f"{_family(job)}-{(job if isinstance(job, Point) else job.trial).index:03d}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _require_listener(address: str) -> None:
    # Ray itself would try for minutes.
    where = urlsplit(address if "://" in address else f"ray://{address}")
    if where.hostname and where.port:
        socket.create_connection((where.hostname, where.port), timeout=10).close()


def _start(ray: Any, cpus: int, folder: Path) -> None:
    """Start a Ray of our own; once more where a busy machine needs longer than the half minute Ray gives itself."""
    with suppress(OSError):
        if shutil.disk_usage(SHARED_MEMORY).free < OBJECT_STORE_BYTES:
            log.warning(
                "%s has less than %d MiB free: Ray uses the temporary folder, which is slower "
                "-> in a container: --shm-size=512m",
                SHARED_MEMORY,
                OBJECT_STORE_BYTES // 1024**2,
            )
    for attempt in (1, 2):
        try:
            ray.init(
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(folder),
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
            return
        except Exception:
            ray.shutdown()
            if attempt == 2:
                raise
            log.warning("Ray did not start in time; trying once more")


@contextmanager
def _ray(cpus: int, address: str) -> Iterator[Any]:
    """Ray itself: started here and ended with the block, or connected to the cluster at `address`."""
    # Ray reads these when it starts. It phones home otherwise, and prints what users cannot act on.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_DEDUP_LOGS"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    # Below the system's temporary folder: the paths of Ray's sockets may have 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="hp-ray-"))
    try:
        try:
            if address:
                _require_listener(address)
                ray.init(
                    address=address,
                    # The workers run this code, whatever version of it their image holds.
                    runtime_env={"py_modules": [str(Path(health_predict.__path__[0]))]},
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
            else:
                _start(ray, cpus, folder)
        except Exception as error:
            raise UnreachableError(
                f"Ray did not start: {_first_line(error)}",
                "check memory and /dev/shm with `health-predict doctor`, or HEALTH_PREDICT_RAY_ADDRESS",
            ) from error
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
