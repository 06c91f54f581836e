"""Kills a simulation with -9 at random moments and runs it on: the end must be that of an undisturbed one.

Both simulations begin beside a version in service, on a small synthetic cohort, with a real endpoint each. Compared are
what arrived, the verdict, action, outcome and figures of every batch, the versions and what became of them, how often
each search and each recalibration was finished, and what serves afterwards: the version before. Last line: one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import random
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

NAME, FIRST = "killed", "1"
BATCHES, ROWS = 4, 16_000
# A change of prevalence, a lost ranking, outcomes a batch late.
SCENARIOS = ("--scenario", "prevalence-up", "--scenario", "concept-flip", "--from-batch", "1")
SIMULATE = ("simulate", "--batches", str(BATCHES), "--name", NAME, *SCENARIOS)
# Of a run's identity, what two homes cannot share.
TAGS = ("decision", "stage", "family", "threshold", "dataset_digest", "recalibrates", "labelled_batches")


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="health-predict-kill-") as folder:
        data = Path(folder) / "cohort.csv"
        save_csv(synthesize(ROWS, seed=11), data)
        values = {"DATA_SOURCE": data, "INITIAL_SHARE": 0.5, "FUTURE_BATCHES": BATCHES}
        calm, killed = (Home(Path(folder) / name, data, **values) for name in ("calm", "killed"))
        try:
            for home in (calm, killed):
                home.serve()
            seconds = calm.run(*SIMULATE)
            print(f"undisturbed: {seconds:.0f} s", flush=True)
            deaths = killed.run_with_kills(chosen.kills, seconds, random.Random(chosen.seed))
            one, other = calm.state(), killed.state()
        finally:
            calm.start("down").wait()
            killed.start("down").wait()
    different = sorted(name for name in one if one[name] != other[name])
    for name in different:
        print(f"{name} differs:\n  undisturbed {one[name]}\n  killed      {other[name]}")
    found = {
        "kills": deaths,
        "same_end": not different,
        "batches": len(one["batches"]),
        "versions": len(one["versions"]),
        "put_back": one["champion"] == one["serving"] == FIRST,
    }
    print(json.dumps(found))
    sys.exit(1 if different or not found["put_back"] else 0)


class Home(KilledHome):
    """A home, and the simulation in it."""

    def run_with_kills(self, kills: int, seconds: float, chance: random.Random) -> int:
        """Kill it at random moments of what an undisturbed one takes, then let it end; how often it was killed."""
        deaths = 0
        # Each start spends its first seconds on imports, and a third is enough to get a search done.
        while deaths < kills and self.kill(SIMULATE, chance.uniform(5, seconds / 3)):
            deaths += 1
            print(f"kill {deaths}: {self.last_line()}", flush=True)
        self.run(*SIMULATE)
        return deaths

    def state(self) -> dict[str, Any]:
        """What the simulation left."""
        tracking, storage = Tracking(self.settings), open_storage(self.settings.storage)
        found = json.loads(storage.read(keys.simulation(NAME, keys.FIGURES)))
        stream = keys.simulation_stream(NAME)
        batches = Batches(self.settings.model_copy(update={"stream": stream}))
        arrivals = batches.arrivals.state()
        finished = tracking.runs("attributes.status = 'FINISHED' and tags.role = 'search'")
        champion, active = tracking.by_alias("champion"), open_target(self.settings).active()
        return {
            "batches": found["moments"],
            "detection": found["detection"],
            "arrivals": [arrivals.arrived, arrivals.repeated, arrivals.quarantined, arrivals.unknown],
            "outcomes": asdict(arrivals.outcomes),
            "windows": [len(batches.arrivals.window(number)) for number in batches.numbers()],
            "looks": [key.rpartition("/")[2] for key in storage.keys(keys.records(stream, keys.SETTLED))],
            "progress": storage.read(keys.progress(stream)).decode(),
            "versions": [
                {name: version.tags.get(name) for name in TAGS} | {"aliases": version.aliases}
                for version in tracking.versions()
            ],
            "searches": sorted(run.name.partition("-")[0] for run in finished),
            "unfinished": len(tracking.runs("attributes.status = 'RUNNING'")),
            "champion": champion.version if champion else None,
            "serving": active.model_version if active else None,
        }


if __name__ == "__main__":
    main()
