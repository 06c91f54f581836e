"""The page of one version beside another: what a person needs to approve or refuse it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from health_predict.adapters.tracking import ModelVersion, Tag
from health_predict.core.data.contract import Contract
from health_predict.report.comparison import LABELS
from health_predict.report.page import difference, number, percent, render


def compare_page(contract: Contract, version: ModelVersion, against: ModelVersion, content: Mapping[str, Any]) -> str:
    """HTML page of two versions from what `stages.compare` found."""
    return render(
        "compare.html",
        labels=LABELS,
        contract=contract,
        version=version,
        against=against,
        content=content,
        finding=finding(content),
        synthetic="synthetic" in (one.tags.get(Tag.DATASET_SOURCE) for one in (version, against)),
    )


def finding(content: Mapping[str, Any]) -> str:
    """The comparison in two sentences: who ranks better, and how many decisions would change."""
    first, one, other = content["on_test"][0], content["version"], content["against"]
    auc = first["metrics"]["auc"]
    if auc["difference"]["low"] > 0:
        ranks = f"version {one} ranks better than version {other}"
    elif auc["difference"]["high"] < 0:
        ranks = f"version {one} ranks worse than version {other}"
    else:
        ranks = f"no difference in ranking between version {one} and version {other} is sure"
    whole = (content["on_arrivals"] or first["changes"])[0]
    where = "newest arrivals" if content["on_arrivals"] else "test encounters"
    return (
        f"On the same {number(first['rows'], 0)} test encounters {ranks}: AUC {number(auc['one']['value'])} against "
        f"{number(auc['other']['value'])}, difference {difference(auc['difference'])}. "
        f"Of the {number(whole['rows'], 0)} {where}, {percent(whole['share'])} would be decided otherwise: "
        f"{number(whole['newly_flagged'], 0)} newly flagged, {number(whole['no_longer_flagged'], 0)} no longer."
    )
