"""Drift with a known truth in the synthetic cohort: what the verdict was, after how many batches, and in how many
streams a detector of lasting changes alarms although nothing changed."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks.parts.cohorts import DIABETES, inject, synthesize
from health_predict.adapters.contracts import built_in
from health_predict.core.choices import Scenario
from health_predict.core.data.cohort import target, without_excluded
from health_predict.core.model.families import FAMILIES
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.monitoring.drift import DriftReference, Verdict, assess
from health_predict.core.monitoring.performance import LabelledWindow, assess_calibration, evidence, threshold
from health_predict.core.monitoring.refit import LabelledRows

INITIAL, BATCH, BATCHES = 24_000, 5_000, 5  # rows; the first batch is clean, drift begins with the second
SEEDS = range(1, 6)
STRIDE = 4  # of the drifted rows every fourth is used: `inject` draws some rows twice, and copies are no evidence
TWO = (Scenario.AGE_SHIFT, Scenario.PREVALENCE_UP)

# The truth: what should be done about the model. Where two are named, either is right: recoded or capped inputs may
# or may not cost the model more than a new calibration can mend.
EXPECTED: dict[str, tuple[Verdict, ...]] = {
    "none": (Verdict.STEADY,),
    "age-shift": (Verdict.STEADY,),
    "admission-type-shift": (Verdict.STEADY,),
    "missingness-switch": (Verdict.STEADY,),
    "icd-recoding": (Verdict.STEADY, Verdict.RECALIBRATE),
    "capped-counts": (Verdict.RECALIBRATE, Verdict.RETRAIN),
    "prevalence-down": (Verdict.RECALIBRATE,),
    "prevalence-up": (Verdict.RECALIBRATE,),
    "concept-flip": (Verdict.RETRAIN,),
    "drug-withdrawal": (Verdict.STEADY,),
    "age-shift + prevalence-up": (Verdict.RECALIBRATE,),
}


@dataclass(frozen=True)
class Outcome:
    """Of one stream: the first verdict that was not steady, after how many drifted batches (0: never), whether the
    inputs alarmed, whether a data-quality finding was made, and the columns behind the first input alarm."""

    scenario: str
    verdict: Verdict
    delay: int
    inputs: bool
    quality: bool
    columns: tuple[str, ...]
    early: bool  # before the drift began


def run(seeds: Sequence[int] = SEEDS) -> list[Outcome]:
    """Every scenario on every seed, one process a core."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        return [outcome for outcomes in pool.map(_seed, seeds) for outcome in outcomes]


def _seed(seed: int) -> list[Outcome]:
    cohort = synthesize(INITIAL + BATCH + STRIDE * (BATCHES - 1) * BATCH, seed)
    initial = without_excluded(cohort[:INITIAL], DIABETES).reset_index(drop=True)
    cut = round(0.75 * len(initial))
    train, validation = initial[:cut], initial[cut:].reset_index(drop=True)
    features = EncounterFeatures(built_in()).fit(train)
    family = FAMILIES["LightGBM"]
    model = family.fit(family.first, features.transform(train), target(train, DIABETES), seed=0, threads=1)

    def scores(frame: pd.DataFrame) -> np.ndarray:
        return np.asarray(model.predict_proba(features.transform(frame))[:, 1], dtype=np.float64)

    reference = DriftReference.fit(train, built_in(), target(validation, DIABETES), scores(validation), draws=300)
    outcomes = []
    for name in EXPECTED:
        frame = cohort
        for scenario in TWO if "+" in name else (Scenario(name),):
            frame, _ = inject(frame, scenario, INITIAL + BATCH, seed)
        frame = pd.concat([frame[: INITIAL + BATCH], frame[INITIAL + BATCH :: STRIDE]], ignore_index=True)
        outcomes.append(_stream(name, frame, reference, scores))
    return outcomes


def _stream(name: str, frame: pd.DataFrame, reference: DriftReference, scores: object) -> Outcome:
    history: list[LabelledWindow] = []
    earlier: list[LabelledRows] = []
    inputs = quality = early = False
    columns: tuple[str, ...] = ()
    for number in range(BATCHES):
        start = INITIAL + number * BATCH
        batch = without_excluded(frame[start : start + BATCH], DIABETES).reset_index(drop=True)
        risk = scores(batch)  # type: ignore[operator]
        labels = target(batch, DIABETES).astype(np.float64)
        findings = assess(reference, batch, risk, labels, history=history, earlier=earlier)
        if findings.window is not None:
            history.append(findings.window)
        earlier.append(LabelledRows(batch, risk, labels))
        if number == 0:
            early = findings.verdict is not Verdict.STEADY
            continue
        quality = quality or bool(findings.inputs.quality)
        if findings.inputs.alarm and not inputs:
            inputs, columns = True, tuple(column.column for column in findings.inputs.columns if column.alarm)[:3]
        if findings.verdict is not Verdict.STEADY:
            return Outcome(name, findings.verdict, number, inputs, quality, columns, early)
    return Outcome(name, Verdict.STEADY, 0, inputs, quality, columns, early)


def run_length(streams: int = 500, batches: int = 200, events: int = 560) -> dict[str, tuple[float, float]]:
    """False alarms a batch and the share of streams with any in the first 16 batches, by question.

    `limit`: normal deviations exactly at the tolerance, the worst case, for one test at alpha = .01. `calibration`:
    the whole calibration test of a model whose overall risk and slope are off by what its own training data leave
    uncertain (2.5 % and .05, one draw a stream), on batches with that many readmissions. After an alarm a stream
    starts anew.
    """
    random = np.random.default_rng(5)
    limit = _rates(
        random.standard_normal((streams, batches)).tolist(),
        lambda seen: evidence(seen) >= threshold(0.01),
    )
    windows = []
    variance, slope_error = 0.87 * events, 0.065
    for _ in range(streams):
        ratio, slope = 1 + 0.025 * random.standard_normal(), 1 + 0.05 * random.standard_normal()
        observed = random.normal(ratio * events, np.sqrt(variance), batches)
        slopes = random.normal(slope, slope_error, batches)
        windows.append(
            [
                LabelledWindow(5_000, round(count), events, variance, 0.0, line, slope_error, 0.68, 0.013**2)
                for count, line in zip(observed.tolist(), slopes.tolist(), strict=True)
            ]
        )
    calibration = _rates(windows, lambda seen: assess_calibration(seen).broken)
    return {"limit": limit, "calibration": calibration}


def _rates(streams: list, alarmed: object, memory: int = 30) -> tuple[float, float]:  # type: ignore[type-arg]
    alarms = first = total = 0
    for stream in streams:
        start, seen_early = 0, False
        for batch in range(len(stream)):
            # A sum that is nearly nothing after 30 quiet batches needs no older ones.
            if alarmed(stream[max(start, batch - memory) : batch + 1]):  # type: ignore[operator]
                alarms, start = alarms + 1, batch + 1
                seen_early = seen_early or batch < 16
        total += len(stream)
        first += seen_early
    return alarms / total, first / len(streams)
