"""status: which model serves, since when, how good it is, what monitoring last said, and what is waiting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from health_predict.adapters import keys
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.raw_data import origin_of
from health_predict.adapters.data.records import Progress
from health_predict.adapters.notifications import undelivered
from health_predict.adapters.reachable import must_answer
from health_predict.adapters.serving.port import Active
from health_predict.adapters.serving.target import open_target
from health_predict.adapters.tracking import (
    CHALLENGER,
    CHAMPION,
    EVALUATION,
    ApprovalState,
    ModelVersion,
    Tag,
    Tracking,
)
from health_predict.adapters.tracking.history import approval_of, pinned
from health_predict.errors import StateError
from health_predict.settings import Settings
from health_predict.simulation.in_service import under_way


@dataclass(frozen=True, slots=True)
class LastDrift:
    """The verdict on the latest batch that was monitored."""

    batch: int
    verdict: str
    reasons: tuple[str, ...]
    report: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """What came in: all since the stream began, but for what is `open` or `at_door`."""

    total: int
    open: int  # in no batch yet
    at_door: int  # files of encounters that the next monitoring takes in
    without_patient: int  # judged and never learned from
    repeated: int  # of the same encounter: left out
    quarantined: int
    outcomes: Mapping[str, Any]
    """How many were taken, late, repeated, contradicting and unknown; files that were damaged."""
    delivered: int = 0  # files of outcomes that the next monitoring takes in


@dataclass(frozen=True, slots=True)
class Status:
    """What an operator wants to know at a glance."""

    url: str
    serving: Active | None
    champion: str  # version with the alias; empty when there is none
    family: str
    synthetic: bool
    data: str  # what the champion stands on: source and start of the SHA-256 of its raw data
    on_test: Mapping[str, Any]
    """The champion on its own test set: rows, positives, and metrics (name -> value, low, high)."""
    comparisons: tuple[Mapping[str, Any], ...]
    """The champion beside the one before it on the same rows: its own, and the former ones of replaced data."""
    drift: LastDrift | None
    arrivals: Arrived
    batches: int  # batches of the stream that are closed
    monitored: int
    waiting: tuple[str, ...]  # what somebody or some pipeline should do next


def status(settings: Settings) -> Status:
    """Ask the endpoint, the registry and the storage. Raises UnreachableError when one does not answer."""
    must_answer(settings, "s3_endpoint_url", "mlflow_tracking_uri")
    target = open_target(settings)
    active = target.active()
    tracking = Tracking(settings)
    champion = tracking.by_alias(CHAMPION)
    batches = Batches(settings)
    progress, arrived = batches.progress(), _arrived(batches)
    closed = len(batches.numbers())
    waiting = [*_rollouts(tracking, active, champion, target.trouble())]
    for count, what in ((arrived.at_door, ""), (arrived.delivered, " of outcomes")):
        if count:
            some = f"1 file{what}" if count == 1 else f"{count:,} files{what}"
            waiting.append(f"{some} at the door: the next monitoring takes {'it' if count == 1 else 'them'} in")
    if progress.settled < closed:
        waiting.append(f"{closed - progress.settled} of {closed} batches are not judged yet, next: {progress.settled}")
    waiting += _outcomes(batches, progress, arrived)
    if before := under_way(settings):
        again = f", which brings back version {before.version} at its end" if before.version else ""
        waiting.append(f"simulation {before.simulation} was begun and its model serves: give its command again{again}")
    if count := len(undelivered(settings)):
        some = "1 message was" if count == 1 else f"{count:,} messages were"
        waiting.append(f"{some} not taken by everybody who is to be told: `health-predict notify list`")
    # What serves is worth showing without its evaluation.
    judged = (evaluation(tracking, champion) if champion else None) or {}
    tested = judged.get("on_test")
    return Status(
        url=target.url,
        serving=active,
        champion=champion.version if champion else "",
        family=champion.tags.get(Tag.FAMILY, "") if champion else "",
        synthetic=champion is not None and champion.tags.get(Tag.DATASET_SOURCE) == "synthetic",
        data=origin_of(batches.storage, champion).data if champion else "",
        on_test={name: tested[name] for name in ("rows", "positives", "metrics")} if tested else {},
        comparisons=tuple(judged.get("comparisons", ())),
        drift=_last(batches, progress),
        arrivals=arrived,
        batches=closed,
        monitored=progress.settled,
        waiting=tuple(waiting),
    )


def _rollouts(tracking: Tracking, active: Active | None, champion: ModelVersion | None, trouble: str) -> list[str]:
    found = []
    if champion is None:
        found.append("no champion yet: `health-predict demo`")
    elif active is None:
        found.append(f"{trouble or 'the endpoint is down'}: `health-predict serve`")
    elif active.model_version != champion.version:
        found.append(f"version {active.model_version} serves, {champion.version} is champion: `health-predict serve`")
    challenger = tracking.by_alias(CHALLENGER)
    if challenger is not None and (champion is None or challenger.version != champion.version):
        number = challenger.version
        if approval_of(challenger) is ApprovalState.WAITING:
            found.append(f"version {number} waits for approval: `health-predict compare`, then `approve {number}`")
        else:
            remedy = f"`health-predict pipeline run deployment -p model_version={number}`"
            found.append(f"challenger version {number} is not rolled out: {remedy}")
    if pin := pinned(tracking):
        found.append(f"version {pin.version} is pinned {pin.said}: `health-predict rollback --release`")
    return found


def _arrived(batches: Batches) -> Arrived:
    state = batches.arrivals.state()
    return Arrived(
        total=state.arrived,
        open=state.windows.waiting,
        at_door=len([key for key in batches.arrivals.at_door() if key not in state.taken]),
        delivered=len(
            [key for key in batches.storage.keys(keys.outcomes_door(batches.stream)) if key not in state.taken]
        ),
        without_patient=state.without_patient,
        repeated=state.repeated,
        quarantined=state.quarantined,
        outcomes={**asdict(state.outcomes), "unknown": state.unknown},
    )


def _outcomes(batches: Batches, progress: Progress, arrived: Arrived) -> list[str]:
    """What the outcomes of batches wait for that were judged without them, and files that cannot be read."""
    found = []
    for number in progress.waiting:
        joined = batches.outcomes(number)
        matured = "known, judged by the next monitoring" if joined.matured else joined.waiting
        found.append(f"outcomes of batch {number}: {matured}")
    return found + [f"set aside: {problem}" for problem in arrived.outcomes["damaged"]]


def _last(batches: Batches, progress: Progress) -> LastDrift | None:
    last = batches.decision(progress.pending or progress.last) if progress.pending or progress.last else None
    if last is None:
        return None
    return LastDrift(
        last.batch, last.verdict, last.reasons, batches.storage.uri(batches.report_key(last.key, keys.REPORT))
    )


def evaluation(tracking: Tracking, version: ModelVersion) -> Mapping[str, Any] | None:
    """What `register` stored about a version; None for one that another program registered."""
    try:
        content: Mapping[str, Any] = tracking.read_json(version.run_id, EVALUATION)
    except StateError:
        return None
    return content
