"""The model served by processes of this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from health_predict.adapters.files import disk_error, read_json, short_folder, writable, write_json
from health_predict.adapters.locks import is_held, only_one
from health_predict.adapters.serving.port import Active, service_environment
from health_predict.adapters.tokens import taken_tokens
from health_predict.errors import GateError, StateError, UnreachableError
from health_predict.settings import Settings

MANAGER_FILE, ACTIVE_FILE, LOCK_FILE, LOG_FILE = "manager.json", "active.json", "manager.lock", "serving.log"
# How long the workers of a killed manager may need to let go of the port.
PORT_RELEASE_SECONDS = 5.0
START_SECONDS = 20.0
ANSWER_SECONDS = 10.0
# Requests under way when a worker ends; the service's own limit is shorter.
WORKER_SECONDS = 20.0
STOP_SECONDS = 45.0
PAUSE_SECONDS = 0.05


class ProcessTarget:
    """Serving by a manager process of this machine and its workers (`adapters/serving/manager.py`).

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
        return f"{self._settings.serving_scheme}://{f'[{host}]' if ':' in host else host}:{self._settings.serving_port}"

    def active(self) -> Active | None:
        """What takes the traffic now; None when nothing runs or nothing was committed yet."""
        if not self.place():
            return None
        try:
            with contextlib.suppress(UnreachableError), self._alone(0):  # else a rollout lives, and cares itself
                self.restore()
            record = self.committed()
            # Between the switch of a rollout and its end, there may be none of it.
            running = self.pids(record["name"]) if record.get("name") in self.ask("list")["watchers"] else []
        except UnreachableError:
            if self.place():
                raise
            return None  # it ended while it was asked
        if not record:
            return None
        restarts = max(0, len(self.ready(record["name"])) - self._settings.serving_workers)
        workers = tuple(f"process {pid}" for pid in running)
        return Active(record["image_uri"], record["model_version"], record["since"], restarts, workers)

    def place(self) -> dict[str, Any]:
        """What a manager that lives tells of itself, its `host` and `port` among it; nothing while it starts."""
        return read_json(self.folder / MANAGER_FILE) if self._alive() else {}

    def check_port(self) -> None:
        """Raises UnreachableError when neither a running endpoint of this home nor a new one could have the port.

        And SettingsError when one that other machines reach would ask nobody for a token.
        """
        taken_tokens(self._settings)
        if self._alive():
            self._same_place()
        else:
            self._free_port()

    def trouble(self) -> str:
        record = {} if self._alive() else read_json(self.folder / ACTIVE_FILE)
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
            _until(lambda: bool(self.place()), START_SECONDS, f"the endpoint's manager did not start: see {self.log}")
            self._same_place()
            try:
                self.restore()
                yield ProcessRollout(self)
            finally:
                # Should this process die before, the next command does it.
                with contextlib.suppress(UnreachableError):
                    self.restore()
                    if not self.committed():
                        self.stop()

    def stop(self) -> bool:
        if not self._alive():
            if self.trouble():  # it is not missed any more
                active = self.folder / ACTIVE_FILE
                write_json(active, {**read_json(active), "state": "stopped"})
            return False
        manager = self.place().get("pid")
        with contextlib.suppress(UnreachableError):
            self.ask("quit")
        # It lets go of its lock a moment before it ends.
        _until(lambda: not self._alive() and not _runs(manager), STOP_SECONDS, "the endpoint's manager does not end")
        return True

    # Versions

    def committed(self) -> dict[str, Any]:
        """Record of the version that was committed since this manager started; empty when there is none."""
        record = read_json(self.folder / ACTIVE_FILE)
        return record if record.get("manager") == self.place().get("pid") else {}

    def restore(self) -> None:
        """Have the workers of the version that was committed, and no others."""
        record, running = self.committed(), self.ask("list")["watchers"]
        if record and record["name"] not in running:
            self.begin(record["name"], Path(record["folder"]), "stable")
        for other in running:
            if other != record.get("name"):
                self.ask("rm", name=other, waiting=True)

    def begin(self, name: str, folder: Path, socket_name: str) -> list[int]:
        """Start workers of an unpacked Bento on one of the manager's sockets; their processes, once all are ready.

        Raises GateError when one ends instead, with what it said last.
        """
        version = self.folder / "versions" / name
        shutil.rmtree(version, ignore_errors=True)
        (version / "metrics").mkdir(parents=True)
        settings = self._settings
        if socket_name != "stable":  # only this machine asks there, by an address that no certificate names
            settings = settings.model_copy(update={"serving_tls_certificate": "", "serving_tls_key": ""})
        environment = {
            **_environment_of(folder),
            **service_environment(settings, self.folder / "predictions"),
            "BENTOML_HOME": str(self.folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "true",
            "PROMETHEUS_MULTIPROC_DIR": str(version / "metrics"),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",  # the Bento stays the one whose digest was verified
        }
        command = [sys.executable, "-P", "-m", "health_predict.adapters.serving.bento_worker"]
        command += [str(folder), str(version), f"$(circus.sockets.{socket_name})"]
        options = {"numprocesses": self._settings.serving_workers, "env": environment}
        options["graceful_timeout"] = WORKER_SECONDS
        log_begin = self.log.stat().st_size
        self.ask("serve", name=name, cmd=shlex.join(command), options=options)
        end = time.monotonic() + self._settings.rollout_timeout
        seen: set[int] = set()
        while True:
            running = self.pids(name)
            if len(running) == self._settings.serving_workers and self.ready(name) >= {*running}:
                return running
            if lost := seen - {*running}:
                said = _cause(self.log, log_begin)
                raise GateError(f"worker {min(lost)} of {name} ended before it was ready{said}")
            if time.monotonic() > end:
                raise GateError(f"{name} was not ready within {self._settings.rollout_timeout:g} s")
            seen |= {*running}
            time.sleep(PAUSE_SECONDS)

    def pids(self, name: str) -> list[int]:
        """Processes of a version."""
        return [int(pid) for pid in self.ask("list", name=name)["pids"]]

    def ready(self, name: str) -> set[int]:
        """Processes of a version that were ready once; each has its file."""
        return {int(file.name) for file in (self.folder / "versions" / name).glob("[0-9]*")}

    # The manager

    def _alive(self) -> bool:
        """Whether the manager of this folder lives. Its lock tells."""
        return is_held(self.folder / LOCK_FILE)

    def ask(self, command: str, **properties: Any) -> dict[str, Any]:
        """The answer of Circus to a command, once it has time for it. Raises GateError with its reason to refuse."""
        from circus.client import CircusClient
        from circus.exc import CallError

        control = read_json(self.folder / MANAGER_FILE).get("control", "")
        client = CircusClient(endpoint=f"ipc://{control}/control", timeout=WORKER_SECONDS + ANSWER_SECONDS)
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

    def _alone(self, seconds: float) -> AbstractContextManager[None]:
        """One rollout at a time on this machine."""
        return only_one(self.folder, seconds, "rollout.lock", "another rollout has been running")

    def _same_place(self) -> None:
        place, wanted = self.place(), self._settings
        found = f"{place['host']}:{place['port']} with {place['workers']} workers"
        asked = f"{wanted.serving_host}:{wanted.serving_port} with {wanted.serving_workers} workers"
        if found != asked:
            raise StateError(
                f"the endpoint runs on {found}, the settings say {asked}",
                "run `health-predict down` first, or restore the setting",
            )

    def _free_port(self) -> None:
        host, port = self._settings.serving_host, self._settings.serving_port
        # A manager killed a moment ago leaves its port to workers that are about to notice.
        killed = read_json(self.folder / ACTIVE_FILE).get("state") == "serving"
        end = time.monotonic() + (PORT_RELEASE_SECONDS if killed else 0)
        while True:
            try:
                socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
                return
            except OSError as error:
                taken = error.errno == errno.EADDRINUSE
                if not taken or time.monotonic() > end:
                    why = "is taken by another program" if taken else f"cannot be had: {error.strerror}"
                    raise UnreachableError(
                        f"port {host}:{port} {why}",
                        "set HEALTH_PREDICT_SERVING_HOST and HEALTH_PREDICT_SERVING_PORT to a free port of this "
                        "machine, or end what uses it",
                    ) from None
                time.sleep(PAUSE_SECONDS)

    def _start_manager(self) -> None:
        taken_tokens(self._settings)
        self._free_port()
        shutil.rmtree(read_json(self.folder / MANAGER_FILE).get("control", ""), ignore_errors=True)  # if it was killed
        (self.folder / MANAGER_FILE).unlink(missing_ok=True)
        # The path of a socket may have some hundred characters: the home's may be longer.
        control = short_folder("health-predict-", "/control")
        # It outlives the command, whose temporary files go with it.
        environment = {**os.environ, "TMPDIR": str(writable(self.folder / "tmp"))}
        place = (self._settings.serving_host, self._settings.serving_port, self._settings.serving_workers)
        command = [sys.executable, "-P", "-m", "health_predict.adapters.serving.manager", str(self.folder), control]
        try:
            with self.log.open("ab") as log:  # the command leaves a child behind, and ends
                subprocess.run(
                    [*command, *map(str, place)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    env=environment,
                    start_new_session=True,
                    check=True,
                )
        except OSError as error:
            raise disk_error(error, self.log) from error


class ProcessRollout:
    """One change of version (`port.Rollout`)."""

    def __init__(self, target: ProcessTarget) -> None:
        self._target = target
        self._candidate: dict[str, Any] = {}
        self._before: dict[str, Any] = {}
        self._workers: list[int] = []

    def start(self, image_uri: str, model_version: str, folder: Path) -> str:
        name = f"version-{model_version}-{secrets.token_hex(3)}".lower()
        self._candidate = {"image_uri": image_uri, "model_version": model_version, "folder": str(folder), "name": name}
        self._workers = self._target.begin(f"{name}-candidate", folder, "probe")
        return f"http://127.0.0.1:{self._target.place()['probe']}"

    def switch(self) -> None:
        """Workers of its own take the traffic, once they are ready; then those of the version before end."""
        target, name = self._target, self._candidate["name"]
        if target.pids(f"{name}-candidate") != self._workers:
            raise GateError(f"a worker of {name} ended and was started again")
        target.ask("rm", name=f"{name}-candidate", waiting=True)
        target.begin(name, Path(self._candidate["folder"]), "stable")
        self._before = target.committed()
        if self._before:
            target.ask("rm", name=self._before["name"], waiting=True)

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
        since = datetime.now(UTC).isoformat(timespec="seconds")
        manager = self._target.place()["pid"]
        record = {**self._candidate, "since": since, "state": "serving", "reason": "", "manager": manager}
        write_json(self._target.folder / ACTIVE_FILE, record)


def _environment_of(folder: Path) -> dict[str, str]:
    """The Bento's own environment variables; those that are set already win."""
    bento = yaml.safe_load((folder / "bento.yaml").read_text(encoding="utf-8"))
    wanted = [entry for entry in bento["envs"] if entry.get("stage") != "build" and entry.get("value") is not None]
    return {entry["name"]: str(entry["value"]) for entry in wanted if entry["name"] not in os.environ}


def _cause(log: Path, begin: int) -> str:
    """The exception that the failed worker wrote, or else its last line."""
    with log.open("rb") as stream:
        stream.seek(begin)
        lines = [line for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[A-Za-z_.]+(Error|Exception|Invalid\w*): ", line)]
    return f": {(raised or lines)[-1].strip()[:300]}" if lines else ""


def _runs(pid: int | None) -> bool:
    """Whether a process runs; one that ended and that nobody collected does not."""
    import psutil

    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _until(done: Callable[[], bool], seconds: float, problem: str) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise UnreachableError(f"{problem} ({seconds:g} s)", "end it, then try again")
        time.sleep(PAUSE_SECONDS)
