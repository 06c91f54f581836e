"""What a running pipeline shows: a line for each thing said, and a sign of life in between."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.status import Status
from rich.table import Table

from health_predict.adapters.pipelines.local import Event
from health_predict.core.data.sources import warning

HEARTBEAT = "heartbeat"
QUIET_SECONDS = 4.0  # so that a log has a line at least every five


class PipelineProgress:
    """Prints events with their stage; call it with each one, inside its context.

    On a terminal a spinner shows the stage and its seconds, below a table of the search while there is one; elsewhere a
    line every few seconds does.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage, self._began = "start", time.monotonic()
        self._search: Mapping[str, Any] | None = None
        self._spinner = Spinner("dots")
        self._signs = ExitStack()

    def __enter__(self) -> Self:
        self._signs.enter_context(Live(get_renderable=self._shown, console=self._console, transient=True))
        self._signs.enter_context(heartbeat(self._console, lambda: self._stage, lambda: self._began))
        return self

    def __exit__(self, *_: object) -> None:
        self._signs.close()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self._stage = event.stage.replace("-", "_")
        style = "yellow" if event.level == "warning" else ""
        if not event.message:
            self._began, self._search, style = time.monotonic(), None, "dim"
        self._search = event.progress or self._search
        text = f"[bold]{self._stage:<11}[/bold] {escape(event.message or 'begins')}"
        self._console.print(text, style=style, highlight=False, soft_wrap=True)

    def _shown(self) -> RenderableType:
        self._spinner.update(text=f"{self._stage} ({time.monotonic() - self._began:.0f} s)")
        return Group(search_table(self._search), self._spinner) if self._search else self._spinner


@contextmanager
def heartbeat(console: Console, name: Callable[[], str], since: Callable[[], float] | None = None) -> Iterator[None]:
    """Where there is no terminal: a line every `QUIET_SECONDS` with what goes on and for how long.

    `since` tells when that began, by the monotonic clock; without it, now.
    """
    if console.is_terminal or any(thread.name == HEARTBEAT for thread in threading.enumerate()):  # one is enough
        yield
        return
    began, ended = time.monotonic(), threading.Event()
    since = since or (lambda: began)

    def beat() -> None:
        while not ended.wait(QUIET_SECONDS):
            console.print(f"{name():<11} ... {time.monotonic() - since():.0f} s", markup=False)

    thread = threading.Thread(target=beat, name=HEARTBEAT, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def working(console: Console, what: str) -> Iterator[Status]:
    """What goes on: a spinner on a terminal, which may be given other words; elsewhere a heartbeat.

    That is on standard error, since the answer on standard output may be for a program.
    """
    with console.status(what) as shown, heartbeat(console_of(as_json=True), lambda: str(shown.status)):
        yield shown


def console_of(as_json: bool = False) -> Console:
    """The terminal, for people; standard output is left to the answer where that is JSON.

    Pinned, since a running pipeline redirects both streams. Long lines stay whole, so that they work when pasted.
    """
    return Console(file=sys.stderr if as_json else sys.stdout, emoji=False, highlight=False, soft_wrap=True)


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
    left, best = progress["seconds_left"], sorted(progress["best"].items(), key=lambda item: -item[1])
    table.add_row(
        f"{progress['done']} of {progress['total']}",
        *(str(progress[name]) for name in ("running", "stopped", "failed")),
        "" if left is None else f"{round(left) // 60} min {round(left) % 60:02d} s",
        "  ".join(f"{escape(family)} {auc:.4f}" for family, auc in best),
    )
    return table
