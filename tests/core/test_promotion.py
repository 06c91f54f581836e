"""Every gate passes and fails for its own reason."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from health_predict.core.model.evaluation import Scored, f1_threshold, metrics
from health_predict.core.monitoring.performance import LabelledWindow, assess_calibration
from health_predict.core.promotion import Decision, JudgedRows, Promotion, decide_promotion
from health_predict.core.statistics import logit
from tests.contracts import DIABETES


@pytest.fixture
def world() -> SimpleNamespace:
    """Four thousand rows whose true risk is known."""
    random = np.random.default_rng(3)
    n = 4000
    risk = np.clip(random.beta(1.2, 9, n), 0.005, 0.9)
    labels = (random.random(n) < risk).astype(np.int8)
    frame = pd.DataFrame(
        {
            "number_inpatient": random.poisson(0.5, n).astype(str),
            "gender": random.choice(["Female", "Male"], n),
            "race": random.choice(["Caucasian", "AfricanAmerican"], n),
            "age": random.choice(["[40-50)", "[70-80)"], n),
        }
    )
    return SimpleNamespace(n=n, risk=risk, labels=labels, frame=frame, patients=np.arange(n), random=random)


def scored(world: SimpleNamespace, scores: np.ndarray) -> Scored:
    return Scored(scores, f1_threshold(world.labels, scores))


def ask(world: SimpleNamespace, candidate: np.ndarray, **others: Any) -> Promotion:
    return decide_promotion(
        JudgedRows(DIABETES, world.frame, world.labels, world.patients),
        scored(world, candidate),
        others.get("baseline"),
        others.get("champion"),
        resamples=150,
        learned_less=others.get("learned_less", False),
    )


def failed(promotion: Promotion) -> list[str]:
    return [gate.name for gate in promotion.gates if not gate.passed]


def test_the_true_risk_is_promoted_with_every_gate_named(world: SimpleNamespace) -> None:
    weaker = scored(world, np.clip(world.risk * np.exp(0.8 * world.random.standard_normal(world.n)), 0, 1))
    promotion = ask(world, world.risk, baseline=weaker, champion=weaker)
    assert promotion.decision is Decision.PROMOTE
    assert failed(promotion) == []
    assert len(promotion.reasons) == len(promotion.gates) == 6


@pytest.mark.parametrize(("learned_less", "refused"), [(False, []), (True, ["not worse than the champion"])])
def test_who_learned_less_than_the_champion_has_to_be_better(
    world: SimpleNamespace, learned_less: bool, refused: list[str]
) -> None:
    # given a champion that ranks as the candidate does
    promotion = ask(world, world.risk, champion=scored(world, world.risk), learned_less=learned_less)
    # then it gives way only to one that has not learned less
    assert failed(promotion) == refused
    # and to a surely better one in any case
    weaker = scored(world, world.random.permutation(world.risk))
    assert failed(ask(world, world.risk, champion=weaker, learned_less=learned_less)) == []


def test_noise_does_not_beat_the_inpatient_count(world: SimpleNamespace) -> None:
    noise = np.full(world.n, world.labels.mean()) + world.random.normal(0, 0.01, world.n)
    promotion = ask(world, noise)
    assert promotion.decision is Decision.REJECT
    assert "better than number_inpatient alone" in failed(promotion)
    assert all("number_inpatient" in reason or "always" in reason for reason in promotion.reasons)


def test_scores_that_are_no_probabilities_are_rejected(world: SimpleNamespace) -> None:
    promotion = ask(world, world.risk * 0.5)
    assert failed(promotion) == ["calibrated"]


def test_what_is_surely_worse_than_the_baseline_is_rejected(world: SimpleNamespace) -> None:
    # given a candidate with the larger F1 by luck of its threshold, whose ranking is surely worse
    blurred = np.clip(world.risk * np.exp(0.5 * world.random.standard_normal(world.n)) * 0.88, 0, 1)
    lucky = Scored(world.risk, 0.9)
    assert metrics(world.labels, blurred, scored(world, blurred).threshold)["f1"] > 0.1
    assert metrics(world.labels, lucky.scores, lucky.threshold)["f1"] < 0.1
    assert "not worse than the baseline" in failed(ask(world, blurred, baseline=lucky))


def test_a_worse_average_precision_alone_is_enough(world: SimpleNamespace) -> None:
    # given a candidate that cannot tell the highest risks apart, which leaves its AUC nearly as it is
    highest = np.quantile(world.risk, 0.8)
    flat = np.where(world.risk > highest, world.risk[world.risk > highest].mean(), world.risk)
    promotion = ask(world, flat, baseline=scored(world, world.risk))
    assert failed(promotion) == ["not worse than the baseline"]


def test_what_only_noise_tells_from_the_baseline_passes(world: SimpleNamespace) -> None:
    # given a candidate whose F1 is smaller and whose ranking is the baseline's but for a little noise
    noisy = np.clip(world.risk * np.exp(0.05 * world.random.standard_normal(world.n)), 0, 1)
    assert failed(ask(world, noisy, baseline=scored(world, world.risk))) == []


@pytest.mark.parametrize("slope", [0.55, 1.6])
def test_risks_too_far_apart_or_too_close_are_rejected_as_monitoring_would(
    world: SimpleNamespace, slope: float
) -> None:
    # given risks that are right on the whole, with an ECE that no fixed limit would notice
    log_odds = logit(world.risk)
    bent = 1 / (1 + np.exp(-(log_odds.mean() + (log_odds - log_odds.mean()) / slope)))
    level = np.log(world.labels.mean() / (1 - world.labels.mean())) - logit(bent.mean())
    bent = 1 / (1 + np.exp(-(logit(bent) + level)))
    assert metrics(world.labels, bent, 0.2)["ece"] < 0.05
    # then the gate refuses what monitoring would alarm about with its first window
    promotion = ask(world, bent)
    assert "calibrated" in failed(promotion)
    assert assess_calibration([LabelledWindow.of(world.labels.astype(float), bent)]).broken


def test_a_clearly_better_champion_stays(world: SimpleNamespace) -> None:
    blurred = np.clip(world.risk * np.exp(0.7 * world.random.standard_normal(world.n)) * 0.8, 0, 1)
    assert "not worse than the champion" in failed(ask(world, blurred, champion=scored(world, world.risk)))


def test_an_equal_champion_is_replaced(world: SimpleNamespace) -> None:
    assert failed(ask(world, world.risk, champion=scored(world, world.risk.copy()))) == []


def test_one_ruined_subgroup_is_enough(world: SimpleNamespace) -> None:
    # given a candidate that knows nothing of the older half, though it is calibrated there
    old = (world.frame["age"] == "[70-80)").to_numpy()
    ruined = np.where(old, world.risk.mean() + world.random.normal(0, 0.001, world.n), world.risk)
    promotion = ask(world, ruined, champion=scored(world, world.risk))
    assert "no subgroup far worse than the champion's" in failed(promotion)
    assert any("age 60 to 79" in reason for reason in promotion.reasons)
