"""Pages of a table that has nothing to do with the built-in one: its words, and no other's."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pytest

from health_predict.adapters.tracking import RunRecord
from health_predict.core.data.cohort import target
from health_predict.core.data.partition import Parameters, partition
from health_predict.core.model import evaluation
from health_predict.core.monitoring.drift import DriftReference, assess
from health_predict.report.data_profile import data_profile_page
from health_predict.report.drift_report import drift_page
from health_predict.report.model_card import apart, model_card_page
from tests.modern import CONTRACT, encounters

FOREIGN = ("readmi", "diabet", "insulin", "icd-9", "hospice", "discharge", "diag_", "hospitals of 1999")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return encounters(3000)


def words(page: str) -> str:
    """What people read, without the style."""
    text = re.sub("<style.*?</style>", "", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", text))


def only_its_own(page: str) -> str:
    said = words(page)
    assert not [word for word in FOREIGN if word in said.lower()]
    return said


def test_the_data_profile(frame: pd.DataFrame) -> None:
    parameters = Parameters(0.5, 3, "salt", contract=CONTRACT.digest)
    cut = partition(frame.assign(went=frame["went"].where(frame.index % 50 > 0, "morgue")), CONTRACT, parameters)
    page = data_profile_page(frame, CONTRACT, cut, parameters=parameters, raw_sha256="a" * 64, source="custom")
    said = only_its_own(page)
    assert "Back within 30 days" in said and "Return over time" in said
    assert "Left out are encounters whose went is morgue: died." in said and "left out: went morgue" in said
    for column in CONTRACT.features:
        assert f" {column.name}" in said
    assert "Drugs taken, drugs changed" in said and "Returns, of those" in said


def test_the_drift_report(frame: pd.DataFrame) -> None:
    outcomes = target(frame, CONTRACT).astype(np.float64)
    scores = np.where(outcomes > 0, 0.3, 0.05) + np.random.default_rng(0).uniform(0, 0.2, len(frame))
    reference = DriftReference.fit(frame, CONTRACT, outcomes, scores, draws=50)
    page = drift_page(
        assess(reference, frame.head(1500), scores[:1500], outcomes[:1500]),
        CONTRACT,
        batch=1,
        facts=[],
        synthetic=False,
        reference_probabilities=scores,
        probabilities=scores[:1500],
        outcomes=outcomes[:1500],
        evidently={},
    )
    said = only_its_own(page)
    assert "returns were observed" in said and "predicted risk of return" in said and "creatinine: under 1.2" in said


def test_the_model_card(frame: pd.DataFrame) -> None:
    labels, scores = target(frame, CONTRACT), np.random.default_rng(0).uniform(0.05, 0.3, len(frame))
    patients, groups = frame[CONTRACT.patient], evaluation.subgroup_levels(frame, CONTRACT)
    metrics = evaluation.as_plain(evaluation.evaluate(labels, scores, 0.2, patients, resamples=20))
    subgroups = evaluation.subgroups(groups, labels, scores, 0.2, patients, resamples=20)
    content: dict[str, Any] = {
        "decision": "promote",
        "decided_against": "none",
        "chosen_because": "It is the only one.",
        "threshold": 0.2,
        "validation": evaluation.metrics(labels, scores, 0.2),
        "gates": [{"name": "better than stays alone", "passed": True, "reason": "yes"}],
        "on_test": {
            "rows": len(frame),
            "positives": int(labels.sum()),
            "metrics": metrics,
            "subgroups": [{**asdict(one), "metrics": evaluation.as_plain(one.metrics)} for one in subgroups],
            "clinical_scores": {"stays alone": [0.6, 0.5, 0.7]},
            "confusion": [[1, 2], [3, 4]],
            "outcomes": labels.tolist(),
            "scores": scores.tolist(),
            "importances": [],
        },
    }
    tags = {"family": "LightGBM", "dataset_digest": "d", "dataset_source": "custom", "git_commit": "c"}
    run = RunRecord(run_id="r", name="n", status="FINISHED", tags=tags, params={"trial": "0"}, metrics={})
    said = only_its_own(model_card_page("3", CONTRACT, run, content))
    assert "Of 100 encounters that it flags, " in said and " are back within 30 days; of 100 that are" in said
    assert "Model card: return, version 3" in said and CONTRACT.title in said
    assert "Outside its cohort are encounters whose went is morgue: died." in said
    assert "not back within 30 days" in said and "of returns found" in said


def test_groups_whose_intervals_do_not_overlap_are_named_with_both() -> None:
    # given two groups that the model ranks differently well, a third between them, and one that is as good as any
    def group(level: str, attribute: str, value: float) -> dict[str, Any]:
        item = {"value": value, "low": value - 0.04, "high": value + 0.04}
        same = {"value": 1.0, "low": 0.9, "high": 1.1}
        metrics = {"auc": item, "observed_expected": same, "recall": same, "precision": same}
        return {"attribute": attribute, "level": level, "metrics": metrics}

    groups = [group("F", "sex", 0.71), group("X", "sex", 0.66), group("M", "sex", 0.61), group("1", "ward", 0.7)]
    # then there is one sentence, about the extremes
    assert apart(CONTRACT, groups) == ["sex: AUC is 0.71 (0.67 to 0.75) for F and 0.61 (0.57 to 0.65) for M."]
    # and a group whose figure is unknown says nothing
    groups[2]["metrics"]["auc"] = dict.fromkeys(("value", "low", "high"), float("nan"))
    assert apart(CONTRACT, groups) == []
