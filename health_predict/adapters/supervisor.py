"""The process behind the local endpoint: it owns the stable port and the workers of each version.

It holds the listening socket for its whole life, so that the port is never free and a waiting connection never
lost while versions change. It needs nothing but the standard library, survives the command that started it, and
ends by `stop`, by SIGTERM, or when there is nothing left to serve.

Commands come as JSON lines over a loopback connection whose address and secret lie in `supervisor.json`, readable
by its owner only. One connection is one rollout: when it ends, however it ends, what was not committed is undone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import hmac
import itertools
import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from health_predict.adapters.storage import whole_file

ADDRESS_FILE = "supervisor.json"
ACTIVE_FILE = "active.json"
LOCK_FILE = "supervisor.lock"
LOG_FILE = "serving.log"
WORKER_MODULE = "health_predict.adapters.bento_worker"

LOG_BYTES = 5_000_000
# A retired version waits longer than an idle connection may live, so that none is cut under a client.
DRAIN_SECONDS = 8.0
# Requests under way when a worker stops; the service's own limit is shorter.
STOP_SECONDS = 15.0
ACCEPT_SECONDS = 10.0
# More crashes than this within the window, and the supervisor gives up.
CRASH_LIMIT = 3
CRASH_WINDOW_SECONDS = 60.0

logger = logging.getLogger(__name__)


class CommandError(Exception):
    """A command of the client could not be done; the text is for its user."""


@dataclass(eq=False)
class Worker:
    """One worker process and the line to it."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def expect(self, event: str, within: float) -> None:
        """Wait for the worker to report an event. Raises CommandError when it exits or is late."""
        try:
            async with asyncio.timeout(within):
                while line := await self.reader.readline():
                    if json.loads(line)["event"] == event:
                        return
                code = await self.process.wait()
        except TimeoutError:
            raise CommandError(f"worker {self.process.pid} did not report {event!r} within {within:g} s") from None
        except ConnectionError:
            code = await self.process.wait()
        raise CommandError(f"worker {self.process.pid} exited with code {code} before it reported {event!r}")

    async def command(self, do: str, within: float, **values: float) -> None:
        """Send a command and wait until it is done."""
        async with self.turn:
            with contextlib.suppress(ConnectionError):  # `expect` tells how the worker ended
                self.writer.write(json.dumps({"do": do, **values}).encode() + b"\n")
                await self.writer.drain()
            await self.expect(do, within)


@dataclass(eq=False)
class Version:
    """A model version with its workers."""

    image_uri: str
    model_version: str
    folder: str
    private: socket.socket
    metrics: Path
    workers: list[Worker] = field(default_factory=list)
    """Those that are ready."""
    watches: set[asyncio.Task[None]] = field(default_factory=set)
    since: str = ""
    """When it was committed; empty before."""
    restarts: int = 0
    crashes: list[float] = field(default_factory=list)
    accepting: bool = False
    given_up: str = ""

    @property
    def url(self) -> str:
        """Where this version alone answers."""
        host, port = self.private.getsockname()[:2]
        return f"http://{host}:{port}"

    def record(self) -> dict[str, Any]:
        """What a client and the state file are told."""
        return {
            "image_uri": self.image_uri,
            "model_version": self.model_version,
            "folder": self.folder,
            "url": self.url,
            "since": self.since,
            "restarts": self.restarts,
            "pids": [worker.process.pid for worker in self.workers],
        }


