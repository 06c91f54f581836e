"""Calibration and discrimination of a model on labelled rows, as tests with effect sizes, batch after batch.

Each question is asked again with every labelled batch, so a test at a fixed level would alarm sooner or later.
`evidence` accumulates instead: a CUSUM of likelihood ratios (Page 1954, doi:10.1093/biomet/41.1-2.100; of batches of
patients, Steiner et al. 2000, doi:10.1093/biostatistics/1.4.441). A change that comes later loses nothing to the
quiet batches before it, and a large one alarms with its first batch. The threshold is set by simulation so that
alarms are a share alpha of the batches, however long one looks, when the truth lies exactly at the tolerance;
inside it there are far fewer. (The bound 1/alpha, which needs no normal distribution, would be 7 times as strict:
Shin, Ramdas and Rinaldo 2023, doi:10.51387/23-NEJSDS51.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from health_predict.core.statistics import (
    CLOSEST,
    Z95,
    Estimate,
    Floats,
    bounded_auc,
    calibration_line,
    delong,
    ratio_estimate,
)

_Z90 = 1.281552
_SHIFTS = (1.0, 2.0, 4.0)  # standard errors a batch; the evidence is the mean over them, so none has to be chosen
_CALIBRATED = 0.15  # threshold times alpha, for alphas from .0025 to .03; `make bench-drift` measures it
_LARGEST_LOG = 40.0  # evidence beyond e**40 says no more, and would not fit into a float in the end


@dataclass(frozen=True, slots=True)
class Limits:
    """When a difference counts. An alpha is the share of batches that may alarm without drift, for calibration and
    discrimination in the long run over all batches looked at; the tolerances keep differences that are certain but
    too small to matter from raising an alarm."""

    input_alpha: float = 0.01
    calibration_alpha: float = 0.04
    discrimination_alpha: float = 0.01
    gain_alpha: float = 0.025
    # What 1,600 outcomes in the initial training data leave uncertain about the overall risk.
    observed_expected_tolerance: float = 0.025
    slope_tolerance: float = 0.15
    gain_tolerance: float = 0.005  # of AUC: more data alone bring about as much, without any drift
    lost_slope: float = 0.5  # surely below it, the scores hold less than half of the differences they claim
    score_psi: float = 0.025  # the risk scores moved; chance gives about .005 with 5,000 rows
    least_events: int = 30  # outcomes that must be known before performance is judged


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class LabelledWindow:
    """What is kept of one labelled batch: enough to accumulate evidence without its rows.

    `variance` is the sum of p (1 - p). `gain` is the AUC that a refitted model has over this one on the batch
    (`refit`), None when there was nothing to fit on.
    """

    rows: int
    events: int
    expected: float
    variance: float
    intercept: float
    slope: float
    slope_error: float
    auc: float
    auc_variance: float
    gain: float | None = None
    gain_error: float | None = None

    @classmethod
    def of(cls, labels: Floats, scores: Floats, gain: tuple[float, float] | None = None) -> Self:
        """From outcomes and probabilities of shape (n,). Raises ValueError when an outcome is absent."""
        auc, auc_variance = delong(labels, scores)
        clipped = np.clip(scores, CLOSEST, 1 - CLOSEST)
        intercept, slope, error = calibration_line(labels, scores)
        return cls(
            len(labels),
            int(labels.sum()),
            float(clipped.sum()),
            float((clipped * (1 - clipped)).sum()),
            intercept,
            slope,
            error,
            auc,
            auc_variance,
            *(gain or (None, None)),
        )


def evidence(deviations: Sequence[float]) -> float:
    """Evidence for a lasting change in the newest of some batches; alarm when it reaches `threshold(alpha)`.

    `deviations`: of each batch, oldest first, in standard errors beyond what is tolerated, so that each has mean 0
    or less and variance 1 without drift. Normal likelihood ratio exp(d z - d^2 / 2) for each shift d.
    """
    return sum(math.exp(log) for log, _ in _sums(deviations)) / len(_SHIFTS)


def rests_on(deviations: Sequence[float]) -> int:
    """How many of the newest batches the evidence rests on: since its largest part began anew. At least one batch."""
    return max(_sums(deviations))[1]


def _sums(deviations: Sequence[float]) -> list[tuple[float, int]]:
    """For each shift the logarithm of its evidence, and over how many batches it is summed."""
    sums = [(0.0, 0)] * len(_SHIFTS)
    for z in deviations:
        for i, shift in enumerate(_SHIFTS):
            log, windows = sums[i] if sums[i][0] > 0 else (0.0, 0)
            sums[i] = (min(_LARGEST_LOG, log + shift * z - shift**2 / 2), windows + 1)
    return sums


def threshold(alpha: float) -> float:
    """Evidence that a share alpha of batches reaches (starting anew after each alarm) when nothing is wrong."""
    return _CALIBRATED / alpha


@dataclass(frozen=True, slots=True)
class Accumulated:
    """A figure over the newest labelled batches, those that the evidence about it rests on."""

    windows: int
    estimate: Estimate
    evidence: float
    off: bool  # it has surely left 1 by more than is tolerated
    at_once: bool  # the newest batch alone shows that


@dataclass(frozen=True, slots=True)
class Calibration:
    """Observed over expected outcomes with its interval, and Cox's recalibration line (logit scale).

    All of the newest batch, but for the two questions that are asked of all batches of this model version: has
    observed over expected left 1 (`ratio_over`), has the slope (`slope_over`)?
    """

    observed: int
    expected: float
    ratio: Estimate
    intercept: float  # calibration in the large: 0 is right
    slope: Estimate  # 1 is right; below it, high risks are too high and low ones too low
    ratio_over: Accumulated
    slope_over: Accumulated
    windows: int
    collapsed: bool  # the slope is surely so low that no mapping of the scores helps

    @property
    def broken(self) -> bool:
        """Whether the risks are off."""
        return self.ratio_over.off or self.slope_over.off

    @property
    def mendable(self) -> bool:
        """Whether the risks are off and a new map from score to risk can set them right."""
        return self.broken and not self.collapsed

    def sentence(self, events: str) -> str:
        """The finding in words: what is off first, by which batches, and what holds. `events`: the outcomes' name."""
        observed = f"{self.observed:,} {events} were observed and {self.expected:,.0f} expected, a ratio of"
        ratio, slope = f"{observed} {self.ratio.words(2)}", self.slope.words(2)
        if not self.broken:
            return f"Calibration holds: {ratio}; calibration slope {slope}."
        parts = [
            (self.ratio_over, "observed over expected", ratio, ""),
            (self.slope_over, "the calibration slope", slope, f", so {_meaning(self.slope_over.estimate.value)}"),
        ]
        parts.sort(key=lambda part: not part[0].off)
        said = []
        for over, name, newest, meaning in parts:
            if not over.off:
                said.append(f"{name} is not surely off: {newest}")
            elif over.at_once:
                said.append(f"{name} is off: {newest}{meaning}")
            else:
                said.append(
                    f"{name} is off: {over.estimate.words(2)} over the last {over.windows} "
                    f"labelled batches together{meaning}; in the newest alone, {newest}"
                )
        return " ".join(f"{one[0].upper()}{one[1:]}." for one in said)


