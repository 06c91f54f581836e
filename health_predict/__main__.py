"""Where every command begins."""

from __future__ import annotations

import os
import signal
import sys

from health_predict.surroundings import surroundings

INTERRUPTED = 130


def interrupted(*_: object) -> None:
    """End at once: until the command takes over, nothing was begun that could be tidied up."""
    os.write(2, b"interrupted: nothing was begun\n")
    os._exit(INTERRUPTED)


def main() -> None:
    """Entry point. Begins once more where the surroundings are others, since Python reads some when it starts."""
    signal.signal(signal.SIGINT, interrupted)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    values = surroundings()
    if values != dict(os.environ):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # kept for the one that takes over
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], values)  # noqa: S606
    from health_predict.cli import main as command  # which takes Ctrl-C over

    command()


if __name__ == "__main__":
    main()
