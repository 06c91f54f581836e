"""approval: whether a version that passed its gates comes into service by itself or waits for a person.

A person is asked when the settings say so (`HEALTH_PREDICT_APPROVAL=ask`), and while a rollback has pinned a version.
Simulations are exempt: they bring their own models into service, and put back what served.
"""

from __future__ import annotations

import logging

from health_predict.adapters import keys
from health_predict.adapters.contracts import stored_contract
from health_predict.adapters.notifications import Event, tell
from health_predict.adapters.storage import Storage
from health_predict.adapters.tracking import CARD, CHALLENGER, CHAMPION, EVALUATION, ModelVersion, Tag, Tracking
from health_predict.adapters.tracking.history import (
    approval_of,
    has_served,
    pinned,
    state_approval,
    statement_of,
    waiting,
)
from health_predict.adapters.tracking.tags import ApprovalState
from health_predict.core.choices import Approval
from health_predict.core.data.contract import Contract
from health_predict.core.promotion import Decision
from health_predict.errors import GateError
from health_predict.report.model_card import model_card_page
from health_predict.settings import Settings
from health_predict.stages.compare import renew_page

log = logging.getLogger(__name__)


def why_asked(settings: Settings, tracking: Tracking) -> str:
    """Why a new version waits for a person; empty when it does not."""
    if keys.is_simulation(settings.stream):
        return ""
    if pin := pinned(tracking):
        return f"version {pin.version} is pinned {pin.said}"
    return "HEALTH_PREDICT_APPROVAL is ask" if settings.approval is Approval.ASK else ""


def offer(settings: Settings, tracking: Tracking, version: ModelVersion) -> tuple[Decision, str]:
    """Make a version that passed its gates the challenger: `promote`, or `wait` for a person, and why.

    One that a person refused is rejected. A challenger that waited until now is replaced. Safe to repeat.
    """
    state = approval_of(version)
    if state is ApprovalState.REFUSED:
        return Decision.REJECT, f"version {version.version} was refused {statement_of(version)}"
    why = why_asked(settings, tracking)
    waits = bool(why) and not _approved(tracking, version)
    if waits and state is not ApprovalState.WAITING:
        state_approval(tracking, version, ApprovalState.WAITING, why=why)
    before = waiting(tracking)
    if before is not None and before.version != version.version:
        state_approval(tracking, before, ApprovalState.REPLACED, why=f"version {version.version} came after it")
        log.info("version %s takes the place of version %s, which waited", version.version, before.version)
    tracking.set_alias(CHALLENGER, version.version)  # last: `waiting` goes by it
    if not waits:
        return Decision.PROMOTE, ""
    number, since = version.version, tracking.version(version.version).tags[Tag.APPROVAL_AT]
    said = f"Version {number} passed its gates and waits for approval: {why}."
    next_step = f"`health-predict compare {number}`, then `health-predict approve {number}` or `refuse {number}`"
    tell(settings, Event.WAITING, f"{number} {since}", said, next_step)
    return Decision.WAIT, f"it waits for approval: {why}"


def must_be_approved(settings: Settings, tracking: Tracking, version: ModelVersion) -> None:
    """Refuse to bring a version into service that waits for a person, or was refused by one (GateError)."""
    number = version.version
    if approval_of(version) is ApprovalState.REFUSED:
        raise GateError(
            f"version {number} was refused {statement_of(version)}", f"`health-predict approve {number}` approves it"
        )
    why = why_asked(settings, tracking)
    if why and not (_approved(tracking, version) or has_served(version)):
        look = "compare" if tracking.by_alias(CHAMPION) else "report open"
        raise GateError(
            f"version {number} waits for approval: {why}",
            f"`health-predict {look} {number}` shows it; `health-predict approve {number}` brings it into service",
        )


def approve(tracking: Tracking, storage: Storage, version: ModelVersion, by: str, why: str = "") -> None:
    """Write down that a person approves a version. Raises GateError for one that did not pass its gates."""
    number, decision = version.version, version.tags.get(Tag.DECISION, "not made")
    if decision != Decision.PROMOTE and not has_served(version):
        raise GateError(
            f"version {number} did not pass its gates: the decision is {decision}",
            f"`health-predict report open {number}` says why; only what passed can be approved",
        )
    if not _approved(tracking, version):
        state_approval(tracking, version, ApprovalState.APPROVED, by, why)
        log.info("version %s is approved by %s", number, by)
    _write_pages(tracking, storage, number)


def refuse(tracking: Tracking, storage: Storage, version: ModelVersion, by: str, why: str) -> None:
    """Write down that a person refuses a version: it does not come into service. Raises GateError for what serves."""
    champion, number = tracking.by_alias(CHAMPION), version.version
    if champion is not None and champion.version == number:
        raise GateError(
            f"version {number} serves: it cannot be refused any more",
            "`health-predict rollback` brings the version before it back",
        )
    state_approval(tracking, version, ApprovalState.REFUSED, by, why)
    challenger = tracking.by_alias(CHALLENGER)
    if challenger is not None and challenger.version == number:
        tracking.delete_alias(CHALLENGER)
    _write_pages(tracking, storage, number)


def _write_pages(tracking: Tracking, storage: Storage, number: str) -> None:
    """Write what people said of a version to its card, and to its page beside the champion of its time."""
    version = tracking.version(number)
    contract = stored_contract(storage, version.tags[Tag.CONTRACT_DIGEST])
    write_card(tracking, storage, version, contract)
    renew_page(tracking, storage, version, contract)


def write_card(tracking: Tracking, storage: Storage, version: ModelVersion, contract: Contract) -> str:
    """Write a version's card, with what people said of it, to its run and to storage; the page."""
    run, state = tracking.run(version.run_id), approval_of(version)
    said = f"{state.value} {statement_of(version) or ''}".strip() if state else ""
    page = model_card_page(version.version, contract, run, tracking.read_json(run.run_id, EVALUATION), said)
    tracking.log_text(run.run_id, CARD, page)
    storage.write(keys.model(version.version, keys.CARD), page.encode())
    return page


def _approved(tracking: Tracking, version: ModelVersion) -> bool:
    """Whether a person has approved a version, and after the last rollback, if that still pins."""
    said, pin = statement_of(version), pinned(tracking)
    if said is None or approval_of(version) is not ApprovalState.APPROVED:
        return False
    return pin is None or pin.version == version.version or said.at >= pin.said.at
