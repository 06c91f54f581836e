"""approval: a version that passed its gates waits for a person, and nothing changes without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from health_predict.adapters.storage import Storage, open_storage
from health_predict.adapters.tracking import (
    CHALLENGER,
    CHAMPION,
    EVALUATION,
    ApprovalState,
    ModelVersion,
    Tag,
    Tracking,
)
from health_predict.adapters.tracking.history import approval_of, pin, pinned, release, statement_of
from health_predict.core.choices import Approval
from health_predict.core.promotion import Decision
from health_predict.errors import GateError
from health_predict.operations.versions import state_of
from health_predict.settings import Settings
from health_predict.stages.approval import approve, must_be_approved, offer, refuse
from health_predict.stages.compare import compare
from tests.conftest import Parts
from tests.searches import Searches, made, run, searches

__all__ = ["made", "searches"]  # fixtures


@pytest.fixture
def asking(searches: Searches) -> Searches:
    """Two registered versions that passed their gates, where a person is asked."""
    asking = replace(searches, settings=searches.settings.model_copy(update={"approval": Approval.ASK}))
    tracking = Tracking(asking.settings)
    for result in asking.results.values():  # models of so few encounters pass no gate
        version = tracking.version(result.model_version)
        judged = tracking.read_json(version.run_id, EVALUATION)
        tracking.log_json(version.run_id, EVALUATION, {**judged, "decision": Decision.PROMOTE})
        tracking.tag_version(version.version, {"decision": Decision.PROMOTE})
    return asking


def of(searches: Searches, name: str) -> ModelVersion:
    return Tracking(searches.settings).version(searches.results[name].model_version)


def stored(settings: Settings) -> tuple[Tracking, Storage]:
    return Tracking(settings), open_storage(settings.storage)


def card(settings: Settings, version: str) -> str:
    return open_storage(settings.storage).read(f"models/{version}/card.html").decode()


def test_what_passed_its_gates_waits_where_a_person_is_asked(asking: Searches, parts: Parts, tmp_path: Path) -> None:
    # when a search is registered
    settings, tracking = asking.settings, Tracking(asking.settings)
    result = run(settings, asking.parents["other"], parts, tmp_path)
    # then it is the challenger and waits, which register says, and so does the card
    version = tracking.version(result.model_version)
    assert result.decision is Decision.WAIT and "waits for approval" in result.reasons[-1]
    assert approval_of(version) is ApprovalState.WAITING and version.aliases == (CHALLENGER,)
    assert "waiting" in card(settings, version.version)
    # and the deployment refuses it
    with pytest.raises(GateError, match=f"version {version.version} waits for approval"):
        must_be_approved(settings, tracking, version)
    # and a repeat says the same
    assert run(settings, asking.parents["other"], parts, tmp_path) == result


def test_who_approved_when_and_why_is_kept(asking: Searches, parts: Parts, tmp_path: Path) -> None:
    # given a version that waits
    settings, (tracking, storage) = asking.settings, stored(asking.settings)
    number = run(settings, asking.parents["one"], parts, tmp_path).model_version
    # when a person approves it
    approve(tracking, storage, tracking.version(number), "A. Person", "better on the wards that matter")
    # then it may come into service, and tags and card say who, when and why
    version = tracking.version(number)
    must_be_approved(settings, tracking, version)
    said = statement_of(version)
    assert said is not None and (said.by, said.why) == ("A. Person", "better on the wards that matter")
    assert f"approved {said}" in card(settings, number)
    # and a repeat changes nothing, and the pipeline that goes on promotes it
    approve(tracking, storage, version, "Somebody else")
    assert statement_of(tracking.version(number)) == said
    assert run(settings, asking.parents["one"], parts, tmp_path).decision is Decision.PROMOTE


def test_what_was_refused_stays_out_whatever_the_setting(asking: Searches, parts: Parts, tmp_path: Path) -> None:
    # given a version that waits and is refused
    settings, (tracking, storage) = asking.settings, stored(asking.settings)
    number = run(settings, asking.parents["one"], parts, tmp_path).model_version
    refuse(tracking, storage, tracking.version(number), "A. Person", "women <b>are worse off</b>")
    # then it is the challenger no longer; the card says why, as text
    assert tracking.by_alias(CHALLENGER) is None
    assert "refused by A. Person" in card(settings, number) and "<b>are" not in card(settings, number)
    # and where nobody is asked, it is rejected all the same, by pipeline and by hand
    auto = settings.model_copy(update={"approval": Approval.AUTO})
    again = run(auto, asking.parents["one"], parts, tmp_path)
    assert again.decision is Decision.REJECT and "was refused by A. Person" in again.reasons[-1]
    with pytest.raises(GateError, match=r"was refused by A\. Person"):
        must_be_approved(auto, tracking, tracking.version(number))
    # until a person thinks better of it
    approve(tracking, storage, tracking.version(number), "A. Person", "looked again")
    must_be_approved(settings, tracking, tracking.version(number))


def test_a_newer_challenger_takes_the_place_of_one_that_waits(asking: Searches) -> None:
    # given a version that waits
    settings, tracking = asking.settings, Tracking(asking.settings)
    one, other = of(asking, "one"), of(asking, "other")
    assert offer(settings, tracking, one)[0] is Decision.WAIT
    # when another one passes its gates
    assert offer(settings, tracking, other)[0] is Decision.WAIT
    # then that one waits, and of the first it is said that it does not any more
    assert tracking.by_alias(CHALLENGER) == of(asking, "other")
    assert approval_of(of(asking, "one")) is ApprovalState.REPLACED
    assert "replaced while it waited" in state_of(of(asking, "one"), None)
    assert "waits for approval" in state_of(of(asking, "other"), None)


def test_a_rollback_pins_until_it_is_released(asking: Searches) -> None:
    # given nobody to be asked, and a version pinned by a rollback
    settings = asking.settings.model_copy(update={"approval": Approval.AUTO})
    tracking, storage = stored(settings)
    one, other = of(asking, "one"), of(asking, "other")
    approve(tracking, storage, other, "A. Person")
    made = pin(tracking, one.version, "B. Person", "the night shift saw wrong risks")
    assert pin(tracking, one.version, "Somebody else", "") == made == pinned(tracking)
    # then a new version waits, and one that was approved before the rollback, too, if the rollback came later
    assert offer(settings, tracking, of(asking, "one"))[0] is Decision.WAIT
    tracking.tag_version(other.version, {"approval_at": "2020-01-01T00:00:00+00:00"})
    decision, why = offer(settings, tracking, of(asking, "other"))
    assert decision is Decision.WAIT and "pinned by B. Person" in why
    # but the pinned one is free to come back, once it has served, and a simulation asks nobody
    tracking.tag_version(one.version, {"served": '[["2020-01-01T00:00:00+00:00", "2020-01-02T00:00:00+00:00"]]'})
    must_be_approved(settings, tracking, of(asking, "one"))
    simulated = settings.model_copy(update={"stream": "sim-a"})
    assert offer(simulated, tracking, of(asking, "other"))[0] is Decision.PROMOTE
    # when it is released, then so is the other
    assert release(tracking) == made and pinned(tracking) is None and release(tracking) is None
    assert offer(settings, tracking, of(asking, "other"))[0] is Decision.PROMOTE


def test_what_did_not_pass_cannot_be_approved_and_what_serves_cannot_be_refused(asking: Searches) -> None:
    # given a version that its gates rejected, and the champion
    tracking, storage = stored(asking.settings)
    one, other = of(asking, "one"), of(asking, "other")
    tracking.tag_version(one.version, {"decision": Decision.REJECT})
    tracking.set_alias(CHAMPION, other.version)
    # then
    with pytest.raises(GateError, match="did not pass its gates: the decision is reject"):
        approve(tracking, storage, of(asking, "one"), "A. Person")
    with pytest.raises(GateError, match="serves"):
        refuse(tracking, storage, of(asking, "other"), "A. Person", "no")


def test_two_versions_stand_beside_each_other_on_the_same_rows(asking: Searches, parts: Parts) -> None:
    # given two versions of the same model, and their test rows in storage
    one, other = of(asking, "one"), of(asking, "other")
    storage = open_storage(asking.settings.storage)
    storage.upload(parts.test, f"datasets/{other.tags['dataset_digest']}/test.parquet")
    offer(asking.settings, Tracking(asking.settings), other)
    # when
    found = compare(asking.settings, other.version, one.version)
    # then they differ in nothing
    (tested,) = found["on_test"]
    assert tested["against"] == one.version and tested["rows"] > 100
    auc = tested["metrics"]["auc"]
    assert auc["one"] == auc["other"] and auc["difference"]["value"] == 0
    whole = tested["changes"][0]
    assert (whole["rows"], whole["share"], whole["newly_flagged"]) == (tested["rows"], 0.0, 0)
    assert [group["difference"]["value"] for group in tested["subgroups"]] == [0.0] * len(tested["subgroups"])
    # and the page says so
    page = Path(found["page"].removeprefix("file://")).read_text()
    assert "no difference in ranking" in page and "No encounters have arrived yet" in page
    # with what a person needs to decide
    assert "Waits for approval" in page and f"health-predict approve {other.version}" in page
    # when a person has decided, then the page beside the champion of its time says so
    tracking = Tracking(asking.settings)
    tracking.tag_version(other.version, {Tag.DECIDED_AGAINST: one.version})
    refuse(tracking, storage, of(asking, "other"), "A. Person", "worse for women")
    page = Path(found["page"].removeprefix("file://")).read_text()
    assert "Refused" in page and "worse for women" in page and "Waits for approval" not in page
    assert storage.exists(f"models/{other.version}/compare-{one.version}.html")
