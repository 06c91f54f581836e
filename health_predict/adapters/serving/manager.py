"""The process behind the local endpoint: BentoML's own process manager, Circus (distribution `kantoku`), as a library.

Its arbiter holds the listening socket of the stable port for its whole life, so that the port is never free and a
waiting connection never lost while versions change, and starts dead workers again. A version is a watcher, added and
removed by commands on the control socket. The manager survives the command that started it, and ends by `quit` on its
control socket or by SIGTERM.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from socket import AddressFamily
from typing import Any

from circus.arbiter import Arbiter
from circus.commands.addwatcher import AddWatcher
from circus.exc import ConflictError
from circus.sockets import CircusSocket
from filelock import FileLock
from tornado.ioloop import PeriodicCallback

from health_predict.adapters.files import owner_only, read_json, write_json
from health_predict.adapters.serving.processes import ACTIVE_FILE, LOCK_FILE, LOG_FILE, MANAGER_FILE

LOG_BYTES = 5_000_000
# More crashes than this within the window, and a version is given up.
CRASH_LIMIT, CRASH_WINDOW_SECONDS = 3, 60.0
LOOK_SECONDS, CHECK_SECONDS = 0.2, 0.3
IDLE_SECONDS = 30.0


class Serve(AddWatcher):  # type: ignore[misc]
    """Circus' command `add` for a watcher whose processes get the arbiter's sockets, which `add` has no option for."""

    name = "serve"

    def execute(self, arbiter: Arbiter, props: dict[str, Any]) -> Any:
        """Add the watcher and start it."""
        return arbiter.add_watcher(
            props["name"], props["cmd"], use_sockets=True, copy_env=True, **props["options"]
        ).start()


class Manager:
    """The arbiter of one endpoint. `control` is a folder that only the owner may enter."""

    def __init__(self, folder: Path, control: Path, host: str, port: int, workers: int) -> None:
        family = AddressFamily.AF_INET6 if ":" in host else AddressFamily.AF_INET
        stable, probe = CircusSocket("stable", host, port, family), CircusSocket("probe", "127.0.0.1", 0)
        self._folder = folder
        self._arbiter = Arbiter(
            [],
            f"ipc://{control}/control",
            f"ipc://{control}/events",
            check_delay=CHECK_SECONDS,
            sockets=[stable, probe],
        )
        self._probe = probe
        self._record = {"pid": os.getpid(), "control": str(control), "host": host, "port": port, "workers": workers}
        self._starts: defaultdict[str, dict[int, float]] = defaultdict(dict)
        self._busy = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._arbiter.loop.add_callback_from_signal(self._stop))
        PeriodicCallback(self._look, 1000 * LOOK_SECONDS).start()

    def run(self) -> None:
        """Serve until told to stop."""
        self._arbiter.start(self._started).result()

    def _started(self, _: object) -> None:
        record = {**self._record, "probe": self._probe.getsockname()[1]}
        write_json(self._folder / MANAGER_FILE, record)

    def _stop(self) -> None:
        try:
            self._arbiter.stop()
        except ConflictError:  # it is starting or ending a worker at this moment
            self._arbiter.loop.call_later(0.05, self._stop)

    def _look(self) -> None:
        """End when nobody needs the endpoint any more, and give up a version that crashes again and again."""
        if self._arbiter.watchers:
            self._busy = time.monotonic()
        idle = time.monotonic() - self._busy > IDLE_SECONDS  # the command that wanted something died
        if idle or not (self._folder / LOCK_FILE).exists():  # somebody removed the home
            self._stop()
            return
        bound_log(self._folder / LOG_FILE, LOG_BYTES)
        for watcher in [*self._arbiter.watchers]:
            now, starts = time.monotonic(), self._starts[watcher.name]
            for pid in watcher.processes:
                starts.setdefault(pid, now)
            crashes = sum(now - moment < CRASH_WINDOW_SECONDS for moment in starts.values()) - watcher.numprocesses
            if crashes > CRASH_LIMIT:
                self._give_up(watcher.name, f"its workers ended {crashes} times in a row")

    def _give_up(self, name: str, reason: str) -> None:
        active = read_json(self._folder / ACTIVE_FILE)
        if active.get("name") == name:
            write_json(self._folder / ACTIVE_FILE, {**active, "state": "failed", "reason": reason})
            self._stop()
        else:  # a candidate whose command died; if the arbiter is at something else, next time
            with suppress(ConflictError):
                self._arbiter.rm_watcher(name)


def bound_log(path: Path, most_bytes: int) -> None:
    """Set a log that grew too large aside as `.log.1`; workers append to it, so it is copied and emptied."""
    if path.exists() and path.stat().st_size > most_bytes:
        shutil.copyfile(path, path.with_suffix(".log.1"))
        os.truncate(path, 0)


def main(arguments: list[str]) -> None:
    """`manager FOLDER CONTROL HOST PORT WORKERS`: leave the caller and serve."""
    folder, control = Path(arguments[0]), Path(arguments[1])
    owner_only()  # and so do the workers
    if os.fork():
        os._exit(0)  # the child belongs to nobody, so that no command has to collect it
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    with FileLock(folder / LOCK_FILE).acquire(timeout=5):  # a client that looks whether one lives holds it for a moment
        shutil.rmtree(folder / "versions", ignore_errors=True)
        ended: dict[str, Any] = {"state": "stopped"}
        try:
            Manager(folder, control, arguments[2], *map(int, arguments[3:])).run()
        except RuntimeError as error:
            ended = {"state": "failed", "reason": str(error)}
        finally:
            active = read_json(folder / ACTIVE_FILE)
            if active.get("state") == "serving":
                write_json(folder / ACTIVE_FILE, {**active, **ended})
            shutil.rmtree(control, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
