"""The model card: what a version is for, how good it is and why it was promoted or rejected.

Headings follow TRIPOD+AI (Collins et al. 2024, doi:10.1136/bmj-2023-078378).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from health_predict.adapters.mlflow import RunRecord
from health_predict.report import plots
from health_predict.report.comparison import LABELS, comparison_tables
from health_predict.report.page import estimate, number, percent, render


def model_card_page(version: str, run: RunRecord, content: Mapping[str, Any]) -> str:
    """HTML page of a model version from its `Best_` run and the evaluation that `register` stored."""
    tested = content["on_test"]
    truth, scores = np.asarray(tested["outcomes"]), {run.tags["family"]: np.asarray(tested["scores"])}
    threshold = content["threshold"]
    test = tested["metrics"]
    (true_negatives, false_positives), (false_negatives, true_positives) = tested["confusion"]
    return render(
        "model_card.html",
        title=f"Model card: readmission, version {version}",
        subtitle="Readmission within 30 days of diabetic in-patients",
        facts=[
            ("Model", run.tags["family"]),
            ("Recalibrates", f"version {run.tags['recalibrates']}" if "recalibrates" in run.tags else ""),
            ("Run", run.run_id),
            ("Dataset", run.tags["dataset_digest"][:12]),
            ("Source", run.tags["dataset_source"]),
            ("Commit", run.tags["git_commit"][:12]),
        ],
        synthetic=run.tags["dataset_source"] == "synthetic",
        promoted=content["decision"] == "promote",
        decision_word="Promoted" if content["decision"] == "promote" else "Rejected",
        decided_against=content["decided_against"],
        chosen_because=content["chosen_because"],
        versions=comparison_tables(version, content),
        gates=[[gate["name"], "passed" if gate["passed"] else "failed", gate["reason"]] for gate in content["gates"]],
        figures=[
            ("AUC", number(test["auc"]["value"]), _interval(test["auc"])),
            ("Average precision", number(test["average_precision"]["value"]), _interval(test["average_precision"])),
            (
                "Observed / expected",
                number(test["observed_expected"]["value"], 2),
                _interval(test["observed_expected"], 2),
            ),
            ("Sensitivity, top 20 %", percent(test["sensitivity_top20"]["value"]), "of readmissions found"),
        ],
        test_rows=tested["rows"],
        prevalence=tested["positives"] / tested["rows"],
        threshold=threshold,
        metrics=[
            [
                label,
                _estimate_of(test[name]),
                number(content["validation"][name]),
            ]
            for name, label in LABELS.items()
        ],
        clinical=[
            [run.tags["family"], _estimate_of(test["auc"])],
            *(
                [name, estimate(value, (low, high))]
                for name, (value, low, high) in tested.get("clinical_scores", {}).items()
            ),
        ],
        confusion=[
            ["readmitted", number(true_positives, 0), number(false_negatives, 0)],
            ["not readmitted", number(false_positives, 0), number(true_negatives, 0)],
        ],
        roc=plots.roc(
            truth, scores, description="Sensitivity over 1 - specificity on the test set", threshold=threshold
        ),
        precision_recall=plots.precision_recall(
            truth, scores, description="Positive predictive value over sensitivity on the test set", threshold=threshold
        ),
        calibration=plots.calibration(
            truth, scores, description="Observed share of readmissions over the predicted probability, in tenths"
        ),
        subgroup_plot=_subgroup_plot(tested["subgroups"]),
        subgroups=[
            [
                f"{group['attribute']}: {group['level']}",
                number(group["rows"], 0),
                number(group["positives"], 0),
                *(_estimate(group["metrics"][name]) for name in ("auc", "observed_expected", "recall", "precision")),
            ]
            for group in tested["subgroups"]
        ],
        importances=_importance_plot(tested["importances"]),
        parameters=sorted((name, value) for name, value in run.params.items() if name != "trial"),
    )


def _interval(item: Mapping[str, float], digits: int = 3) -> str:
    return f"95 % interval {number(item['low'], digits)} to {number(item['high'], digits)}"


def _estimate(item: Mapping[str, float]) -> str:
    return estimate(item["value"], (item["low"], item["high"]), 2)


def _estimate_of(item: Mapping[str, float]) -> str:
    return estimate(item["value"], (item["low"], item["high"]))


def _importance_plot(found: list[Mapping[str, Any]]) -> plots.Plot | None:
    if not found:  # the family measures none
        return None
    return plots.bars(
        [item["name"] for item in found],
        {"share": [item["share"] for item in found]},
        title="What weighs most",
        description="Share of each feature in the family's own measure of importance",
        value_label="share of all features",
        share=True,
        label_heading="Feature",
    )


def _subgroup_plot(groups: list[Mapping[str, Any]]) -> plots.Plot | None:
    if not groups:
        return None
    aucs = [group["metrics"]["auc"] for group in groups]
    return plots.interval_dots(
        [f"{group['attribute']}: {group['level']}" for group in groups],
        [auc["value"] for auc in aucs],
        [auc["low"] for auc in aucs],
        [auc["high"] for auc in aucs],
        title="AUC by subgroup",
        description="AUC of each subgroup of the test set with its 95 % interval",
        value_label="AUC",
        reference=0.5,
        reference_label="no better than chance",
        label_heading="Subgroup",
    )
