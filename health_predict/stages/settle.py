"""settle: a look at a batch ends once what was decided about it is done; from then on it is never repeated."""

from __future__ import annotations

import logging

from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.monitoring_turn import Turn
from health_predict.adapters.data.records import SettledBatch, batch_key
from health_predict.adapters.tracking import CHAMPION, Tracking
from health_predict.core.monitoring import policy
from health_predict.core.monitoring.policy import Action, Settlement
from health_predict.errors import StateError
from health_predict.settings import Settings

log = logging.getLogger(__name__)


def settle(settings: Settings, *, batch: int, batch_digest: str, done: str = "", run_id: str = "") -> Settlement:
    """End the look at a batch that `drift` decided, and the run's turn; how the look ended.

    Whether a new version came into service is seen by the champion alone, so that a run that was killed after its
    rollout ends like any other; `done`, the outcome of the action, says whether one waits for approval. A repeat gives
    the stored end. Raises StateError when the batch was not judged.
    """
    batches = Batches(settings)
    outcome = Settlement.UNCHANGED if batch < 0 else _settled(settings, batches, batch_key(batch, batch_digest), done)
    Turn(settings, batches.storage, run_id).end()
    return outcome


def _settled(settings: Settings, batches: Batches, key: str, done: str) -> Settlement:
    """Keep how the look ended, and what the policy remembers."""
    champion = Tracking(settings).by_alias(CHAMPION)
    known, decision, progress = batches.settlement(key), batches.decision(key), batches.progress()
    if known is not None and progress.pending != key:
        return known.outcome
    if decision is None:
        raise StateError(f"batch {key} was not judged", "`health-predict pipeline run monitoring`")
    after = champion.version if champion else ""
    state = progress.policy
    if decision.action is Action.NONE:
        outcome = Settlement.UNCHANGED
    else:
        assert decision.state is not None  # of what was judged
        outcome = Settlement.WAITING if done == Settlement.WAITING else Settlement.LOST
        if after != decision.model_version:
            outcome = Settlement.DEPLOYED
        state = policy.after(decision.state, decision.action, outcome, decision.batch)
    record = SettledBatch(
        batch=decision.batch,
        batch_digest=decision.batch_digest,
        verdict=decision.verdict,
        action=decision.action,
        labelled_batches=decision.labelled_batches,
        outcome=outcome,
        version_before=decision.model_version,
        version_after=after,
    )
    batches.settle(record, progress.after(decision, state))
    log.info("batch %d: %s", decision.batch, outcome.value)
    return outcome
