"""Ray Tune: the trials of all families on reused actors that share one copy of the data.

Process starts and imports cost more than most trials, so there is one Tuner for all families, its actors stay,
and the matrices lie in Ray's object store, where actors read them without a copy. Which point comes next and where
a trial stops is told by `core/search.py`: `Course` puts its families behind Tune's `Searcher`. Ray starts in a thread,
and the actors' processes with it, while the data are prepared. Nothing of a search is left with Ray: what ended is
handed to the caller at once.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import pickle
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import health_predict
from health_predict.core.errors import SettingsError, StateError, UnreachableError
from health_predict.core.families import FAMILIES
from health_predict.core.search import FamilySearch, Fitted, Point, Prepared, Trial

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 256 * 1024**2
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - not to write there: Ray does
# What a search's result depends on besides our own code, and what fitted models are pickled with.
LIBRARIES = ("scikit-learn", "numpy", "pandas", "scipy", "optuna")
START_SECONDS = 300.0
LOOK_SECONDS = 0.02
LOOKS = 500
POLL_SECONDS = 1.0
WAIT_SECONDS = 0.05
ATTEMPTS = 2  # of a trial whose process died: a node may be lost, too
# Ray reads these when it starts. It phones home otherwise, and prints what users cannot act on.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray would give way to everything else that runs here, and a search beside other work would stand still.
    "RAY_worker_niceness": "0",
    # Ray starts a process for each of its CPUs. They import at once, and wait for the actors.
    "RAY_preload_python_modules": "health_predict.adapters.ray_worker",
    "RAY_idle_worker_killing_time_threshold_ms": str(int(START_SECONDS * 1000)),
}
TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end a search as if it were whole
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # MLflow holds what a search is continued from
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}

# What an actor runs: metrics, AUCs at the rungs, the model unless it was stopped there. Must be importable there.
RunTrial = Callable[[Point, Prepared, int, int], tuple[Mapping[str, float], tuple[float, ...], Fitted | None]]


@dataclass(slots=True)
class Progress:
    """Where a search is: numbers of trials, the best AUC of each family, seconds left (None: not known yet)."""

    total: int
    done: int
    running: int
    stopped: int
    failed: int
    best: dict[str, float] = field(default_factory=dict)
    seconds_left: float | None = None


Tell = Callable[[Trial, Progress], object]


class Cluster:
    """A Ray of our own, or the cluster at `address`: starts with its block, in a thread, and ends with it.

    `cpus` cores are used here (0: all); `trial_cpus` and `trial_memory_mb` are what one trial gets, of which there are
    `at_once` at most. Raises SettingsError when a trial never fits.
    """

    def __init__(
        self, *, at_once: int, cpus: int = 0, address: str = "", trial_cpus: int = 1, trial_memory_mb: int = 0
    ) -> None:
        cpus = cpus or os.cpu_count() or 1
        self._address = address
        self._trial_cpus = trial_cpus
        self._trial_memory = trial_memory_mb * 1024**2
        self._at_once = at_once if address else min(at_once, cpus // trial_cpus)
        if not self._at_once:
            raise SettingsError(
                f"a trial asks for {trial_cpus} cores, the search has {cpus}",
                "lower HEALTH_PREDICT_TRIAL_CPUS or raise HEALTH_PREDICT_SEARCH_CPUS",
            )

    def __enter__(self) -> Cluster:
        # Below the system's temporary folder: the paths of Ray's sockets may have 107 characters at most.
        self._folder = Path(tempfile.mkdtemp(prefix="hp-ray-"))
        # Ahead of all that the caller imports, which takes longer: Ray's own processes start meanwhile.
        with suppress(ImportError):  # `_start` will tell
            import_module("ray")
        self._thread = ThreadPoolExecutor(1, "ray-start")
        self._ending: Future[None] | None = None
        self._started = self._thread.submit(self._start)
        return self

    def __exit__(self, *raised: object) -> None:
        self.end()
        self._thread.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def end(self) -> None:
        """Let Ray end beside what the caller does next; it takes seconds."""
        if self._ending:
            return

        def shut_down() -> None:
            import ray

            # Ray ends the whole process when a thread frees one of its objects while it shuts down. So what is garbage
            # goes before, and the collector, which runs in any thread, rests meanwhile.
            gc.collect()
            gc.disable()
            try:
                ray.shutdown()
            finally:
                gc.enable()

        self._ending = self._thread.submit(shut_down)

    def _start(self) -> Any:
        """Ray itself, started or connected. Raises UnreachableError when it does not."""
        for name, value in RAY_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ.update(TUNE_ENVIRONMENT)
        try:
            import ray

            if self._address:
                _require_listener(self._address)
                ray.init(
                    address=self._address,
                    # The workers run this code, whatever version of it their image holds.
                    runtime_env={"py_modules": [str(Path(health_predict.__path__[0]))]},
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
            else:
                _start_here(ray, self._at_once, self._folder)
            if "://" not in self._address:
                import ray.tune  # takes a second, beside what the caller does
            return ray
        except Exception as error:
            raise UnreachableError(
                f"Ray did not start: {_first_line(error)}",
                "check memory and /dev/shm with `health-predict doctor`, or HEALTH_PREDICT_RAY_ADDRESS",
            ) from error

    def search(
        self,
        plan: Callable[[], tuple[Sequence[FamilySearch], Prepared] | None],
        *,
        run_trial: RunTrial,
        seed: int,
        seconds: float = 0,
        done: Tell,
    ) -> Sequence[FamilySearch]:
        """The planned searches with all their trials done; `done` is called with each trial as it ends.

        `plan` tells what is searched and on which data, or None; the processes of the trials start meanwhile, unless
        they are to start on a cluster, of which nothing is asked in vain. It and `done` are called in one thread beside
        this one, so that trials go on while MLflow is slow. After `seconds` (0: no limit) no further trial is drawn. A
        trial that raises, or whose process dies twice, is recorded with its reason; when all failed, raises StateError
        with the first cause.
        """
        writes: list[Future[object]] = []
        with ThreadPoolExecutor(1, "search-log") as writer:

            def begin() -> Begun | None:
                planned = plan()
                # What is imported by now is no garbage: `shut_down` need not look through it.
                gc.freeze()
                if planned is None:
                    return None
                searches, data = planned
                return Course(searches, seconds), self._started.result().put(data)

            def tell(trial: Trial, progress: Progress) -> None:
                writes.append(writer.submit(done, trial, progress))
                for write in writes:
                    if write.done():
                        write.result()

            begun = writer.submit(begin)
            if self._address and begun.result() is None:
                return ()
            ray = self._started.result()
            if self._address:
                self._check_libraries(ray)
            at_once = self._room(ray)
            # A CPU of our own Ray is what one trial gets.
            needs = {"cpu": self._trial_cpus if self._address else 1}
            if self._trial_memory:
                needs["memory"] = self._trial_memory
            try:
                tune = (run_trial, seed, self._trial_cpus, needs, at_once, tell)
                with nullcontext() if self._address else _in_waiting_processes():
                    searches = _tune_inside(ray, begun, *tune) if "://" in self._address else _tune(begun, *tune)
            except BaseException:
                writer.shutdown(wait=False, cancel_futures=True)
                for write in writes:
                    if write.done() and not write.cancelled():
                        write.result()  # what could not be written is the cause of what Tune raised
                raise
        for write in writes:
            write.result()
        if begun.result() is None:
            return ()
        _require_success([trial for search in searches for trial in search.ended.values()])
        return searches

    def _room(self, ray: Any) -> int:
        """How many trials run at once. Raises SettingsError when none fits, unless a cluster may grow."""
        if self._address or not self._trial_memory:
            return self._at_once
        room = min(self._at_once, int(ray.cluster_resources().get("memory", 0) // self._trial_memory))
        if not room:
            raise SettingsError(
                f"a trial asks for {self._trial_memory // 1024**2} MiB, more than Ray has here",
                "lower HEALTH_PREDICT_TRIAL_MEMORY_MB",
            )
        return room

    def _check_libraries(self, ray: Any) -> None:
        try:
            asked = ray.remote(libraries).options(num_cpus=self._trial_cpus).remote()
            theirs = ray.get(asked, timeout=START_SECONDS)
        except ray.exceptions.GetTimeoutError as error:
            raise UnreachableError(
                f"no processor of the Ray cluster was free within {START_SECONDS:.0f} s",
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


class Course:
    """What all families together try next, and how far they are."""

    def __init__(self, searches: Sequence[FamilySearch], seconds: float) -> None:
        self.searches = searches
        self._seconds = seconds
        self._began = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether no further trial may begin."""
        spent = all(search.begun == search.trials for search in self.searches)
        return spent or (bool(self._seconds) and time.monotonic() - self._began >= self._seconds)

    @property
    def ended(self) -> int:
        """How many trials have ended."""
        return sum(len(search.ended) for search in self.searches)

    @property
    def under_way(self) -> int:
        """How many trials were drawn and have not ended."""
        return sum(search.begun for search in self.searches) - self.ended

    def next(self) -> Point | None:
        """The next point; None while all families have to wait.

        It is of the slowest family that has one, so that no long trial is left for the end; where seconds are the
        budget, families take turns.
        """
        for search in sorted(self.searches, key=_turn if self._seconds else _slowness):
            point = search.next()
            if point is not None:
                return point
        return None

    def end(self, trial: Trial, running: int) -> Progress:
        """Take the result of a trial; `running` others are under way."""
        next(search for search in self.searches if search.family.name == trial.family).end(trial)
        ended = [trial for search in self.searches for trial in search.ended.values()]
        total = sum(search.trials for search in self.searches)
        gone = time.monotonic() - self._began
        left = gone / len(ended) * (total - len(ended))
        best = {search.family.name: found.metrics["auc"] for search in self.searches if (found := search.best())}
        return Progress(
            total,
            len(ended),
            running,
            sum(trial.stopped for trial in ended),
            sum(bool(trial.error) for trial in ended),
            best,
            min(left, max(0.0, self._seconds - gone)) if self._seconds else left,
        )


