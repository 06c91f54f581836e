"""The built-in contract's synthetic cohort, as the benchmarks draw it."""

from __future__ import annotations

import pandas as pd

from health_predict.adapters.contracts import built_in, built_in_synthetic
from health_predict.core.choices import Scenario
from health_predict.core.data import scenarios, synthetic
from health_predict.core.data.scenarios import GroundTruth

DIABETES = built_in()
ENCOUNTER, PATIENT, DATE = DIABETES.encounter[0], DIABETES.patient, DIABETES.date
TARGET = DIABETES.outcome.column


def synthesize(rows: int, seed: int) -> pd.DataFrame:
    """So many rows."""
    return synthetic.synthesize(DIABETES, built_in_synthetic(), rows, seed)


def inject(frame: pd.DataFrame, scenario: Scenario | str, from_row: int, seed: int) -> tuple[pd.DataFrame, GroundTruth]:
    """The rows with drift, and the truth about it."""
    return scenarios.inject(frame, DIABETES, built_in_synthetic(), scenario, from_row, seed)
