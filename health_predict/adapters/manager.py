"""The process behind the local endpoint: BentoML's own process manager, Circus (distribution `kantoku`), as a library.

Its arbiter holds the listening socket of the stable port for its whole life, so that the port is never free and a
waiting connection never lost while versions change, and starts dead workers again. Which versions there are to be, it
reads from `versions/`: a folder with `version.json` is a watcher until its `orders` say `end`, or `retire`: then its
workers are on their own, answer what they have, and end. It survives the command that started it, and ends by `quit` on
its control socket or by SIGTERM.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from socket import AddressFamily
from typing import Any

from filelock import FileLock

from health_predict.adapters.storage import whole_file

MANAGER_FILE, ACTIVE_FILE, LOCK_FILE, LOG_FILE = "manager.json", "active.json", "manager.lock", "serving.log"
WORKER_MODULE = "health_predict.adapters.bento_worker"
LOG_BYTES = 5_000_000
# Requests under way when a worker stops; the service's own limit is shorter.
STOP_SECONDS = 20.0
# More crashes than this within the window, and a version is given up.
CRASH_LIMIT, CRASH_WINDOW_SECONDS = 3, 60.0
LOOK_SECONDS, CHECK_SECONDS = 0.2, 0.3
IDLE_SECONDS = 30.0

log = logging.getLogger(__name__)


class Manager:
    """The arbiter of one endpoint. `control` is a folder that only the owner may enter."""

    def __init__(self, folder: Path, control: Path, host: str, port: int, family: int, workers: int) -> None:
        from circus.arbiter import Arbiter
        from circus.sockets import CircusSocket
        from tornado.ioloop import PeriodicCallback

        self._folder = folder
        self._stable = CircusSocket("stable", host, port, AddressFamily(family))
        self._arbiter = Arbiter(
            [], f"ipc://{control}/control", f"ipc://{control}/events", check_delay=CHECK_SECONDS, sockets=[self._stable]
        )
        place: dict[str, Any] = {"host": host, "port": port, "workers": workers}
        self._record = {"pid": os.getpid(), "control": str(control), **place}
        self._starts: defaultdict[str, dict[int, float]] = defaultdict(dict)
        self._busy = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._arbiter.loop.add_callback_from_signal(self._stop))
        PeriodicCallback(self._look, 1000 * LOOK_SECONDS).start()

    def run(self) -> None:
        """Serve until told to stop."""
        ready = self._arbiter.start(lambda _: write_json(self._folder / MANAGER_FILE, self._record))
        ready.result()

    def _stop(self) -> None:
        from circus.exc import ConflictError

        try:
            self._arbiter.stop()
        except ConflictError:  # it is starting a worker at this moment
            self._arbiter.loop.call_later(0.05, self._stop)

    def _look(self) -> None:
        """Do what the folder of versions says, and give up what crashes again and again."""
        from circus.exc import ConflictError

        if not (self._folder / LOCK_FILE).exists():  # somebody removed the home
            self._stop()
            return
        bound_log(self._folder / LOG_FILE, LOG_BYTES)
        watchers = {watcher.name: watcher for watcher in self._arbiter.watchers}
        if watchers:
            self._busy = time.monotonic()
        elif time.monotonic() - self._busy > IDLE_SECONDS:  # the command that wanted something died
            self._stop()
        try:
            for version in (self._folder / "versions").glob("*/version.json"):
                self._settle(version, watchers.get(version.parent.name))
        except ConflictError:
            return  # the arbiter is at something else: next time
        for watcher in self._arbiter.watchers:
            self._judge(watcher)

    def _settle(self, version: Path, watcher: Any) -> None:
        name = version.parent.name
        orders = (version.parent / "orders").read_text()
        if orders in ("retire", "end"):
            if watcher is not None:
                self._arbiter.rm_watcher(name, nostop=orders == "retire")
        elif watcher is None:
            wanted = json.loads(version.read_text(encoding="utf-8"))
            command = [sys.executable, "-P", "-m", WORKER_MODULE, wanted["folder"], str(version.parent)]
            self._arbiter.add_watcher(
                name,
                shlex.join([*command, "$(circus.sockets.stable)"]),
                numprocesses=wanted["workers"],
                env=wanted["env"],
                copy_env=True,
                use_sockets=True,
                graceful_timeout=STOP_SECONDS,
            ).start()

    def _judge(self, watcher: Any) -> None:
        now, starts = time.monotonic(), self._starts[watcher.name]
        for pid in watcher.processes:
            starts.setdefault(pid, now)
        crashes = sum(now - moment < CRASH_WINDOW_SECONDS for moment in starts.values()) - watcher.numprocesses
        if crashes <= CRASH_LIMIT:
            return
        active = read_json(self._folder / ACTIVE_FILE)
        if active.get("name") == watcher.name:
            reason = f"its workers ended {crashes} times in a row"
            write_json(self._folder / ACTIVE_FILE, {**active, "state": "failed", "reason": reason})
            self._stop()
        else:
            order(self._folder / "versions" / watcher.name, "end")


def order(version: Path, what: str) -> None:
    """Tell the workers of a version to `wait`, to `accept`, to `retire` with what they have, or to `end`."""
    with whole_file(version / "orders") as temporary:
        temporary.write_text(what)


def read_json(path: Path) -> dict[str, Any]:
    """A file's content; nothing when there is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return content


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file that only its owner may read."""
    with whole_file(path) as temporary:
        temporary.touch(0o600)
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")


def bound_log(path: Path, most_bytes: int) -> None:
    """Set a log that grew too large aside as `.log.1`; workers append to it, so it is copied and emptied."""
    if path.exists() and path.stat().st_size > most_bytes:
        shutil.copyfile(path, path.with_suffix(".log.1"))
        os.truncate(path, 0)


def main(arguments: list[str]) -> None:
    """`manager FOLDER CONTROL HOST PORT FAMILY WORKERS`: leave the caller and serve."""
    folder, control = Path(arguments[0]), Path(arguments[1])
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
