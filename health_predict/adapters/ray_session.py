"""Ray while a search runs: one of our own on this machine, or the cluster that is there already."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import Any
from urllib.parse import urlsplit

import ray

import health_predict
from health_predict.adapters.files import gone, short_folder
from health_predict.adapters.ray_head import head, shares_memory
from health_predict.core.model.search import libraries
from health_predict.errors import SettingsError, StateError, UnreachableError

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 256 * 1024**2
WORKER_SECONDS = 300.0
START_ATTEMPTS = 3  # of half a minute each, which no setting of Ray's makes longer
# Ray would phone home and print what users cannot act on; and it would give way to everything else that runs here, so
# that a search beside other work would stand still. The workers that it starts ahead have no runtime environment, so
# that no trial could run in them.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",
}
# Where its home has this file, Ray does not ask the addresses of three clouds whether it runs in one of them.
CLOUD_FILE = "ray_bootstrap_config.yaml"
# The longest path that Ray puts into its folder.
LONGEST_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"


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


@contextmanager
def started(resources: Resources) -> Iterator[None]:
    """Ray, of our own or the cluster that is there already; it ends with the block."""
    os.environ.update({name: os.environ.get(name, value) for name, value in RAY_ENVIRONMENT.items()})
    room = resources.room
    with ExitStack() as ended:
        folder = _short_folder()
        ended.callback(shutil.rmtree, folder, ignore_errors=True)
        # For the workers to work in: theirs is a folder to import from, and would be the person's own.
        nowhere = mkdtemp(dir=folder)
        try:
            if resources.address:
                ended.callback(ray.shutdown)
                _connect(resources.address, nowhere)
            else:
                os.environ["RAY_TMPDIR"] = folder  # the argument of `ray.init` for it is a private one
                ended.enter_context(_own(room * resources.trial_cpus, folder, nowhere))
        except Exception as error:
            remedy = "check HEALTH_PREDICT_RAY_ADDRESS" if resources.address else "see `health-predict doctor`"
            raise UnreachableError(f"Ray did not start: {_first_line(error)}", remedy) from error
        if resources.address:
            _check_libraries(resources)
        else:
            _check_memory(resources)
        yield


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


@contextmanager
def _own(cpus: int, folder: str, nowhere: str) -> Iterator[None]:
    """A Ray of our own."""
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())  # else Ray keeps one in the person's home
    with ExitStack() as ended:
        if shares_memory():
            # Whatever RAY_ADDRESS says.
            local = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            chosen: dict[str, Any] = {"address": "local", **local}
        else:
            with _home(folder):
                address = ended.enter_context(head(cpus, OBJECT_STORE_BYTES, Path(folder)))
            chosen = {"address": address}
        ended.callback(ray.shutdown)
        _start(chosen, folder, nowhere)
        yield


def _start(chosen: Mapping[str, Any], folder: str, nowhere: str) -> None:
    for left in reversed(range(START_ATTEMPTS)):
        try:
            with _home(folder):
                ray.init(
                    **chosen,
                    # Ray puts the program into a shell line as it is.
                    runtime_env={"working_dir": nowhere, "py_executable": shlex.quote(sys.executable)},
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
