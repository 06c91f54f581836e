"""How good a model is: metrics with intervals, the decision threshold, calibration, subgroups.

Intervals are percentile bootstraps over patients, not rows: encounters of one patient are not independent.
Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.data.contract import MISSING, Contract, Kind
from health_predict.core.statistics import Estimate, calibration_line

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]

CONFIDENCE = 0.95
TOP_SHARES = (0.10, 0.20)
SUBGROUP_ROWS = 100  # a group with fewer is left out
Groups = Mapping[tuple[str, str], npt.NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class Scored:
    """A model's probabilities (n,) for some rows, and the threshold from which on it flags."""

    scores: Floats
    threshold: float


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric of two models on the same rows, and the paired difference: `one` less `other`."""

    one: Estimate
    other: Estimate
    difference: Estimate


@dataclass(frozen=True, slots=True)
class Subgroup:
    """One level of one attribute: rows, those with the outcome, and metrics with intervals."""

    attribute: str
    level: str
    rows: int
    positives: int
    metrics: Mapping[str, Estimate]


def f1_threshold(labels: Labels, scores: Floats) -> float:
    """The threshold with the largest F1 for `score >= threshold`.

    It lies midway between two neighbouring scores, so that rounding of a score cannot change a decision.
    Shapes (n,), (n,). Raises ValueError without a positive label.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = np.asarray(scores, dtype=float)[order]
    hits = np.cumsum(labels[order])
    if not len(hits) or hits[-1] == 0:
        raise ValueError("F1 needs at least one positive label")
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
    last_of_ties = np.append(ordered[:-1] != ordered[1:], True)
    best = int(np.argmax(np.where(last_of_ties, f1, -1)))
    following = ordered[best + 1] if best + 1 < len(ordered) else max(0.0, ordered[best] - 1e-3)
    return float((ordered[best] + following) / 2)


def metrics(labels: Labels, scores: Floats, threshold: float, weights: Floats | None = None) -> dict[str, float]:
    """All metrics of scores in [0, 1] against labels in {0, 1}; shapes (n,). A metric without meaning is NaN.

    `weights` counts each row (n,). AUC is the probability that an encounter with the outcome scores higher, ties half.
    AP is the step-wise area under precision-recall. ECE has ten bins of equal size (Naeini et al. 2015). The flag rate
    is the share of rows at or above the threshold, the slope that of Cox's recalibration line.
    """
    w = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=float)
    return _Ranked(labels, scores).metrics(threshold, w)


class _Ranked:
    """Scores sorted once, so that a thousand bootstrap samples need no further sort."""

    def __init__(self, labels: Labels, scores: Floats) -> None:
        self.order = np.argsort(-np.asarray(scores, dtype=float), kind="stable")
        self.scores = np.asarray(scores, dtype=float)[self.order]
        self.labels = np.asarray(labels, dtype=float)[self.order]
        # Index of the last row of each group of equal scores.
        self.ends = np.flatnonzero(np.append(self.scores[:-1] != self.scores[1:], True))

    def metrics(self, threshold: float, weights: Floats, slope: bool = True) -> dict[str, float]:
        """All metrics, or all but the calibration slope, whose fit takes longer than the rest together."""
        w = weights[self.order]
        positive = w * self.labels
        total, positives = float(w.sum()), float(positive.sum())
        negatives = total - positives
        names = ["auc", "average_precision", "f1", "flag_rate", "precision", "recall", "brier", "ece"]
        names += ["observed_expected", *(["calibration_slope"] if slope else [])]
        names += [f"{name}_top{int(share * 100)}" for share in TOP_SHARES for name in ("sensitivity", "ppv")]
        if total == 0 or positives == 0 or negatives == 0:
            return dict.fromkeys(names, math.nan)
        hits = np.cumsum(positive)
        flagged = np.cumsum(w)
        group_hits = np.diff(hits[self.ends], prepend=0.0)
        precision = np.divide(
            hits[self.ends], flagged[self.ends], out=np.zeros(len(self.ends)), where=flagged[self.ends] > 0
        )
        average_precision = float((group_hits * precision).sum() / positives)
        decided = int(np.searchsorted(-self.scores, -threshold, side="right"))
        true_positives = float(hits[decided - 1]) if decided else 0.0
        predicted = float(flagged[decided - 1]) if decided else 0.0
        values = {
            "auc": self._auc(hits, flagged),
            "average_precision": average_precision,
            "f1": 2 * true_positives / (predicted + positives),
            "flag_rate": predicted / total,
            "precision": true_positives / predicted if predicted else 0.0,
            "recall": true_positives / positives,
            "brier": float((w * (self.scores - self.labels) ** 2).sum() / total),
            "ece": self._ece(w, positive, flagged, total),
            "observed_expected": positives / max(float((w * self.scores).sum()), 1e-12),
        }
        if slope:
            line = calibration_line(self.labels, self.scores, np.asarray(w, dtype=np.float64))
            values["calibration_slope"] = line[1]
        for share in TOP_SHARES:
            cut = int(np.searchsorted(flagged, share * total, side="left"))
            found, seen = float(hits[min(cut, len(hits) - 1)]), float(flagged[min(cut, len(hits) - 1)])
            values[f"sensitivity_top{int(share * 100)}"] = found / positives
            values[f"ppv_top{int(share * 100)}"] = found / seen if seen else 0.0
        return values

    def auc(self, weights: Floats) -> float:
        """The AUC alone."""
        w = weights[self.order]
        return self._auc(np.cumsum(w * self.labels), np.cumsum(w))

    def _auc(self, hits: Floats, flagged: Floats) -> float:
        positives, negatives = float(hits[-1]), float(flagged[-1] - hits[-1])
        if positives == 0 or negatives == 0:
            return math.nan
        group_hits = np.diff(hits[self.ends], prepend=0.0)
        group_misses = np.diff((flagged - hits)[self.ends], prepend=0.0)
        beaten = negatives - np.cumsum(group_misses)
        return float((group_hits * (beaten + group_misses / 2)).sum() / (positives * negatives))

    def _ece(self, w: Floats, positive: Floats, flagged: Floats, total: float, bins: int = 10) -> float:
        bin_of = np.minimum(((flagged - w / 2) / total * bins).astype(int), bins - 1)
        gap = np.bincount(bin_of, positive, bins) - np.bincount(bin_of, w * self.scores, bins)
        return float(np.abs(gap).sum() / total)


