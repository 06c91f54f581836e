"""What a running pipeline shows: a line for each thing said, and a sign of life in between."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape

from health_predict.adapters.kfp import Event

QUIET_SECONDS = 4.0


class PipelineProgress:
    """Prints events with their stage; call it with each one, inside its context.

    On a terminal a spinner shows the stage and its seconds; elsewhere a plain line comes after four quiet seconds.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = "start"
        self._began = self._last = time.monotonic()
        self._ended = threading.Event()
        self._status = console.status("starting") if console.is_terminal else None
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._status is not None:
            self._status.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if not event.message:
            self._stage, self._began = event.stage.replace("-", "_"), time.monotonic()
            self._print("begins", "dim")
        else:
            self._stage = event.stage
            self._print(event.message, "yellow" if event.level == "warning" else "")

    def _print(self, text: str, style: str) -> None:
        self._last = time.monotonic()
        self._console.print(
            f"[bold]{self._stage:<11}[/bold] {escape(text)}", style=style, highlight=False, soft_wrap=True
        )

    def _tick(self) -> None:
        while not self._ended.wait(0.5):
            seconds = time.monotonic() - self._began
            if self._status is not None:
                self._status.update(f"{self._stage} ({seconds:.0f} s)")
            elif time.monotonic() - self._last >= QUIET_SECONDS:
                self._print(f"... {seconds:.0f} s", "dim")
