"""Ray Tune: the trials of all families on reused actors that share one copy of the data.

Process starts and imports cost more than most trials, so there is one Tuner for all families, its actors stay,
and the matrices lie in Ray's object store, where actors read them without a copy.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from health_predict.core.errors import StateError, UnreachableError

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 256 * 1024**2


@dataclass(frozen=True, slots=True)
class Prepared:
    """What every trial sees: rows (n, d) float32 and labels (n,) int8 of both parts."""

    train_rows: npt.NDArray[np.float32]
    train_labels: npt.NDArray[np.int8]
    validation_rows: npt.NDArray[np.float32]
    validation_labels: npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Trial:
    """One point of a family's space and how it did; `error` is empty unless it failed."""

    family: str
    index: int
    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    seconds: float
    error: str = ""


# Fits one point and gives its validation metrics; must be importable by the actors.
Objective = Callable[[str, Mapping[str, Any], Prepared, int], Mapping[str, float]]


def search(
    points: Sequence[tuple[str, int, Mapping[str, Any]]],
    objective: Objective,
    data: Prepared,
    *,
    seed: int,
    cpus: int = 0,
    address: str = "",
    done: Callable[[Trial], None],
) -> list[Trial]:
    """Run `objective` for every (family, index, parameters) and call `done` in this process as each one ends.

    Ends with the trials in the order of `points`. A trial that raises is recorded with its reason; when all
    failed, raises StateError that names the first cause. Raises UnreachableError when Ray does not start.
    """
    with _ray(cpus, address) as folder:
        from ray import tune

        results: dict[tuple[str, int], Trial] = {}

        def record(trial: Trial) -> None:
            if (trial.family, trial.index) not in results:
                results[trial.family, trial.index] = trial
                done(trial)

        trainable = tune.with_parameters(_run, objective=objective, data=data, seed=seed)
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={
                "point": tune.grid_search(
                    [dict(zip(("family", "index", "parameters"), p, strict=True)) for p in points]
                )
            },
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name="search", storage_path=str(folder), verbose=0, callbacks=[_callback(record)]
            ),
        )
        tuner.fit()
    return collected(
        [
            results.get((family, index)) or Trial(family, index, parameters, {}, 0.0, "did not end")
            for family, index, parameters in points
        ]
    )


def collected(trials: list[Trial]) -> list[Trial]:
    """The trials, when at least one succeeded. Raises StateError with the first cause when none did."""
    if all(trial.error for trial in trials):
        raise StateError(
            f"all {len(trials)} trials failed, the first one with: {trials[0].error}", "see the log of the stage"
        )
    return trials


def _run(config: dict[str, Any], objective: Objective, data: Prepared, seed: int) -> dict[str, Any]:
    point = config["point"]
    try:
        return dict(objective(point["family"], point["parameters"], data, seed))
    except Exception as error:
        # A reported failure keeps the actor; a raised one would start a new one and its imports.
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def _callback(record: Callable[[Trial], None]) -> Any:
    from ray.tune import Callback

    class Recorder(Callback):  # type: ignore[misc]
        """Hands each ended trial to the driver at once."""

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            result = trial.last_result
            found = {name: float(value) for name, value in result.items() if name in METRICS}
            record(_trial(trial, found, str(result.get("error", ""))))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            # Only the loss of the whole process comes here, such as running out of memory.
            record(_trial(trial, {}, f"its process died: {type(trial.get_error()).__name__}"))

    return Recorder()


METRICS = ("auc", "average_precision", "f1", "brier")


def _trial(trial: Any, metrics: Mapping[str, float], error: str) -> Trial:
    point = trial.config["point"]
    seconds = float((trial.last_result or {}).get("time_total_s", 0.0))
    return Trial(point["family"], int(point["index"]), point["parameters"], metrics, seconds, error)


def _require_listener(address: str) -> None:
    # Ray itself would try for minutes.
    where = urlsplit(address if "://" in address else f"ray://{address}")
    if where.hostname and where.port:
        socket.create_connection((where.hostname, where.port), timeout=10).close()


def _start(ray: Any, cpus: int, folder: Path) -> None:
    """Start a Ray of our own; once more where a busy machine needs longer than the half minute Ray gives itself."""
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
def _ray(cpus: int, address: str) -> Iterator[Path]:
    """A Ray of our own that ends with the block, or the cluster at `address`; gives a folder for Tune's files."""
    # Ray reads these when it starts. It phones home otherwise, and prints what users cannot act on.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["RAY_DEDUP_LOGS"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    import ray

    # Below the system's temporary folder: the paths of Ray's sockets may have 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="hp-ray-"))
    try:
        try:
            if address:
                _require_listener(address)
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
            else:
                _start(ray, cpus or os.cpu_count() or 1, folder)
        except Exception as error:
            raise UnreachableError(
                f"Ray did not start: {(str(error).strip().splitlines() or [type(error).__name__])[0][:300]}",
                "check memory and /dev/shm with `health-predict doctor`, or HEALTH_PREDICT_RAY_ADDRESS",
            ) from error
        yield folder
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
