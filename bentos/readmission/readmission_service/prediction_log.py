"""The prediction log: one JSON line a prediction, written off the request path. `shipping` takes it to storage.

A line is the answer as it was given, with the moment and the encounter as it was sent. Requests only put the parts of
theirs into a list, and join them when there are a few: what takes longest is memory that the processor's caches do not
hold, and Python's own steps, so there are few of both. A thread writes the lines to a file under a temporary name and
renames it when it is full, old, or when the service ends; so every file with its final name is whole. What a killed
process left behind is finished by the next one that starts in the same folder, but for a torn last line.
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
from time import monotonic, time

import msgspec

from readmission_service.scorer import Answer

logger = logging.getLogger(__name__)

# What may wait for the disk.
QUEUE_BYTES = 128 * 1024 * 1024
# Parts of a line, and how many lines are joined to a block: few enough for the processor's caches.
PARTS, BLOCK = 4, 16
# Written at once, or a block more. Measured: a byte of a write of some MiB costs five times as much.
WRITTEN_BYTES = 512 * 1024
# How often what waits is written: a killed process loses the predictions of this time.
PAUSE_SECONDS = 0.25
# Lines that follow each other so closely have the same time: writing one costs as much as the rest of a line.
STAMP_SECONDS = 0.005
FILE_BYTES = 16 * 1024 * 1024
FILE_SECONDS = 60.0
# How often the folder is measured, and how much it may hold of what storage did not take yet.
MEASURE_SECONDS = 1.0
SPOOL_BYTES = 1024 * 1024 * 1024
# A longer body is mostly white space, and loses it.
LONGEST_BODY = 8192
LINE_FEED, RETURN = b"\n\r"
SUFFIX = ".jsonl"
UNFINISHED = ".part"


def breaks(body: bytes) -> bool:
    """Whether a text holds what breaks lines."""
    # Integers: `in` takes five times as long for a byte string of length one.
    return LINE_FEED in body or RETURN in body


class _Line(Answer, frozen=True, gc=False):
    """What `append` writes, for many answers at once."""

    time: datetime
    features: msgspec.Raw


class PredictionLog:
    """Writes predictions into `folder`, one file at a time."""

    def __init__(
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
        # Parts of lines. A step that adds or takes some is one that no other thread comes between.
        self._parts: list[bytes] = []
        self._stamped, self._stamp = 0.0, b""
        self._encode_lines = msgspec.json.Encoder().encode_lines
        # Whoever moves lines from the parts to the queue holds the lock.
        self._lock = threading.Lock()
        self._queue: deque[tuple[bytes, int]] = deque()
        # Bytes that were queued, and, which only the thread counts, written.
        self._queued, self._done = 0, 0
        self._file: FileIO | None = None
        self._path = folder
        self._size, self._opened = 0, 0.0
        self._ending, self._wake = False, threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def append(self, answer: bytes, body: bytes) -> None:
        """Log a prediction of this moment; it is dropped, and counted, when the disk is full or too far behind.

        `answer` is a JSON object that does not end with white space, `body` the encounter as the client sent it, valid
        JSON.
        """
        if len(body) > LONGEST_BODY or breaks(body):
            body = msgspec.json.format(body, indent=-1)
        moment = time()
        if not 0 <= moment - self._stamped < STAMP_SECONDS:
            self._stamped, self._stamp = moment, _stamp(moment)
        parts = self._parts
        parts += answer[:-1], self._stamp, body, b"}\n"
        if len(parts) >= BLOCK * PARTS:
            self._hand_over()

    def extend(self, answers: Sequence[Answer], bodies: Sequence[msgspec.Raw], *, broken: bool) -> None:
        """Log predictions of a batch as `append` does one; `broken` is false when no body holds a line break.

        For some hundred at a time: the thread is woken, so that the memory of one call is there for the next.
        """
        if broken or max(map(len, bodies)) > LONGEST_BODY:
            bodies = [msgspec.Raw(msgspec.json.format(bytes(body), indent=-1)) for body in bodies]
        moment = datetime.fromtimestamp(time(), UTC)
        lines = [
            _Line(*msgspec.structs.astuple(answer), moment, body) for answer, body in zip(answers, bodies, strict=True)
        ]
        self._hand_over()
        with self._lock:
            self._put(self._encode_lines(lines), len(lines))
        self._wake.set()

    def _hand_over(self) -> None:
        """Move the lines that were put together from parts to the queue."""
        with self._lock:
            size = len(self._parts)
            parts = self._parts[:size]
            del self._parts[:size]
            if parts:
                self._put(b"".join(parts), size // PARTS)

    def _put(self, block: bytes, count: int) -> None:
        """Queue whole lines, or drop them. The caller holds the lock."""
        if self._full or self._queued - self._done >= self._queue_bytes:
            self._dropped(count)
        else:
            self._queued += len(block)
            self._queue.append((block, count))

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
        self._hand_over()
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


def _stamp(moment: float) -> bytes:
    """What stands in a line between the answer and the encounter."""
    return b',"time":%b,"features":' % msgspec.json.encode(datetime.fromtimestamp(moment, UTC))
