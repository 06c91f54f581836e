"""Figures with their intervals: AUC, observed over expected, and the recalibration line."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Z95 = 1.959964
CLOSEST = 1e-6  # a probability of exactly 0 or 1 has no logit and no variance


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def words(self, digits: int = 3) -> str:
        """As a sentence has it: `0.67 (0.64 to 0.70)`."""
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def delong(labels: Floats, scores: Floats) -> tuple[float, float]:
    """Area under the ROC curve and its variance.

    Source: DeLong et al. 1988, doi:10.2307/2531595, by ranks as in Sun and Xu 2014, doi:10.1109/LSP.2014.2337313.
    Raises ValueError when an outcome is absent.
    """
    positive = labels > 0.5
    above, below = _placements(positive, scores)
    m, n = len(above), len(below)
    variance = (np.var(above, ddof=1) / m if m > 1 else 0.25) + (np.var(below, ddof=1) / n if n > 1 else 0.25)
    return float(above.mean()), float(variance)


def paired_auc(labels: Floats, scores: Floats, others: Floats) -> tuple[float, float]:
    """AUC of `others` minus AUC of `scores` on the same rows, and the standard error of the difference.

    Shapes (n,). Source: DeLong et al. 1988, as `delong`. Raises ValueError when an outcome is absent.
    """
    positive = labels > 0.5
    (above, below), (above_other, below_other) = (_placements(positive, values) for values in (scores, others))
    up, down = above_other - above, below_other - below
    variance = sum(np.var(part, ddof=1) / len(part) if len(part) > 1 else 0.25 for part in (up, down))
    return float(up.mean()), math.sqrt(float(variance))


def _placements(positive: npt.NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """Share of negatives below each positive, and of positives above each negative; ties half."""
    from scipy.stats import rankdata

    m, n = int(positive.sum()), int((~positive).sum())
    if m == 0 or n == 0:
        raise ValueError("an AUC needs both outcomes")
    overall = rankdata(scores)
    return (
        (overall[positive] - rankdata(scores[positive])) / n,
        1 - (overall[~positive] - rankdata(scores[~positive])) / m,
    )


def auc_estimate(labels: Floats, scores: Floats) -> Estimate:
    """AUC with its interval by the variance of `delong`. Raises ValueError when an outcome is absent."""
    return bounded_auc(*delong(labels, scores))


def logit(probabilities: npt.ArrayLike) -> Floats:
    """Log-odds of probabilities (n,), which are kept `CLOSEST` away from 0 and 1."""
    clipped = np.clip(np.asarray(probabilities, dtype=np.float64), CLOSEST, 1 - CLOSEST)
    return np.asarray(np.log(clipped) - np.log1p(-clipped), dtype=np.float64)


def observed_expected(labels: Floats, scores: Floats) -> Estimate:
    """Observed over expected events.

    The number of events is a sum of independent trials with the predicted probabilities (Poisson binomial), here by
    its normal approximation: variance sum p (1 - p).
    """
    clipped = np.clip(scores, CLOSEST, 1 - CLOSEST)
    return ratio_estimate(float(labels.sum()), float(clipped.sum()), float((clipped * (1 - clipped)).sum()))


def ratio_estimate(observed: float, expected: float, variance: float) -> Estimate:
    half = Z95 * math.sqrt(variance) / expected
    ratio = observed / expected
    return Estimate(ratio, max(0.0, ratio - half), ratio + half)


def calibration_line(labels: Floats, scores: Floats, weights: Floats | None = None) -> tuple[float, float, float]:
    """Intercept of the line with slope 1, slope of the free line, and the slope's standard error.

    `weights` counts each row (n,). Source: Cox 1958, doi:10.1093/biomet/45.3-4.562: logistic regression of the outcome
    on the logit of the score.
    """
    from scipy.special import expit

    ones = np.ones(len(labels))
    w = ones if weights is None else weights
    log_odds = logit(scores)

    def fitted(start: Floats, design: Floats) -> tuple[Floats, Floats]:
        """Coefficients (k,) of a design (k, n) added to a start (n,), and their covariance, by Newton's method."""
        coefficients = np.zeros(len(design))
        for _ in range(50):
            p = expit(start + coefficients @ design)
            # The ridge keeps constant scores, which have no slope, from a singular matrix.
            information = (design * (w * p * (1 - p))) @ design.T + 1e-9 * np.eye(len(design))
            step = np.linalg.solve(information, design @ (w * (labels - p)))
            coefficients += np.clip(step, -2.0, 2.0)
            if np.abs(step).max() < 1e-10:
                break
        return coefficients, np.linalg.inv(information)

    (intercept,), _ = fitted(log_odds, ones[np.newaxis])
    # Centred, so that the two coefficients hardly depend on each other.
    centred = log_odds - np.average(log_odds, weights=w)
    (_, more), covariance = fitted(intercept + log_odds, np.stack([ones, centred]))
    return float(intercept), float(1 + more), math.sqrt(covariance[1, 1])


def bounded_auc(auc: float, variance: float) -> Estimate:
    half = Z95 * math.sqrt(variance)
    return Estimate(auc, max(0.0, auc - half), min(1.0, auc + half))
