"""Takes finished files of the prediction log to storage, one by one, and deletes what has arrived.

A file's name is its id: it is stored whole under one key, and storing it again changes nothing. When storage is away
the files wait in their folder, predictions go on, and the next attempts come at growing distances. Several workers
may share the folder: one at a time ships.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from health_predict.adapters import keys
from health_predict.adapters.storage import Storage

logger = logging.getLogger(__name__)

NAME = re.compile(r"predictions-(\d{4})(\d{2})(\d{2})T\d{6}-.*\.jsonl")
LOCK = ".shipping"
PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


def key_of(file: Path) -> str | None:
    """Key of a finished file: its day, then its name; None for a file that is not of the log."""
    found = NAME.fullmatch(file.name)
    return keys.prediction_file("-".join(found.groups()), file.name) if found else None


class Shipper:
    """Ships the finished files of `folder` from a thread of its own."""

    def __init__(
        self,
        folder: Path,
        storage: Storage,
        *,
        shipped: Callable[[int], None] = lambda count: None,
        failed: Callable[[int], None] = lambda count: None,
        pause: float = PAUSE_SECONDS,
    ) -> None:
        self._folder, self._storage = folder, storage
        self._shipped, self._failed = shipped, failed
        self._shortest = self._pause = pause
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-shipper", daemon=True)
        self._thread.start()

    def close(self, deadline: float = 10.0) -> None:
        """Ship what is finished, within `deadline` seconds; what remains waits for the next worker."""
        end = time.monotonic() + deadline
        self._ending.set()
        self._thread.join(deadline)
        # Another worker that ships at this moment may have looked before our last file was there.
        last = threading.Thread(target=self._ship_all, args=(end,), daemon=True)
        last.start()
        last.join(max(0.0, end - time.monotonic()))

    def _run(self) -> None:
        while not self._ending.wait(self._pause):
            self._ship_all()

    def _ship_all(self, end: float = 0.0) -> None:
        """Ship every finished file, unless another worker is about it; wait for that one until `end`."""
        if not self._folder.is_dir():
            return  # nothing was logged yet
        with suppress(Timeout, OSError), FileLock(self._folder / LOCK, timeout=max(0.0, end - time.monotonic())):
            self._ship_files()

    def _ship_files(self) -> None:
        try:
            for file in sorted(self._folder.glob("*.jsonl")):
                key = key_of(file)
                if key is not None:
                    self._storage.upload(file, key)
                    file.unlink()
                    self._shipped(1)
            if self._pause > self._shortest:
                logger.warning("storage takes the prediction log again")
            self._pause = self._shortest
        except Exception as error:  # those of S3 have no base in common with those of a disk
            self._failed(1)
            if self._pause == self._shortest:
                reason = getattr(error, "strerror", None) or type(error).__name__
                logger.warning("storage does not take the prediction log, it waits in %s: %s", self._folder, reason)
            self._pause = min(LONGEST_PAUSE_SECONDS, 2 * self._pause)
