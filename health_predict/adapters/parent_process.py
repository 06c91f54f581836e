"""What processes here owe each other: a stage ends with the program that runs it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

TIDY_SECONDS = 3.0


def exit_with_parent(poll_seconds: float = 0.5) -> None:
    """End this process, and all it started, when the program that runs it dies, even by kill -9.

    A shell between the two does not hide the death: shells are looked through to the program that started them.
    The watch is a daemon thread; call it once, early. Processes that left on purpose, like the endpoint's
    manager, are nobody's children and live on.
    """
    links = parent_links()

    def watch() -> None:
        while intact(links):
            time.sleep(poll_seconds)
        signal.raise_signal(signal.SIGINT)  # so that it leaves nothing behind; it may be doing so already
        time.sleep(TIDY_SECONDS)
        end_descendants()
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()


_SHELLS = {"sh", "bash", "dash", "zsh", "ash", "busybox"}


def parent_links() -> list[tuple[int, int]]:
    """(child, parent) from this process up to its first ancestor that is no shell."""
    import psutil

    links = [(os.getpid(), os.getppid())]
    with contextlib.suppress(psutil.Error):
        while (parent := psutil.Process(links[-1][1])).pid > 1 and parent.name() in _SHELLS:
            links.append((parent.pid, parent.ppid()))
    return links


def intact(links: list[tuple[int, int]]) -> bool:
    """Whether each child still has its parent: an orphan is given another one."""
    import psutil

    try:
        return all(psutil.Process(child).ppid() == parent for child, parent in links)
    except psutil.Error:
        return False


def end_descendants() -> None:
    """Kill every process that descends from this one."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()
