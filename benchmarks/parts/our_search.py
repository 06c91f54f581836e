"""The hpo stage as a pipeline runs it, for `benchmarks/search.py`: `our_search.py NAME TRIALS FOLDER HOME`.

It takes the two parts that the split stage left in the folder, and leaves the best AUC in `result.json` of HOME.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.parts.search_space import NAMES, SEED
from health_predict.stages.hpo import hpo
from health_predict.stages.task import task


def ours(trials: int, folder: Path, home: Path) -> float:
    """The stage; it also stores the winners' models, curves and a page."""
    with task("hpo", home=home, families=NAMES, trials=trials, seed=SEED) as settings:
        result = hpo(
            settings,
            dataset_digest="0" * 64,
            dataset_source="custom",
            train=folder / "train",
            validation=folder / "validation",
            leaderboard=home / "leaderboard.html",
        )
    return max(found["auc"] for found in result.best_metrics.values())


if __name__ == "__main__":
    _, trials, folder, home = sys.argv[1:]
    (Path(home) / "result.json").write_text(json.dumps({"auc": ours(int(trials), Path(folder), Path(home))}))
