"""Kills a month of monitoring with -9 at random moments and repeats what was killed: the end must be the same.

Four weeks of encounters and their outcomes come in as files, and monitoring runs after each; the truth of these weeks
is reversed, so that it ends with a retraining and a new version. Both homes have a real endpoint, on a small synthetic
cohort. Compared are the arrivals, the rows and outcomes of each batch, all looks, the versions and their datasets, and
what serves. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from health_predict.adapters import keys
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.serving.target import open_target
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import Tracking
from health_predict.core.data.cohort import save_csv
from health_predict.core.data.synthetic import synthesize
from health_predict.settings import PREFIX, Settings

MONTH = Path(__file__).parents[2] / "docs" / "examples" / "month.py"
ROWS, DEADLINE = 14_000, 1800.0
TAGS = ("decision", "stage", "family", "threshold", "dataset_digest", "labelled_batches")
MONITOR = ("pipeline", "run", "monitoring", "--as-of")


def steps(folder: Path) -> list[tuple[str, ...]]:
    """What somebody types in that month."""
    week = {number: str(folder / f"week-{number}.csv") for number in range(1, 5)}
    outcomes = {number: str(folder / f"outcomes-{number}.csv") for number in range(1, 5)}
    return [
        ("data", "add", week[1], "--as-of", "2026-10-11"),
        (*MONITOR, "2026-10-12"),
        ("data", "add", week[2], "--as-of", "2026-10-18"),
        ("data", "add", week[3], "--as-of", "2026-10-25"),
        (*MONITOR, "2026-10-26"),
        (*MONITOR, "2026-10-26"),
        ("data", "add", week[4], "--as-of", "2026-11-01"),
        *(("data", "outcomes", outcomes[number], "--as-of", "2026-11-02") for number in range(1, 5)),
        (*MONITOR, "2026-11-02"),
        (*MONITOR, "2026-12-02"),
        (*MONITOR, "2026-12-02"),
    ]


class Home:
    """A home with its endpoint."""

    def __init__(self, folder: Path, data: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.settings = Settings(home=folder)
        values = {
            "HOME": folder,
            "SERVING_PORT": port,
            "TRIALS": 1,
            "FAMILIES": '["LogisticRegression", "LightGBM"]',
            "INITIAL_SHARE": 0.8,
            "FUTURE_BATCHES": 2,
            "GIT_COMMIT": "0" * 40,
        }
        plain = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        self._environment = {**plain, **{PREFIX + name: str(value) for name, value in values.items()}}
        self._data = data
        self._log = folder.with_suffix(".log")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command."""
        with self._log.open("ab") as log:
            log.write(f"$ {' '.join(arguments)}\n".encode())
            log.flush()
            return subprocess.Popen(
                [sys.executable, "-m", "health_predict", *arguments],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(self, *arguments: str) -> float:
        """To its end; the seconds that it took."""
        begin = time.monotonic()
        if self.start(*arguments).wait(DEADLINE):
            raise SystemExit(f"{' '.join(arguments)} failed:\n{self._log.read_text()[-3000:]}")
        return time.monotonic() - begin

    def serve(self) -> None:
        """Train a version and bring it into service."""
        self._environment[f"{PREFIX}DATA_SOURCE"] = str(self._data)
        self.run("pipeline", "run", "readmission")
        del self._environment[f"{PREFIX}DATA_SOURCE"]

    def run_with_kills(self, kills: int, step: tuple[str, ...], seconds: float, chance: random.Random) -> None:
        """Kill a command at random moments of what an undisturbed one takes, then let it end."""
        for _ in range(kills):
            process = self.start(*step)
            try:
                process.wait(chance.uniform(0.5, seconds))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
        self.run(*step)

    def state(self) -> dict[str, Any]:
        """What the month left."""
        tracking, storage = Tracking(self.settings), open_storage(self.settings.storage)
        batches = Batches(self.settings)
        arrivals = batches.arrivals.state()
        champion, active = tracking.by_alias("champion"), open_target(self.settings).active()
        looks = [(one.key, str(one.verdict), str(one.action), str(one.outcome)) for one in batches.settled()]
        return {
            "arrivals": [arrivals.arrived, arrivals.repeated, arrivals.quarantined, arrivals.unknown],
            "outcomes": asdict(arrivals.outcomes),
            "windows": [asdict(batches.arrivals.window(number)) for number in batches.numbers()],
            "digests": [batches.labelled(batches.batch(number)).digest for number in batches.numbers()],
            "looks": looks,
            "progress": storage.read(keys.progress("live")).decode(),
            "versions": [{name: version.tags.get(name) for name in TAGS} for version in tracking.versions()],
            "unfinished": len(tracking.runs("attributes.status = 'RUNNING'")),
            "champion": champion.version if champion else None,
            "serving": active.model_version if active else None,
        }


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    chance = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory(prefix="health-predict-month-") as name:
        folder = Path(name)
        data = folder / "cohort.csv"
        save_csv(synthesize(ROWS, seed=11), data)
        subprocess.run([sys.executable, str(MONTH), str(folder)], check=True)
        calm, killed = Home(folder / "calm", data), Home(folder / "killed", data)
        planned = steps(folder)
        at = [chance.randrange(len(planned)) for _ in range(chosen.kills)]
        try:
            for home in (calm, killed):
                home.serve()
            for number, step in enumerate(planned):
                seconds = calm.run(*step)
                killed.run_with_kills(at.count(number), step, seconds, chance)
                print(f"{' '.join(step[:3])}: {seconds:.0f} s, killed {at.count(number)} times", flush=True)
            one, other = calm.state(), killed.state()
        finally:
            for home in (calm, killed):
                home.start("down").wait()
    different = sorted(name for name in one if one[name] != other[name])
    for name in different:
        print(f"{name} differs:\n  undisturbed {one[name]}\n  killed      {other[name]}")
    print(
        json.dumps(
            {
                "kills": chosen.kills,
                "same_end": not different,
                "arrived": one["arrivals"][0],
                "batches": len(one["windows"]),
                "versions": len(one["versions"]),
                "serving": one["serving"],
            }
        )
    )
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
