"""A month of 1,000,000 arrivals on this machine: taken in night by night, closed as one batch, and judged.

The champion is the benchmark's own small model. Each night's encounters wait at the door as the service's answers
would; what is measured is the whole of a night: taking in, and at the month's end closing, reading and judging the
batch. In a process of its own, whose memory is taken at its highest.

    BENCH_ARRIVALS   how many encounters (1,000,000)
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from benchmarks.parts import results
from benchmarks.parts.cohorts import DATE, DIABETES, ENCOUNTER, PATIENT, TARGET, synthesize
from health_predict.adapters import keys
from health_predict.adapters.contracts import built_in
from health_predict.adapters.data.arrivals import PROBABILITY, TIME, VERSION, Arrivals
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import CHAMPION, Tracking
from health_predict.core.data.cohort import part_bytes, target, without_excluded
from health_predict.core.data.encounters import complete
from health_predict.core.data.outcomes import PREDICTION_ID
from health_predict.core.data.partition import Parameters
from health_predict.core.model.families import BASELINE
from health_predict.core.model.features import EncounterFeatures
from health_predict.settings import Settings
from health_predict.stages.drift import drift
from health_predict.stages.settle import settle

ENCOUNTERS = int(os.environ.get("BENCH_ARRIVALS", "1000000"))
NIGHTS, DATASET = 31, "d" * 64
FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def prepare(home: Path) -> None:
    """A champion with its dataset, and the month's encounters, one file a night, beside the door."""
    settings = Settings(home=home, git_commit="abc")
    storage, tracking = open_storage(settings.storage), Tracking(settings)
    cohort = without_excluded(synthesize(20_000, seed=2), DIABETES)
    train, validation = cohort[:14_000].reset_index(drop=True), cohort[14_000:17_000].reset_index(drop=True)
    for name, frame in (("train", train), ("validation", validation), ("test", validation)):
        storage.write(keys.part(DATASET, name), part_bytes(frame))
    manifest = {"raw_sha256": "a" * 64, "source": "synthetic", "parameters": Parameters(0.4, 4, "s").to_json()}
    storage.write(keys.dataset(DATASET, keys.MANIFEST), json.dumps(manifest).encode())
    estimator = LogisticRegression(C=0.01, max_iter=1000)
    pipeline = Pipeline([("features", EncounterFeatures(built_in())), ("estimator", estimator)])
    pipeline.fit(train, target(train, DIABETES))
    tags = {"dataset_digest": DATASET, "dataset_source": "synthetic", "git_commit": "abc", "family": BASELINE}
    parent = tracking.start_search("search", tags, {})
    run = tracking.log_best(parent, BASELINE, pipeline, tags, {"threshold": "0.15"}, {}, {})
    tracking.set_alias(CHAMPION, tracking.register(run, {**tags, "threshold": "0.15"}, "").version)
    source = without_excluded(synthesize(60_000, seed=3), DIABETES).drop(columns=TARGET)
    scores = [repr(float(score)) for score in pipeline.predict_proba(source)[:, 1]]
    for night in range(NIGHTS):
        begin, end = ENCOUNTERS * night // NIGHTS, ENCOUNTERS * (night + 1) // NIGHTS
        numbers = pd.RangeIndex(begin, end)
        frame = source.iloc[numbers % len(source)].reset_index(drop=True)
        day = FIRST + timedelta(days=night)
        landed = complete(frame, built_in(), "a night").assign(
            **{
                ENCOUNTER: [str(number + 1) for number in numbers],
                PATIENT: [str(number // 3 + 1) for number in numbers],
                DATE: day.date().isoformat(),
                PREDICTION_ID: [f"00000000-0000-4000-8000-{number:012x}" for number in numbers],
                TIME: (day + timedelta(hours=12)).isoformat(),
                VERSION: "1",
                PROBABILITY: [scores[number % len(source)] for number in numbers],
            }
        )
        (home / "nights").mkdir(exist_ok=True)
        landed.to_parquet(home / "nights" / f"{night:02d}.parquet", index=False)


def month(home: Path) -> None:
    """Take in each night and judge the month; prints seconds and memory as JSON."""
    nights = []
    for night in range(NIGHTS):
        now = FIRST + timedelta(days=night, hours=26)
        settings = Settings(home=home, window="month", as_of=now, evidently="never")
        arrivals = Arrivals(settings)
        arrivals.land(pd.read_parquet(home / "nights" / f"{night:02d}.parquet"))
        begin = time.perf_counter()
        files: dict[str, Any] = {name: home / f"{name}.out" for name in ("report", "evidently", "metrics")}
        result = drift(settings, **files)
        settle(settings, batch=result.batch, batch_digest=result.batch_digest)
        nights.append(time.perf_counter() - begin)
    rows = len(Batches(settings).batch(0).frame)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    found = {"rows": rows, "last_night": nights[-1], "other_nights": sum(nights[:-1]), "gib": peak}
    print(json.dumps(found))


def main() -> None:
    """Prepare in one process, measure in another, keep the result."""
    if len(sys.argv) > 1:
        {"prepare": prepare, "month": month}[sys.argv[1]](Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory(prefix="bench-arrivals-") as folder:
        said = ""
        for step in ("prepare", "month"):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.arrivals", step, folder],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            said = done.stdout
        found = json.loads(said.strip().splitlines()[-1])
    results.save("arrivals", {name: round(value, 2) for name, value in found.items()})


if __name__ == "__main__":
    main()
