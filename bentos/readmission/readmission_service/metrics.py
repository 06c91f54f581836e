"""Prometheus metrics. Every label has a bounded set of values, whatever a client sends.

With PROMETHEUS_MULTIPROC_DIR set, the workers of one endpoint share their counts and any of them gives the sum.
What every request counts is noted in lists and handed to prometheus_client together: there a single observation
costs as much as decoding the request. So what other workers counted may be a second old.
"""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess

from readmission_service.scorer import Identity

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
PROBABILITIES = tuple(round(0.05 * step, 2) for step in range(1, 21))
prometheus_client.disable_created_metrics()  # as many series again, which nobody asks for
# How long a count may wait, and how many of them.
WAIT_SECONDS, WAITING = 1.0, 512
PREFIX = "health_predict"


class Metrics:
    """The counts of this process."""

    def __init__(self, routes: tuple[str, ...], columns: tuple[str, ...], shared: Path | None) -> None:
        self._shared = shared
        # A registry of its own, so that a process may hold several services.
        self._registry = registry = CollectorRegistry()
        requests = Counter(f"{PREFIX}_requests", "Answered requests", ("route", "status"), registry=registry)
        latency = Histogram(
            f"{PREFIX}_latency_seconds", "From request to answer", ("route",), buckets=LATENCIES, registry=registry
        )
        decisions = Counter(f"{PREFIX}_decisions", "Scored encounters", ("prediction",), registry=registry)
        unseen = Counter(f"{PREFIX}_unseen", "Values that training never had", ("column",), registry=registry)
        self._probability = Histogram(
            f"{PREFIX}_probability", "Scored probabilities", buckets=PROBABILITIES, registry=registry
        )
        self.log_dropped = Counter(f"{PREFIX}_prediction_log_dropped", "Predictions not logged", registry=registry)
        self.log_written = Counter(f"{PREFIX}_prediction_log_written", "Predictions logged", registry=registry)
        self.log_shipped = Counter(
            f"{PREFIX}_prediction_log_files_shipped", "Files of the prediction log that storage took", registry=registry
        )
        self.log_failures = Counter(
            f"{PREFIX}_prediction_log_storage_failures", "Times that storage did not take a file", registry=registry
        )
        self.log_spool = Gauge(
            f"{PREFIX}_prediction_log_spool_bytes",
            "What the prediction log holds on disk, not shipped yet",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self._model = Gauge(
            f"{PREFIX}_model",
            "1 for the model that is served",
            ("model_version", "family", "dataset_source"),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._requests = requests
        self._latency = {route: latency.labels(route) for route in routes}
        self._decisions = (decisions.labels("0"), decisions.labels("1"))
        self.unseen = tuple(unseen.labels(column) for column in columns)
        self._answered: list[tuple[str, int, float]] = []
        self._probabilities: list[float] = []
        self._predictions: list[int] = []
        self._timer: asyncio.TimerHandle | None = None

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer; route and status come from the service, never from the client."""
        self._answered.append((route, status, seconds))
        if len(self._answered) >= WAITING:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WAIT_SECONDS, self.flush)

    def scored(self, probability: float, prediction: int) -> None:
        """Count a scored encounter."""
        self._probabilities.append(probability)
        self._predictions.append(prediction)

    def scored_many(self, probabilities: Sequence[float], predictions: Sequence[int]) -> None:
        """Count scored encounters, (n,) both."""
        self._probabilities += probabilities
        self._predictions += predictions

    def flush(self) -> None:
        """Hand all that waits to prometheus_client."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        answered, self._answered = self._answered, []
        probabilities, self._probabilities = self._probabilities, []
        predictions, self._predictions = self._predictions, []
        for (route, status), count in Tally((route, status) for route, status, _ in answered).items():
            self._requests.labels(route, str(status)).inc(count)
            seconds = [spent for asked, code, spent in answered if (asked, code) == (route, status)]
            _observe(self._latency[route], LATENCIES, np.array(seconds))
        if probabilities:
            _observe(self._probability, PROBABILITIES, np.array(probabilities))
            for decision, count in enumerate(np.bincount(predictions, minlength=2).tolist()):
                self._decisions[decision].inc(count)

    def model(self, identity: Identity) -> None:
        """Tell which model is served."""
        self._model.labels(identity.model_version, identity.family, identity.dataset_source).set(1)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        self.flush()
        if self._shared is None:
            return prometheus_client.generate_latest(self._registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=str(self._shared))
        return prometheus_client.generate_latest(registry)


def _observe(histogram: Histogram, bounds: tuple[float, ...], values: npt.NDArray[np.float64]) -> None:
    """Observe many values (n,) at once; prometheus_client itself takes one at a time."""
    buckets = np.bincount(np.searchsorted(bounds, values), minlength=len(bounds) + 1)
    for bucket, count in zip(histogram._buckets, buckets.tolist(), strict=True):
        if count:
            bucket.inc(count)
    histogram._sum.inc(float(values.sum()))
