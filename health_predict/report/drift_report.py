"""The drift report: one batch against the reference of the model that serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from health_predict.core.columns import MISSING
from health_predict.core.drift import DEFAULT_LIMITS, DriftFindings, Limits, SubgroupFinding, Verdict
from health_predict.core.performance import threshold
from health_predict.report import plots
from health_predict.report.page import estimate, number, percent, render

Floats = npt.NDArray[np.float64]

_WORDS = {
    Verdict.STEADY: ("Steady", "No reason was found to change the model.", "good"),
    Verdict.RECALIBRATE: ("Recalibrate", "No loss of ranking is certain, but the risks are off.", "warn"),
    Verdict.RETRAIN: ("Retrain", "A model trained on newer encounters should be tried.", "bad"),
}
_SHOWN = 12  # columns in the plot


def drift_page(
    findings: DriftFindings,
    *,
    batch: int,
    facts: Sequence[tuple[str, str]],
    synthetic: bool,
    reference_probabilities: Floats,
    probabilities: Floats,
    outcomes: Floats,
    evidently: Mapping[str, float],
    judged: Floats | None = None,
    waiting: Sequence[str] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> str:
    """The page for a batch. `probabilities` have shape (n,); `outcomes` (NaN: not known yet) belong to the scores
    `judged` (m,), which are those of an earlier batch where outcomes come late. `waiting` says what has none yet.
    `evidently`: its statistic by column; empty when it was not asked.
    """
    word, summary, tone = _WORDS[findings.verdict]
    if findings.calibration is None:
        summary = "Nothing can be said about the model's performance before more outcomes are known."
    return render(
        "drift.html",
        title=f"Drift report, batch {batch}",
        subtitle=f"{findings.rows:,} encounters against what the model was trained on",
        facts=facts,
        synthetic=synthetic,
        findings=findings,
        limits=limits,
        word=word,
        summary=summary,
        tone=tone,
        key=_key_figures(findings),
        column_plot=_columns(findings),
        column_rows=_column_rows(findings, evidently),
        score_plot=plots.histogram(
            {"validation": reference_probabilities, "this batch": probabilities},
            title="Predicted risk",
            description="Share of encounters by predicted risk, on validation and in this batch. "
            f"The mean is {percent(findings.scores.mean_before)} and {percent(findings.scores.mean_after)}.",
            x_label="predicted risk of readmission",
        ),
        auc_plot=_discrimination(findings),
        fall_evidence=_evidence(findings.discrimination.evidence) if findings.discrimination else "",
        gain_evidence=_evidence(findings.discrimination.gain_evidence) if findings.discrimination else "",
        calibration_limit=threshold(limits.calibration_alpha / 4),
        calibration_rows=_calibration_rows(findings),
        calibration_plot=_calibration(findings, probabilities if judged is None else judged, outcomes),
        subgroup_plot=_subgroups(findings.subgroups),
        fall_limit=threshold(limits.discrimination_alpha),
        gain_limit=threshold(limits.gain_alpha),
        waiting=waiting,
        second_opinion=bool(evidently),
    )


def note_page(title: str, note: str) -> str:
    """A page that says one thing, where there is no report."""
    return render("note.html", title=title, note=note)


def _key_figures(findings: DriftFindings) -> list[tuple[str, str, str]]:
    known = f"{findings.labelled:,} of {findings.rows:,} outcomes known"
    figures = [
        ("Encounters", f"{findings.rows:,}", known),
        (
            "Columns that differ",
            str(sum(column.alarm for column in findings.inputs.columns)),
            f"of {len(findings.inputs.columns)}; decided over all of them at once",
        ),
    ]
    if findings.calibration is not None:
        line = findings.calibration
        figures += [
            (
                "Observed / expected",
                number(line.ratio, 2),
                f"{number(line.ratio_low, 2)} to {number(line.ratio_high, 2)}",
            ),
            (
                "Calibration slope",
                number(line.slope, 2),
                f"{number(line.slope_low, 2)} to {number(line.slope_high, 2)}",
            ),
        ]
    if findings.discrimination is not None:
        auc = findings.discrimination
        figures.append(
            (
                "AUC",
                number(auc.auc),
                f"{number(auc.auc_low)} to {number(auc.auc_high)}; validation {number(auc.reference)}",
            )
        )
    return figures


def _columns(findings: DriftFindings) -> plots.Plot:
    shown = findings.inputs.columns[:_SHOWN]
    return plots.bars(
        [column.column for column in shown],
        {"stability index": [column.psi for column in shown]},
        title=f"The {len(shown)} columns that differ most",
        description="Population stability index by column against the training data, most certain difference first: "
        + ", ".join(f"{column.column} {column.psi:.2f}" for column in shown[:3]),
        value_label="population stability index",
        label_heading="Column",
    )


def _column_rows(findings: DriftFindings, evidently: Mapping[str, float]) -> list[tuple[str, ...]]:
    return [
        (
            column.column,
            "differs" if column.alarm else "alike",
            number(column.z, 1),
            number(column.z_recorded, 1),
            number(column.psi),
            number(evidently.get(column.column)),
            "; ".join(
                f"{'missing' if move.cell == MISSING else move.cell} {percent(move.before)} to {percent(move.after)}"
                for move in column.moves[:2]
            ),
        )
        for column in findings.inputs.columns
    ]


def _discrimination(findings: DriftFindings) -> plots.Plot | None:
    auc = findings.discrimination
    if auc is None:
        return None
    rows = [
        ("validation", auc.reference, auc.reference_low, auc.reference_high),
        ("this batch", auc.auc, auc.auc_low, auc.auc_high),
    ]
    if auc.windows > 1:
        rows.append((f"last {auc.windows} batches", auc.accumulated, auc.accumulated_low, auc.accumulated_high))
    labels, values, low, high = zip(*rows, strict=True)
    return plots.interval_dots(
        labels,
        values,
        low,
        high,
        title="Discrimination",
        description="AUC with 95 % intervals: "
        + ", ".join(f"{label} {estimate(value, (a, b))}" for label, value, a, b in rows),
        value_label="AUC",
        reference=auc.reference,
        label_heading="Rows",
    )


def _calibration(findings: DriftFindings, probabilities: Floats, outcomes: Floats) -> plots.Plot | None:
    if findings.calibration is None:
        return None
    known = np.isfinite(outcomes)
    return plots.calibration(
        outcomes[known],
        {"this batch": probabilities[known]},
        description="Observed share of readmissions against predicted risk in ten groups of equal size. "
        f"Observed over expected is {number(findings.calibration.ratio, 2)}.",
    )


def _calibration_rows(findings: DriftFindings) -> list[tuple[str, ...]]:
    line = findings.calibration
    if line is None:
        return []
    return [
        (
            name,
            estimate(*newest, 2),
            str(over.windows),
            estimate(over.value, (over.low, over.high), 2),
            _evidence(over.evidence),
            "off" if over.off else "not surely off",
        )
        for name, newest, over in (
            ("Observed / expected", (line.ratio, (line.ratio_low, line.ratio_high)), line.ratio_over),
            ("Calibration slope", (line.slope, (line.slope_low, line.slope_high)), line.slope_over),
        )
    ]


def _evidence(value: float) -> str:
    return number(value, 1) if value < 1e6 else "over a million"


def _subgroups(groups: Sequence[SubgroupFinding]) -> plots.Plot | None:
    if not groups:
        return None
    return plots.interval_dots(
        [f"{group.attribute}: {group.level}" for group in groups],
        [group.ratio for group in groups],
        [group.low for group in groups],
        [group.high for group in groups],
        title="Observed over expected by group",
        description="Observed over expected readmissions of each group with 95 % intervals; 1 is right.",
        value_label="observed / expected",
        reference=1.0,
        label_heading="Group",
        digits=2,
    )
