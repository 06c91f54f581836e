"""The model card: what a version is for, how good it is and why it was promoted or rejected.

Headings follow TRIPOD+AI (Collins et al. 2024, doi:10.1136/bmj-2023-078378).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from health_predict.adapters.tracking import RunRecord
from health_predict.core.data.contract import Contract
from health_predict.core.statistics import Estimate
from health_predict.report import plots
from health_predict.report.comparison import LABELS
from health_predict.report.page import render


def model_card_page(version: str, contract: Contract, run: RunRecord, content: Mapping[str, Any]) -> str:
    """HTML page of a model version of a contract from its `Best_` run and the evaluation that `register` stored."""
    tested = content["on_test"]
    truth, scores = np.asarray(tested["outcomes"]), np.asarray(tested["scores"])
    threshold = content["threshold"]
    return render(
        "model_card.html",
        version=version,
        contract=contract,
        run=run,
        content=content,
        labels=LABELS,
        roc=plots.roc(
            truth, scores, description="Sensitivity over 1 - specificity on the test set", threshold=threshold
        ),
        precision_recall=plots.precision_recall(
            truth, scores, description="Positive predictive value over sensitivity on the test set", threshold=threshold
        ),
        calibration=plots.calibration(
            truth,
            scores,
            description=f"Observed share of {contract.outcome.events} over the predicted probability, in tenths",
        ),
        subgroup_plot=_subgroup_plot(tested["subgroups"]),
        importances=_importance_plot(tested["importances"]),
    )


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
    return plots.interval_dots(
        [f"{group['attribute']}: {group['level']}" for group in groups],
        [Estimate(**group["metrics"]["auc"]) for group in groups],
        title="AUC by subgroup",
        description="AUC of each subgroup of the test set with its 95 % interval",
        value_label="AUC",
        reference=0.5,
        reference_label="no better than chance",
        label_heading="Subgroup",
    )
