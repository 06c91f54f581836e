"""versions: what there is in the registry, what became of each version and why, and when it served."""

from __future__ import annotations

from dataclasses import dataclass

from health_predict.adapters.reachable import must_answer
from health_predict.adapters.tracking import CHALLENGER, CHAMPION, ApprovalState, ModelVersion, Tag, Tracking
from health_predict.adapters.tracking.history import Pin, approval_of, pinned, served, statement_of
from health_predict.core.promotion import Decision
from health_predict.operations.status import evaluation
from health_predict.settings import Settings


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A version, for people: `state` is what became of it in words, `reasons` are the gates' that decided."""

    version: str
    family: str
    auc: float | None
    """On its own test set; None for one that another program registered."""
    served: tuple[tuple[str, str], ...]
    """Begin and end, UTC, ISO 8601, oldest first; an empty end: it does."""
    decision: str
    state: str
    reasons: tuple[str, ...]


def versions(settings: Settings) -> list[VersionRecord]:
    """All versions, newest first. Raises UnreachableError when the registry does not answer."""
    must_answer(settings, "mlflow_tracking_uri")
    tracking = Tracking(settings)
    pin = pinned(tracking)
    return [_record(tracking, one, pin) for one in tracking.versions()]


def _record(tracking: Tracking, version: ModelVersion, pin: Pin | None) -> VersionRecord:
    judged = evaluation(tracking, version) or {}
    decision = version.tags.get(Tag.DECISION, "")
    tested = judged.get("on_test")
    return VersionRecord(
        version=version.version,
        family=version.tags.get(Tag.FAMILY, ""),
        auc=tested["metrics"]["auc"]["value"] if tested else None,
        served=tuple((one.begin, one.end) for one in served(version)),
        decision=decision,
        state=state_of(version, pin),
        reasons=tuple(judged.get("reasons", ())),
    )


def state_of(version: ModelVersion, pin: Pin | None) -> str:
    """What became of a version, in words."""
    decision, approval, said = version.tags.get(Tag.DECISION, ""), approval_of(version), statement_of(version)
    if CHAMPION in version.aliases:
        words = "champion" + (", passed its gates" if decision == Decision.PROMOTE else "")
    elif approval is ApprovalState.REFUSED:
        words = f"refused {said}"
    elif CHALLENGER in version.aliases:
        words = "challenger, waits for approval" if approval is ApprovalState.WAITING else "challenger, not rolled out"
    elif served(version):
        words = "served before"
    elif approval is ApprovalState.REPLACED:
        words = f"replaced while it waited: {version.tags.get(Tag.APPROVAL_WHY, '')}"
    elif decision == Decision.REJECT:
        words = "rejected by its gates"
    else:
        words = f"passed its gates{', approved' if approval else ''}, never served" if decision else "not judged"
    if approval is ApprovalState.APPROVED:
        words += f"; approved {said}"
    if pin is not None and pin.version == version.version:
        words += f"; pinned {pin.said}"
    return words
