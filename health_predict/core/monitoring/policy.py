"""When a verdict becomes an action: the policies of retraining, and the patience after a challenger that lost.

A policy is a pure function of its state and of what was found about a batch. The stage `drift` stores the decision
with the state it was taken in, before anything is done, so that a crash repeats the same action; the stage `settle`
stores the state after it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from health_predict.core.choices import Policy
from health_predict.core.monitoring.drift import Verdict

INTERVAL = 4  # batches between the retrainings of the policy `scheduled`
LONGEST_WAIT = 8  # batches


class Action(StrEnum):
    """What is done about the model after a batch."""

    NONE = "none"
    RECALIBRATE = "recalibrate"
    RETRAIN = "retrain"


class Settlement(StrEnum):
    """How a batch ended."""

    DEPLOYED = "deployed"
    UNCHANGED = "unchanged"  # nothing was to be done, or no batch waited
    WAITING = "waiting"  # a challenger waits for a person's approval
    LOST = "lost"  # a gate, the champion or the rollout stood against the challenger: everything is as it was


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What a policy remembers between batches; batches by their number.

    `wait` is how many batches the last back-off takes (0: the last challenger won), `not_before` the first batch
    that may retrain again.
    """

    last_retrain: int | None = None
    wait: int = 0
    not_before: int = 0


def decide(
    policy: Policy,
    state: PolicyState,
    batch: int,
    *,
    verdict: Verdict,
    miscalibrated: bool = False,
    interval: int = INTERVAL,
) -> tuple[Action, str]:
    """The action after `batch`, and why, in a sentence.

    `verdict` and `miscalibrated` (`Calibration.mendable`) are of this batch; only the policy `drift` looks at them.
    `interval`: batches between retrainings of `scheduled`, whose first one follows batch `interval - 1` (batches
    are numbered from 0). While retraining backs off, a model whose calibration is off is recalibrated instead.
    Raises ValueError when interval < 1.
    """
    if interval < 1:
        raise ValueError(f"an interval of {interval} batches")
    match policy:
        case Policy.NEVER:
            return Action.NONE, "The policy never changes the model."
        case Policy.EVERY:
            return Action.RETRAIN, "The policy retrains after every batch."
        case Policy.SCHEDULED:
            if (batch + 1) % interval == 0:
                return Action.RETRAIN, f"The policy retrains after every {interval} batches."
            return Action.NONE, f"The next retraining is due after batch {batch + interval - (batch + 1) % interval}."
        case Policy.DRIFT:
            return _by_verdict(state, batch, verdict, miscalibrated)


def _by_verdict(state: PolicyState, batch: int, verdict: Verdict, miscalibrated: bool) -> tuple[Action, str]:
    if verdict is Verdict.STEADY:
        return Action.NONE, "Nothing was found that a new model would mend."
    if verdict is Verdict.RECALIBRATE:
        return Action.RECALIBRATE, "The risks are off, the ranking holds."
    if batch >= state.not_before:
        return Action.RETRAIN, "The model no longer fits its patients."
    backing_off = f"The last challenger lost, so the next one is tried after batch {state.not_before}"
    if miscalibrated:
        return Action.RECALIBRATE, f"{backing_off}; until then the risks are set right."
    return Action.NONE, f"{backing_off}."


def after(state: PolicyState, action: Action, outcome: Settlement, batch: int) -> PolicyState:
    """The state once `action`, decided after `batch`, has ended.

    A challenger that lost makes the next one wait 2 batches, then 4, then `LONGEST_WAIT`; one that won resets this, and
    so does one that waits for approval, which a newer one may replace.
    """
    if action is not Action.RETRAIN:
        return state
    if outcome in (Settlement.DEPLOYED, Settlement.WAITING):
        return replace(state, last_retrain=batch, wait=0, not_before=0)
    wait = min(max(2, 2 * state.wait), LONGEST_WAIT)
    return replace(state, last_retrain=batch, wait=wait, not_before=batch + wait)
