"""The drift report: one batch against the reference of the model that serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from health_predict.core.data.contract import Contract, Outcome
from health_predict.core.monitoring.drift import DriftFindings, SubgroupFinding, by_size
from health_predict.core.monitoring.performance import DEFAULT_LIMITS, Limits, threshold
from health_predict.report import plots
from health_predict.report.page import number, percent, render

Floats = npt.NDArray[np.float64]

_SHOWN = 12  # columns in the plot
_NAMED = 5  # changes at the top of the page


def drift_page(  # each parameter is a part of the page
    findings: DriftFindings,
    contract: Contract,
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
    """The page for a batch; the contract has the words.

    `probabilities` have shape (n,); `outcomes` (NaN: not known yet) belong to the scores
    `judged` (m,), which are those of an earlier batch where outcomes come late. `waiting` says what has none yet.
    `evidently`: its statistic by column, empty when it was not asked; its page lies beside this one then, as
    `evidently.html`, and its snapshot as `evidently.json`.
    """
    outcome = contract.outcome
    return render(
        "drift.html",
        findings=findings,
        outcome=outcome,
        batch=batch,
        facts=facts,
        synthetic=synthetic,
        limits=limits,
        evidently=evidently,
        waiting=waiting,
        changes=[_change(contract, findings, column.column) for column in by_size(findings.inputs)[:_NAMED]],
        more=max(0, len(by_size(findings.inputs)) - _NAMED),
        evidence=evidence,
        columns=sorted(findings.inputs.columns, key=lambda column: (not column.alarm, -column.psi)),
        by_name=contract.by_name,
        column_plot=_columns(findings),
        score_plot=plots.histogram(
            {"validation": reference_probabilities, "this batch": probabilities},
            title="Predicted risk",
            description="Share of encounters by predicted risk, on the validation set and in this batch. "
            f"The mean is {percent(findings.scores.mean_before)} there and {percent(findings.scores.mean_after)} here.",
            x_label=f"predicted risk of {outcome.event}",
        ),
        auc_plot=_discrimination(findings),
        calibration_plot=_calibration(findings, outcome, probabilities if judged is None else judged, outcomes),
        subgroup_plot=_subgroups(findings.subgroups, outcome),
    )


def _change(contract: Contract, findings: DriftFindings, name: str) -> str:
    """The largest change of a column: `discharge, unknown (18): 18.7 % to 0.0 %`."""
    move = next(column for column in findings.inputs.columns if column.column == name).moves[0]
    level = contract.by_name[name].in_words(move.cell)
    return f"{name}, {level}: {percent(move.before)} to {percent(move.after)}"


def evidence(found: float, alpha: float) -> str:
    """How far the evidence about a question has come towards what an alarm needs."""
    share = found / threshold(alpha)
    if share >= 1:
        return "certain"
    return f"not certain, {percent(share, 0)} of what an alarm needs" if share >= 0.005 else "not certain"


def _columns(findings: DriftFindings) -> plots.Plot:
    shown = sorted(findings.inputs.columns, key=lambda column: -column.psi)[:_SHOWN]
    return plots.bars(
        [column.column for column in shown],
        {"size of the difference": [column.psi for column in shown]},
        title=f"The {len(shown)} columns that differ most",
        description="How much each column of this batch differs from the training data (population stability index): "
        + ", ".join(f"{column.column} {column.psi:.2f}" for column in shown[:3]),
        value_label="population stability index",
        label_heading="Column",
    )


def _discrimination(findings: DriftFindings) -> plots.Plot | None:
    auc = findings.discrimination
    if auc is None:
        return None
    rows = {"validation": auc.reference, "this batch": auc.auc}
    if auc.windows > 1:
        rows[f"last {auc.windows} batches"] = auc.accumulated
    return plots.interval_dots(
        list(rows),
        list(rows.values()),
        title="Discrimination",
        description="AUC with 95 % intervals: "
        + ", ".join(f"{label} {found.words()}" for label, found in rows.items()),
        value_label="AUC",
        reference=auc.reference.value,
        reference_label="validation",
        label_heading="Rows",
    )


def _calibration(
    findings: DriftFindings, outcome: Outcome, probabilities: Floats, outcomes: Floats
) -> plots.Plot | None:
    if findings.calibration is None:
        return None
    known = np.isfinite(outcomes)
    return plots.calibration(
        outcomes[known],
        probabilities[known],
        description=f"Observed share of {outcome.events} against predicted risk in ten groups of equal size. "
        f"Observed over expected is {number(findings.calibration.ratio.value, 2)}.",
    )


def _subgroups(groups: Sequence[SubgroupFinding], outcome: Outcome) -> plots.Plot | None:
    if not groups:
        return None
    return plots.interval_dots(
        [f"{group.attribute}: {group.level}" for group in groups],
        [group.ratio for group in groups],
        title="Observed over expected by group",
        description=f"Observed over expected {outcome.events} of each group with 95 % intervals; 1 is right.",
        value_label="observed / expected",
        reference=1.0,
        reference_label="risks are right",
        label_heading="Group",
        digits=2,
    )
