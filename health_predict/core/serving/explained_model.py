"""A fitted pipeline as the tables from which the service tells what each column added to a score.

The counterpart of `compiled_model`: what is made here is checked against the estimator's own scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.model.calibration import CalibratedClassifier, uncalibrated
from health_predict.core.model.contributions import PROBABILITY, Explainer, owners_of
from health_predict.core.model.families import Family
from health_predict.core.model.row_encoder import RowEncoder
from health_predict.errors import GateError

# Scores of boosters are sums of float32.
TOLERANCE = 1e-4
CHECKED_ROWS = 50


def explain_pipeline(pipeline: Any, family: Family, training: pd.DataFrame) -> Explainer:
    """Contribution tables of a fitted Pipeline([("features", EncounterFeatures), ("estimator", ...)]) of a family.

    `training` holds the rows that it was fitted on; a linear model's contributions are relative to their mean.
    Raises GateError when contributions do not add up.
    """
    outer = pipeline.named_steps["estimator"]
    explainer = family.explain(uncalibrated(outer), pipeline.named_steps["features"], training)
    if isinstance(outer, CalibratedClassifier):
        explainer = explainer.calibrated(outer.intercept, outer.slope)
    _check(explainer, pipeline, training)
    return explainer


def scores(pipeline: Any, rows: npt.NDArray[np.float32], unit: str) -> npt.NDArray[np.float64]:
    """What contributions add up to: the estimator's own scores (n,) of rows (n, d), in the explainer's unit."""
    probability = np.asarray(pipeline.named_steps["estimator"].predict_proba(rows)[:, 1], dtype=np.float64)
    return probability if unit == PROBABILITY else np.log(probability / (1 - probability))


def _check(explainer: Explainer, pipeline: Any, training: pd.DataFrame) -> None:
    encoder: RowEncoder = pipeline.named_steps["features"].encoder_
    frame = training.head(CHECKED_ROWS)
    rows = np.asarray(pipeline.named_steps["features"].transform(frame), dtype=np.float32)
    owners = owners_of(encoder)
    wrong = []
    for number, expected in enumerate(scores(pipeline, rows, explainer.unit)):
        amounts = encoder.amounts({table.column: str(frame[table.column].iloc[number]) for table in encoder.tables})
        total = explainer.base + explainer.by_column(amounts, owners).sum()
        if not abs(total - expected) <= TOLERANCE:
            wrong.append(f"training row {number}: {total:.6f} instead of {expected:.6f}")
    if wrong:
        raise GateError(
            f"contributions do not add up to the score: {'; '.join(wrong[:5])}",
            "this version cannot be explained; report the rows with the library versions",
        )
