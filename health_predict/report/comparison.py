"""Two versions on the same rows, as `register` compared them: a table for the card and for the overview."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from health_predict.core.evaluation import COMPARED
from health_predict.report.page import number, signed

LABELS: Mapping[str, str] = {
    "auc": "AUC",
    "average_precision": "Average precision",
    "f1": "F1 at the threshold",
    "flag_rate": "Share flagged at the threshold",
    "recall": "Sensitivity at the threshold",
    "precision": "Positive predictive value at the threshold",
    "brier": "Brier score",
    "ece": "Expected calibration error",
    "observed_expected": "Observed / expected",
    "calibration_slope": "Calibration slope",
    "sensitivity_top10": "Sensitivity, top 10 %",
    "ppv_top10": "Positive predictive value, top 10 %",
    "sensitivity_top20": "Sensitivity, top 20 %",
    "ppv_top20": "Positive predictive value, top 20 %",
}


@dataclass(frozen=True, slots=True)
class ComparisonTable:
    """A version beside another one: what both were asked on, and a row a metric."""

    against: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def comparison_tables(version: str, evaluation: Mapping[str, Any]) -> list[ComparisonTable]:
    """The comparisons of a version's stored evaluation; none for one that was judged without a champion."""
    return [
        ComparisonTable(
            against=found["against"],
            caption=f"{number(found['rows'], 0)} encounters, {number(found['positives'], 0)} readmitted: {found['on']}",
            columns=("Metric", f"Version {version}", f"Version {found['against']}", "Difference (95 % interval)"),
            rows=tuple(
                (
                    LABELS[name],
                    number(found["metrics"][name]["one"]["value"]),
                    number(found["metrics"][name]["other"]["value"]),
                    difference(found["metrics"][name]["difference"]),
                )
                for name in COMPARED
            ),
        )
        for found in evaluation.get("comparisons", ())
    ]


def difference(item: Mapping[str, float]) -> str:
    """A paired difference with its interval: `+0.012 (-0.003 to 0.027)`."""
    return f"{signed(item['value'])} ({signed(item['low'])} to {signed(item['high'])})"
