"""Finds processes by a variable of the environment that they were started with, daemons too."""

from __future__ import annotations

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
