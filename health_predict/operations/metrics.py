"""The state of the loop as Prometheus metrics: what arrives, what was judged, what waits, which version is champion.

Nothing of ours runs between two runs, so this is read from storage and MLflow when it is asked for. An age is a time
here: Prometheus takes it from its own clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from zoneinfo import ZoneInfo

from prometheus_client import CollectorRegistry, Gauge

from health_predict.adapters import keys
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.notifications import undelivered
from health_predict.adapters.pipelines.local import list_runs
from health_predict.adapters.tracking import CHAMPION, Tracking
from health_predict.core.monitoring.drift import Alarm
from health_predict.serving.metrics import PREFIX
from health_predict.settings import Settings


def loop_metrics(settings: Settings) -> CollectorRegistry:
    """Ask storage and the registry. Raises UnreachableError when one does not answer."""
    registry = CollectorRegistry()

    def gauge(name: str, description: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", description, labels, registry=registry)

    batches, tracking = Batches(settings), Tracking(settings)
    state, progress, champion = batches.arrivals.state(), batches.progress(), tracking.by_alias(CHAMPION)
    closed = batches.numbers()
    gauge("arrivals", "Encounters that have arrived").set(state.arrived)
    gauge("arrivals_quarantined", "Encounters that were set aside").set(state.quarantined)
    gauge("batches", "Windows that are closed").set(len(closed))
    gauge("batches_waiting", "Closed windows that are not judged").set(len(closed[progress.settled :]))
    gauge("outcomes_waiting", "Judged windows that wait for outcomes").set(len(progress.waiting))
    gauge("messages_waiting", "Messages that not everybody has taken").set(len(undelivered(settings)))
    gauge("model_versions", "Versions of the registered model").set(len(tracking.versions()))
    if champion:
        gauge("champion", "1 for the version that is champion", "model_version").labels(champion.version).set(1)
    if ended := max(_monitored(settings, batches), default=None):
        gauge("monitoring_success_timestamp_seconds", "When monitoring last ended well").set(ended.timestamp())
    if (last := batches.decision(progress.pending or progress.last or "")) is not None:
        end = datetime.fromisoformat(batches.arrivals.window(last.batch).end)
        stamp = end.replace(tzinfo=ZoneInfo(settings.time_zone)).timestamp()
        gauge("window_end_timestamp_seconds", "End of the window that was judged last").set(stamp)
        alarms = gauge("alarm", "1 for what was surely found at the last look", "kind")
        for kind in Alarm:
            alarms.labels(kind.value).set(kind in last.alarms)
    known = [one for one in batches.decisions() if one.judged is not None]
    if judged := max(known, key=lambda one: (one.judged, one.batch), default=None):
        for name, words in (("auc", "AUC"), ("observed_expected", "Observed over expected outcomes")):
            if name in judged.metrics:
                gauge(f"window_{name}", f"{words} of the last judged window with outcomes").set(judged.metrics[name])
    return registry


def _monitored(settings: Settings, batches: Batches) -> Iterator[datetime]:
    """When runs of monitoring ended well, here and in a cluster."""
    stored = (json.loads(batches.storage.read(key)) for key in batches.storage.keys(keys.RUNS))
    for run in (*list_runs(settings.home), *stored):
        if (run["pipeline"], run["state"]) == ("monitoring", "succeeded"):
            yield datetime.fromisoformat(run["ended"])
