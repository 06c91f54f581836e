"""The model served by processes of this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml
from filelock import FileLock, Timeout

from health_predict.adapters.locks import only_one
from health_predict.adapters.manager import ACTIVE_FILE, LOCK_FILE, LOG_FILE, MANAGER_FILE, order, read_json, write_json
from health_predict.adapters.storage import disk_error
from health_predict.adapters.target import Active, service_environment
from health_predict.core.errors import GateError, StateError, UnreachableError
from health_predict.settings import Settings

# How long the workers of a killed manager may need to let go of the port.
PORT_RELEASE_SECONDS = 5.0
START_SECONDS = 20.0
ANSWER_SECONDS = 10.0
STOP_SECONDS = 45.0
PAUSE_SECONDS = 0.05


class ProcessTarget:
    """Serving by a manager process of this machine and its workers (`adapters/manager.py`).

    Everything it keeps lies in `<home>/serving`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.folder = settings.home / "serving"
        self.log = self.folder / LOG_FILE

    @property
    def url(self) -> str:
        host = self._settings.serving_host
        # Listening on every address is no address to call.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self._settings.serving_port}"

    def active(self) -> Active | None:
        """What takes the traffic now; None when nothing runs or nothing was committed yet."""
        if not self._place():
            return None
        try:
            with contextlib.suppress(UnreachableError), self._alone(0):  # else a rollout lives, and cares itself
                self.restore()
            record = self.committed()
            running = self.pids(record["name"]) if record else []
        except UnreachableError:
            if self._place():
                raise
            return None  # it ended while it was asked
        if not record:
            return None
        # Each worker that was ever started has its file.
        restarts = max(0, len(self.states(record["name"])) - self._settings.serving_workers)
        workers = tuple(f"process {pid}" for pid in running)
        return Active(record["image_uri"], record["model_version"], record["since"], restarts, workers)

    def address(self) -> tuple[str, int] | None:
        """Host and port that a running endpoint owns."""
        place = self._place()
        return (str(place["host"]), int(place["port"])) if place else None

    def check_port(self) -> None:
        """Raises UnreachableError when neither a running endpoint of this home nor a new one could have the port."""
        if self._alive():
            self._same_place()
        else:
            self._free_address()

    def trouble(self) -> str:
        record = {} if self._alive() else self._read(ACTIVE_FILE)
        if record.get("state", "stopped") == "stopped":
            return ""
        if record["state"] == "failed":
            return f"version {record['model_version']} was given up: {record['reason']}; see {self.log}"
        return f"the endpoint of version {record['model_version']} was killed"

    @contextmanager
    def rollout(self) -> Iterator[ProcessRollout]:
        with self._alone(self._settings.rollout_timeout):
            if not self._alive():
                self._start_manager()
            _until(lambda: bool(self._place()), START_SECONDS, f"the endpoint's manager did not start: see {self.log}")
            self._same_place()
            try:
                self.restore()
                yield ProcessRollout(self, self._settings)
            finally:
                # Should this process die before, the next command does it.
                with contextlib.suppress(UnreachableError):
                    self.restore()
                    if not self.committed():
                        self.stop()

    def stop(self) -> bool:
        if not self._alive():
            if self.trouble():  # it is not missed any more
                write_json(self.folder / ACTIVE_FILE, {**self._read(ACTIVE_FILE), "state": "stopped"})
            return False
        workers = self._workers()
        with contextlib.suppress(UnreachableError):
            self._ask("quit")
        pid = self._read(MANAGER_FILE).get("pid", "unknown")
        _until(lambda: not self._alive(), STOP_SECONDS, f"the endpoint's manager, process {pid}, does not end")
        # Those that retire are on their own, and hold the port until they have answered.
        psutil.wait_procs(workers, timeout=STOP_SECONDS)
        return True

    def _workers(self) -> list[psutil.Process]:
        """All worker processes, also of versions that retire."""
        found = []
        for file in (self.folder / "versions").glob("*/[0-9]*"):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(int(file.name))
                if str(file.parent) in process.cmdline():  # its number may be somebody else's by now
                    found.append(process)
        return found

    # Versions

    def committed(self) -> dict[str, Any]:
        """Record of the version that was committed and still has its workers; empty when there is none."""
        record = self._read(ACTIVE_FILE)
        return record if record.get("name") in self._ask("list")["watchers"] else {}

    def restore(self) -> None:
        """Lead the traffic to the version that was committed, and retire every other."""
        name = self.committed().get("name")
        if name and (self.version(name) / "orders").read_text() != "accept":
            with contextlib.suppress(GateError):  # a worker that is started now reads its orders itself
                self.lead(name, "accept")
        for other in (self.folder / "versions").glob("*/version.json"):
            if other.parent.name != name:
                self._retire(other.parent)

    def _retire(self, version: Path) -> None:
        served = (version / "served").exists()
        order(version, "retire" if served else "end")
        _until(lambda: version.name not in self._ask("list")["watchers"], ANSWER_SECONDS, f"{version.name} stays")
        if served:  # what has told that it retires takes no connection any more
            problem = f"a worker of {version.name} does not retire"
            _until(lambda: not self._accepting(version.name), ANSWER_SECONDS, problem)
        (version / "version.json").unlink()

    def _accepting(self, name: str) -> list[int]:
        return [pid for pid, (state, _) in self.states(name).items() if state == "accept" and psutil.pid_exists(pid)]

    def lead(self, name: str, what: str, within: float = ANSWER_SECONDS) -> None:
        """Order the workers of a version and wait until all have done so. Raises GateError when one ends instead."""
        if what == "accept":
            (self.version(name) / "served").touch()
        order(self.version(name), what)
        end = time.monotonic() + within
        seen: set[int] = set()
        while True:
            running, states = self.pids(name), self.states(name)
            if lost := seen - {*running}:
                raise GateError(f"worker {min(lost)} of {name} ended")
            done = [pid for pid in running if states.get(pid, ("", 0))[0] == what]
            if running == done and len(done) == self._settings.serving_workers:
                return
            if time.monotonic() > end:
                raise GateError(f"{name} did not {what} within {within:g} s")
            seen |= {*running}
            time.sleep(PAUSE_SECONDS)

    def version(self, name: str) -> Path:
        """Folder of a version's orders and states."""
        return self.folder / "versions" / name

    def pids(self, name: str) -> list[int]:
        """Processes of a version; none when the manager does not know it yet."""
        try:
            return [int(pid) for pid in self._ask("list", name=name)["pids"]]
        except GateError:
            return []

    def states(self, name: str) -> dict[int, tuple[str, int]]:
        """By process: what a worker last said that it does, and its own port."""
        said = {int(file.name): file.read_text().split() for file in self.version(name).glob("[0-9]*")}
        return {pid: (words[0], int(words[1])) for pid, words in said.items()}

    # The manager

    def _alive(self) -> bool:
        """Whether the manager of this folder lives. Its lock tells; the kernel releases it, whatever killed it."""
        path = self.folder / LOCK_FILE
        try:
            if not path.exists():
                return False
            with FileLock(path).acquire(blocking=False):
                return False
        except Timeout:
            return True
        except OSError as error:
            raise disk_error(error, path) from error

    def _place(self) -> dict[str, Any]:
        """What a manager that lives tells of itself; nothing while it starts."""
        return self._read(MANAGER_FILE) if self._alive() else {}

    def _ask(self, command: str, **properties: Any) -> dict[str, Any]:
        """The answer of Circus to a command. Raises GateError with its reason when it refuses."""
        from circus.client import CircusClient
        from circus.exc import CallError

        control = self._read(MANAGER_FILE).get("control", "")
        client = CircusClient(endpoint=f"ipc://{control}/control", timeout=ANSWER_SECONDS)
        try:
            while True:
                answer: dict[str, Any] = client.send_message(command, **properties)
                if answer["status"] == "ok":
                    return answer
                if "already running" not in answer["reason"]:
                    raise GateError(answer["reason"])
                time.sleep(PAUSE_SECONDS)
        except CallError as error:
            raise UnreachableError(f"the endpoint's manager does not answer: {error}", f"see {self.log}") from None
        finally:
            client.stop()

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return read_json(self.folder / name)
        except (OSError, ValueError) as error:
            remedy = "`health-predict down`, then `health-predict serve`"
            raise StateError(f"{self.folder / name} cannot be read: {error}", remedy) from None

    def _alone(self, seconds: float) -> AbstractContextManager[None]:
        """One rollout at a time on this machine."""
        return only_one(self.folder, seconds, "rollout.lock", "another rollout has been running")

    def _same_place(self) -> None:
        place = self._place()
        found = f"{place['host']}:{place['port']} with {place['workers']} workers"
        wanted = self._settings
        if found != f"{wanted.serving_host}:{wanted.serving_port} with {wanted.serving_workers} workers":
            raise StateError(
                f"the endpoint runs on {found}, the settings say {wanted.serving_host}:{wanted.serving_port} and "
                f"{wanted.serving_workers}",
                "run `health-predict down` first, or restore the setting",
            )

    def _free_address(self) -> int:
        """Family of the address, which nobody has."""
        host, port = self._settings.serving_host, self._settings.serving_port
        # A manager killed a moment ago leaves its port to workers that are about to notice.
        killed = self._read(ACTIVE_FILE).get("state") == "serving"
        end = time.monotonic() + (PORT_RELEASE_SECONDS if killed else 0)
        while True:
            try:
                family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
                socket.create_server((host, port), family=family).close()
                return int(family)
            except socket.gaierror as error:
                problem = f"{host!r} is no address of this machine: {error}"
                raise UnreachableError(problem, "set HEALTH_PREDICT_SERVING_HOST") from None
            except OSError as error:
                # `create_server` rewords the message and keeps the number.
                taken = error.errno == errno.EADDRINUSE
                if not taken or time.monotonic() > end:
                    why = "is taken by another program" if taken else f"cannot be had: {os.strerror(error.errno or 0)}"
                    raise UnreachableError(
                        f"port {host}:{port} {why}",
                        "set HEALTH_PREDICT_SERVING_PORT to a free port, or end what uses it",
                    ) from None
                time.sleep(PAUSE_SECONDS)

    def _start_manager(self) -> None:
        family = self._free_address()
        shutil.rmtree(self._read(MANAGER_FILE).get("control", ""), ignore_errors=True)  # if it was killed
        (self.folder / MANAGER_FILE).unlink(missing_ok=True)
        # The path of a socket may have some hundred characters: the home's may be longer.
        control = tempfile.mkdtemp(prefix="health-predict-", dir="/tmp")
        place = (self._settings.serving_host, self._settings.serving_port, family, self._settings.serving_workers)
        command = [sys.executable, "-P", "-m", "health_predict.adapters.manager", str(self.folder), control]
        try:
            with self.log.open("ab") as log:  # the command leaves a child behind, and ends
                subprocess.run(
                    [*command, *map(str, place)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    start_new_session=True,
                    check=True,
                )
        except OSError as error:
            raise disk_error(error, self.log) from error


class ProcessRollout:
    """One change of version (`target.Rollout`)."""

    def __init__(self, target: ProcessTarget, settings: Settings) -> None:
        self._target = target
        self._settings = settings
        self._candidate: dict[str, Any] = {}
        self._before: dict[str, Any] = {}

    def start(self, image_uri: str, model_version: str, folder: Path) -> str:
        target = self._target
        self.undo()
        name = f"version-{model_version}-{secrets.token_hex(3)}".lower()
        version = target.version(name)
        (version / "metrics").mkdir(parents=True)
        environment = {
            **_environment_of(folder),
            **service_environment(self._settings, target.folder / "predictions"),
            "BENTOML_HOME": str(target.folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "true",
            "PROMETHEUS_MULTIPROC_DIR": str(version / "metrics"),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",  # the Bento stays the one whose digest was verified
        }
        begin = target.log.stat().st_size
        order(version, "wait")
        wanted = {"folder": str(folder), "workers": self._settings.serving_workers, "env": environment}
        write_json(version / "version.json", wanted)
        self._candidate = {"image_uri": image_uri, "model_version": model_version, "folder": str(folder), "name": name}
        try:
            target.lead(name, "wait", self._settings.rollout_timeout)
        except GateError as error:
            raise GateError(f"{error.problem} before it was ready{_cause(target.log, begin)}") from None
        return f"http://127.0.0.1:{target.states(name)[target.pids(name)[0]][1]}"

    def switch(self) -> None:
        if not self._candidate:
            raise GateError("there is no candidate to switch to")
        self._before = self._target.committed()
        self._target.lead(self._candidate["name"], "accept")
        if self._before:
            self._target.lead(self._before["name"], "wait")

    def undo(self) -> None:
        if not self._candidate:
            return
        active = self._target.folder / ACTIVE_FILE
        if read_json(active).get("name") == self._candidate["name"]:
            write_json(active, self._before)
        self._candidate = {}
        self._target.restore()

    def commit(self) -> None:
        """One write; what it makes superfluous ends with the rollout's context, or with the next command."""
        if not self._candidate:
            raise GateError("there is nothing to commit")
        since = datetime.now(UTC).isoformat(timespec="seconds")
        record = {**self._candidate, "since": since, "state": "serving", "reason": ""}
        write_json(self._target.folder / ACTIVE_FILE, record)


def _environment_of(folder: Path) -> dict[str, str]:
    """The Bento's own environment variables; those that are set already win."""
    bento = yaml.safe_load((folder / "bento.yaml").read_text(encoding="utf-8"))
    entries = list(bento.get("envs") or ())
    for service in bento.get("services") or ():
        entries.extend((service.get("config") or {}).get("envs") or ())
    return {
        entry["name"]: str(entry["value"])
        for entry in entries
        if entry.get("stage") != "build" and entry.get("value") is not None and entry["name"] not in os.environ
    }


def _cause(log: Path, begin: int) -> str:
    """The exception that the failed worker wrote, or else its last line."""
    with log.open("rb") as stream:
        stream.seek(begin)
        lines = [line for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[A-Za-z_.]+(Error|Exception|Invalid\w*): ", line)]
    return f": {(raised or lines)[-1].strip()[:300]}" if lines else ""


def _until(done: Callable[[], bool], seconds: float, problem: str) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise UnreachableError(f"{problem} ({seconds:g} s)", "end it, then try again")
        time.sleep(PAUSE_SECONDS)
