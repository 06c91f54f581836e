"""Prometheus metrics. Every label has a bounded set of values, whatever a client sends.

With PROMETHEUS_MULTIPROC_DIR set, the workers of one endpoint share their counts and any of them gives the sum.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess
from prometheus_client.exposition import choose_encoder

from health_predict.serving.schemas import Prediction
from health_predict.serving.scorer import Identity

LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
# Upper ends of the ranges that probabilities are counted in.
RANGES = tuple(round(step / 20, 2) for step in range(1, 21))
PREFIX = "health_predict"
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call] # as many series again, which nobody asks for


class Metrics:
    """The counts of this process, in a registry of their own."""

    def __init__(self, routes: Iterable[str]) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, description: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", description, labels, registry=registry)

        self._requests = counter("requests", "Answered requests", "route", "status")
        self._callers = counter("callers", "Requests, by what came of the token: taken, none or wrong", "outcome")
        latency = Histogram(
            f"{PREFIX}_latency_seconds", "From request to answer", ("route",), buckets=LATENCIES, registry=registry
        )
        self._latency = {route: latency.labels(route) for route in routes}
        decisions = counter("decisions", "Scored encounters", "prediction")
        self._decisions = {decision: decisions.labels(str(decision)) for decision in (0, 1)}
        probabilities = counter("probabilities", "Scored probabilities, by the upper end of their range", "up_to")
        self._probabilities = [probabilities.labels(str(up_to)) for up_to in RANGES]
        self._unseen = counter("unseen", "Values that training never had", "column")
        self.log_dropped = counter("prediction_log_dropped", "Predictions not logged")
        self.log_written = counter("prediction_log_written", "Predictions logged")
        self.log_shipped = counter("prediction_log_files_shipped", "Files of the prediction log that storage took")
        self.log_failures = counter("prediction_log_storage_failures", "Times that storage did not take a file")
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

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer; route and status come from the service, never from the client."""
        self._requests.labels(route, str(status)).inc()
        self._latency[route].observe(seconds)

    def called(self, outcome: str) -> None:
        """Count what came of the token of a request: one of a few words, never the token or its name."""
        self._callers.labels(outcome).inc()

    def scored(self, predictions: Sequence[Prediction], unseen: Mapping[str, int]) -> None:
        """Count scored encounters, and by column the values that training never had."""
        for decision, count in Tally(one.prediction for one in predictions).items():
            self._decisions[decision].inc(count)
        for place, count in Tally(bisect_left(RANGES, one.probability_score) for one in predictions).items():
            self._probabilities[place].inc(count)
        for column, count in unseen.items():
            self._unseen.labels(column).inc(count)

    def model(self, identity: Identity) -> None:
        """Tell which model is served."""
        self._model.labels(identity.model_version, identity.family, identity.dataset_source).set(1)

    def text(self, accept: str) -> tuple[bytes, str]:
        """All metrics with their content type: OpenMetrics if a header `Accept` asks for it, else Prometheus' text."""
        encode, content_type = choose_encoder(accept)
        registry, shared = self._registry, os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if shared:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry, path=shared)  # type: ignore[no-untyped-call]
        return encode(registry), content_type