def _turn(search: FamilySearch) -> float:
    return search.begun


def _slowness(search: FamilySearch) -> tuple[float, int]:
    # Until its first trial ended a family may be the slowest.
    seconds = [trial.seconds for trial in search.ended.values()]
    return (-sum(seconds) / len(seconds) if seconds else -math.inf, search.begun)


# A course and where its Prepared lies in Ray's store.
Begun = tuple[Course, Any]


def _tune(
    begun: Future[Begun | None],
    run_trial: RunTrial,
    seed: int,
    threads: int,
    needs: Mapping[str, float],
    at_once: int,
    tell: Tell,
) -> Sequence[FamilySearch]:
    """Run a course with `ray.tune`, `at_once` trials at once at most; its searches.

    Until `begun` holds the course and where its data lie, trials without a point start the actors; later they hold an
    actor that would wait for a point. Tune ends an actor that has no trial, and one that is late for its trial.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_once)
    import ray
    from ray import tune
    from ray.tune.search import Searcher
    from ray.tune.stopper import NoopStopper, Stopper

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

    class Fit(tune.Trainable):  # type: ignore[misc]
        """An actor: its imports stay from one trial to the next."""

        def reset_config(self, config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            point = self.config["point"]
            if point is None:
                time.sleep(min(WAIT_SECONDS * (1 + self.iteration), POLL_SECONDS))
                return {}
            return {"trial": _fit(run_trial, point, ray.get(self.config["data"]), seed, threads), "done": True}

    class Waited(Stopper):  # type: ignore[misc]
        """Ends what has no point when there may be one: all actors are there, and trials ended meanwhile."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            if "trial" in result:
                return False
            points.awaited.discard(trial_id)
            if not begun.done():
                return False
            course, _ = planned()
            return course is None or (not points.awaited and (course.over or course.ended > points.idle[trial_id]))

        def stop_all(self) -> bool:
            return False

        def __reduce__(self) -> tuple[Any, ...]:
            return NoopStopper, ()  # see Ended

    class Points(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.idle: dict[str, int] = {}  # trials without a point, and how many had ended when they were given
            self.awaited: set[str] = set()  # those that were given first, until their actors are there

        def suggest(self, trial_id: str) -> Any:
            if not begun.done():
                if len(self.idle) == at_once:
                    return None
                self.idle[trial_id] = -1
                self.awaited.add(trial_id)
                return {"point": None}
            course, data = planned()
            if course is None or course.over:
                return Searcher.FINISHED
            # None is drawn in advance: which family is the next is known when a trial has ended.
            if course.under_way + len(self.idle) >= at_once:
                return None
            point = course.next()
            if point is None:
                self.idle[trial_id] = course.ended
            return {"point": point, "data": data}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            # What has a point is taken by `Ended`, which is told why a process died.
            self.idle.pop(trial_id, None)
            self.awaited.discard(trial_id)

        def save(self, path: str) -> None:
            """MLflow holds what a search is continued from."""

        def __reduce__(self) -> tuple[Any, ...]:
            return Searcher, ()  # see Ended

    class Ended(tune.Callback):  # type: ignore[misc]
        def __reduce__(self) -> tuple[Any, ...]:
            # Tune saves its callbacks; this one is of no use to another process.
            return tune.Callback, ()

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            if point := trial.config["point"]:
                log.warning("the process of %s-%03d died; trying once more", point.family, point.index)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            # Taken out of Tune's own record, which would keep the model.
            if ended := trial.last_result.pop("trial", None):
                self._end(ended, trial, trials)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            # Only the loss of the whole process comes here.
            cause = trial.get_error()
            out_of_memory = "memory" in f"{type(cause).__name__} {cause}".lower()
            reason = "out of memory" if out_of_memory else type(cause).__name__
            point = trial.config["point"]
            if point is None:
                return  # those that have one will tell
            died = f"its process died {ATTEMPTS} times: {reason}"
            self._end(Trial(point.family, point.index, point.parameters, {}, 0.0, error=died), trial, trials)

        def _end(self, ended: Trial, trial: Any, trials: list[Any]) -> None:
            others = (other for other in trials if other is not trial and other.config["point"])
            running = sum(other.status == "RUNNING" for other in others)
            course, _ = planned()
            assert course is not None
            # The model stays with the course, here or in the cluster.
            tell(replace(ended, fitted=b""), course.end(ended, running))

    def planned() -> Begun | tuple[None, None]:
        """What `begun` holds when it is done; nothing where there is nothing to do, or no plan could be made."""
        return (None if begun.exception() else begun.result()) or (None, None)

    points = Points()
    with tempfile.TemporaryDirectory(prefix="hp-tune-") as folder:
        tune.Tuner(
            tune.with_resources(Fit, dict(needs)),
            tune_config=tune.TuneConfig(search_alg=points, num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                verbose=0,
                callbacks=[Ended()],
                stop=Waited(),
                failure_config=tune.FailureConfig(max_failures=ATTEMPTS - 1),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    begun.result()  # raises what a plan raised
    course, _ = planned()
    return course.searches if course else ()


def _fit(run_trial: RunTrial, point: Point, data: Prepared, seed: int, threads: int) -> Trial:
    from threadpoolctl import threadpool_limits

    began = time.monotonic()
    try:
        with threadpool_limits(threads):  # Ray's way comes too late for libraries that are imported already
            metrics, rungs, fitted = run_trial(point, data, seed, threads)
    except Exception as error:
        # A failure that is reported keeps the actor; a raised one would start a new one and its imports.
        reason = f"{type(error).__name__}: {error}"[:300]
        return Trial(point.family, point.index, point.parameters, {}, time.monotonic() - began, error=reason)
    seconds = time.monotonic() - began
    if fitted is None:
        return Trial(point.family, point.index, point.parameters, metrics, seconds, rungs, stopped=True)
    # As bytes: who passes it on need not import what it is made of.
    model = pickle.dumps(fitted, protocol=pickle.HIGHEST_PROTOCOL)
    return Trial(point.family, point.index, point.parameters, metrics, seconds, rungs, fitted=model)


def _tune_inside(ray: Any, begun: Future[Begun | None], *tune: Any) -> Sequence[FamilySearch]:
    """`_tune` in a task of a cluster to which only Ray's client port leads; what ended comes back through a queue."""
    from ray.util.queue import Empty, Queue

    *others, tell = tune
    ended = Queue()
    task = ray.remote(_tune_begun).options(num_cpus=0)
    task = task.remote(begun.result(), *others, lambda *event: ended.put(event))
    over = False
    while not over:
        # Looked at before the queue, so that nothing that was sent in between is left there.
        over = bool(ray.wait([task], timeout=0)[0])
        with suppress(Empty):
            while True:
                tell(*ended.get(block=not over, timeout=POLL_SECONDS))
    found: Sequence[FamilySearch] = ray.get(task)
    return found


def _tune_begun(begun: Begun, *others: Any) -> Sequence[FamilySearch]:
    os.environ.update(TUNE_ENVIRONMENT)
    there: Future[Begun | None] = Future()
    there.set_result(begun)
    return _tune(there, *others)


def libraries() -> dict[str, str]:
    """Versions of the libraries that a search's result depends on, in this process."""
    ours = {name for family in FAMILIES.values() for name in family.libraries}
    return {name: version(name) for name in (*LIBRARIES, *sorted(ours))}


def _require_success(trials: Sequence[Trial]) -> None:
    if all(trial.error for trial in trials):
        first = f", the first one with: {trials[0].error}" if trials else ""
        raise StateError(f"all {len(trials)} trials failed{first}", "see the log of the stage")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _require_listener(address: str) -> None:
    # Ray itself would try for minutes.
    where = urlsplit(address if "://" in address else f"ray://{address}")
    if where.hostname and where.port:
        socket.create_connection((where.hostname, where.port), timeout=10).close()


def _start_here(ray: Any, at_once: int, folder: Path) -> None:
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
            with _without_delay():
                ray.init(
                    num_cpus=at_once,
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
def _without_delay() -> Iterator[None]:
    """Ray starts without what takes time for nothing on one machine, and which `ray.init` has no argument for.

    These are the dashboard's server, whose pages are off, the autoscaler's monitor, and the one that reads the workers'
    logs for the driver, which is off, too. Together they take two seconds of processor time, and make the caller wait
    for one second at the start and for one at the end. And Ray itself looks once a second whether its node is there.
    """
    from ray._private import node, services

    def skip(*given: Any, **named: Any) -> None:
        """Start nothing."""

    get_node = services.get_node

    def look_often(address: str, node_id: str) -> Any:
        nodes = node.GcsClient(address=address)
        for _ in range(LOOKS):
            if nodes.get_all_node_info():
                break
            time.sleep(LOOK_SECONDS)
        return get_node(address, node_id)

    idle = ("start_api_server", "start_monitor", "start_log_monitor")
    with _replaced(node.Node, dict.fromkeys(idle, skip)), _replaced(services, {"get_node": look_often}):
        yield


@contextmanager
def _in_waiting_processes() -> Iterator[None]:
    """Tune's actors take the processes that Ray started with itself.

    Tune would give them an environment of their own, to hand on variables that all processes have here, and Ray would
    start others for it.
    """
    from ray.tune.execution import class_cache

    with _replaced(class_cache, {"DEFAULT_ENV_VARS": {}, "ENV_VARS_TO_PROPAGATE": ()}):
        yield


@contextmanager
def _replaced(owner: Any, others: Mapping[str, Any]) -> Iterator[None]:
    kept = {name: getattr(owner, name) for name in others if hasattr(owner, name)}  # another Ray may lack some
    for name in kept:
        setattr(owner, name, others[name])
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(owner, name, value)
