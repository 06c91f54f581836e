"""Metrics against scikit-learn's, thresholds, intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from health_predict.core.data.cohort import target
from health_predict.core.model.evaluation import (
    evaluate,
    f1_threshold,
    metrics,
    paired_difference,
    subgroup_levels,
    subgroups,
)
from health_predict.core.statistics import Estimate
from tests.contracts import DIABETES


def rows(n: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = (random.random(n) < 0.11).astype(np.int8)
    # rounded, so that many scores are equal
    return labels, np.round(np.clip(0.1 + 0.03 * labels + 0.05 * random.standard_normal(n), 0, 1), 2)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20), st.integers(0, 3)), min_size=4, max_size=60).filter(
        lambda found: {label for label, _, weight in found if weight} == {0, 1}
    )
)
def test_metrics_agree_with_scikit_learn(found: list[tuple[int, int, int]]) -> None:
    # given any weighted rows with ties
    labels = np.array([label for label, _, _ in found])
    scores = np.array([score / 20 for _, score, _ in found])
    weights = np.array([weight for _, _, weight in found], dtype=float)
    # when measured
    ours = metrics(labels, scores, 0.5, weights)
    # then the field's library says the same
    kept = weights > 0
    labels, scores, weights = labels[kept], scores[kept], weights[kept]
    assert ours["auc"] == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))
    assert ours["average_precision"] == pytest.approx(average_precision_score(labels, scores, sample_weight=weights))
    assert ours["f1"] == pytest.approx(f1_score(labels, scores >= 0.5, sample_weight=weights, zero_division=0))
    assert ours["brier"] == pytest.approx(brier_score_loss(labels, scores, sample_weight=weights))


def test_one_class_has_no_metrics() -> None:
    assert np.isnan(metrics(np.zeros(5, dtype=int), np.linspace(0, 1, 5), 0.5)["auc"])


def test_top_shares_count_the_highest_scores() -> None:
    # given ten rows, the best two of them positive, and one more far below
    labels = np.array([1, 1, 0, 0, 0, 0, 0, 0, 0, 1])
    scores = np.linspace(1, 0.1, 10)
    found = metrics(labels, scores, 0.5)
    assert (found["sensitivity_top10"], found["ppv_top10"]) == (pytest.approx(1 / 3), 1)
    assert (found["sensitivity_top20"], found["ppv_top20"]) == (pytest.approx(2 / 3), 1)


def test_a_calibrated_score_has_no_calibration_error() -> None:
    random = np.random.default_rng(1)
    scores = random.uniform(0.02, 0.4, 200_000)
    labels = (random.random(len(scores)) < scores).astype(int)
    found = metrics(labels, scores, 0.2)
    assert found["ece"] < 0.005
    assert found["observed_expected"] == pytest.approx(1, abs=0.02)
    assert metrics(labels, scores / 2, 0.2)["observed_expected"] == pytest.approx(2, abs=0.04)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30)), min_size=1, max_size=40).filter(
        lambda x: any(a for a, _ in x)
    )
)
def test_no_threshold_has_a_larger_f1(found: list[tuple[int, int]]) -> None:
    labels = np.array([label for label, _ in found])
    scores = np.array([score / 30 for _, score in found])
    threshold = f1_threshold(labels, scores)
    best = f1_score(labels, scores >= threshold)
    assert all(best >= f1_score(labels, scores >= other) - 1e-12 for other in scores)
    # and rounding cannot move a row over it
    assert np.abs(scores - threshold).min() > 1e-9 or threshold == 0


def test_a_threshold_needs_a_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        f1_threshold(np.zeros(3, dtype=int), np.arange(3.0))


def test_intervals_hold_the_value_and_repeat() -> None:
    labels, scores = rows()
    patients = np.arange(len(labels)) // 2
    first = evaluate(labels, scores, 0.12, patients, resamples=200)
    assert first == evaluate(labels, scores, 0.12, patients, resamples=200)
    for estimate in first.values():
        assert estimate.low <= estimate.value <= estimate.high
    assert 0.01 < first["auc"].high - first["auc"].low < 0.2
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"


def test_intervals_over_patients_are_wider_than_over_rows() -> None:
    # given each patient's encounters repeated ten times
    labels, scores = (np.repeat(part, 10) for part in rows(300))
    patients = np.repeat(np.arange(300), 10)
    clustered = evaluate(labels, scores, 0.12, patients, resamples=200)["auc"]
    naive = evaluate(labels, scores, 0.12, np.arange(3000), resamples=200)["auc"]
    assert clustered.high - clustered.low > 2 * (naive.high - naive.low)


def test_paired_difference_sees_less_noise_than_two_intervals() -> None:
    labels, scores = rows(4000)
    worse = np.where(np.arange(4000) % 3 == 0, scores[::-1], scores)
    patients = np.arange(4000)
    difference = paired_difference(labels, scores, worse, patients, resamples=200)
    alone = evaluate(labels, scores, 0.1, patients, resamples=200)["auc"]
    assert 0 < difference.low < difference.value < difference.high
    assert difference.high - difference.low < alone.high - alone.low


def test_subgroups_name_their_attribute(cohort: pd.DataFrame) -> None:
    labels = target(cohort, DIABETES)
    scores = np.random.default_rng(0).random(len(cohort))
    found = subgroups(subgroup_levels(cohort, DIABETES), labels, scores, 0.5, cohort["patient_nbr"], resamples=20)
    assert {group.attribute for group in found} == {"gender", "race", "age"}
    assert all(group.rows >= 100 and group.positives > 0 for group in found)
    assert sum(group.rows for group in found if group.attribute == "age") <= len(cohort)
