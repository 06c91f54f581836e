"""Champion against challenger: a decision and its reasons.

Every gate looks at validation rows only; the test set is for the card.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.drift import DEFAULT_LIMITS, Limits, calibration_of
from health_predict.core.evaluation import (
    Labels,
    Scored,
    compare,
    metrics,
    paired_difference,
    subgroup_levels,
)
from health_predict.core.performance import LabelledWindow

# A champion is replaced unless the challenger is clearly worse: one set of 3,000 rows cannot see less than .03.
CHAMPION_MARGIN = 0.02
SUBGROUP_MARGIN = 0.10
_BASELINE_GATE = "not worse than the baseline"
_RECALIBRATED = "the estimator is the champion's, which passed this gate"


class Decision(StrEnum):
    """What becomes of a new model version."""

    PROMOTE = "promote"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Gate:
    """One question and its answer, in words."""

    name: str
    passed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Promotion:
    """The decision and every gate behind it."""

    decision: Decision
    gates: tuple[Gate, ...]

    @property
    def reasons(self) -> list[str]:
        """The failed gates in words, or all of them when none failed."""
        failed = [gate for gate in self.gates if not gate.passed]
        return [f"{gate.name}: {gate.reason}" for gate in failed or self.gates]


def decide(
    frame: pd.DataFrame,
    labels: Labels,
    patients: npt.ArrayLike,
    candidate: Scored,
    baseline: Scored | None,
    champion: Scored | None,
    *,
    seed: int = 0,
    resamples: int = 1000,
    same_estimator: bool = False,
) -> Promotion:
    """Ask every gate about `candidate` on validation rows; promote when all pass.

    `baseline` is the logistic regression of the same search, None when it is the candidate itself; `champion` is
    what serves now, None before the first deployment. Frame (n, columns), the others (n,). `same_estimator`: the
    candidate is the champion with a new calibration, so that it ranks as what passed the two gates about ranking.
    """
    found = metrics(labels, candidate.scores, candidate.threshold)
    gates = [
        _beats_always_negative(labels, found),
        Gate("better than number_inpatient alone", True, _RECALIBRATED)
        if same_estimator
        else _beats_inpatient_count(frame, labels, patients, candidate, seed, resamples),
        Gate(_BASELINE_GATE, True, _RECALIBRATED)
        if same_estimator
        else _not_worse_than_baseline(labels, patients, candidate, baseline, seed, resamples),
        _calibrated(labels, candidate),
        _not_worse_than_champion(labels, patients, candidate, champion, seed, resamples),
        _no_subgroup_far_worse(frame, labels, patients, candidate, champion, seed, resamples),
    ]
    passed = all(gate.passed for gate in gates)
    return Promotion(Decision.PROMOTE if passed else Decision.REJECT, tuple(gates))


def _beats_always_negative(labels: Labels, found: dict[str, float]) -> Gate:
    prevalence = float(np.mean(labels))
    constant = prevalence * (1 - prevalence)
    passed = found["f1"] > 0 and found["brier"] < constant
    return Gate(
        "better than always negative",
        bool(passed),
        f"F1 {found['f1']:.3f} against 0, Brier {found['brier']:.4f} against {constant:.4f} of the constant prevalence",
    )


def _beats_inpatient_count(
    frame: pd.DataFrame, labels: Labels, patients: npt.ArrayLike, candidate: Scored, seed: int, resamples: int
) -> Gate:
    alone = pd.to_numeric(frame["number_inpatient"]).to_numpy(dtype=float)
    difference = paired_difference(labels, candidate.scores, alone, patients, seed=seed, resamples=resamples)
    return Gate(
        "better than number_inpatient alone",
        difference.low > 0,
        f"AUC difference {difference}" + ("" if difference.low > 0 else ", which does not exclude 0"),
    )


def _not_worse_than_baseline(
    labels: Labels, patients: npt.ArrayLike, candidate: Scored, baseline: Scored | None, seed: int, resamples: int
) -> Gate:
    if baseline is None:
        return Gate(_BASELINE_GATE, True, "the candidate is the logistic regression baseline")
    found = compare(labels, candidate, baseline, patients, seed=seed, resamples=resamples)
    auc, precision = found["auc"].difference, found["average_precision"].difference
    return Gate(
        _BASELINE_GATE,
        auc.high >= 0 and precision.high >= 0,
        f"AUC difference {auc}, average precision difference {precision}; refused when either is surely below 0",
    )


def _calibrated(labels: Labels, candidate: Scored, limits: Limits = DEFAULT_LIMITS) -> Gate:
    """The question that monitoring asks of each batch of outcomes, asked of the validation rows."""
    found = calibration_of(
        [LabelledWindow.of(labels.astype(np.float64), np.asarray(candidate.scores, dtype=np.float64))], limits
    )
    return Gate(
        "calibrated",
        not found.broken,
        f"observed/expected {found.ratio:.2f} [{found.ratio_low:.2f}, {found.ratio_high:.2f}], calibration slope "
        f"{found.slope:.2f} [{found.slope_low:.2f}, {found.slope_high:.2f}]; refused when one is surely further from 1 "
        f"than {limits.observed_expected_tolerance} and {limits.slope_tolerance}, as monitoring asks it",
    )


def _not_worse_than_champion(
    labels: Labels, patients: npt.ArrayLike, candidate: Scored, champion: Scored | None, seed: int, resamples: int
) -> Gate:
    name = "not worse than the champion"
    if champion is None:
        return Gate(name, True, "there is no champion yet")
    difference = paired_difference(labels, candidate.scores, champion.scores, patients, seed=seed, resamples=resamples)
    passed = difference.high >= 0 and difference.value >= -CHAMPION_MARGIN
    return Gate(name, passed, f"AUC difference {difference} on the same rows (allowed down to -{CHAMPION_MARGIN})")


def _no_subgroup_far_worse(
    frame: pd.DataFrame,
    labels: Labels,
    patients: npt.ArrayLike,
    candidate: Scored,
    champion: Scored | None,
    seed: int,
    resamples: int,
) -> Gate:
    name = "no subgroup far worse than the champion's"
    if champion is None:
        return Gate(name, True, "there is no champion yet")
    ids = np.asarray(patients)
    worse: list[str] = []
    for (attribute, level), mask in subgroup_levels(frame).items():
        if not 0 < labels[mask].sum() < mask.sum():
            continue
        difference = paired_difference(
            labels[mask], candidate.scores[mask], champion.scores[mask], ids[mask], seed=seed, resamples=resamples // 3
        )
        if math.isfinite(difference.high) and difference.high < 0 and difference.value < -SUBGROUP_MARGIN:
            worse.append(f"{attribute} {level}: AUC difference {difference}")
    return Gate(name, not worse, "; ".join(worse) or "none")
