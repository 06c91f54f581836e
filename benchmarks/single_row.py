"""CPU of one prediction inside the process: the fitted pipeline on a one-row DataFrame, and the compiled model.

The first is what the usual handler does with a request's fields; the second is what the service does. Both give
the same decision on every row, which is checked before anything is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline

from benchmarks.parts import results
from benchmarks.parts.cohorts import DIABETES, synthesize
from health_predict.adapters.contracts import built_in
from health_predict.core.data.cohort import target
from health_predict.core.model.evaluation import f1_threshold
from health_predict.core.model.families import FAMILIES
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.serving.compiled_model import CompiledModel, compile_pipeline
from health_predict.core.serving.scoring import GraphScorer

ROWS = 200
ROUNDS = 5
NAMES = [column.name for column in built_in().features]


def milliseconds(predict: Callable[[dict[str, str]], float], rows: list[dict[str, str]]) -> float:
    """Smallest CPU time a row over some rounds."""
    rounds = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        for row in rows:
            predict(row)
        rounds.append((time.process_time() - begin) / len(rows) * 1000)
    return min(rounds)


def main() -> None:
    """Fit, compile, compare, print the table and the ratios."""
    frame = synthesize(12_000, seed=1)
    features = EncounterFeatures(built_in()).fit(frame)
    matrix, labels = features.transform(frame), target(frame, DIABETES)
    rows: list[dict[str, str]] = [dict(zip(NAMES, row, strict=True)) for row in frame[NAMES].head(ROWS).to_numpy()]
    ratios = {}
    print(f"{'family':<20} {'pipeline, ms':>14} {'compiled, ms':>14} {'ratio':>7}")
    for name, family in FAMILIES.items():
        pipeline = Pipeline(
            [("features", features), ("estimator", family.fit(family.first, matrix, labels, seed=1, threads=1))]
        )
        threshold = f1_threshold(labels, pipeline.predict_proba(frame)[:, 1].astype(float))
        compiled = compile_pipeline(pipeline, family, threshold)
        score = compiled.scorer()

        def usual(row: dict[str, str], pipeline: Pipeline = pipeline) -> float:
            return float(pipeline.predict_proba(pd.DataFrame([row]))[0, 1])

        def ours(row: dict[str, str], compiled: CompiledModel = compiled, score: GraphScorer = score) -> float:
            encoded, _ = compiled.encoder.encode(row)
            return float(score(encoded.reshape(1, -1))[0])

        for row in rows:
            assert np.isclose(usual(row), ours(row), atol=1e-6)
        slow, fast = milliseconds(usual, rows), milliseconds(ours, rows)
        ratios[name] = round(slow / fast, 1)
        print(f"{name:<20} {slow:>14.3f} {fast:>14.3f} {ratios[name]:>7}")
    results.save(
        "single_row", {"least_cpu_vs_pandas": min(ratios.values()), "most_cpu_vs_pandas": max(ratios.values())}
    )


if __name__ == "__main__":
    main()
