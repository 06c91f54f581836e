"""Calibration and discrimination of a model on labelled rows, as tests with effect sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_NORMAL = NormalDist()
_Z95 = 1.959964
_CLOSEST = 1e-6  # a probability of exactly 0 or 1 has no logit and no variance


@dataclass(frozen=True, slots=True)
class LabelledWindow:
    """What is kept of one labelled batch: enough to accumulate discrimination without its rows."""

    rows: int
    events: int
    expected: float
    auc: float
    auc_variance: float

    @classmethod
    def of(cls, labels: Floats, scores: Floats) -> Self:
        """From outcomes and probabilities of shape (n,). Raises ValueError when an outcome is absent."""
        auc, variance = delong(labels, scores)
        return cls(len(labels), int(labels.sum()), float(scores.sum()), auc, variance)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Observed over expected readmissions with its interval, and Cox's recalibration line (logit scale)."""

    observed: int
    expected: float
    ratio: float
    ratio_low: float
    ratio_high: float
    ratio_p_value: float
    intercept: float  # calibration in the large: 0 is right
    slope: float  # 1 is right; below it, high risks are too high and low ones too low
    slope_low: float
    slope_high: float
    slope_p_value: float
    broken: bool
    collapsed: bool  # the slope is surely so low that no mapping of the scores helps

    def sentence(self) -> str:
        """The finding in words."""
        word = "is off" if self.broken else "holds"
        return (
            f"Calibration {word}: {self.observed:,} readmissions were observed and {self.expected:,.0f} expected, a "
            f"ratio of {self.ratio:.2f} ({self.ratio_low:.2f} to {self.ratio_high:.2f}); calibration slope "
            f"{self.slope:.2f} ({self.slope_low:.2f} to {self.slope_high:.2f})."
        )


@dataclass(frozen=True, slots=True)
class Discrimination:
    """AUC of the batch and of the accumulated windows against validation, with 95 % intervals."""

    auc: float
    auc_low: float
    auc_high: float
    accumulated: float
    accumulated_low: float
    accumulated_high: float
    windows: int
    reference: float
    reference_low: float
    reference_high: float
    difference: float  # accumulated minus reference
    p_value: float  # one-sided, the smaller one of batch and accumulated, corrected for there being two
    fell: bool

    def sentence(self) -> str:
        """The finding in words."""
        word = "fell" if self.fell else "shows no certain fall"
        windows = "" if self.windows == 1 else f", {self.accumulated:.3f} over the last {self.windows} labelled batches"
        return (
            f"Discrimination {word}: the AUC is {self.auc:.3f} ({self.auc_low:.3f} to {self.auc_high:.3f}){windows}; "
            f"on validation it was {self.reference:.3f} ({self.reference_low:.3f} to {self.reference_high:.3f})."
        )


def delong(labels: Floats, scores: Floats) -> tuple[float, float]:
    """Area under the ROC curve and its variance.

    Source: DeLong et al. 1988, doi:10.2307/2531595, by ranks as in Sun and Xu 2014, doi:10.1109/LSP.2014.2337313.
    Raises ValueError when an outcome is absent.
    """
    from scipy.stats import rankdata

    positive = labels > 0.5
    m, n = int(positive.sum()), int((~positive).sum())
    if m == 0 or n == 0:
        raise ValueError("an AUC needs both outcomes")
    overall = rankdata(scores)
    above = (overall[positive] - rankdata(scores[positive])) / n
    below = 1 - (overall[~positive] - rankdata(scores[~positive])) / m
    variance = (np.var(above, ddof=1) / m if m > 1 else 0.25) + (np.var(below, ddof=1) / n if n > 1 else 0.25)
    return float(above.mean()), float(variance)


def observed_expected(labels: Floats, scores: Floats) -> tuple[float, float, float, float]:
    """Observed over expected events, its 95 % interval, and the two-sided p value of a ratio of 1.

    The number of events is a sum of independent trials with the predicted probabilities (Poisson binomial), here by
    its normal approximation: variance sum p (1 - p).
    """
    clipped = np.clip(scores, _CLOSEST, 1 - _CLOSEST)
    observed, expected = float(labels.sum()), float(clipped.sum())
    error = math.sqrt(float((clipped * (1 - clipped)).sum()))
    half = _Z95 * error / expected
    ratio = observed / expected
    return ratio, max(0.0, ratio - half), ratio + half, _two_sided((observed - expected) / error)


