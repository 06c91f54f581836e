"""settle: a batch is closed once what was decided about it is done; from then on it is never handled again."""

from __future__ import annotations

import logging

from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.records import SettledBatch, batch_key
from health_predict.adapters.tracking import CHAMPION, Tracking
from health_predict.core.monitoring import policy
from health_predict.core.monitoring.policy import Action, Settlement
from health_predict.errors import StateError
from health_predict.settings import Settings

log = logging.getLogger(__name__)


def settle(settings: Settings, *, batch: int, batch_digest: str) -> Settlement:
    """Write the watermark of a batch that `drift` judged, and what the policy remembers; how the batch ended.

    Whether a new version came into service is seen by the champion alone, so that a run that was killed after its
    rollout ends like any other. A repeat gives the stored end. Raises StateError when the batch was not judged.
    """
    if batch < 0:
        return Settlement.UNCHANGED
    champion = Tracking(settings).by_alias(CHAMPION)
    batches = Batches(settings, champion)
    key = batch_key(batch, batch_digest)
    known = batches.settlement(key)
    if known is not None:
        return known.outcome
    decision = batches.decision(key)
    if decision is None:
        raise StateError(f"batch {batch} was not judged", f"`health-predict pipeline run monitoring -p batch={batch}`")
    after = champion.version if champion else ""
    state = batches.policy_state(batches.series)
    if decision.quarantined:
        outcome = Settlement.QUARANTINED
    elif decision.action is Action.NONE:
        outcome = Settlement.UNCHANGED
    else:
        assert decision.state is not None  # of what was judged
        outcome = Settlement.DEPLOYED if after != decision.model_version else Settlement.LOST
        state = policy.after(decision.state, decision.action, outcome, batch)
    record = SettledBatch(
        batch=decision.batch,
        batch_digest=decision.batch_digest,
        series=batches.series,
        verdict=decision.verdict,
        action=decision.action,
        labelled_batches=decision.labelled_batches,
        outcome=outcome,
        version_before=decision.model_version,
        version_after=after,
    )
    batches.settle(record, state)
    log.info("batch %d: %s", batch, outcome.value)
    return outcome
