"""What the Makefile does before any Python of ours runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose environment is ready, in a folder with an awkward name."""
    folder = tmp_path / "my project ü #%'"
    (folder / ".venv").mkdir(parents=True)
    (folder / ".tools" / "bin").mkdir(parents=True)
    for name in ("Makefile", "uv.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / ".tools" / "bin" / "uv").touch()
    ready = folder / ".venv" / ".ready"
    ready.write_text(f"{folder}\n")
    later = time.time() + 60
    os.utime(ready, (later, later))
    return folder


def make(folder: Path, *arguments: str, **more: str) -> str:
    command = ["make", "--no-print-directory", *arguments]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **more}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_environment_that_is_there_is_used(checkout: Path) -> None:
    assert "sync" not in make(checkout, "-n", "demo")


def test_a_moved_checkout_gets_its_environment_anew(checkout: Path) -> None:
    # given a checkout that was renamed
    moved = checkout.rename(checkout.with_name("moved"))
    # then its environment, which holds the path before, is made again before anything runs
    planned = make(moved, "-n", "demo")
    assert planned.index("rm -rf .venv") < planned.index("sync --locked") < planned.index("health_predict demo")
    # and what there is of it is not run to stop an endpoint
    (moved / ".venv" / "bin").mkdir()
    make(moved, "clean")


def test_what_was_set_for_another_project_decides_nothing(checkout: Path) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nenv\n")
    python.chmod(0o755)
    # given a shell in which other work is done; where packages come from is the person's to say
    theirs = (
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONOPTIMIZE",
        "UV_PROJECT_ENVIRONMENT",
        "UV_FROZEN",
        "PIP_TARGET",
        "PIP_USER",
    )
    ours = {"UV_INDEX_URL": "here", "UV_CACHE_DIR": "there", "PYTHON_IMAGE": "an image to build on"}
    said = make(checkout, "down", **ours, **dict.fromkeys(theirs, "theirs"))
    seen = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    assert not seen.keys() & set(theirs)
    assert seen["PYTHONUTF8"] == "1" and ours.items() <= seen.items()


def test_a_folder_that_can_hold_no_environment_is_named(checkout: Path) -> None:
    shutil.rmtree(checkout / ".tools")
    moved = checkout.rename(checkout.with_name("a:b"))
    said = subprocess.run(["make", "install"], cwd=moved, capture_output=True, text=True)
    assert said.returncode and "colon" in said.stdout and "python3-venv" not in said.stdout


def test_help_for_a_pipe_has_no_escapes() -> None:
    said = make(ROOT, "help")
    assert "\x1b" not in said and "\\033" not in said
    assert any(line.split()[0] == "demo" for line in said.splitlines())
