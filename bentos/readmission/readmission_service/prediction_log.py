"""The prediction log: one JSON line a prediction, written off the request path. `shipping` takes it to storage.

Requests only append to a queue in memory. A thread writes them to a file under a temporary name and renames it
when it is full, old, or when the service ends; so every file with its final name is whole. What a killed process
left behind is finished by the next one that starts in the same folder, but for a torn last line.

Lines are made by the thread, many at a time: measured, the same code costs a request five times as much, for the
model has pushed it out of the processor's caches by then.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from io import FileIO
from itertools import repeat
from pathlib import Path

import msgspec

from readmission_service.scorer import Answer

logger = logging.getLogger(__name__)

# What the queue may hold.
QUEUE_BYTES = 128 * 1024 * 1024
# Each waking takes the processor from requests: a killed process loses the predictions of this time.
PAUSE_SECONDS = 1.0
# Lines made and written at once: so long the requests of other threads wait.
PORTION = 256
FILE_BYTES = 16 * 1024 * 1024
FILE_SECONDS = 60.0
# How often the folder is measured, and how much it may hold of what storage did not take yet.
MEASURE_SECONDS = 1.0
SPOOL_BYTES = 1024 * 1024 * 1024
# A longer body is mostly white space, and loses it.
LONGEST_BODY = 8192
SUFFIX = ".jsonl"
UNFINISHED = ".part"


# Moment in seconds since 1970, what was answered, and the encounter: bytes as the client sent them, Raw when it is sure
# that they stand in one line.
Entry = tuple[float, Answer, bytes | msgspec.Raw]


class _Line(msgspec.Struct, gc=False):
    time: datetime
    id: str
    model_version: str
    probability: float
    prediction: int
    features: msgspec.Raw


def one_line(body: bytes) -> msgspec.Raw:
    """Valid JSON as it may stand in a line; what breaks lines or is mostly white space loses its white space."""
    if b"\n" in body or b"\r" in body or len(body) > LONGEST_BODY:
        body = msgspec.json.format(body, indent=-1)
    return msgspec.Raw(body)


def parts(whole: bytes, bodies: Sequence[msgspec.Raw]) -> Sequence[bytes | msgspec.Raw]:
    """The encounters of a batch for its log entries.

    They are views into the whole body, which stays in memory for as long as one of them: where most of it is white
    space, or lines may have to be joined, they are copied.
    """
    length = sum(map(len, bodies))
    if b"\n" in whole or b"\r" in whole or len(whole) > 2 * length or max(map(len, bodies)) > LONGEST_BODY:
        return [bytes(body) for body in bodies]
    return bodies


class PredictionLog:
    """Writes predictions into `folder`, one file at a time."""

    def __init__(
        self,
        folder: Path,
        model_version: str,
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
        self._version = model_version
        self._written, self._dropped, self._spooled = written, dropped, spooled
        self._spool_bytes, self._full, self._measured = spool_bytes, False, -MEASURE_SECONDS
        self._queue_bytes, self._file_bytes, self._file_seconds = queue_bytes, file_bytes, file_seconds
        self._queue: deque[Entry] = deque()
        # Bytes of bodies that were queued, which only requests count, and written, which only the thread does.
        self._queued, self._done = 0, 0
        self._encoder = msgspec.json.Encoder()
        self._file: FileIO | None = None
        self._path = folder
        self._opened = 0.0
        self._ending, self._wake = False, threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def append(self, moment: float, answer: Answer, body: bytes) -> None:
        """Queue a prediction; it is dropped, and counted, when the disk is full or too far behind.

        `moment` in seconds since 1970; `body` is the encounter as the client sent it, valid JSON.
        """
        if self._full or self._queued - self._done >= self._queue_bytes:
            self._dropped(1)
        else:
            self._queued += len(body)
            self._queue.append((moment, answer, body))

    def extend(self, moment: float, answers: Sequence[Answer], whole: bytes, bodies: Sequence[msgspec.Raw]) -> None:
        """Queue the predictions of a batch as `append` does one, all or none; `bodies` lie in its body, `whole`."""
        if self._full or self._queued - self._done >= self._queue_bytes:
            self._dropped(len(answers))
            return
        self._queued += sum(map(len, bodies))
        self._queue.extend(zip(repeat(moment), answers, parts(whole, bodies), strict=False))
        self._wake.set()

    def close(self, deadline: float = 10.0) -> None:
        """Write what is queued and finish the file, within `deadline` seconds."""
        self._ending = True
        self._wake.set()
        self._thread.join(deadline)

    def _run(self) -> None:
        self._attempt(self._finish_orphans)
        while not self._ending:
            self._wake.wait(PAUSE_SECONDS)
            self._wake.clear()
            self._attempt(self._measure)
            self._attempt(self._write)
        self._attempt(self._write)
        self._attempt(self._rotate)

    def _measure(self) -> None:
        """Look how much the folder holds; nothing more is taken when it is as much as it may hold."""
        now = time.monotonic()
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
            assert self._file is not None
            portion = [self._queue[index] for index in range(min(len(self._queue), PORTION))]
            self._append(self._lines(portion))
            for _ in portion:
                self._queue.popleft()
            self._done += sum(len(body) for _, _, body in portion)
            self._written(len(portion))
            self._failing = False
            if os.fstat(self._file.fileno()).st_size >= self._file_bytes:
                self._rotate()
        if self._file is not None and time.monotonic() - self._opened >= self._file_seconds:
            self._rotate()

    def _lines(self, portion: list[Entry]) -> bytes:
        version = self._version
        # A batch has one moment.
        times = {moment: datetime.fromtimestamp(moment, UTC) for moment in {entry[0] for entry in portion}}
        return self._encoder.encode_lines(
            [
                _Line(
                    times[moment],
                    answer.prediction_id,
                    version,
                    answer.probability_score,
                    answer.prediction,
                    one_line(body) if type(body) is bytes else body,
                )
                for moment, answer, body in portion
            ]
        )

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        path = self._folder / f"predictions-{moment}-{os.getpid()}-{secrets.token_hex(8)}{SUFFIX}"
        unfinished = path.with_name(path.name + UNFINISHED)
        file = unfinished.open("xb", buffering=0)
        # Tells a later process that somebody still writes here.
        fcntl.flock(file, fcntl.LOCK_EX)
        if not unfinished.exists():
            # Another worker took it for an orphan before it was locked.
            file.close()
            self._open()
            return
        self._file, self._path, self._opened = file, path, time.monotonic()

    def _append(self, lines: bytes) -> None:
        """Write all of the lines or none."""
        assert self._file is not None
        start = os.fstat(self._file.fileno()).st_size
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
        except OSError:
            os.ftruncate(self._file.fileno(), start)
            os.lseek(self._file.fileno(), start, os.SEEK_SET)
            raise

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