def _patient_weights(patients: npt.ArrayLike, resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """How often each row appears in each bootstrap sample of patients: shape (resamples, n)."""
    codes, distinct = pd.factorize(np.asarray(patients))
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(distinct), np.full(len(distinct), 1 / len(distinct)), size=resamples)
    return counts[:, codes].astype(np.float64)


def _interval(value: float, samples: npt.NDArray[np.float64]) -> Estimate:
    finite = samples[np.isfinite(samples)]
    if not len(finite) or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan)
    tail = (1 - CONFIDENCE) / 2 * 100
    low, high = np.percentile(finite, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))


@dataclass(frozen=True, slots=True)
class Resampled:
    """The metrics of one model on all rows, and of each bootstrap sample of patients: name -> (resamples,).

    Two of the same rows, seed and number are paired: their samples hold the same patients.
    """

    point: Mapping[str, float]
    samples: Mapping[str, npt.NDArray[np.float64]]

    def estimate(self, name: str) -> Estimate:
        """A metric with its 95 % interval."""
        return _interval(self.point[name], self.samples[name])

    def less(self, other: Resampled, name: str) -> Estimate:
        """The paired difference of a metric, this model's less the other's, with its 95 % interval."""
        return _interval(self.point[name] - other.point[name], self.samples[name] - other.samples[name])


def resample(
    labels: Labels,
    model: Scored,
    patients: npt.ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 1000,
    slope: bool = True,
) -> Resampled:
    """All `metrics` of a model and of its bootstrap samples over patients. Shapes (n,).

    Without `slope` the calibration slope is left out, whose fit takes longer than the rest together.
    """
    ranked = _Ranked(labels, model.scores)
    point = ranked.metrics(model.threshold, np.ones(len(labels)), slope)
    samples = [ranked.metrics(model.threshold, w, slope) for w in _patient_weights(patients, resamples, seed)]
    return Resampled(point, {name: np.array([sample[name] for sample in samples]) for name in point})


def evaluate(
    labels: Labels,
    scores: Floats,
    threshold: float,
    patients: npt.ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 1000,
    slope: bool = True,
) -> dict[str, Estimate]:
    """`metrics`, without `slope` all but that one, with 95 % intervals over patients. All shapes (n,)."""
    resampled = resample(labels, Scored(scores, threshold), patients, seed=seed, resamples=resamples, slope=slope)
    return {name: resampled.estimate(name) for name in resampled.point}


