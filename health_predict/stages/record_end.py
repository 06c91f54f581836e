"""record_end: how a run in a cluster ended, and why, in storage. Pods and their logs are soon forgotten.

Here the messages of the run's stages are sent.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from health_predict.adapters import keys
from health_predict.adapters.notifications import deliver, tell_failure
from health_predict.adapters.pipelines.kubeflow import failure
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import CHAMPION, Tag, Tracking
from health_predict.errors import HealthPredictError
from health_predict.settings import Settings

log = logging.getLogger(__name__)

# As ML Metadata calls the end of what went well.
COMPLETE = "COMPLETE"


def record_end(settings: Settings, *, pipeline: str, run_id: str, state: str) -> dict[str, str]:
    """Write the end of a run to storage, once more when it is asked again, and send what waits for people.

    `state` is that of its tasks.

    The record names the failed stage's `error` and `remedy`, the version that is `champion` since then, and its data.
    An MLflow or an API server that is away leaves its part of the record empty.
    """
    end = {
        "run_id": run_id,
        "pipeline": pipeline,
        "state": "succeeded" if state == COMPLETE else "failed",
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        **dict.fromkeys(("champion", "dataset_source", "error", "remedy"), ""),
    }
    try:
        if champion := Tracking(settings).by_alias(CHAMPION):
            end |= {"champion": champion.version, "dataset_source": champion.tags.get(Tag.DATASET_SOURCE, "")}
    except HealthPredictError as error:
        log.warning("the record has no champion: %s", error.problem)
    if state != COMPLETE:
        reason = None
        try:
            if reason := failure(run_id, settings.kube_context):
                end |= {"error": reason.problem, "remedy": reason.remedy}
        except HealthPredictError as error:
            log.warning("the record has no reason: %s", error.problem)
        tell_failure(settings, run_id, pipeline, reason)
    deliver(settings)
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    storage.write(keys.run_end(run_id), json.dumps(end, indent=1).encode())
    log.info("run %s of %s %s%s", run_id, pipeline, end["state"], f": {end['error']}" if end["error"] else "")
    return end
