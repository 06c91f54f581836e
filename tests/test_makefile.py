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


def make(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["make", "--no-print-directory", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_environment_that_is_there_is_used(checkout: Path) -> None:
    assert "sync" not in make(checkout, "-n", "demo")


def test_a_moved_checkout_gets_its_environment_anew(checkout: Path) -> None:
    # given a checkout that was renamed
    moved = checkout.rename(checkout.with_name("moved"))
    # then its environment, which holds the path before, is made again before anything runs
    planned = make(moved, "-n", "demo")
    assert planned.index("rm -rf .venv") < planned.index("sync --locked") < planned.index("health-predict demo")
    # and what there is of it is not run to stop an endpoint
    (moved / ".venv" / "bin").mkdir()
    make(moved, "clean")


def test_help_for_a_pipe_has_no_escapes() -> None:
    said = make(ROOT, "help")
    assert "\x1b" not in said and "\\033" not in said
    assert any(line.split()[0] == "demo" for line in said.splitlines())
