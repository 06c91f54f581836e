"""The model card: what a version is for, how good it is and why it was promoted or rejected.

Headings follow TRIPOD+AI (Collins et al. 2024, doi:10.1136/bmj-2023-078378).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from health_predict.adapters.tracking import RunRecord, Tag
from health_predict.core.data.contract import Contract
from health_predict.core.data.sources import provenance
from health_predict.core.model.families import FAMILIES
from health_predict.core.statistics import Estimate
from health_predict.report import plots
from health_predict.report.comparison import LABELS, in_a_hundred
from health_predict.report.page import estimate, render, rounded

# What groups are compared by, in the words of a sentence.
_COMPARED = {
    "auc": "AUC",
    "observed_expected": "observed over expected",
    "recall": "sensitivity",
    "precision": "positive predictive value",
}


def model_card_page(
    version: str, contract: Contract, run: RunRecord, content: Mapping[str, Any], approval: str = ""
) -> str:
    """HTML page of a model version of a contract from its `Best_` run and the evaluation that `register` stored.

    `approval`: what a person said of it, in words.
    """
    tested = content["on_test"]
    truth, scores = np.asarray(tested["outcomes"]), np.asarray(tested["scores"])
    threshold, family = content["threshold"], FAMILIES.get(run.tags[Tag.FAMILY])
    return render(
        "model_card.html",
        version=version,
        approval=approval,
        contract=contract,
        run=run,
        content=content,
        labels=LABELS,
        in_a_hundred=in_a_hundred(tested["metrics"], contract.outcome.happened),
        provenance=provenance(contract, run.tags[Tag.DATASET_SOURCE]),
        groups=[{**group, "level": _level(contract, group)} for group in tested["subgroups"]],
        apart=apart(contract, tested["subgroups"]),
        parameters=[(name, rounded(value)) for name, value in sorted(run.params.items()) if name != "trial"],
        importance=family.importance if family else "",
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
        subgroup_plot=_subgroup_plot(contract, tested["subgroups"]),
        importances=_importance_plot(contract, tested["importances"]),
    )


def apart(contract: Contract, groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each figure whose 95 % intervals of two groups of one attribute do not overlap: the extremes."""
    said = []
    for attribute, found in groupby(groups, lambda group: str(group["attribute"])):
        groups_of_one = list(found)
        for name, words in _COMPARED.items():
            members = [one for one in groups_of_one if math.isfinite(one["metrics"][name]["value"])]
            if len(members) < 2:
                continue
            lowest, highest = (
                extreme(members, key=lambda one: one["metrics"][name]["value"]) for extreme in (min, max)
            )
            least, most = (one["metrics"][name] for one in (lowest, highest))
            if least["high"] < most["low"]:
                low, high = (
                    f"{_estimate(one['metrics'][name])} for {_level(contract, one)}" for one in (lowest, highest)
                )
                said.append(f"{attribute}: {words} is {high} and {low}.")
    return said


def _estimate(item: Mapping[str, float]) -> str:
    return estimate(item["value"], (item["low"], item["high"]), 2)


def _level(contract: Contract, group: Mapping[str, Any]) -> str:
    return contract.by_name[group["attribute"]].in_words(group["level"])


def _feature(contract: Contract, name: str) -> str:
    """A feature with the word for its level, where it is about one: `discharge=rehabilitation (22)`."""
    column, equals, level = name.partition("=")
    known = contract.by_name.get(column)
    return f"{column}={known.in_words(level)}" if equals and known else name


def _importance_plot(contract: Contract, found: list[Mapping[str, Any]]) -> plots.Plot | None:
    if not found:  # the family measures none
        return None
    return plots.bars(
        [_feature(contract, item["name"]) for item in found],
        {"share": [item["share"] for item in found]},
        title="What weighs most",
        description="Share of each feature in the family's own measure of importance, the largest first",
        value_label="share of importance",
        share=True,
        label_heading="Feature",
    )


def _subgroup_plot(contract: Contract, groups: list[Mapping[str, Any]]) -> plots.Plot | None:
    if not groups:
        return None
    return plots.interval_dots(
        [f"{group['attribute']}: {_level(contract, group)}" for group in groups],
        [Estimate(**group["metrics"]["auc"]) for group in groups],
        title="AUC by subgroup",
        description="AUC of each subgroup of the test set with its 95 % interval",
        value_label="AUC",
        reference=0.5,
        reference_label="no better than chance",
        label_heading="Subgroup",
    )
