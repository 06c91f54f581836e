"""The prediction log: one JSON line a prediction, written off the request path. `shipping` takes it to storage.

A line is the answer as it was given, with the moment and the encounter, null where a column was absent. Requests only
encode their lines; a thread writes them to a file under a temporary name and renames it when it is full, old, or when
the service ends; so every file with its final name is whole. What a killed process left behind is finished by the next
one that starts in the same folder, but for a torn last line.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from health_predict.serving.schemas import Prediction

logger = logging.getLogger(__name__)

# What may wait for the disk.
QUEUE_BYTES = 128 * 1024 * 1024
# Written at once, or a block more. Measured: a byte of a write of some MiB costs five times as much.
WRITTEN_BYTES = 512 * 1024
# Lines that are put into the queue together.
BLOCK = 500
# How often what waits is written: a killed process loses the predictions of this time.
PAUSE_SECONDS = 0.25
FILE_BYTES = 16 * 1024 * 1024
FILE_SECONDS = 60.0
# How often the folder is measured, and how much it may hold of what storage did not take yet.
MEASURE_SECONDS = 1.0
SPOOL_BYTES = 1024 * 1024 * 1024
SUFFIX = ".jsonl"
UNFINISHED = ".part"
ENCODER = msgspec.json.Encoder()


class PredictionLog:
    """Writes predictions into `folder`, one file at a time."""

    def __init__(  # what it tells, and its limits
        self,
        folder: Path,
        *,
        written: Callable[[int], None] = lambda count: None,
        dropped: Callable[[int], None] = lambda count: None,
        spooled: Callable[[int], None] = lambda size: None,
        queue_bytes: int = QUEUE_BYTES,
        file_bytes: int = FILE_BYTES,
        file_seconds: float = FILE_SECONDS,
        spool_bytes: int = SPOOL_BYTES,
    ) -> None:
        self._folder = folder
        self._written, self._dropped, self._spooled = written, dropped, spooled
        self._spool_bytes, self._full, self._measured = spool_bytes, False, -MEASURE_SECONDS
        self._queue_bytes, self._file_bytes, self._file_seconds = queue_bytes, file_bytes, file_seconds
        # Lines and how many they are. Requests append on the right, the thread takes from the left.
        self._queue: deque[tuple[bytes, int]] = deque()
        # Bytes that were queued, under the lock, and, which only the thread counts, written.
        self._lock = threading.Lock()
        self._queued, self._done = 0, 0
        self._file: FileIO | None = None
        self._path = folder
        self._size, self._opened = 0, 0.0
        self._ending = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def extend(self, predictions: Sequence[Prediction], encounters: Sequence[Any]) -> None:
        """Log predictions of this moment for these encounters.

        They are dropped, and counted, when the disk is full or too far behind.
        """
        moment = datetime.now(UTC)
        for start in range(0, len(predictions), BLOCK):
            lines = [
                {
                    "prediction": one.prediction,
                    "probability_score": one.probability_score,
                    "risk_group": one.risk_group,
                    "model_version": one.model_version,
                    "prediction_id": one.prediction_id,
                    "time": moment,
                    "features": vars(encounter),
                }
                for one, encounter in zip(
                    predictions[start : start + BLOCK], encounters[start : start + BLOCK], strict=True
                )
            ]
            block = ENCODER.encode_lines(lines)
            with self._lock:
                if self._full or self._queued - self._done >= self._queue_bytes:
                    self._dropped(len(lines))
                else:
                    self._queued += len(block)
                    self._queue.append((block, len(lines)))

    def close(self, deadline: float = 10.0) -> None:
        """Write what is queued and finish the file, within `deadline` seconds."""
        self._ending.set()
        self._thread.join(deadline)

    def _run(self) -> None:
        self._attempt(self._finish_orphans)
        while not self._ending.wait(PAUSE_SECONDS):
            self._attempt(self._measure)
            self._attempt(self._write)
        self._attempt(self._write)
        self._attempt(self._rotate)

    def _measure(self) -> None:
        """Look how much the folder holds; nothing more is taken when it is as much as it may hold."""
        now = monotonic()
        if now - self._measured < MEASURE_SECONDS:
            return
        self._measured = now
        size = 0
        if self._folder.is_dir():
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # shipped in this moment
                        size += entry.stat().st_size
        self._spooled(size)
        full = size >= self._spool_bytes
        if full and not self._full:
            logger.warning("the prediction log is full: %s holds %d bytes; predictions are dropped", self._folder, size)
        self._full = full

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            # The queue holds what could not be written; it is tried again with the next step.
            if not self._failing:
                logger.warning("the prediction log cannot write to %s: %s", self._folder, error.strerror)
            self._failing = True

    def _write(self) -> None:
        while self._queue:
            if self._file is None:
                self._open()
            blocks: list[bytes] = []
            size = lines = 0
            while len(blocks) < len(self._queue) and size < WRITTEN_BYTES:
                block, count = self._queue[len(blocks)]
                blocks.append(block)
                size, lines = size + len(block), lines + count
            self._append(b"".join(blocks))
            for _ in blocks:
                self._queue.popleft()
            self._done += size
            self._written(lines)
            self._failing = False
            if self._size >= self._file_bytes:
                self._rotate()
        if self._file is not None and monotonic() - self._opened >= self._file_seconds:
            self._rotate()

    def _open(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        path = self._folder / f"predictions-{moment}-{os.getpid()}-{secrets.token_hex(8)}{SUFFIX}"
        unfinished = path.with_name(path.name + UNFINISHED)
        # The service's alone, whatever the umask of the process that it runs in.
        file = FileIO(unfinished, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))
        # Tells a later process that somebody still writes here.
        fcntl.flock(file, fcntl.LOCK_EX)
        if not unfinished.exists():
            # Another worker took it for an orphan before it was locked.
            file.close()
            self._open()
            return
        self._file, self._path, self._size, self._opened = file, path, 0, monotonic()

    def _append(self, lines: bytes) -> None:
        """Write all of the lines or none."""
        assert self._file is not None
        descriptor = self._file.fileno()
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            os.ftruncate(descriptor, self._size)
            os.lseek(descriptor, self._size, os.SEEK_SET)
            raise
        self._size += len(lines)

    def _rotate(self) -> None:
        if self._file is not None:
            self._publish(self._file.fileno(), self._path)
            self._file.close()
            self._file = None

    @staticmethod
    def _publish(descriptor: int, path: Path) -> None:
        unfinished = path.with_name(path.name + UNFINISHED)
        if os.fstat(descriptor).st_size == 0:
            unfinished.unlink(missing_ok=True)
            return
        os.fsync(descriptor)
        unfinished.replace(path)

    def _finish_orphans(self) -> None:
        for orphan in sorted(self._folder.glob(f"*{SUFFIX}{UNFINISHED}")):
            try:
                with orphan.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    end = file.read().rfind(b"\n") + 1
                    file.truncate(end)
                    self._publish(file.fileno(), orphan.with_name(orphan.name.removesuffix(UNFINISHED)))
            except (BlockingIOError, FileNotFoundError):
                continue
