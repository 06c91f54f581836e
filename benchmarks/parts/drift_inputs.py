"""Input drift: false alarms on clean resamples, power on six shifts beside the usual rules, CPU of a batch.

The usual rules are Evidently's: its drift preset with its dataset alarm (half of the columns), and "any column". Its
tests are run as they are, on the same rows. The third is a population stability index above 0.25 in any column.
"""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd

from benchmarks.parts.cohorts import inject
from health_predict.adapters.contracts import built_in
from health_predict.adapters.evidently import run_preset, statistics
from health_predict.core.choices import Scenario
from health_predict.core.data.contract import MISSING
from health_predict.core.monitoring.drift import DriftReference, assess
from health_predict.core.monitoring.input_drift import InputReference

SIZES = (500, 2000, 5000)
POWER_ROWS = 2000
PSI_LIMIT = 0.25

Shift = Callable[[pd.DataFrame, int], pd.DataFrame]


def _scenario(scenario: Scenario) -> Shift:
    return lambda frame, seed: inject(frame, scenario, 0, seed)[0]


def _one_specialty_missing(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    return frame.assign(medical_specialty=MISSING)


SHIFTS: dict[str, Shift] = {
    "age": _scenario(Scenario.AGE_SHIFT),
    "admission type": _scenario(Scenario.ADMISSION_TYPE_SHIFT),
    "missing specialty": _one_specialty_missing,
    "ICD recoding": _scenario(Scenario.ICD_RECODING),
    "capped counts": _scenario(Scenario.CAPPED_COUNTS),
    "drug withdrawal": _scenario(Scenario.DRUG_WITHDRAWAL),
}


def _sample(frame: pd.DataFrame, rows: int, random: np.random.Generator) -> pd.DataFrame:
    return frame.iloc[random.integers(0, len(frame), rows)].reset_index(drop=True)


def false_alarms(training: pd.DataFrame, draws: int) -> dict[int, tuple[float, float]]:
    """Shares of clean resamples of the reference that alarm, and that raise a question about recording, by size."""
    reference = InputReference.fit(training, built_in())
    random = np.random.default_rng(99)
    found = {}
    for size in SIZES:
        findings = [reference.compare(_sample(training, size, random), built_in()) for _ in range(draws)]
        found[size] = (sum(one.alarm for one in findings) / draws, sum(bool(one.quality) for one in findings) / draws)
    return found


def power(training: pd.DataFrame, clean: pd.DataFrame, draws: int, evidently_draws: int) -> pd.DataFrame:
    """Share of shifted batches of 2,000 rows that alarm, by shift and rule; `no shift` shows the false alarms.

    Batches are drawn from `clean`: rows that the reference does not hold, of the same distribution.
    """
    reference = InputReference.fit(training, built_in())
    random = np.random.default_rng(7)
    found: dict[str, dict[str, float]] = {}
    for name, shift in {"no shift": lambda frame, seed: frame, **SHIFTS}.items():
        ours, stability, share, any_column = [], [], [], []
        for draw in range(draws):
            batch = shift(_sample(clean, POWER_ROWS, random), draw)
            findings = reference.compare(batch, built_in())
            ours.append(findings.alarm)
            stability.append(any(column.psi > PSI_LIMIT for column in findings.columns))
            if draw < evidently_draws:
                drifted, columns = evidently_drift(training, batch)
                share.append(drifted / columns >= 0.5)
                any_column.append(drifted > 0)
        found[name] = {
            "ours": float(np.mean(ours)),
            "Evidently preset": float(np.mean(share)),
            "Evidently any column": float(np.mean(any_column)),
            "PSI > 0.25": float(np.mean(stability)),
        }
    return pd.DataFrame(found).T


def evidently_drift(reference: pd.DataFrame, current: pd.DataFrame) -> tuple[int, int]:
    """How many of how many columns Evidently's preset calls drifted, by its own tests."""
    tests = statistics(run_preset(reference, current, built_in()).dict()).drifted
    return sum(tests.values()), len(tests)


def cpu(training: pd.DataFrame, batch: pd.DataFrame, rounds: int = 5) -> dict[str, float]:
    """CPU milliseconds for one batch (smallest of some rounds): ours, the whole verdict, Evidently's preset."""
    random = np.random.default_rng(0)
    risk = random.beta(2, 15, len(training))
    reference = DriftReference.fit(
        training, built_in(), (random.random(len(risk)) < risk).astype(np.float64), risk, draws=100
    )
    scores = random.beta(2, 15, len(batch))
    outcomes = (random.random(len(scores)) < scores).astype(np.float64)

    def smallest(work: Callable[[], object], times: int) -> float:
        taken = []
        for _ in range(times):
            begin = time.process_time()
            work()
            taken.append(time.process_time() - begin)
        return min(taken) * 1000

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evidently_drift(training[:500], batch[:500])  # its import and first use are not counted
        return {
            "inputs": smallest(lambda: reference.inputs.compare(batch, built_in()), 4 * rounds),
            "verdict": smallest(lambda: assess(reference, batch, scores, outcomes), 4 * rounds),
            "evidently": smallest(lambda: evidently_drift(training, batch), 2),
        }


def import_seconds(module: str) -> float:
    """CPU seconds of a fresh process that imports a module."""
    code = f"import {module}, time; print(time.process_time())"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
