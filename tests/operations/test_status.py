"""What `status` says of each state that the parts can be in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from health_predict.adapters import keys
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.records import BatchDecision, SettledBatch
from health_predict.adapters.tracking import CHALLENGER, Tracking
from health_predict.core.data.cohort import without_excluded
from health_predict.core.data.outcomes import write_outcomes
from health_predict.core.monitoring.policy import PolicyState, Settlement
from health_predict.operations.status import status
from health_predict.settings import Settings
from tests.cohorts import synthesize
from tests.contracts import DIABETES
from tests.feed import logged


def test_nothing_was_ever_deployed(settings: Settings, tracking: Tracking) -> None:
    # given a registry without the model
    found = status(Settings(home=settings.home, serving_port=settings.serving_port, registered_model="none"))
    # then the next step is named
    assert found.serving is None and found.champion == "" and found.drift is None
    assert found.waiting == ("no champion yet: `health-predict demo`",)


def test_a_champion_with_batches_and_a_challenger(settings: Settings, tracking: Tracking, champion: str) -> None:
    # given a champion, three batches that arrived on three days, of which one was judged, and a challenger
    batches = Batches(settings.model_copy(update={"window": "10"}))
    frame = without_excluded(synthesize(60, seed=1), DIABETES).head(32).reset_index(drop=True)
    now = datetime.now(UTC)
    for number in range(3):
        logged(batches.storage, f"{number}", frame[10 * number : 10 * number + 10].reset_index(drop=True), now)
    state = batches.arrivals.collect()
    assert (state.arrived, state.windows.number) == (30, 3)
    names: Any = {"batch": 0, "batch_digest": "b" * 64}
    judged = BatchDecision(**names, model_version=champion, dataset_digest="d" * 64, reasons=("nothing moved",))
    ended = SettledBatch(**names, outcome=Settlement.UNCHANGED, version_before=champion, version_after=champion)
    batches.decide(judged)
    batches.settle(ended, batches.progress().after(judged, PolicyState()))
    other = tracking.start_search("another run", {}, {})
    challenger = tracking.register(other, {}, "").version
    tracking.set_alias(CHALLENGER, challenger)
    # when
    found = status(settings)
    # then
    assert found.champion == champion and found.family == "XGBoost" and not found.synthetic
    assert found.on_test["metrics"] == {"auc": {"value": 0.66, "low": 0.64, "high": 0.68}}
    assert (found.on_test["rows"], found.on_test["positives"], found.comparisons) == (2922, 343, ())
    assert found.drift is not None and (found.drift.batch, found.drift.verdict) == (0, "steady")
    assert found.drift.report.endswith(f"monitoring/live/reports/0000-{'b' * 12}/report.html")
    assert (found.batches, found.monitored) == (3, 1)
    down, waiting, not_judged, outcomes = found.waiting
    assert down == "the endpoint is down: `health-predict serve`"
    assert f"challenger version {challenger}" in waiting
    assert not_judged == "2 of 3 batches are not judged yet, next: 1"
    assert outcomes == "outcomes of batch 0: 10 within the follow-up window"


def test_what_arrived_is_counted(settings: Settings, tracking: Tracking, champion: str) -> None:
    # given two known encounters, one without a patient, one sent again, and a line that breaks the contract
    batches = Batches(settings)
    frame = without_excluded(synthesize(20, seed=1), DIABETES).head(4).reset_index(drop=True)
    frame.loc[2, "patient_nbr"] = "?"
    frame.loc[3, "age"] = "old"
    logged(batches.storage, "first", frame, datetime.now(UTC))
    assert status(settings).waiting[-1] == "1 file at the door: the next monitoring takes it in"
    batches.arrivals.collect()
    logged(batches.storage, "again", frame[:1], datetime.now(UTC))
    # and outcomes of nobody, and a file that is none
    batches.storage.write(keys.outcomes("live", "a"), write_outcomes({"encounter_id": ["1"]}, DIABETES, [1]))
    batches.storage.write(keys.outcomes("live", "b"), b"-")
    assert status(settings).waiting[-1] == "2 files of outcomes at the door: the next monitoring takes them in"
    batches.arrivals.collect()
    # when
    found = status(settings)
    # then each is counted, and what was set aside is named
    arrivals = found.arrivals
    assert (arrivals.total, arrivals.open, arrivals.at_door) == (3, 3, 0)
    assert (arrivals.without_patient, arrivals.repeated, arrivals.quarantined) == (1, 1, 1)
    assert (arrivals.outcomes["taken"], arrivals.outcomes["unknown"]) == (0, 1)
    assert found.waiting[-1].startswith("set aside: ") and "outcomes/b.csv" in found.waiting[-1]
