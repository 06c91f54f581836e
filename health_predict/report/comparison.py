"""The metrics of `core.evaluation` in the words that people read."""

from __future__ import annotations

from collections.abc import Mapping

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


def in_a_hundred(metrics: Mapping[str, Mapping[str, float]], happened: str) -> str:
    """What the threshold does to whole people: `Of 100 encounters that it flags, 24 are ...`."""
    flagged, right, found = (round(100 * metrics[name]["value"]) for name in ("flag_rate", "precision", "recall"))
    verb = "is" if right == 1 else "are"
    return (
        f"Of 100 encounters that it flags, {right} {verb} {happened}; of 100 that are {happened}, it flags {found}. "
        f"It flags {flagged} of 100."
    )