def _meaning(slope: float) -> str:
    if slope <= 0:
        return "higher scores do not mean higher risks"
    return (
        "high risks are too low and low ones too high" if slope > 1 else "high risks are too high and low ones too low"
    )


@dataclass(frozen=True, slots=True)
class Discrimination:
    """AUC of the batch and of all batches of this model version against validation.

    `gain`: how much AUC a model refitted on the labels known before has over this one on this batch; None when
    there were too few.
    """

    auc: Estimate
    accumulated: Estimate
    windows: int
    reference: Estimate
    evidence: float
    fell: bool
    gain: Estimate | None
    gain_evidence: float
    outdated: bool  # a refitted model is surely better by more than is tolerated

    def sentence(self) -> str:
        """The finding in words."""
        word = "fell" if self.fell else "shows no certain fall"
        windows = "" if self.windows == 1 else f", {self.accumulated.value:.3f} over {self.windows} labelled batches"
        return (
            f"Discrimination {word}: the AUC is {self.auc.words()}{windows}; on validation it was "
            f"{self.reference.words()}."
        )


def assess_calibration(windows: Sequence[LabelledWindow], limits: Limits = DEFAULT_LIMITS) -> Calibration:
    """Has observed over expected, or the slope, left 1 by more than its tolerance?

    `windows`: labelled batches of this model version, oldest first; a gate asks the same of one set of rows. Each of
    the two questions has two sides; each side has a quarter of alpha, and a slope below `lost_slope` is tested at the
    same level.
    """
    newest = windows[-1]
    tolerance = limits.observed_expected_tolerance
    ratio_z = [
        (
            (window.events - (1 + tolerance) * window.expected) / math.sqrt(window.variance),
            ((1 - tolerance) * window.expected - window.events) / math.sqrt(window.variance),
        )
        for window in windows
    ]
    slope_z = [
        (
            (window.slope - 1 - limits.slope_tolerance) / window.slope_error,
            (1 - limits.slope_tolerance - window.slope) / window.slope_error,
        )
        for window in windows
    ]
    limit = threshold(limits.calibration_alpha / 4)
    lost = evidence([(limits.lost_slope - window.slope) / window.slope_error for window in windows])
    return Calibration(
        newest.events,
        newest.expected,
        ratio_estimate(newest.events, newest.expected, newest.variance),
        newest.intercept,
        _slope(newest.slope, newest.slope_error),
        _accumulated(windows, ratio_z, limit, _mean_ratio),
        _accumulated(windows, slope_z, limit, _mean_slope),
        len(windows),
        lost >= limit,
    )


