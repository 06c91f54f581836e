"""When a verdict becomes an action: the policies of retraining, and the patience after a challenger that lost.

A policy is a pure function of its state and of what was found about a batch. The caller stores the state:

    state = load()
    action, reason = decide(policy, state, batch, verdict=..., miscalibrated=...)
    state = begin(state, action, batch); store(state)      # from here on a crash repeats the same action
    outcome = ...                                          # recalibrate or retrain, and roll out
    state = after(state, action, outcome, batch); store(state)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Self

from health_predict.core.drift import Verdict

INTERVAL = 4  # batches between the retrainings of the policy `scheduled`
LONGEST_WAIT = 8  # batches


class Policy(StrEnum):
    """Who decides that the model is changed: nobody, the calendar, or what was found."""

    NEVER = "never"
    EVERY = "every"
    SCHEDULED = "scheduled"
    DRIFT = "drift"


class Action(StrEnum):
    """What is done about the model after a batch."""

    NONE = "none"
    RECALIBRATE = "recalibrate"
    RETRAIN = "retrain"


class Outcome(StrEnum):
    """How an action ended: the new version serves, or a gate, the champion or the rollout stood against it."""

    DEPLOYED = "deployed"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What a policy remembers between batches; batches by their number.

    `wait` is how many batches the last back-off takes (0: the last challenger won), `not_before` the first batch
    that may retrain again. `pending` is an action that was begun at `pending_batch` and has no outcome yet.
    """

    last_retrain: int | None = None
    wait: int = 0
    not_before: int = 0
    pending: Action = Action.NONE
    pending_batch: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain structure for `from_json`."""
        return {**asdict(self), "pending": str(self.pending)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`. Raises TypeError for an unknown field and ValueError for an unknown action."""
        return cls(**{**data, "pending": Action(data.get("pending", Action.NONE))})


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
    An action that was begun at this batch and has no outcome is given again. Raises ValueError when interval < 1.
    """
    if interval < 1:
        raise ValueError(f"an interval of {interval} batches")
    if state.pending is not Action.NONE and state.pending_batch == batch:
        return state.pending, "It was begun before and has not ended."
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


def begin(state: PolicyState, action: Action, batch: int) -> PolicyState:
    """The state to store before `action` is carried out, so that a crash in between repeats it."""
    if action is Action.NONE:
        return state
    return replace(state, pending=action, pending_batch=batch)


def after(state: PolicyState, action: Action, outcome: Outcome, batch: int) -> PolicyState:
    """The state once `action`, decided after `batch`, has ended.

    A challenger that lost makes the next one wait 2 batches, then 4, then `LONGEST_WAIT`; one that won resets this.
    """
    ended = replace(state, pending=Action.NONE, pending_batch=None)
    if action is not Action.RETRAIN:
        return ended
    if outcome is Outcome.DEPLOYED:
        return replace(ended, last_retrain=batch, wait=0, not_before=0)
    wait = min(max(2, 2 * state.wait), LONGEST_WAIT)
    return replace(ended, last_retrain=batch, wait=wait, not_before=batch + wait)