# What two versions are compared by, wherever they are: discrimination, accuracy and calibration of the risks, and what
# the threshold makes of them.
COMPARED = (
    "auc",
    "average_precision",
    "brier",
    "calibration_slope",
    "observed_expected",
    "flag_rate",
    "recall",
    "precision",
)


def compare(
    labels: Labels,
    one: Scored,
    other: Scored,
    patients: npt.ArrayLike,
    *,
    names: Collection[str] = COMPARED,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Compared]:
    """Some metrics of two models on the same rows, with paired intervals over patients. Shapes (n,)."""
    slope = "calibration_slope" in names
    first, second = (
        resample(labels, model, patients, seed=seed, resamples=resamples, slope=slope) for model in (one, other)
    )
    return {name: Compared(first.estimate(name), second.estimate(name), first.less(second, name)) for name in names}


def paired_difference(
    labels: Labels,
    scores: Floats,
    other_scores: Floats,
    patients: npt.ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Estimate:
    """AUC of `scores` less that of `other_scores` on the same rows and the same bootstrap samples. Shapes (n,)."""
    one, two = _Ranked(labels, scores), _Ranked(labels, other_scores)
    drawn = (np.ones(len(labels)), *_patient_weights(patients, resamples, seed))
    value, *samples = (one.auc(weights) - two.auc(weights) for weights in drawn)
    return _interval(value, np.array(samples))


def single_predictor(frame: pd.DataFrame, contract: Contract) -> npt.NDArray[np.float64]:
    """The contract's predictor that a model has to beat alone (n,); the median where it is missing."""
    amounts = _amounts(frame[contract.single_predictor]).to_numpy(dtype=np.float64)
    absent = np.isnan(amounts)
    return np.where(absent, 0.0 if absent.all() else np.nanmedian(amounts), amounts)


def _amounts(values: pd.Series[str]) -> pd.Series[float]:
    """Texts of a count or a number as numbers; NaN where one is missing."""
    return pd.to_numeric(values.where(values != MISSING))


def subgroup_levels(frame: pd.DataFrame, contract: Contract) -> Groups:
    """Masks (n,) of the groups that the contract names, by column and name: those with enough rows."""
    masks: dict[tuple[str, str], npt.NDArray[np.bool_]] = {}
    for one in contract.subgroups:
        values, column = frame[one.column], contract.by_name[one.column]
        found = {name: values.isin(levels) for name, levels in one.groups.items()}
        if one.bounds:
            found = _between(values, one.bounds, whole=column.kind is Kind.COUNT)
        elif not one.groups:
            found = {str(level): values == level for level in sorted(values.unique())}
        masks |= {
            (one.column, "unknown" if name == MISSING else name): mask.to_numpy(dtype=bool)
            for name, mask in found.items()
        }
    return {key: mask for key, mask in masks.items() if int(mask.sum()) >= SUBGROUP_ROWS}


def _between(values: pd.Series[str], bounds: Sequence[float], *, whole: bool) -> dict[str, pd.Series[bool]]:
    """Rows by where their amount lies; each bound begins a group."""
    amounts = _amounts(values)
    found = {MISSING: amounts.isna(), f"under {bounds[0]:g}": amounts < bounds[0]}
    for low, high in pairwise(bounds):
        last = f"to {high - 1:g}" if whole else f"to under {high:g}"
        found[f"{low:g} {last}"] = (amounts >= low) & (amounts < high)
    return {**found, f"{bounds[-1]:g} and over": amounts >= bounds[-1]}


def subgroups(
    groups: Groups,
    labels: Labels,
    scores: Floats,
    threshold: float,
    patients: npt.ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 300,
) -> list[Subgroup]:
    """Metrics of each of the groups (`subgroup_levels`) that has both outcomes."""
    ids = np.asarray(patients)
    subgroups = []
    for (attribute, level), mask in groups.items():
        positives = int(labels[mask].sum())
        if 0 < positives < int(mask.sum()):
            rows = labels[mask], scores[mask], threshold, ids[mask]
            estimates = evaluate(*rows, seed=seed, resamples=resamples, slope=False)
            kept = {name: estimates[name] for name in ("auc", "observed_expected", "recall", "precision")}
            subgroups.append(Subgroup(attribute, level, int(mask.sum()), positives, kept))
    return subgroups


def as_plain(estimates: Mapping[str, Estimate | Compared]) -> dict[str, dict[str, Any]]:
    """Estimates as a structure that JSON can hold."""
    return {name: asdict(estimate) for name, estimate in estimates.items()}
