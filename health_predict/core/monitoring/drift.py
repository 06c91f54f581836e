"""A batch against its reference: a verdict with its reasons.

Three questions are kept apart, because they have different answers:

* Do the inputs differ (`input_drift`)? Needs no outcomes. Alone it is no reason to change the model: hospitals
  change codes and payers without changing what the model says.
* Do predicted and observed risk agree (`performance.Calibration`)? When only this fails, recalibrate.
* Does the model still rank patients as it could (`performance.Discrimination`)? When this fails, retrain. It fails
  when the AUC has fallen below validation, or when a model refitted on the labels since (`refit`) is surely better
  on encounters that neither has seen: a paired comparison, which sees a loss of .01 that the AUC's own noise hides.
  Retrain also when the calibration slope has collapsed.

The first is asked anew of each batch, so clean batches alarm with probability `Limits.input_alpha` each. The others
accumulate evidence over the labelled batches of a model version, with the false alarms of all looks together bounded
(`performance.evidence`).

While too few outcomes are known, the verdict is `steady` and says what it waits for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.data.contract import Contract
from health_predict.core.model.evaluation import subgroup_levels
from health_predict.core.monitoring.input_drift import ColumnFinding, InputFindings, InputReference, psi, standardised
from health_predict.core.monitoring.performance import (
    DEFAULT_LIMITS,
    Calibration,
    Discrimination,
    LabelledWindow,
    Limits,
    assess_calibration,
    assess_discrimination,
)
from health_predict.core.monitoring.refit import LabelledRows, refit_gain
from health_predict.core.statistics import Estimate, observed_expected

Floats = npt.NDArray[np.float64]


class Verdict(StrEnum):
    """What to do about the model."""

    STEADY = "steady"
    RECALIBRATE = "recalibrate"
    RETRAIN = "retrain"


class Alarm(StrEnum):
    """What was surely found about a model's performance, any of which keeps a verdict from being steady."""

    RATIO = "observed/expected"
    SLOPE = "calibration slope"
    AUC = "AUC"
    REFIT = "a refit ranks better"


