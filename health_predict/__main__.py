"""Where every command begins."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from health_predict.surroundings import surroundings

INTERRUPTED = 130


def interrupted(*_: object) -> NoReturn:
    """End at once: until the command takes over, nothing was begun that could be tidied up."""
    os._exit(INTERRUPTED)


def main() -> None:
    """Entry point. Begins once more where the surroundings are others, since Python reads some when it starts."""
    signal.signal(signal.SIGINT, interrupted)
    values = surroundings()
    if values != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], values)  # noqa: S606
    from health_predict.cli import main as command

    signal.signal(signal.SIGINT, signal.default_int_handler)
    command()


if __name__ == "__main__":
    main()
