"""Kills a month of monitoring with -9 at random moments and repeats what was killed: the end must be the same.

Four weeks of encounters and their outcomes come in as files, and monitoring runs after each; the truth of these weeks
is reversed, so that it ends with a retraining and a new version. Both homes have a real endpoint, on a small synthetic
cohort. Compared are the arrivals, the rows and outcomes of each batch, all looks, the versions and their datasets, and
what serves. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.parts.cohorts import synthesize
from benchmarks.parts.killed_home import KilledHome
from health_predict.adapters import keys
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.serving.target import open_target
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import Tracking
from health_predict.core.data.cohort import save_csv

MONTH = Path(__file__).parents[2] / "docs" / "examples" / "month.py"
ROWS = 14_000
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


class Home(KilledHome):
    """A home, and what the month leaves in it."""

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
        calm, killed = (Home(folder / name, data, INITIAL_SHARE=0.8, FUTURE_BATCHES=2) for name in ("calm", "killed"))
        planned = steps(folder)
        at = [chance.randrange(len(planned)) for _ in range(chosen.kills)]
        try:
            for home in (calm, killed):
                home.serve()
            for number, step in enumerate(planned):
                seconds = calm.run(*step)
                for _ in range(at.count(number)):
                    killed.kill(step, chance.uniform(0.5, seconds))
                killed.run(*step)
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
