"""What the metrics of `core.evaluation` are called where people read them."""

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
