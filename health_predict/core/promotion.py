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

from health_predict.core.evaluation import Floats, Labels, metrics, paired_difference, subgroup_levels

# A champion is replaced unless the challenger is clearly worse: one set of 3,000 rows cannot see less than .03.
CHAMPION_MARGIN = 0.02
OBSERVED_EXPECTED = (0.8, 1.25)
LARGEST_ECE = 0.05
SUBGROUP_MARGIN = 0.10
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


@dataclass(frozen=True, slots=True)
class Scored:
    """A model's scores on the validation rows (n,) and its threshold."""

    scores: Floats
    threshold: float


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
        Gate("at least as good as the baseline", True, _RECALIBRATED)
        if same_estimator
        else _beats_baseline(labels, candidate, baseline, found),
        _calibrated(found),
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


def _beats_baseline(labels: Labels, candidate: Scored, baseline: Scored | None, found: dict[str, float]) -> Gate:
    name = "at least as good as the baseline"
    if baseline is None:
        return Gate(name, True, "the candidate is the logistic regression baseline")
    other = metrics(labels, baseline.scores, baseline.threshold)
    passed = found["f1"] >= other["f1"]
    return Gate(name, passed, f"F1 {found['f1']:.3f} against {other['f1']:.3f}")


def _calibrated(found: dict[str, float]) -> Gate:
    ratio, ece = found["observed_expected"], found["ece"]
    low, high = OBSERVED_EXPECTED
    passed = low <= ratio <= high and ece <= LARGEST_ECE
    return Gate(
        "calibrated",
        passed,
        f"observed/expected {ratio:.2f} (allowed {low}-{high}), ECE {ece:.3f} (allowed up to {LARGEST_ECE})",
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