class ReasonKind(StrEnum):
    """What a reason is about."""

    WAITING = "too few outcomes are known"
    RANKING = "discrimination"
    RISKS = "calibration"
    REFIT = "a refit ranks better"
    COLLAPSE = "the slope has collapsed"
    RECALIBRATE_FIRST = "the ranking holds"
    SCORES = "predicted risks"
    INPUTS = "inputs"
    QUALITY = "data quality"
    ACTION = "action"


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason as a sentence, and what it is about."""

    kind: ReasonKind
    sentence: str

    def __str__(self) -> str:
        return self.sentence

    @property
    def about_inputs(self) -> bool:
        """Whether it is about the inputs: the others are about performance."""
        return self.kind in (ReasonKind.INPUTS, ReasonKind.QUALITY)


@dataclass(frozen=True, slots=True)
class ScoreFindings:
    """The distribution of the risk scores against validation: z as for a column, effect size, means."""

    z: float
    psi: float
    mean_before: float
    mean_after: float
    moved: bool


@dataclass(frozen=True, slots=True)
class SubgroupFinding:
    """Observed over expected outcomes of one group with its 95 % interval. Descriptive: no alarm of its own."""

    attribute: str
    level: str
    rows: int
    observed: int
    ratio: Estimate


@dataclass(frozen=True, slots=True)
class DriftFindings:
    """All that was found about one batch.

    `calibration` and `discrimination` are None while fewer than `Limits.least_events` outcomes are known.
    `rolling` compares with the batches before instead of the training data: an alarm there means news.
    Of the reasons the one that decides comes first, those about the inputs last.
    """

    verdict: Verdict
    reasons: tuple[Reason, ...]
    rows: int
    labelled: int
    events: int
    inputs: InputFindings
    rolling: InputFindings | None
    scores: ScoreFindings
    calibration: Calibration | None
    discrimination: Discrimination | None
    subgroups: tuple[SubgroupFinding, ...]
    window: LabelledWindow | None  # of this batch, to be handed back as history with the next one

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """What was found about performance; empty when the verdict is steady."""
        line, auc = self.calibration, self.discrimination
        found = {
            Alarm.RATIO: line is not None and line.ratio_over.off,
            Alarm.SLOPE: line is not None and (line.slope_over.off or line.collapsed),
            Alarm.AUC: auc is not None and auc.fell,
            Alarm.REFIT: auc is not None and auc.outdated,
        }
        return tuple(alarm for alarm, raised in found.items() if raised)

    def to_json(self) -> dict[str, Any]:
        """A plain structure: reasons are sentences, and those about the inputs stand there by themselves too."""
        return asdict(self) | {
            "reasons": [reason.sentence for reason in self.reasons],
            "about_inputs": [reason.sentence for reason in self.reasons if reason.about_inputs],
        }

    def metrics(self) -> dict[str, float]:
        """The figures worth a time series, by name."""
        found: dict[str, float] = {
            "rows": self.rows,
            "labelled": self.labelled,
            "input_alarm": float(self.inputs.alarm),
            "input_p_value": self.inputs.p_value,
            "input_largest_z": self.inputs.largest_z,
            "input_columns": sum(column.alarm for column in self.inputs.columns),
            "data_quality_findings": len(self.inputs.quality),
            "score_psi": self.scores.psi,
            "mean_probability": self.scores.mean_after,
        }
        if self.calibration is not None:
            found |= {
                "prevalence": self.events / self.labelled,
                "observed_expected": self.calibration.ratio.value,
                "calibration_slope": self.calibration.slope.value,
                "calibration_intercept": self.calibration.intercept,
            }
        if self.discrimination is not None:
            found |= {"auc": self.discrimination.auc.value, "auc_accumulated": self.discrimination.accumulated.value}
            if self.discrimination.gain is not None:
                found["refit_gain"] = self.discrimination.gain.value
        return found


@dataclass(frozen=True)
class DriftReference:
    """What batches are compared with: training inputs, and scores and discrimination on validation.

    A `pydantic.TypeAdapter` takes it to JSON and back.
    """

    contract: Contract
    inputs: InputReference
    score_edges: tuple[float, ...]
    score_shares: tuple[float, ...]
    score_mean: float
    validation: LabelledWindow

    @classmethod
    def fit(
        cls,
        training: pd.DataFrame,
        contract: Contract,
        outcomes: npt.ArrayLike,
        probabilities: npt.ArrayLike,
        *,
        seed: int = 0,
        draws: int = 1000,
    ) -> Self:
        """`training`: cohort frame (m, columns). `outcomes`, `probabilities`: validation rows, shape (v,), both
        outcomes present. Validation, because a model is too sure of its training rows. Takes about 3 CPU-s for
        14,000 rows; the result belongs in storage."""
        scores = np.asarray(probabilities, dtype=np.float64)
        edges = np.unique(np.quantile(scores, np.linspace(0.1, 0.9, 9)))
        return cls(
            contract,
            InputReference.fit(training, contract, seed=seed, draws=draws),
            tuple(edges.tolist()),
            tuple(_score_shares(edges, scores).tolist()),
            float(scores.mean()),
            LabelledWindow.of(np.asarray(outcomes, dtype=np.float64), scores),
        )


def assess(  # a batch, what it is compared with, and its history
    reference: DriftReference,
    frame: pd.DataFrame,
    probabilities: npt.ArrayLike,
    outcomes: npt.ArrayLike | None,
    *,
    rolling: InputReference | None = None,
    history: Sequence[LabelledWindow] = (),
    earlier: Sequence[LabelledRows] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> DriftFindings:
    """Findings and verdict for one batch.

    `frame`: cohort frame (n, columns). `probabilities`: shape (n,). `outcomes`: shape (n,), 1 and 0, NaN where
    the outcome is not known yet; None when none is. `history`: windows of earlier labelled batches of the same
    model version, oldest first. `earlier`: encounters since the model was trained whose outcomes are known, with its
    scores; without them nothing is refitted (which takes 0.1 to 1.5 CPU-s). Raises ValueError for an empty batch or
    lengths that differ.
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    labels = np.full(len(frame), np.nan) if outcomes is None else np.asarray(outcomes, dtype=np.float64)
    if not len(frame) == len(scores) == len(labels):
        raise ValueError(f"{len(frame)} encounters, {len(scores)} probabilities and {len(labels)} outcomes")
    contract = reference.contract
    inputs = reference.inputs.compare(frame, contract, alpha=limits.input_alpha)
    news = rolling.compare(frame, contract, alpha=limits.input_alpha) if rolling is not None else None
    score_findings = _scores(reference, scores, limits)

    known = np.isfinite(labels)
    events = int(labels[known].sum())
    calibration = discrimination = window = None
    groups: tuple[SubgroupFinding, ...] = ()
    if min(events, int(known.sum()) - events) >= limits.least_events:
        newest = LabelledRows(frame[known], scores[known], labels[known])
        window = LabelledWindow.of(labels[known], scores[known], refit_gain(earlier, newest, contract))
        windows = [*history, window]
        calibration = assess_calibration(windows, limits)
        discrimination = assess_discrimination(reference.validation, windows, limits)
        groups = _subgroups(frame[known], contract, labels[known], scores[known])
    verdict, reasons = _judge(contract, score_findings, calibration, discrimination, events, limits)
    return DriftFindings(
        verdict,
        (*reasons, *_about_inputs(contract, inputs, news)),
        len(frame),
        int(known.sum()),
        events,
        inputs,
        news,
        score_findings,
        calibration,
        discrimination,
        groups,
        window,
    )


def _score_shares(edges: Floats, scores: Floats) -> Floats:
    shares: Floats = np.bincount(np.searchsorted(edges, scores), minlength=len(edges) + 1) / len(scores)
    return shares


