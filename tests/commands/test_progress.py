"""What a running pipeline shows of a search."""

from __future__ import annotations

import io

from rich.console import Console

from health_predict.adapters.pipelines.kfp import Event
from health_predict.commands.progress import PipelineProgress

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
