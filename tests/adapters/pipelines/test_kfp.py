"""Pipelines on this machine, as KFP runs them."""

import os
import sys
from pathlib import Path

import pytest
from kfp import dsl

from health_predict.adapters.pipelines.kfp import run_locally
from health_predict.errors import StateError
from health_predict.settings import Settings

# Whatever the name of a folder may hold in which a virtual environment lives: all but the colon and the slash.
ANY_FOLDER = "a b  !\"#$%&'()*+,;<=>?@[\\]^`{|}~ü"


@dsl.component(base_image="python", install_kfp_package=False)
def echo(words: str) -> str:
    """Say what was said."""
    return words


@dsl.pipeline
def says(words: str) -> str:
    """One task."""
    return echo(words=words).output


@dsl.component(base_image="python", install_kfp_package=False)
def end(words: str) -> str:
    """Die without an exception."""

    print(words)
    os._exit(3)


@dsl.pipeline
def dies(words: str) -> str:
    """One task."""
    return end(words=words).output


def test_a_task_runs_wherever_the_interpreter_and_the_home_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a virtual environment in a folder with an awkward name, and a home beside it
    folder = tmp_path / ANY_FOLDER
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python3").symlink_to(sys.executable)
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    (folder / "pyvenv.cfg").write_bytes((Path(sys.prefix) / "pyvenv.cfg").read_bytes())
    monkeypatch.setattr(sys, "executable", str(folder / "bin" / "python3"))
    # when a task gets words that name the interpreter, too
    run = run_locally(says, {"words": "python3 'ü'"}, Settings(home=folder / "home"), lambda event: None)
    # then they come back as they were, and nothing was left of the change
    assert run.outputs == {"Output": "python3 'ü'"}
    assert sys.executable == str(folder / "bin" / "python3")


def test_a_task_that_dies_leaves_its_last_line_as_the_reason(settings: Settings) -> None:
    with pytest.raises(StateError, match=r"stage end broke: sh: not found -> see .*pipeline\.log"):
        run_locally(dies, {"words": "sh: not found"}, settings, lambda event: None)
