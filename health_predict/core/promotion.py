"""Champion against challenger: a decision and its reasons.

Every gate looks at validation rows only; the test set is for the card.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.data.contract import Contract
from health_predict.core.model.evaluation import (
    Labels,
    Scored,
    compare,
    metrics,
    paired_difference,
    single_predictor,
    subgroup_levels,
)
from health_predict.core.monitoring.performance import DEFAULT_LIMITS, LabelledWindow, assess_calibration
from health_predict.core.statistics import Estimate

# A champion is replaced unless the challenger is clearly worse: one set of 3,000 rows cannot see less than .03.
CHAMPION_MARGIN = 0.02
SUBGROUP_MARGIN = 0.10
_BASELINE = "not worse than the baseline"
_CHAMPION, _SUBGROUPS = "not worse than the champion", "no subgroup far worse than the champion's"
Rows = npt.NDArray[np.bool_] | slice


class Decision(StrEnum):
    """What becomes of a new model version."""

    PROMOTE = "promote"
    WAIT = "wait"  # it may be promoted once a person has approved it
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
class JudgedRows:
    """The validation rows: encounters (n, columns) of a contract, their labels (n,) and patients (n,)."""

    contract: Contract
    frame: pd.DataFrame
    labels: Labels
    patients: npt.ArrayLike


def decide_promotion(  # the rows, the models that are compared on them, and how
    judged: JudgedRows,
    candidate: Scored,
    baseline: Scored | None,
    champion: Scored | None,
    *,
    seed: int = 0,
    resamples: int = 1000,
    same_estimator: bool = False,
    learned_less: bool = False,
) -> Promotion:
    """Ask every gate about `candidate` on validation rows; promote when all pass.

    `baseline` is the logistic regression of the same search, None when it is the candidate itself; `champion` is
    what serves now, None before the first deployment. `same_estimator`: the candidate is the champion with a new
    calibration, so that it ranks as what passed the two gates about ranking.
    `learned_less`: the champion has learned from outcomes that came later, so it is for the candidate to be better.
    """
    labels, ids = judged.labels, np.asarray(judged.patients)
    beats = f"better than {judged.contract.single_predictor} alone"

    def ahead(other: npt.NDArray[np.floating], rows: Rows = slice(None), share: int = 1) -> Estimate:
        """The candidate's AUC less that of other scores, on some rows, by a share of the resamples."""
        ours = candidate.scores[rows]
        drawn = resamples // share
        return paired_difference(labels[rows], ours, other[rows], ids[rows], seed=seed, resamples=drawn)

    gates = [_beats_always_negative(labels, candidate)]
    if same_estimator:
        gates += [
            Gate(name, True, "the estimator is the champion's, which passed this gate") for name in (beats, _BASELINE)
        ]
    else:
        alone = ahead(single_predictor(judged.frame, judged.contract))
        doubt = "" if alone.low > 0 else ", which does not exclude 0"
        gates.append(Gate(beats, alone.low > 0, f"AUC difference {alone}{doubt}"))
        gates.append(_not_worse_than_baseline(labels, ids, candidate, baseline, seed, resamples))
    gates.append(_calibrated(labels, candidate))
    if champion is None:
        gates += [Gate(name, True, "there is no champion yet") for name in (_CHAMPION, _SUBGROUPS)]
    else:
        gates.append(_against_champion(ahead(champion.scores), learned_less))
        worse = []
        for (attribute, level), mask in subgroup_levels(judged.frame, judged.contract).items():
            if 0 < labels[mask].sum() < mask.sum():
                difference = ahead(champion.scores, mask, 3)
                if difference.high < 0 and difference.value < -SUBGROUP_MARGIN:
                    worse.append(f"{attribute} {level}: AUC difference {difference}")
        gates.append(Gate(_SUBGROUPS, not worse, "; ".join(worse) or "none"))
    passed = all(gate.passed for gate in gates)
    return Promotion(Decision.PROMOTE if passed else Decision.REJECT, tuple(gates))


def _against_champion(difference: Estimate, learned_less: bool) -> Gate:
    said = f"AUC difference {difference} on the same rows"
    if learned_less:
        why = "has to be surely above 0: the champion has learned from later outcomes"
        return Gate(_CHAMPION, difference.low > 0, f"{said} ({why})")
    passed = difference.high >= 0 and difference.value >= -CHAMPION_MARGIN
    return Gate(_CHAMPION, passed, f"{said} (allowed down to -{CHAMPION_MARGIN})")


def _beats_always_negative(labels: Labels, candidate: Scored) -> Gate:
    values = metrics(labels, candidate.scores, candidate.threshold)
    prevalence = float(np.mean(labels))
    constant = prevalence * (1 - prevalence)
    return Gate(
        "better than always negative",
        bool(values["f1"] > 0 and values["brier"] < constant),
        f"F1 {values['f1']:.3f} against 0, "
        f"Brier {values['brier']:.4f} against {constant:.4f} of the constant prevalence",
    )


def _not_worse_than_baseline(
    labels: Labels, patients: npt.ArrayLike, candidate: Scored, baseline: Scored | None, seed: int, resamples: int
) -> Gate:
    if baseline is None:
        return Gate(_BASELINE, True, "the candidate is the logistic regression baseline")
    names = ("auc", "average_precision")
    comparison = compare(labels, candidate, baseline, patients, names=names, seed=seed, resamples=resamples)
    auc, precision = (comparison[name].difference for name in names)
    return Gate(
        _BASELINE,
        auc.high >= 0 and precision.high >= 0,
        f"AUC difference {auc}, average precision difference {precision}; refused when either is surely below 0",
    )


def _calibrated(labels: Labels, candidate: Scored) -> Gate:
    """The question that monitoring asks of each batch of outcomes, asked of the validation rows."""
    rows = LabelledWindow.of(labels.astype(np.float64), np.asarray(candidate.scores, dtype=np.float64))
    calibration, limits = assess_calibration([rows]), DEFAULT_LIMITS
    return Gate(
        "calibrated",
        not calibration.broken,
        f"observed/expected {calibration.ratio.words(2)}, calibration slope {calibration.slope.words(2)}; "
        f"refused when one is surely further from 1 than {limits.observed_expected_tolerance} and "
        f"{limits.slope_tolerance}, as monitoring asks it",
    )
