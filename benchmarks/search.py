"""A search by the usual Ray Tune script, by Optuna alone, by HalvingRandomSearchCV, and by the hpo stage.

The same spaces, the same encounters, one machine, one run; start-up counts. Every contender is a process tree of its
own (`parts/searches.py`), of which the wall clock, the CPU time and the largest memory (PSS) are taken. All write
each trial to MLflow; ours also stores the winners' models, learning curves and a page.

    usual     ray.tune and scikit-learn alone: each trial reads the CSV, fits its preprocessor, logs with the fluent API
    optuna    one process, TPE, median pruning a family
    halving   HalvingRandomSearchCV a family, two processes
    ours      the hpo stage

Needs the real data (HEALTH_PREDICT_DATA_COPY); without, it takes synthetic encounters and says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.parts import results
from benchmarks.parts.cohorts import DIABETES, synthesize
from benchmarks.parts.search_space import NAMES
from health_predict.core.data.cohort import load_part, save_csv, save_part, without_excluded
from health_predict.settings import Settings
from health_predict.stages.split import split
from tests.processes import carries

MARK = "BENCH_SEARCH"
FEW, MANY = 24, int(os.environ.get("BENCH_MANY_TRIALS", "99"))  # of all families together
SAMPLE_SECONDS = 0.3
LIMIT_SECONDS = 3600
LEAVE_SECONDS = 20.0
# A machine's speed changes within minutes. Of the short ones the median of three counts, around the long one.
ORDER = ("ours", "optuna", "usual", "ours", "optuna", "halving", "ours", "optuna")


@dataclass(frozen=True)
class Measured:
    """What a contender's processes took."""

    wall: float
    cpu: float
    gib: float
    auc: float


def main() -> None:
    """Run all contenders, print the table and the ratios."""
    with tempfile.TemporaryDirectory(prefix="bench-search-") as name:
        folder = Path(name)
        prepare(folder)
        print(f"{'contender':<10} {'trials':>6} {'wall s':>8} {'CPU s':>8} {'GiB':>6} {'AUC':>8}")
        runs: dict[str, list[Measured]] = {}
        for contender in ORDER:
            runs.setdefault(contender, []).append(measure(contender, FEW, folder))
        few = {contender: sorted(found, key=lambda run: run.wall)[len(found) // 2] for contender, found in runs.items()}
        many = {contender: measure(contender, MANY, folder) for contender in ("optuna", "ours")}
    ratios = {
        "wall_vs_usual": few["usual"].wall / few["ours"].wall,
        "cpu_vs_usual": few["usual"].cpu / few["ours"].cpu,
        "wall_vs_optuna_24": few["ours"].wall / few["optuna"].wall,
        "wall_vs_optuna_100": many["ours"].wall / many["optuna"].wall,
        "auc_minus_usual": few["ours"].auc - few["usual"].auc,
    }
    figures = {
        **ratios,
        "auc": few["ours"].auc,
        "auc_usual": few["usual"].auc,
        "gib": few["ours"].gib,
        "gib_100": many["ours"].gib,
        "wall_seconds": few["ours"].wall,
    }
    results.save("search", {key: round(value, 4) for key, value in figures.items()})


def prepare(folder: Path) -> None:
    """Leave the parts that the split stage makes in the folder, and their encounters as CSV files."""
    source = os.environ.get("HEALTH_PREDICT_DATA_COPY", "")
    if source:
        files = {name: folder / name for name in ("train", "validation", "test", "batches", "profile")}
        split(Settings(home=folder / "split", data_source=source), labelled_batches=0, given=(), **files)
        for name in ("train", "validation"):
            save_csv(load_part(files[name]), folder / f"{name}.csv")
        return
    print("SYNTHETIC encounters: HEALTH_PREDICT_DATA_COPY names no file")
    encounters = without_excluded(synthesize(20_000, seed=1), DIABETES)
    for name, part in (("train", encounters[:14_000]), ("validation", encounters[14_000:17_000])):
        save_part(part, folder / name)
        save_csv(part, folder / f"{name}.csv")


def measure(contender: str, trials: int, folder: Path) -> Measured:
    """Run one contender to its end; nothing of it may be left running."""
    mark = uuid.uuid4().hex
    home = Path(tempfile.mkdtemp(dir=folder))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEALTH_PREDICT_")}
    module = "our_search" if contender == "ours" else "searches"
    command = [sys.executable, "-m", f"benchmarks.parts.{module}"]
    command += [contender, str(trials // len(NAMES)), str(folder), str(home)]
    began = time.monotonic()
    with (home / "output").open("w") as output:
        tree = Tree(mark)
        process = subprocess.Popen(command, env={**environment, MARK: mark}, stdout=output, stderr=output)
        while process.poll() is None:
            tree.sample()
            if time.monotonic() - began > LIMIT_SECONDS:
                process.kill()
            time.sleep(SAMPLE_SECONDS)
        wall = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{contender} failed:\n{(home / 'output').read_text()[-3000:]}")
    tree.require_end(contender)
    found = Measured(wall, tree.cpu, tree.peak / 2**30, json.loads((home / "result.json").read_text())["auc"])
    print(
        f"{contender:<10} {trials:>6} {found.wall:>8.1f} {found.cpu:>8.1f} {found.gib:>6.2f} {found.auc:>8.4f}",
        flush=True,
    )
    return found


class Tree:
    """All processes that start after it and carry a mark in their environment, daemons too."""

    def __init__(self, mark: str) -> None:
        self.peak = 0
        self._mark = mark
        self._seconds: dict[int, float] = {}
        self._ours: dict[int, psutil.Process] = {}
        self._others = set(psutil.pids())

    @property
    def cpu(self) -> float:
        """CPU-seconds of all of them, as far as they were seen."""
        return sum(self._seconds.values())

    def sample(self) -> None:
        """Look at all of them."""
        memory = 0
        for process in psutil.process_iter():
            if process.pid in self._others:
                continue
            try:
                if process.pid not in self._ours:
                    if not carries(process.pid, MARK, self._mark):  # or not yet: one that just starts has none
                        continue
                    self._ours[process.pid] = process
                times = process.cpu_times()
                self._seconds[process.pid] = times.user + times.system
                full = process.memory_full_info()
                memory += getattr(full, "pss", full.rss)
            except psutil.Error:
                continue
        self.peak = max(self.peak, memory)

    def require_end(self, contender: str) -> None:
        """Fail when one of them outlives the command."""
        _, left = psutil.wait_procs(list(self._ours.values()), timeout=LEAVE_SECONDS)
        if left:
            raise SystemExit(f"{contender} left {[process.name() for process in left]} running")


if __name__ == "__main__":
    main()
