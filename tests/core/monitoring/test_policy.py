"""Policies: what is done after a batch, and what a lost challenger changes."""

from __future__ import annotations

import pytest

from health_predict.core.choices import Policy
from health_predict.core.monitoring.drift import Verdict
from health_predict.core.monitoring.policy import LONGEST_WAIT, Action, PolicyState, Settlement, after, decide


def actions(policy: Policy, verdicts: list[Verdict], outcome: Settlement, **options: int) -> list[Action]:
    state, taken = PolicyState(), []
    for batch, verdict in enumerate(verdicts):
        action, reason = decide(policy, state, batch, verdict=verdict, **options)
        assert reason.endswith(".")
        state = after(state, action, outcome, batch)
        taken.append(action)
    return taken


def retrainings(policy: Policy, verdicts: list[Verdict], outcome: Settlement, **options: int) -> list[int]:
    return [i for i, action in enumerate(actions(policy, verdicts, outcome, **options)) if action is Action.RETRAIN]


def test_the_calendar_policies_do_not_look_at_verdicts() -> None:
    for verdict in Verdict:
        assert retrainings(Policy.NEVER, [verdict] * 16, Settlement.DEPLOYED) == []
        assert retrainings(Policy.EVERY, [verdict] * 16, Settlement.LOST) == list(range(16))
        assert retrainings(Policy.SCHEDULED, [verdict] * 16, Settlement.DEPLOYED, interval=5) == [4, 9, 14]


def test_the_drift_policy_follows_the_verdict() -> None:
    verdicts = [Verdict.STEADY, Verdict.RECALIBRATE, Verdict.RETRAIN, Verdict.STEADY]
    assert actions(Policy.DRIFT, verdicts, Settlement.DEPLOYED) == [
        Action.NONE, Action.RECALIBRATE, Action.RETRAIN, Action.NONE,
    ]  # fmt: skip


def test_lost_challengers_are_tried_ever_less_often_and_a_winner_ends_the_wait() -> None:
    # given a verdict that always asks for retraining, and challengers that never win
    tries = retrainings(Policy.DRIFT, [Verdict.RETRAIN] * 32, Settlement.LOST)
    # then the waits double up to a limit
    assert tries == [0, 2, 6, 14, 14 + LONGEST_WAIT, 14 + 2 * LONGEST_WAIT]
    # and when one wins, the next may be tried at once
    state = after(PolicyState(), Action.RETRAIN, Settlement.LOST, 3)
    assert decide(Policy.DRIFT, state, 4, verdict=Verdict.RETRAIN)[0] is Action.NONE
    state = after(state, Action.RETRAIN, Settlement.DEPLOYED, 5)
    assert decide(Policy.DRIFT, state, 6, verdict=Verdict.RETRAIN)[0] is Action.RETRAIN


def test_while_retraining_backs_off_wrong_risks_are_set_right() -> None:
    state = after(PolicyState(), Action.RETRAIN, Settlement.LOST, 3)
    action, reason = decide(Policy.DRIFT, state, 4, verdict=Verdict.RETRAIN, miscalibrated=True)
    assert action is Action.RECALIBRATE
    assert "batch 5" in reason
    # and a recalibration does not shorten the wait
    assert after(state, action, Settlement.DEPLOYED, 4).not_before == 5


def test_impossible_values_are_refused() -> None:
    with pytest.raises(ValueError, match="interval"):
        decide(Policy.SCHEDULED, PolicyState(), 0, verdict=Verdict.STEADY, interval=0)
