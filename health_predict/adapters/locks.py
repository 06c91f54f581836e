"""One process at a time in a folder of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from health_predict.adapters.files import disk_error
from health_predict.errors import UnreachableError


@contextmanager
def only_one(folder: Path, seconds: float, name: str = ".lock", problem: str = "") -> Iterator[None]:
    """Hold the folder's lock, which ends with the block or with the process, whatever ends it.

    Raises UnreachableError when another process holds it longer than `seconds`, or the folder is not writable.
    """
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(path).acquire(timeout=seconds)
    except Timeout:
        problem = problem or f"another process has been writing to {folder}"
        raise UnreachableError(f"{problem} for {seconds:g} s", "let it finish, then try again") from None
    except OSError as error:
        raise disk_error(error, path) from error
    with held:
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of this file. The kernel releases it, whatever ended that process.

    It is taken for a moment, so who takes it to keep it has to wait a little. Raises UnreachableError when it cannot be
    looked at.
    """
    try:
        if not path.exists():
            return False
        with FileLock(path).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError as error:
        raise disk_error(error, path) from error
