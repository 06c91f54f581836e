"""Pipelines on this machine, as KFP runs them."""

import json
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from kfp import dsl

from health_predict.adapters.pipelines.local import list_runs, run_locally
from health_predict.errors import StateError
from health_predict.settings import Settings
from tests.pipeline_of_one import says


@dsl.component(base_image="python", install_kfp_package=False)
def end(words: str) -> str:
    """Die without an exception."""

    print(words)
    raise SystemExit(3)


@dsl.pipeline
def dies(words: str) -> str:
    """One task."""
    return end(words=words).output


@dsl.component(base_image="python", install_kfp_package=False)
def litter() -> str:
    """Leave a folder behind."""
    import tempfile

    return tempfile.mkdtemp()


@dsl.pipeline
def litters() -> str:
    """One task."""
    return litter().output


def test_a_task_runs_wherever_the_interpreter_and_the_home_lie(awkward: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a virtual environment in a folder with an awkward name, and a home there
    monkeypatch.setattr(sys, "executable", str(awkward))
    # when a task gets words that name the interpreter, too
    run = run_locally(says, {"words": "python3 'ü'"}, Settings(home=awkward.parent / "home"), lambda event: None)
    # then they come back as they were, and nothing was left of the change
    assert run.outputs == {"Output": "python3 'ü'"}
    assert sys.executable == str(awkward)


def test_a_task_that_dies_leaves_its_last_line_as_the_reason(settings: Settings) -> None:
    with pytest.raises(StateError, match=r"stage end broke: sh: not found -> see .*pipeline\.log"):
        run_locally(dies, {"words": "sh: not found"}, settings, lambda event: None)


def test_a_task_leaves_nothing_outside_the_home_and_nothing_temporary(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a temporary folder, and a run that was killed in the future, before the clock was set right
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    killed = settings.home / "runs" / "29990101T000000-killed"
    (killed / "tmp").mkdir(parents=True)
    (killed / "run.json").write_text(json.dumps({"run_id": killed.name, "state": "running"}))
    assert [record["state"] for record in list_runs(settings.home)] == ["killed"]
    with FileLock(settings.home / "runs" / ".lock"):  # as long as somebody runs, it may be that one
        assert [record["state"] for record in list_runs(settings.home)] == ["running"]
    # when two runs follow within a second
    runs = [run_locally(litters, {}, settings, lambda event: None) for _ in range(2)]
    # then what they left is gone, and what the killed one left
    assert not any(Path(run.outputs["Output"]).exists() for run in runs)
    assert [*temporary.iterdir(), *settings.home.glob("runs/*/tmp")] == []
    # and the newest is what happened last
    assert [record["run_id"] for record in list_runs(settings.home)] == [runs[1].run_id, runs[0].run_id, killed.name]
