"""Which family a search ends with."""

from __future__ import annotations

import numpy as np
import pytest

from health_predict.core.model.evaluation import Scored, f1_threshold, metrics
from health_predict.core.model.selection import select

RANDOM = np.random.default_rng(4)
N = 3000
RISK = np.clip(RANDOM.beta(1.2, 9, N), 0.005, 0.9)
LABELS = (RANDOM.random(N) < RISK).astype(np.int8)
PATIENTS = np.arange(N)


def scored(scores: np.ndarray) -> Scored:
    return Scored(scores, f1_threshold(LABELS, scores))


def blurred(by: float) -> np.ndarray:
    return np.clip(RISK * np.exp(by * np.random.default_rng(7).standard_normal(N)), 0, 1)


def test_a_surely_larger_f1_wins() -> None:
    models = {"noise": scored(RANDOM.random(N) / 5), "risk": scored(RISK)}
    found = select(LABELS, models, PATIENTS, resamples=200)
    assert found.family == "risk"
    assert "surely" in found.reason
    assert "noise" in found.reason


def test_luck_of_the_threshold_does_not_decide() -> None:
    # given two models that F1 cannot tell apart, the one with the larger F1 being the worse in all else
    better, worse = scored(RISK), scored(blurred(0.35))
    better = Scored(RISK, better.threshold * 1.1)
    f1 = {name: metrics(LABELS, model.scores, model.threshold) for name, model in (("b", better), ("w", worse))}
    assert f1["w"]["f1"] - 0.05 < f1["b"]["f1"]
    assert f1["w"]["average_precision"] < f1["b"]["average_precision"]
    # when one is chosen, whatever their order
    for models in ({"better": better, "worse": worse}, {"worse": worse, "better": better}):
        found = select(LABELS, models, PATIENTS, resamples=200)
        # then the average precision decides, and the sentence says so and how sure it is
        assert found.family == "better"
        assert "cannot tell" in found.reason
        assert "average precision" in found.reason
        assert "difference" in found.reason


def test_equal_rankings_are_told_apart_by_the_brier_score() -> None:
    # given the same ranking twice, once with risks that are half of what they should be
    halved = Scored(RISK / 2, f1_threshold(LABELS, RISK) / 2)
    for models in ({"right": scored(RISK), "halved": halved}, {"halved": halved, "right": scored(RISK)}):
        assert select(LABELS, models, PATIENTS, resamples=100).family == "right"


def test_a_family_alone_is_said_to_be_alone() -> None:
    assert "only family" in select(LABELS, {"risk": scored(RISK)}, PATIENTS, resamples=50).reason


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_question_has_the_same_answer(seed: int) -> None:
    models = {"risk": scored(RISK), "blurred": scored(blurred(0.2))}
    first = select(LABELS, models, PATIENTS, seed=seed, resamples=100)
    assert first == select(LABELS, models, PATIENTS, seed=seed, resamples=100)
