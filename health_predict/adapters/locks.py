"""One process at a time in a folder of this machine."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from health_predict.adapters.storage import disk_error
from health_predict.core.errors import UnreachableError

PAUSE_SECONDS = 0.05


@contextmanager
def only_one(folder: Path, seconds: float) -> Iterator[None]:
    """Hold the folder's lock, which ends with the block or with the process, whatever ends it.

    Raises UnreachableError when another process holds it longer than `seconds`, or the folder is not writable.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise disk_error(error, path) from error
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise UnreachableError(
                        f"another process has been writing to {folder} for {seconds:g} s",
                        "let it finish, then try again",
                    ) from None
                time.sleep(PAUSE_SECONDS)
        yield
    finally:
        os.close(descriptor)