def _scores(reference: DriftReference, scores: Floats, limits: Limits) -> ScoreFindings:
    before = np.array(reference.score_shares)
    after = _score_shares(np.array(reference.score_edges), scores)
    scale = len(scores) * reference.validation.rows / (len(scores) + reference.validation.rows)
    z, size = float(standardised(before, after, scale)), psi(before, after)
    # 2.33: the 99th percentile of the normal distribution. Both must hold: certain, and large enough to matter.
    return ScoreFindings(
        round(z, 3), round(size, 5), reference.score_mean, float(scores.mean()), z > 2.33 and size >= limits.score_psi
    )


def _subgroups(frame: pd.DataFrame, contract: Contract, labels: Floats, scores: Floats) -> tuple[SubgroupFinding, ...]:
    found = []
    for (attribute, level), mask in subgroup_levels(frame, contract).items():
        ratio = observed_expected(labels[mask], scores[mask])
        found.append(SubgroupFinding(attribute, level, int(mask.sum()), int(labels[mask].sum()), ratio))
    return tuple(found)


def _judge(
    contract: Contract,
    scores: ScoreFindings,
    calibration: Calibration | None,
    discrimination: Discrimination | None,
    events: int,
    limits: Limits,
) -> tuple[Verdict, tuple[Reason, ...]]:
    """The verdict and its reasons, of which the one that decides comes first: `status` shows that one."""
    if calibration is None or discrimination is None:
        waiting = Reason(
            ReasonKind.WAITING,
            f"Waiting for labels: {events} {contract.outcome.events} are known, {limits.least_events} are needed "
            "before calibration and discrimination can be judged.",
        )
        return Verdict.STEADY, (waiting,)
    ranking = Reason(ReasonKind.RANKING, discrimination.sentence())
    risks = Reason(ReasonKind.RISKS, calibration.sentence(contract.outcome.events))
    verdict, reasons = Verdict.STEADY, [ranking, risks]
    if discrimination.fell:
        verdict = Verdict.RETRAIN
    elif discrimination.outdated and (gain := discrimination.gain):
        refit = Reason(
            ReasonKind.REFIT,
            "A simple refit on the outcomes known before this batch ranks its patients better (AUC "
            f"{gain.value:+.3f}, {gain.low:+.3f} to {gain.high:+.3f}): "
            "the newer encounters hold something that the model does not know.",
        )
        verdict, reasons = Verdict.RETRAIN, [refit, ranking, risks]
    elif calibration.collapsed:
        collapse = Reason(
            ReasonKind.COLLAPSE,
            "Patients with high and low scores differ far less than the scores say (slope "
            f"{calibration.slope.value:.2f}): the model has lost what it knew, and a new calibration cannot "
            "restore it.",
        )
        verdict, reasons = Verdict.RETRAIN, [risks, collapse, ranking]
    elif calibration.broken:
        first = "No loss of ranking is certain, so a new calibration and threshold come first."
        verdict, reasons = Verdict.RECALIBRATE, [risks, ranking, Reason(ReasonKind.RECALIBRATE_FIRST, first)]
    if scores.moved:
        reasons.append(
            Reason(
                ReasonKind.SCORES,
                f"The mean predicted risk moved from {scores.mean_before:.1%} on validation to "
                f"{scores.mean_after:.1%}.",
            )
        )
    return verdict, tuple(reasons)


def _about_inputs(contract: Contract, inputs: InputFindings, rolling: InputFindings | None) -> tuple[Reason, ...]:
    reasons = [Reason(ReasonKind.INPUTS, _input_sentence(contract, inputs, rolling))]
    if inputs.quality:
        columns = ", ".join(dict.fromkeys(finding.column for finding in inputs.quality))
        sentence = f"Data quality: the recording of {columns} changed (listed below). Ask who supplies the data; this "
        reasons.append(Reason(ReasonKind.QUALITY, f"{sentence}alone says nothing about the patients."))
    return tuple(reasons)


def _input_sentence(contract: Contract, inputs: InputFindings, rolling: InputFindings | None) -> str:
    if not inputs.alarm:
        return "The inputs look like the training data."
    alarmed = by_size(inputs)
    strongest = "; ".join(in_words(contract, column) for column in alarmed[:3])
    text = f"The inputs differ from the training data in {len(alarmed)} of {len(inputs.columns)} columns. {strongest}."
    if rolling is not None:
        text += (
            " They also differ from the batch before: the change goes on."
            if rolling.alarm
            else " They are like the batch before: nothing new."
        )
    return text


def by_size(inputs: InputFindings) -> list[ColumnFinding]:
    """The columns that differ, those that changed most first."""
    return sorted((column for column in inputs.columns if column.alarm), key=lambda column: -column.psi)


def in_words(contract: Contract, column: ColumnFinding, moves: int = 1) -> str:
    """The largest changes of a column: `discharge_to: unknown (18) from 18.7% to 0.0%`."""
    levels = contract.by_name[column.column]
    said = ", ".join(
        f"{levels.in_words(move.cell)} from {move.before:.1%} to {move.after:.1%}" for move in column.moves[:moves]
    )
    return f"{column.column}: {said}"
