"""What rollouts and people did with the versions: when each served, who approved or refused it, and the pin.

It is kept in tags of MLflow's registry, where everybody can read it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from health_predict.adapters.tracking.model_registry import CHALLENGER, CHAMPION, ModelVersion, Tracking
from health_predict.adapters.tracking.tags import ApprovalState, Tag


@dataclass(frozen=True, slots=True)
class Statement:
    """Who said something about a version, when (UTC, ISO 8601) and why."""

    by: str
    at: str
    why: str = ""

    def __str__(self) -> str:
        return f"by {self.by} at {_minute(self.at)} UTC" + (f": {self.why}" if self.why else "")


@dataclass(frozen=True, slots=True)
class Pin:
    """The version that was brought back by a rollback: newer ones wait for approval until it is released."""

    version: str
    said: Statement


@dataclass(frozen=True, slots=True)
class Interval:
    """When a version served, UTC, ISO 8601. `end` is empty while it does."""

    begin: str
    end: str = ""

    def __str__(self) -> str:
        return f"{_minute(self.begin)} to {_minute(self.end) or 'now'}"


def moment() -> str:
    """The present, as the tags have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def approval_of(version: ModelVersion) -> ApprovalState | None:
    """What a person said of a version; None when nobody was asked."""
    state = version.tags.get(Tag.APPROVAL)
    return ApprovalState(state) if state else None


def statement_of(version: ModelVersion) -> Statement | None:
    """Who approved or refused a version; None when nobody did."""
    if approval_of(version) not in (ApprovalState.APPROVED, ApprovalState.REFUSED):
        return None
    by, at, why = (version.tags.get(tag, "") for tag in (Tag.APPROVAL_BY, Tag.APPROVAL_AT, Tag.APPROVAL_WHY))
    return Statement(by, at, why)


def state_approval(
    tracking: Tracking, version: ModelVersion, state: ApprovalState, by: str = "", why: str = ""
) -> None:
    """Write down what is said of a version. The state comes last: it says that the rest is there."""
    said: dict[str, str] = {Tag.APPROVAL_BY: by, Tag.APPROVAL_AT: moment(), Tag.APPROVAL_WHY: why}
    tracking.tag_version(version.version, said)
    tracking.tag_version(version.version, {Tag.APPROVAL: state})


def waiting(tracking: Tracking) -> ModelVersion | None:
    """The version that waits for approval."""
    challenger = tracking.by_alias(CHALLENGER)
    return challenger if challenger and approval_of(challenger) is ApprovalState.WAITING else None


def pinned(tracking: Tracking) -> Pin | None:
    """The pin; None when there is none."""
    stored = tracking.model_tag(Tag.PINNED)
    if not stored:
        return None
    content = json.loads(stored)
    return Pin(content["version"], Statement(content["by"], content["at"], content["why"]))


def pin(tracking: Tracking, version: str, by: str, why: str) -> Pin:
    """Pin a version; the same once more changes nothing."""
    known = pinned(tracking)
    if known is not None and known.version == version:
        return known
    made = Pin(version, Statement(by, moment(), why))
    tracking.tag_model({Tag.PINNED: json.dumps({"version": version, **asdict(made.said)})})
    return made


def release(tracking: Tracking) -> Pin | None:
    """Remove the pin; the one that there was."""
    known = pinned(tracking)
    if known is not None:
        tracking.tag_model({Tag.PINNED: ""})
    return known


def served(version: ModelVersion) -> tuple[Interval, ...]:
    """When a version served, oldest first."""
    return tuple(Interval(begin, end or "") for begin, end in json.loads(version.tags.get(Tag.SERVED, "[]")))


def has_served(version: ModelVersion) -> bool:
    """Whether a version serves or did; the champion of a registry from before this was written down, too."""
    return bool(served(version)) or CHAMPION in version.aliases


def record_service(tracking: Tracking, begun: Sequence[str], ended: Sequence[str]) -> None:
    """Some versions serve from now on, others do not any more. What is written down already stays."""
    now = moment()
    for number in begun:
        intervals = served(tracking.version(number))
        if not intervals or intervals[-1].end:
            _write(tracking, number, (*intervals, Interval(now)))
    for number in ended:
        intervals = served(tracking.version(number))
        if intervals and not intervals[-1].end:
            _write(tracking, number, (*intervals[:-1], Interval(intervals[-1].begin, now)))


def served_before(versions: Sequence[ModelVersion], champion: ModelVersion | None) -> ModelVersion | None:
    """Of all but the champion, the version that served last; None when none did."""
    ended = {
        intervals[-1].end: one
        for one in versions
        if (intervals := served(one)) and (champion is None or one.version != champion.version)
    }
    return ended[max(ended)] if ended else None


def _minute(moment: str) -> str:
    """A moment of the tags, for people."""
    return moment[:16].replace("T", " ")


def _write(tracking: Tracking, version: str, intervals: Sequence[Interval]) -> None:
    pairs = [[one.begin, one.end or None] for one in intervals]
    tracking.tag_version(version, {Tag.SERVED: json.dumps(pairs)})
