"""record_end: how a run in a cluster ended, and why, in storage. Pods and their logs are soon forgotten."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TypeVar

from health_predict.adapters.kfp_cluster import end_key, failure
from health_predict.adapters.mlflow import CHAMPION, Tracking
from health_predict.adapters.storage import open_storage
from health_predict.core.errors import HealthPredictError
from health_predict.settings import Settings

Found = TypeVar("Found")

log = logging.getLogger(__name__)

# As ML Metadata calls the end of what went well.
COMPLETE = "COMPLETE"


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended: the failed stage's `error` and `remedy`, the version that is `champion` since then, its data."""

    run_id: str
    pipeline: str
    state: str
    ended: str
    champion: str = ""
    dataset_source: str = ""
    error: str = ""
    remedy: str = ""


def record_end(settings: Settings, *, pipeline: str, run_id: str, state: str) -> End:
    """Write the end of a run to storage, once more when it is asked again. `state` is that of its tasks.

    An MLflow or an API server that is away leaves its part of the record empty.
    """
    succeeded = state == COMPLETE
    champion = _known(lambda: Tracking(settings).by_alias(CHAMPION))
    reason = None if succeeded else _known(lambda: failure(run_id, settings.kube_context))
    end = End(
        run_id,
        pipeline,
        "succeeded" if succeeded else "failed",
        datetime.now(UTC).isoformat(timespec="seconds"),
        champion.version if champion else "",
        champion.tags.get("dataset_source", "") if champion else "",
        reason.problem if reason else "",
        reason.remedy if reason else "",
    )
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    storage.write(end_key(run_id), json.dumps(asdict(end), indent=1).encode())
    log.info("run %s of %s %s%s", run_id, pipeline, end.state, f": {end.error}" if end.error else "")
    return end


def _known(ask: Callable[[], Found | None]) -> Found | None:
    try:
        return ask()
    except HealthPredictError as error:
        log.warning("the record is not whole: %s", error.problem)
        return None
