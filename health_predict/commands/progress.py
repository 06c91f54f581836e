"""What a running pipeline shows: a line for each thing said, and a sign of life in between."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from health_predict.adapters.kfp import Event
from health_predict.core.sources import warning

QUIET_SECONDS = 4.0


class PipelineProgress:
    """Prints events with their stage; call it with each one, inside its context.

    On a terminal a spinner shows the stage and its seconds, below a table of the search while there is one;
    elsewhere a plain line comes after four quiet seconds.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = "start"
        self._began = self._last = time.monotonic()
        self._ended = threading.Event()
        self._spinner = Spinner("dots", "starting")
        self._live = Live(self._spinner, console=console, transient=True) if console.is_terminal else None
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if not event.message:
            self._stage, self._began = event.stage.replace("-", "_"), time.monotonic()
            self._print("begins", "dim")
            self._show(None)
        else:
            self._stage = event.stage
            self._print(event.message, "yellow" if event.level == "warning" else "")
            if event.progress is not None:
                self._show(event.progress)

    def _show(self, progress: Mapping[str, Any] | None) -> None:
        if self._live is not None:
            self._live.update(self._spinner if progress is None else Group(search_table(progress), self._spinner))

    def _print(self, text: str, style: str) -> None:
        self._last = time.monotonic()
        self._console.print(
            f"[bold]{self._stage:<11}[/bold] {escape(text)}", style=style, highlight=False, soft_wrap=True
        )

    def _tick(self) -> None:
        while not self._ended.wait(0.5):
            seconds = time.monotonic() - self._began
            if self._live is not None:
                self._spinner.update(text=f"{self._stage} ({seconds:.0f} s)")
            elif time.monotonic() - self._last >= QUIET_SECONDS:
                self._print(f"... {seconds:.0f} s", "dim")


def console_of(as_json: bool = False) -> Console:
    """The terminal, for people; standard output is left to the answer where that is JSON.

    Pinned, since a running pipeline redirects both streams. Long lines stay whole, so that they work when pasted.
    """
    return Console(file=sys.stderr if as_json else sys.stdout, highlight=False, soft_wrap=True)


def say_source(console: Console, source: str) -> None:
    """Say last, and loudly, when something stands on patients who do not exist."""
    if warning(source):
        console.print(warning(source), style="bold red")


def search_table(progress: Mapping[str, Any]) -> Table:
    """A search at a glance, from the fields of `adapters.ray.Progress`."""
    table = Table(box=None, pad_edge=False)
    for heading in ("trials done", "running", "stopped early", "failed", "time left"):
        table.add_column(heading, justify="right")
    table.add_column("best AUC by family")
    left = progress["seconds_left"]
    table.add_row(
        f"{progress['done']} of {progress['total']}",
        str(progress["running"]),
        str(progress["stopped"]),
        str(progress["failed"]),
        "" if left is None else f"{round(left) // 60} min {round(left) % 60:02d} s",
        "  ".join(
            f"{escape(family)} {auc:.4f}" for family, auc in sorted(progress["best"].items(), key=lambda item: -item[1])
        ),
    )
    return table
