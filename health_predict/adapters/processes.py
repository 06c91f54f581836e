"""The model served by processes of this machine, and what processes here owe each other."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedRWPair
from pathlib import Path
from typing import Any

from health_predict.adapters.storage import disk_error, whole_file
from health_predict.adapters.supervisor import ACTIVE_FILE, ADDRESS_FILE, LOCK_FILE, LOG_FILE
from health_predict.adapters.target import Active, service_environment
from health_predict.core.errors import GateError, StateError, UnreachableError
from health_predict.settings import Settings

ROLLOUT_LOCK_FILE = "rollout.lock"
BACKLOG = 2048
# How long the workers of a killed supervisor may need to let go of the port.
PORT_RELEASE_SECONDS = 5.0
START_SECONDS = 15.0
ANSWER_SECONDS = 30.0
STOP_SECONDS = 45.0


class ProcessTarget:
    """Serving by a supervisor process of this machine and its workers (`adapters/supervisor.py`).

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
        state = self._if_alive(self._status)
        if state is None:
            return None
        record = state["active"] if state["active"] and state["active"]["since"] else state["previous"]
        return _active(record) if record else None

    def address(self) -> tuple[str, int] | None:
        """Host and port that a running endpoint owns."""
        record = self._if_alive(lambda: self._read(ADDRESS_FILE))
        return None if record is None else (str(record["stable"][0]), int(record["stable"][1]))

    def check_port(self) -> None:
        """Raises UnreachableError when neither a running endpoint of this home nor a new one could have the port."""
        if self._alive():
            self._same_place()
        else:
            self._bind().close()

    def trouble(self) -> str:
        if self._alive() or not (self.folder / ACTIVE_FILE).exists():
            return ""
        record = self._read(ACTIVE_FILE)
        if record.get("state") == "stopped":
            return ""
        if record.get("state") == "failed":
            return f"version {record['model_version']} was given up: {record['reason']}; see {self.log}"
        return f"the endpoint of version {record.get('model_version', '?')} was killed"

    @contextmanager
    def rollout(self) -> Iterator[ProcessRollout]:
        with self._alone():
            if self._alive():
                self._same_place()
            else:
                self._start_supervisor()
            ending = False
            try:
                with self._connect() as line:
                    try:
                        yield ProcessRollout(line, self._settings.rollout_timeout)
                    finally:
                        # Should this process die before, the supervisor undoes by itself when the connection ends.
                        with contextlib.suppress(UnreachableError):
                            ending = not line.ask("undo")["active"]
            finally:
                if ending:  # nothing to serve: the supervisor ends too
                    self._wait_for_the_end()

    def stop(self) -> bool:
        if not self._alive():
            if self.trouble():
                self._forget()
            return False
        with self._connect() as line, contextlib.suppress(UnreachableError):
            line.ask("stop")
        self._wait_for_the_end()
        return True

    def _wait_for_the_end(self) -> None:
        end = time.monotonic() + STOP_SECONDS
        while self._alive():
            if time.monotonic() > end:
                raise UnreachableError(
                    f"the endpoint did not end within {STOP_SECONDS:g} s", f"kill process {self._pid()}, see {self.log}"
                )
            time.sleep(0.05)

    def _forget(self) -> None:
        """What was killed is not missed any more."""
        record = self._read(ACTIVE_FILE)
        with whole_file(self.folder / ACTIVE_FILE) as temporary:
            temporary.write_text(json.dumps({**record, "state": "stopped"}), encoding="utf-8")

    # Is it there?

    def _alive(self) -> bool:
        """Whether the supervisor of this folder lives. Its lock tells; the kernel releases it, whatever killed it."""
        try:
            descriptor = os.open(self.folder / LOCK_FILE, os.O_RDWR)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise disk_error(error, self.folder / LOCK_FILE) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _if_alive(self, question: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """The answer to a question; None when there is no supervisor, or when it ends while it is asked."""
        if not self._alive():
            return None
        try:
            return question()
        except (UnreachableError, StateError):
            end = time.monotonic() + 1
            while self._alive():
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
            return None

    def _status(self) -> dict[str, Any]:
        with self._connect() as line:
            return line.ask("status")

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StateError(
                f"{self.folder / name} cannot be read: {error}", "`health-predict down`, then `health-predict serve`"
            ) from None
        return content

    def _pid(self) -> str:
        with contextlib.suppress(StateError):
            return str(self._read(ADDRESS_FILE)["pid"])
        return "unknown"

    @contextmanager
    def _connect(self) -> Iterator[_Line]:
        address = self._read(ADDRESS_FILE)
        try:
            connection = socket.create_connection((address["host"], address["port"]), timeout=ANSWER_SECONDS)
        except OSError as error:
            raise UnreachableError(
                f"the endpoint's supervisor does not answer: {error}", f"kill process {address['pid']}, then try again"
            ) from None
        with connection, connection.makefile("rwb") as lines:
            yield _Line(connection, lines, str(address["token"]), int(address["pid"]))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One rollout at a time on this machine."""
        path = self.folder / ROLLOUT_LOCK_FILE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise disk_error(error, path) from error
        try:
            end = time.monotonic() + self._settings.rollout_timeout
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise UnreachableError(
                            f"another rollout has been running for {self._settings.rollout_timeout:g} s",
                            "let it finish, then try again",
                        ) from None
                    time.sleep(0.1)
            yield
        finally:
            os.close(descriptor)

    # Start

    def _same_place(self) -> None:
        record = self._read(ADDRESS_FILE)
        host, port = record["stable"]
        _, wanted = _address(self._settings)
        if port != self._settings.serving_port or host != wanted[0]:
            raise StateError(
                f"the endpoint runs on {host}:{port}, the settings say {wanted[0]}:{self._settings.serving_port}",
                "run `health-predict down` first, or restore the setting",
            )
        if record["workers"] != self._settings.serving_workers:
            raise StateError(
                f"the endpoint runs {record['workers']} workers, the settings say {self._settings.serving_workers}",
                "run `health-predict down` first, or restore the setting",
            )

    def _bind(self) -> socket.socket:
        family, address = _address(self._settings)
        name = f"{self._settings.serving_host}:{self._settings.serving_port}"
        # A supervisor killed a moment ago leaves its port to workers that are about to notice.
        end = time.monotonic() + (PORT_RELEASE_SECONDS if (self.folder / ADDRESS_FILE).exists() else 0)
        while True:
            try:
                return socket.create_server(address[:2], family=family, backlog=BACKLOG)
            except OSError as error:
                # `create_server` rewords the message and keeps the number.
                if error.errno == errno.EADDRINUSE and time.monotonic() < end:
                    time.sleep(0.05)
                    continue
                if error.errno == errno.EADDRINUSE:
                    problem = f"port {name} is taken by another program"
                else:
                    problem = f"port {name} cannot be had: {os.strerror(error.errno or 0)}"
                raise UnreachableError(
                    problem, "set HEALTH_PREDICT_SERVING_PORT to a free port, or end what uses it"
                ) from None

    def _start_supervisor(self) -> None:
        with self._bind() as stable:
            (self.folder / ADDRESS_FILE).unlink(missing_ok=True)
            ready, theirs = os.pipe()
            try:
                try:
                    self._spawn(stable.fileno(), theirs)
                finally:
                    os.close(theirs)
                readable, _, _ = select.select([ready], [], [], START_SECONDS)
                if not readable or not os.read(ready, 1):
                    raise UnreachableError("the endpoint's supervisor did not start", f"see {self.log}")
            finally:
                os.close(ready)

    def _spawn(self, stable: int, ready: int) -> None:
        command = [
            *(sys.executable, "-P", "-m", "health_predict.adapters.supervisor", str(self.folder)),
            *("--stable-fd", str(stable), "--ready-fd", str(ready)),
            *("--workers", str(self._settings.serving_workers)),
        ]
        try:
            log = self.log.open("ab")
        except OSError as error:
            raise disk_error(error, self.log) from error
        with log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **service_environment(self._settings, self.folder / "predictions")},
                pass_fds=(stable, ready),
                start_new_session=True,
            )
        # It leaves a child behind that belongs to nobody, and ends.
        try:
            process.communicate(secrets.token_hex(16).encode() + b"\n", timeout=START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Line:
    """A conversation with the supervisor: a JSON line each way."""

    def __init__(self, connection: socket.socket, lines: BufferedRWPair, token: str, pid: int) -> None:
        self._connection = connection
        self._lines = lines
        self._token = token
        self._pid = pid

    def ask(self, do: str, within: float = ANSWER_SECONDS, **values: Any) -> dict[str, Any]:
        """The supervisor's answer. Raises GateError with its reason when it could not do as asked."""
        try:
            self._connection.settimeout(within)
            self._lines.write(json.dumps({"token": self._token, "do": do, **values}).encode() + b"\n")
            self._lines.flush()
            line = self._lines.readline()
        except TimeoutError:
            raise UnreachableError(
                f"the endpoint's supervisor did not answer {do!r} within {within:g} s",
                f"kill process {self._pid}, then try again",
            ) from None
        except OSError:
            line = b""
        if not line:
            raise UnreachableError("the endpoint's supervisor ended", "try again; its log tells why it ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise GateError(str(answer["error"]))
        return answer


class ProcessRollout:
    """One change of version (`target.Rollout`); the supervisor undoes it when this process dies first."""

    def __init__(self, line: _Line, timeout: float) -> None:
        self._line = line
        self._timeout = timeout

    def start(self, image_uri: str, model_version: str, folder: Path) -> str:
        record = self._line.ask(
            "start",
            self._timeout + 10,
            image_uri=image_uri,
            model_version=model_version,
            folder=str(folder),
            deadline=self._timeout,
        )
        return str(record["url"])

    def switch(self) -> None:
        self._line.ask("switch")

    def undo(self) -> None:
        self._line.ask("undo")

    def commit(self) -> None:
        self._line.ask("commit")


def _active(record: dict[str, Any]) -> Active:
    return Active(
        image_uri=record["image_uri"],
        model_version=record["model_version"],
        since=record["since"],
        restarts=record["restarts"],
        workers=tuple(f"process {pid}" for pid in record["pids"]),
    )


def _address(settings: Settings) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    try:
        found = socket.getaddrinfo(settings.serving_host, settings.serving_port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UnreachableError(
            f"{settings.serving_host!r} is no address of this machine: {error}", "set HEALTH_PREDICT_SERVING_HOST"
        ) from None
    return found[0][0], found[0][4]


def exit_with_parent(poll_seconds: float = 0.5) -> None:
    """End this process, and all it started, when the program that runs it dies, even by kill -9.

    A shell between the two does not hide the death: shells are looked through to the program that started them.
    The watch is a daemon thread; call it once, early. Processes that left on purpose, like the endpoint's
    supervisor, are nobody's children and live on.
    """
    links = parent_links()

    def watch() -> None:
        while intact(links):
            time.sleep(poll_seconds)
        end_descendants()
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()


_SHELLS = {"sh", "bash", "dash", "zsh", "ash", "busybox"}


def parent_links() -> list[tuple[int, int]]:
    """(child, parent) from this process up to its first ancestor that is no shell."""
    import psutil

    links = [(os.getpid(), os.getppid())]
    with contextlib.suppress(psutil.Error):
        while (parent := psutil.Process(links[-1][1])).pid > 1 and parent.name() in _SHELLS:
            links.append((parent.pid, parent.ppid()))
    return links


def intact(links: list[tuple[int, int]]) -> bool:
    """Whether each child still has its parent: an orphan is given another one."""
    import psutil

    try:
        return all(psutil.Process(child).ppid() == parent for child, parent in links)
    except psutil.Error:
        return False


def end_descendants() -> None:
    """Kill every process that descends from this one."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()
