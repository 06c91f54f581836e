"""Every gate passes and fails for its own reason."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from health_predict.core.evaluation import f1_threshold
from health_predict.core.promotion import Decision, Promotion, Scored, decide


@pytest.fixture(scope="module")
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
    return decide(
        world.frame,
        world.labels,
        world.patients,
        scored(world, candidate),
        others.get("baseline"),
        others.get("champion"),
        resamples=150,
    )


def failed(promotion: Promotion) -> list[str]:
    return [gate.name for gate in promotion.gates if not gate.passed]


def test_the_true_risk_is_promoted_with_every_gate_named(world: SimpleNamespace) -> None:
    weaker = scored(world, np.clip(world.risk * np.exp(0.8 * world.random.standard_normal(world.n)), 0, 1))
    promotion = ask(world, world.risk, baseline=weaker, champion=weaker)
    assert promotion.decision is Decision.PROMOTE
    assert failed(promotion) == []
    assert len(promotion.reasons) == len(promotion.gates) == 6


def test_noise_does_not_beat_the_inpatient_count(world: SimpleNamespace) -> None:
    noise = np.full(world.n, world.labels.mean()) + world.random.normal(0, 0.01, world.n)
    promotion = ask(world, noise)
    assert promotion.decision is Decision.REJECT
    assert "better than number_inpatient alone" in failed(promotion)
    assert all("number_inpatient" in reason or "always" in reason for reason in promotion.reasons)


def test_scores_that_are_no_probabilities_are_rejected(world: SimpleNamespace) -> None:
    promotion = ask(world, world.risk * 0.5)
    assert failed(promotion) == ["calibrated"]


def test_a_worse_f1_than_the_baseline_is_rejected(world: SimpleNamespace) -> None:
    blurred = np.clip(world.risk * np.exp(0.5 * world.random.standard_normal(world.n)) * 0.88, 0, 1)
    assert "at least as good as the baseline" in failed(ask(world, blurred, baseline=scored(world, world.risk)))


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
