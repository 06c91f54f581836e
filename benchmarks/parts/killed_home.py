"""A home with a real endpoint whose commands are killed with -9 and repeated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.parts.servers import free_port
from health_predict.settings import PREFIX, Settings

DEADLINE = 3600.0


class KilledHome:
    """Commands in a home of its own, with the data that they begin with, a small search and `values` as settings."""

    def __init__(self, folder: Path, data: Path, **values: object) -> None:
        self.settings = Settings(home=folder)
        own = {
            "HOME": folder,
            "SERVING_PORT": free_port(),
            "TRIALS": 1,
            "FAMILIES": '["LogisticRegression", "LightGBM"]',
            "GIT_COMMIT": "0" * 40,
            **values,
        }
        plain = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        self._environment = {**plain, **{PREFIX + name: str(value) for name, value in own.items()}}
        self._data = data
        self.log = folder.with_suffix(".log")

    def start(self, *arguments: str, **values: object) -> subprocess.Popen[bytes]:
        """Start a command, with more settings."""
        more = {PREFIX + name: str(value) for name, value in values.items()}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "health_predict", *arguments],
                env={**self._environment, **more},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(self, *arguments: str, **values: object) -> float:
        """A command to its end; the seconds that it took. Raises SystemExit with what it said when it fails."""
        begin = time.monotonic()
        if self.start(*arguments, **values).wait(DEADLINE):
            raise SystemExit(f"{' '.join(arguments)} failed:\n{self.log.read_text()[-3000:]}")
        return time.monotonic() - begin

    def serve(self) -> None:
        """Train a version and bring it into service."""
        self.run("pipeline", "run", "readmission", DATA_SOURCE=self._data)

    def kill(self, arguments: tuple[str, ...], seconds: float) -> bool:
        """Start a command and kill it after some seconds; False when it had ended well by then."""
        process = self.start(*arguments)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        if code:
            raise SystemExit(f"{' '.join(arguments)} failed:\n{self.log.read_text()[-3000:]}")
        return False

    def last_line(self) -> str:
        """What the commands said last."""
        lines = self.log.read_text().strip().splitlines()
        return lines[-1][:100] if lines else ""