def calibration_line(labels: Floats, scores: Floats) -> tuple[float, float, float]:
    """Intercept of the line with slope 1, slope of the free line, and the slope's standard error.

    Source: Cox 1958, doi:10.1093/biomet/45.3-4.562: logistic regression of the outcome on the logit of the score.
    """
    clipped = np.clip(scores, _CLOSEST, 1 - _CLOSEST)
    logit = np.log(clipped / (1 - clipped))
    offset = 0.0
    for _ in range(25):
        p = _expit(logit + offset)
        step = float((labels - p).sum() / max(1e-12, (p * (1 - p)).sum()))
        offset += max(-2.0, min(2.0, step))
        if abs(step) < 1e-10:
            break
    # Centred, so that the two steps hardly depend on each other.
    design = np.column_stack([np.ones_like(logit), logit - logit.mean()])
    line = np.array([offset + logit.mean(), 1.0])
    information = np.eye(2)
    for _ in range(50):
        p = _expit(design @ line)
        # The ridge keeps constant scores, which have no slope, from a singular matrix.
        information = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        change = np.clip(np.linalg.solve(information, design.T @ (labels - p)), -2, 2)
        line = line + change
        if float(np.abs(change).max()) < 1e-10:
            break
    return offset, float(line[1]), float(math.sqrt(np.linalg.inv(information)[1, 1]))


def assess_calibration(
    labels: Floats, scores: Floats, *, alpha: float, ratio_tolerance: float, slope_tolerance: float, lost_slope: float
) -> Calibration:
    """Two tests, each at alpha / 2; broken when one is significant and its effect exceeds the tolerance.

    Collapsed when, also at alpha / 2, the slope lies below `lost_slope`.
    """
    ratio, low, high, ratio_p = observed_expected(labels, scores)
    intercept, slope, error = calibration_line(labels, scores)
    slope_p = _two_sided((slope - 1) / error)
    broken = (ratio_p < alpha / 2 and abs(ratio - 1) > ratio_tolerance) or (
        slope_p < alpha / 2 and abs(slope - 1) > slope_tolerance
    )
    return Calibration(
        int(labels.sum()),
        float(scores.sum()),
        ratio,
        low,
        high,
        ratio_p,
        intercept,
        slope,
        slope - _Z95 * error,
        slope + _Z95 * error,
        slope_p,
        broken,
        slope < lost_slope and _two_sided((slope - lost_slope) / error) < alpha / 2,
    )


def assess_discrimination(
    reference: LabelledWindow, windows: Sequence[LabelledWindow], *, alpha: float
) -> Discrimination:
    """AUC of the newest window, and of all of them weighted by inverse variance, against the reference's.

    The newest alone sees a sudden fall at once, the accumulated ones a slow one; each is tested at alpha / 2,
    one-sided. AUCs are averaged within windows, so that a change of calibration between them does not count.
    """
    newest = windows[-1]
    weights = np.array([1 / max(window.auc_variance, 1e-12) for window in windows])
    accumulated = float(weights @ [window.auc for window in windows] / weights.sum())
    variance = float(1 / weights.sum())
    p_values = [
        _NORMAL.cdf((auc - reference.auc) / math.sqrt(max(var + reference.auc_variance, 1e-12)))
        for auc, var in ((newest.auc, newest.auc_variance), (accumulated, variance))
    ]
    p_value = min(1.0, 2 * min(p_values)) if len(windows) > 1 else p_values[0]
    return Discrimination(
        newest.auc,
        *_interval(newest.auc, newest.auc_variance),
        accumulated,
        *_interval(accumulated, variance),
        len(windows),
        reference.auc,
        *_interval(reference.auc, reference.auc_variance),
        accumulated - reference.auc,
        p_value,
        p_value < alpha,
    )


def _interval(auc: float, variance: float) -> tuple[float, float]:
    half = _Z95 * math.sqrt(variance)
    return max(0.0, auc - half), min(1.0, auc + half)


def _two_sided(z: float) -> float:
    return 2 * _NORMAL.cdf(-abs(z))


def _expit(x: Floats) -> Floats:
    result: Floats = 1 / (1 + np.exp(-np.clip(x, -40, 40)))
    return result
