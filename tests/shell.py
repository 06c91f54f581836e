"""A home and the commands that a user gives in it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from health_predict import cli
from health_predict.settings import PREFIX
from tests.conftest import FOREIGN
from tests.processes import carriers

COMMAND = (sys.executable, "-m", "health_predict")


def last_line(said: str) -> Any:
    return json.loads(said.strip().splitlines()[-1])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Shell:
    """A home and the commands run in it."""

    def __init__(self, folder: Path, **more: object) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.port = free_port()
        values = {
            "HOME": self.home,
            "SERVING_PORT": self.port,
            "TRIALS": 1,
            "FAMILIES": '["LogisticRegression", "LightGBM"]',
            **more,
        }
        # Coverage would slow the imports of every process by half; what they run is measured by the stages' own tests.
        plain = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        offline = {"https_proxy": "http://127.0.0.1:1"}
        self.environment = {**plain, **offline, **{PREFIX + name: str(value) for name, value in values.items()}}

    def start(self, *arguments: str, **settings: object) -> subprocess.Popen[str]:
        more = {PREFIX + name: str(value) for name, value in settings.items()}
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env={**self.environment, **more},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, *arguments: str, code: int = 0, **settings: object) -> str:
        """What a command says that runs as a process of its own, with more settings."""
        process = self.start(*arguments, **settings)
        output, _ = process.communicate(timeout=900)
        assert process.returncode == code, output
        return output

    @contextlib.contextmanager
    def inside(self, **settings: object) -> Iterator[None]:
        """This process is in that shell, with more settings."""
        more = {PREFIX + name: str(value) for name, value in settings.items()}
        with mock.patch.dict(os.environ, {**self.environment, **more}, clear=True), contextlib.chdir(self.folder):
            yield

    def ask(self, *arguments: str, code: int = 0, **settings: object) -> str:
        """The same in this process: the imports of another one take seconds. Stages have processes all the same."""
        said = io.StringIO()
        with (
            self.inside(**settings),
            mock.patch.object(sys, "argv", ["health-predict", *arguments]),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            pytest.raises(SystemExit) as caught,
        ):
            cli.main()
        assert (caught.value.code or 0) == code, said.getvalue()
        return said.getvalue()

    def json(self, *arguments: str) -> Any:
        return last_line(self.ask(*arguments, "--json"))

    def end(self) -> None:
        """Nothing of it runs any more."""
        self.ask("down")
        for process in self.processes():
            process.kill()

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this home, found by the home in its environment."""
        return carriers(f"{PREFIX}HOME", str(self.home))
