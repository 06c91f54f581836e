"""status: which model serves, since when, how good it is, what monitoring last said, and what is waiting."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from health_predict.adapters.mlflow import CHALLENGER, CHAMPION, ModelVersion, Tracking
from health_predict.adapters.storage import Storage, open_storage
from health_predict.adapters.target import Active, open_target
from health_predict.core.errors import StateError
from health_predict.settings import Settings

EVALUATION = "evaluation.json"
_BATCH = re.compile(r"/batches/(\d+)\.parquet$")


@dataclass(frozen=True, slots=True)
class LastDrift:
    """The verdict on the latest batch that was monitored."""

    batch: int
    verdict: str
    reasons: tuple[str, ...]
    report: str


@dataclass(frozen=True, slots=True)
class Status:
    """What an operator wants to know at a glance."""

    url: str
    serving: Active | None
    champion: str
    """Version with the alias; empty when there is none."""
    family: str
    synthetic: bool
    metrics: Mapping[str, Mapping[str, float]]
    """Test metrics of the champion: name -> value, low, high."""
    drift: LastDrift | None
    batches: int
    """Future batches of the champion's dataset."""
    monitored: int
    waiting: tuple[str, ...]
    """What somebody or some pipeline should do next."""


def status(settings: Settings) -> Status:
    """Ask the endpoint, the registry and the storage. Raises UnreachableError when one does not answer."""
    target = open_target(settings)
    active = target.active()
    tracking = Tracking(settings)
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    champion = tracking.by_alias(CHAMPION)
    batches, records = _monitoring(storage, champion) if champion else ([], [])
    waiting = [*_rollouts(tracking, active, champion, target.trouble())]
    # A batch that led to a new version was monitored too, by the version before.
    handled = {int(record["batch"]) for record in records} & set(batches)
    open_batches = [number for number in batches if number not in handled]
    if open_batches:
        waiting.append(f"{len(open_batches)} of {len(batches)} batches are not monitored yet, next: {open_batches[0]}")
    return Status(
        url=target.url,
        serving=active,
        champion=champion.version if champion else "",
        family=champion.tags.get("family", "") if champion else "",
        synthetic=champion is not None and champion.tags.get("dataset_source") == "synthetic",
        metrics=_metrics(tracking, champion) if champion else {},
        drift=_last(storage, records),
        batches=len(batches),
        monitored=len(handled),
        waiting=tuple(waiting),
    )


def _rollouts(tracking: Tracking, active: Active | None, champion: ModelVersion | None, trouble: str) -> list[str]:
    if champion is None:
        found = ["no champion yet: `health-predict demo`"]
    elif active is None:
        found = [f"{trouble or 'the endpoint is down'}: `health-predict serve`"]
    elif active.model_version != champion.version:
        found = [f"version {active.model_version} serves, {champion.version} is champion: `health-predict serve`"]
    else:
        found = []
    challenger = tracking.by_alias(CHALLENGER)
    if challenger is not None and (champion is None or challenger.version != champion.version):
        remedy = f"`health-predict pipeline run deployment -p model_version={challenger.version}`"
        found.append(f"challenger version {challenger.version} is not rolled out: {remedy}")
    return found


def _monitoring(storage: Storage, champion: ModelVersion) -> tuple[list[int], list[dict[str, Any]]]:
    """Numbers of the champion's future batches, and the records of every batch monitored so far, the newest last."""
    dataset = f"datasets/{champion.tags.get('dataset_digest', 'none')}/batches/"
    batches = sorted(int(found[1]) for key in storage.keys(dataset) if (found := _BATCH.search(key)))
    records: list[dict[str, Any]] = [json.loads(storage.read(key)) for key in storage.keys("watermarks/monitoring/")]
    return batches, sorted(records, key=lambda record: (int(record["model_version"]), int(record["batch"])))


def _last(storage: Storage, records: list[dict[str, Any]]) -> LastDrift | None:
    if not records:
        return None
    record = records[-1]
    report = storage.uri(f"drift/{record['model_version']}/{record['batch_digest'][:12]}/report.html")
    return LastDrift(int(record["batch"]), str(record["verdict"]), tuple(record["reasons"]), report)


def _metrics(tracking: Tracking, champion: ModelVersion) -> Mapping[str, Mapping[str, float]]:
    try:
        evaluation = tracking.read_json(champion.run_id, EVALUATION)
    except StateError:
        return {}  # registered by another program: what serves is still worth showing
    found: Mapping[str, Mapping[str, float]] = evaluation["on_test"]["metrics"]
    return found