def _accumulated(
    windows: Sequence[LabelledWindow],
    deviations: Sequence[tuple[float, float]],
    limit: float,
    mean: Callable[[Sequence[LabelledWindow]], Estimate],
) -> Accumulated:
    """The stronger of the two sides of a question, and what `mean` of the batches behind it is."""
    side = max(zip(*deviations, strict=True), key=evidence)
    found, count = evidence(side), rests_on(side)
    return Accumulated(count, mean(windows[-count:]), found, found >= limit, evidence(side[-1:]) >= limit)


def _mean_ratio(windows: Sequence[LabelledWindow]) -> Estimate:
    events, expected, variance = (
        math.fsum(values) for values in zip(*((one.events, one.expected, one.variance) for one in windows), strict=True)
    )
    return ratio_estimate(events, expected, variance)


def _mean_slope(windows: Sequence[LabelledWindow]) -> Estimate:
    weights = [1 / max(one.slope_error**2, 1e-12) for one in windows]
    slope = math.fsum(w * one.slope for w, one in zip(weights, windows, strict=True)) / math.fsum(weights)
    return _slope(slope, 1 / math.sqrt(math.fsum(weights)))


def _slope(slope: float, error: float) -> Estimate:
    return Estimate(slope, slope - Z95 * error, slope + Z95 * error)


def assess_discrimination(
    reference: LabelledWindow, windows: Sequence[LabelledWindow], limits: Limits = DEFAULT_LIMITS
) -> Discrimination:
    """Has the AUC left its validation value, and would a refitted model be better by more than is tolerated?

    `windows`: labelled batches of this model version, oldest first. The AUC is compared with the lower limit of the
    reference's one-sided 90 % interval: an error of the reference is the same in every batch and must not
    accumulate. AUCs are averaged within windows, so that a change of calibration between them does not count.
    """
    newest = windows[-1]
    weights = np.array([1 / max(window.auc_variance, 1e-12) for window in windows])
    accumulated = float(np.average([window.auc for window in windows], weights=weights))
    floor = reference.auc - _Z90 * math.sqrt(reference.auc_variance)
    fall = evidence([(floor - window.auc) / math.sqrt(max(window.auc_variance, 1e-12)) for window in windows])
    gain_evidence = evidence(
        [
            (window.gain - limits.gain_tolerance) / window.gain_error
            for window in windows
            if window.gain is not None and window.gain_error
        ]
    )
    gain = None
    if newest.gain is not None:
        half = Z95 * (newest.gain_error or 0.0)
        gain = Estimate(newest.gain, newest.gain - half, newest.gain + half)
    return Discrimination(
        bounded_auc(newest.auc, newest.auc_variance),
        bounded_auc(accumulated, float(1 / weights.sum())),
        len(windows),
        bounded_auc(reference.auc, reference.auc_variance),
        fall,
        fall >= threshold(limits.discrimination_alpha),
        gain,
        gain_evidence,
        gain is not None and gain_evidence >= threshold(limits.gain_alpha),
    )
