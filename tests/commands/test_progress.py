"""What a running pipeline shows of a search."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace

import pytest
from rich.console import Console

from health_predict.adapters.pipelines.local import Event
from health_predict.commands import progress as progress_module
from health_predict.commands.progress import PipelineProgress, working

PROGRESS = {
    "total": 24,
    "done": 7,
    "running": 2,
    "stopped": 3,
    "failed": 1,
    "best": {"XGBoost": 0.67, "LightGBM": 0.68},
    "seconds_left": 95.0,
}


def shown(*, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, color_system=None)
    with PipelineProgress(console) as progress:
        progress(Event("hpo", ""))
        progress(Event("hpo", "trial 7 of 24", "info", PROGRESS))
    return stream.getvalue()


def test_a_terminal_gets_a_live_table() -> None:
    text = shown(terminal=True)
    assert "7 of 24" in text and "1 min 35 s" in text
    # the best family stands first
    assert "LightGBM 0.6800  XGBoost 0.6700" in text
    assert "trial 7 of 24" in text


def test_anything_else_gets_plain_lines() -> None:
    assert [line.split() for line in shown(terminal=False).splitlines()] == [
        ["hpo", "begins"],
        ["hpo", "trial", "7", "of", "24"],
    ]


class Listened(io.StringIO):
    """A stream that tells when a line with the given words came."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words
        self.came = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        if self._words in self.getvalue():
            self.came.set()
        return written


def test_without_a_terminal_a_quiet_stage_says_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a stage that says nothing
    monkeypatch.setattr(progress_module, "QUIET_SECONDS", 0.01)
    stream = Listened("register    ... 0 s")
    with PipelineProgress(Console(file=stream)) as progress:
        progress(Event("register", ""))
        # then a line comes all the same
        assert stream.came.wait(60)
    # and none after its end
    before = stream.getvalue()
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate()) and stream.getvalue() == before


def test_without_a_terminal_what_takes_its_time_says_so_on_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # given an answer that a program reads
    monkeypatch.setattr(progress_module, "QUIET_SECONDS", 0.01)
    answer, said = io.StringIO(), Listened("reading     ... 0 s")
    monkeypatch.setattr("sys.stderr", said)
    with working(Console(file=answer), "reading"):
        # then
        assert said.came.wait(60)
    assert answer.getvalue() == ""


def test_a_line_comes_within_five_seconds() -> None:
    assert progress_module.QUIET_SECONDS < 5


def test_the_seconds_of_a_line_are_those_of_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a run whose first stage took 50 s
    now = [100.0]
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(progress_module, "QUIET_SECONDS", 0.01)
    stream = Listened("hpo         ... 7 s")
    with PipelineProgress(Console(file=stream, width=120)) as progress:
        progress(Event("split", ""))
        now[0] = 150.0
        # when the next one has gone on for seven
        progress(Event("hpo", ""))
        now[0] = 157.0
        # then the line says seven
        assert stream.came.wait(10)
