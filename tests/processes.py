"""Finds processes by a variable of the environment that they were started with, daemons too; waits for what they do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil


def carries(pid: int, name: str, value: str) -> bool:
    """Whether a process was started with this variable; False for one that has ended or is somebody else's.

    psutil stops at the first empty entry, and a process that gave itself a title, as Ray's do, may begin with one.
    """
    try:
        return f"{name}={value}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def carriers(name: str, value: str) -> list[psutil.Process]:
    """All processes that were started with this variable."""
    return [process for process in psutil.process_iter() if carries(process.pid, name, value)]


def wait_for(happened: Callable[[], bool], seconds: float = 20) -> None:
    """Until something has happened, looked at often."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