class Supervisor:
    """Versions of the model behind one listening socket."""

    def __init__(self, folder: Path, stable: socket.socket, token: str, workers: int) -> None:
        self.folder = folder
        self.stable = stable
        self.token = token
        self.worker_count = workers
        self.active: Version | None = None
        self.candidate: Version | None = None
        self.previous: Version | None = None
        """The version before, during a rollout that is switched and not committed: ready, taking no traffic."""
        self._numbers = itertools.count(1)
        self._retiring: set[asyncio.Task[None]] = set()
        self._conversations: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        self._ended = asyncio.Event()
        self._change = asyncio.Lock()

    # Life

    async def run(self, ready_fd: int) -> None:
        """Serve commands until told to stop. Writes one byte to `ready_fd` when it can be reached."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        control = await asyncio.start_server(self._converse, "127.0.0.1", 0)
        address = control.sockets[0].getsockname()
        _write_json(
            self.folder / ADDRESS_FILE,
            {
                "host": address[0],
                "port": address[1],
                "token": self.token,
                "pid": os.getpid(),
                "stable": list(self.stable.getsockname()[:2]),
                "workers": self.worker_count,
            },
        )
        os.write(ready_fd, b"+")
        os.close(ready_fd)
        logger.info("supervisor %d owns %s:%d", os.getpid(), *self.stable.getsockname()[:2])
        house = asyncio.create_task(self._keep_house())
        await self._ended.wait()
        house.cancel()
        control.close()
        await self._shut_down()
        for writer in self._conversations.values():
            writer.close()
        if self._conversations:
            await asyncio.wait(self._conversations, timeout=ACCEPT_SECONDS)
        (self.folder / ADDRESS_FILE).unlink(missing_ok=True)
        logger.info("supervisor %d ended", os.getpid())

    async def _shut_down(self) -> None:
        self.stable.close()
        versions = [version for version in (self.candidate, self.active, self.previous) if version is not None]
        self.candidate = self.active = self.previous = None
        for version in versions:
            if version.since:
                self._write_active(version, "failed" if version.given_up else "stopped")
            self._retire(version, patience=0)
        if self._retiring:
            await asyncio.wait(self._retiring)

    async def _keep_house(self) -> None:
        log = self.folder / LOG_FILE
        idle = 0
        while True:
            await asyncio.sleep(10)
            bound_log(log, LOG_BYTES)
            # The command that started this supervisor died before it asked for anything.
            idle = idle + 1 if self.active is None and self.candidate is None else 0
            if idle > 2:
                self._ended.set()

    # Conversation

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = asyncio.current_task()
        assert conversation is not None
        self._conversations[conversation] = writer
        owns_rollout = False
        stop = False
        try:
            while line := await reader.readline():
                request = json.loads(line)
                if not hmac.compare_digest(str(request.get("token", "")), self.token):
                    return
                do = request["do"]
                try:
                    if do == "status":
                        answer = self._status()
                    elif do == "stop":
                        stop = True
                        answer = {}
                    else:
                        async with self._change:
                            owns_rollout = owns_rollout or do == "start"
                            answer = await self._change_version(do, request)
                            owns_rollout = owns_rollout and do != "commit"
                except CommandError as error:
                    answer = {"error": str(error)}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
                if stop:
                    return
        except (ConnectionError, ValueError, KeyError, TypeError) as error:
            logger.warning("a command could not be read: %s", error)
        finally:
            if owns_rollout:
                async with self._change:
                    await self._undo()
            writer.close()
            del self._conversations[conversation]
            if stop or (owns_rollout and self.active is None):
                self._ended.set()

    def _status(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "active": self.active and self.active.record(),
            "candidate": self.candidate and self.candidate.record(),
            "previous": self.previous and self.previous.record(),
            "retiring": len(self._retiring),
        }

    async def _change_version(self, do: str, request: dict[str, Any]) -> dict[str, Any]:
        if do == "start":
            await self._undo()
            await self._start(request)
            assert self.candidate is not None
            return self.candidate.record()
        if do == "switch":
            await self._switch()
        elif do == "undo":
            await self._undo()
        elif do == "commit":
            self._commit()
        else:
            raise CommandError(f"unknown command {do!r}")
        return self._status()

    # Versions

    async def _start(self, request: dict[str, Any]) -> None:
        private = socket.create_server(("127.0.0.1", 0), backlog=128)
        name = f"{next(self._numbers)}-{secrets.token_hex(3)}"
        version = Version(
            request["image_uri"], request["model_version"], request["folder"], private, self.folder / "metrics" / name
        )
        version.metrics.mkdir(parents=True)
        log = self.folder / LOG_FILE
        begin = log.stat().st_size if log.exists() else 0
        self.candidate = version
        try:
            starts = [
                asyncio.create_task(self._add_worker(version, request["deadline"])) for _ in range(self.worker_count)
            ]
            version.watches.update(starts)
            await asyncio.gather(*starts)
        except (CommandError, OSError) as error:
            self.candidate = None
            self._retire(version, patience=0)
            raise CommandError(f"{error}{_cause(log, begin)}") from None

    async def _add_worker(self, version: Version, deadline: float) -> None:
        """Start a worker, wait until it is ready, and have it accept when its version does."""
        ours, theirs = socket.socketpair()
        with contextlib.closing(theirs):
            inherited = [theirs.fileno(), version.private.fileno(), self.stable.fileno()]
            process = await asyncio.create_subprocess_exec(
                # -P: the working folder is no place to import from.
                *(sys.executable, "-P", "-m", WORKER_MODULE, version.folder, *map(str, inherited)),
                pass_fds=inherited,
                stdin=asyncio.subprocess.DEVNULL,
                env={
                    **os.environ,
                    "BENTOML_HOME": str(self.folder / "bentoml"),
                    "BENTOML_DO_NOT_TRACK": "true",
                    "PROMETHEUS_MULTIPROC_DIR": str(version.metrics),
                    "PYTHONUNBUFFERED": "1",
                    "PYTHONDONTWRITEBYTECODE": "1",  # the Bento stays the one whose digest was verified
                },
            )
        worker = Worker(process, *await asyncio.open_connection(sock=ours))
        try:
            await worker.expect("ready", deadline)
        except BaseException:
            await _kill(worker)
            raise
        # No pause between these lines: a switch sees either no worker or one that takes commands.
        version.workers.append(worker)
        watch = asyncio.create_task(self._replace_when_dead(version, worker))
        version.watches.add(watch)
        watch.add_done_callback(version.watches.discard)
        if version.accepting:
            with contextlib.suppress(CommandError):  # it died: its watch sees that too
                await worker.command("accept", ACCEPT_SECONDS)

    async def _replace_when_dead(self, version: Version, worker: Worker) -> None:
        code = await worker.process.wait()
        worker.writer.close()
        version.workers.remove(worker)
        logger.error("worker %d of version %s ended with code %d", worker.process.pid, version.model_version, code)
        while True:
            now = time.monotonic()
            version.crashes = [moment for moment in version.crashes if now - moment < CRASH_WINDOW_SECONDS] + [now]
            if len(version.crashes) > CRASH_LIMIT:
                version.given_up = f"its workers ended {len(version.crashes)} times in a row, the last with code {code}"
                logger.critical("version %s is given up: %s", version.model_version, version.given_up)
                self._end_if_given_up()
                return
            await asyncio.sleep((len(version.crashes) - 1) / 2)
            version.restarts += 1
            try:
                await self._add_worker(version, deadline=60)
            except (CommandError, OSError) as error:
                logger.error("version %s: %s", version.model_version, error)
                continue
            if version.since:
                self._write_active(version, "serving")
            return

    def _end_if_given_up(self) -> None:
        # While a rollout is under way it decides: its candidate may take over, or its check fails and undoes it.
        if self.active is not None and self.active.given_up and self.candidate is None and self.previous is None:
            self._ended.set()

    async def _switch(self) -> None:
        if self.candidate is None:
            raise CommandError("there is no candidate to switch to")
        self.previous, self.active, self.candidate = self.active, self.candidate, None
        self.active.accepting = True
        if not self.active.workers:
            raise CommandError("the candidate has ended")
        await asyncio.gather(*(worker.command("accept", ACCEPT_SECONDS) for worker in self.active.workers))
        if self.previous is not None:
            await self._pause(self.previous)

    async def _undo(self) -> None:
        if self.candidate is not None:
            self._retire(self.candidate, patience=0)
            self.candidate = None
        if self.active is not None and not self.active.since:
            failed, self.active, self.previous = self.active, self.previous, None
            if self.active is not None:
                self.active.accepting = True
                for worker in list(self.active.workers):
                    with contextlib.suppress(CommandError):  # it died: the one that replaces it accepts
                        await worker.command("accept", ACCEPT_SECONDS)
            await self._pause(failed)
            self._retire(failed, patience=DRAIN_SECONDS)
        self._end_if_given_up()

    def _commit(self) -> None:
        if self.active is None or self.active.since:
            raise CommandError("there is nothing to commit")
        self.active.since = datetime.now(UTC).isoformat(timespec="seconds")
        self.active.restarts = 0
        self._write_active(self.active, "serving")
        if self.previous is not None:
            self._retire(self.previous, patience=DRAIN_SECONDS)
            self.previous = None
        self._end_if_given_up()

    async def _pause(self, version: Version) -> None:
        version.accepting = False
        for worker in list(version.workers):
            with contextlib.suppress(CommandError):  # a dead worker takes no traffic either
                await worker.command("pause", ACCEPT_SECONDS)

    def _retire(self, version: Version, patience: float) -> None:
        task = asyncio.create_task(self._stop(version, patience))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _stop(self, version: Version, patience: float) -> None:
        for watch in list(version.watches):
            watch.cancel()
        if version.watches:
            await asyncio.wait(version.watches)
        await asyncio.gather(*(_stop_worker(worker, patience) for worker in version.workers))
        version.private.close()
        shutil.rmtree(version.metrics, ignore_errors=True)
        logger.info("version %s stopped", version.model_version)

    def _write_active(self, version: Version, state: str) -> None:
        _write_json(self.folder / ACTIVE_FILE, {**version.record(), "state": state, "reason": version.given_up})


async def _stop_worker(worker: Worker, patience: float) -> None:
    """Stop a worker: asked first, killed after the deadline."""
    with contextlib.suppress(CommandError, TimeoutError):
        await worker.command("stop", patience + STOP_SECONDS + 2, patience=patience, deadline=STOP_SECONDS)
        async with asyncio.timeout(3):
            await worker.process.wait()
    await _kill(worker)


async def _kill(worker: Worker) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.process.kill()
    await worker.process.wait()
    worker.writer.close()


def bound_log(log: Path, most_bytes: int) -> None:
    """Set a log that grew too large aside as `.log.1`; workers append to it, so it is copied and emptied."""
    if log.exists() and log.stat().st_size > most_bytes:
        shutil.copyfile(log, log.with_suffix(".log.1"))
        os.truncate(log, 0)


def _cause(log: Path, begin: int) -> str:
    """The exception that the failed worker wrote, or else its last line."""
    with log.open("rb") as stream:
        stream.seek(begin)
        lines = [line for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[A-Za-z_.]+(Error|Exception|Invalid\w*): ", line)]
    return f": {(raised or lines)[-1].strip()[:300]}" if lines else ""


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with whole_file(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(value, stream, indent=1)


def _hold_lock(folder: Path) -> int:
    """The lock that says, until the kernel releases it, that this folder's supervisor lives."""
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(50):  # a client that looks whether one lives holds it for a moment
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            time.sleep(0.1)
    raise SystemExit("another supervisor holds the lock")


def main(arguments: list[str]) -> None:
    """Leave the caller's session and serve. The secret comes on standard input, not in the process list."""
    parser = argparse.ArgumentParser(prog="supervisor")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stable-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args(arguments)
    token = sys.stdin.readline().strip()
    if os.fork():
        os._exit(0)  # the child belongs to init, so that no command has to collect it
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    lock = _hold_lock(options.folder)
    shutil.rmtree(options.folder / "metrics", ignore_errors=True)
    try:

        async def run() -> None:
            stable = socket.socket(fileno=options.stable_fd)
            await Supervisor(options.folder, stable, token, options.workers).run(options.ready_fd)

        asyncio.run(run())
    finally:
        os.close(lock)


if __name__ == "__main__":
    main(sys.argv[1:])
