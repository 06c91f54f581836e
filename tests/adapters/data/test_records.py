"""The records of a batch: what is stored, what is read back, and one that cannot be read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from health_predict.adapters import keys
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.records import BatchDecision, SettledBatch, kept_window
from health_predict.core.monitoring.drift import Alarm, Verdict
from health_predict.core.monitoring.performance import LabelledWindow
from health_predict.core.monitoring.policy import Action, PolicyState, Settlement
from health_predict.errors import StateError
from health_predict.settings import Settings

WINDOW = LabelledWindow(1000, 100, 90.0, 80.0, 0.1, 1.0, 0.1, 0.7, 0.001)
INPUTS = {"alarm": True, "p_value": 0.001, "largest_z": 9.0, "threshold": 4.0, "columns": [], "quality": []}
JUDGED = BatchDecision(
    batch=7,
    batch_digest="b" * 64,
    series="delivered",
    verdict=Verdict.RECALIBRATE,
    action=Action.RECALIBRATE,
    labelled_batches=7,
    model_version="2",
    dataset_digest="d" * 64,
    reasons=("The risks are off.",),
    alarms=(Alarm.RATIO,),
    waiting={6: "outcomes are waited for"},
    matured=(4, 5),
    metrics={"auc": 0.7},
    window=kept_window(5, WINDOW),
    findings={"inputs": INPUTS, "rolling": {**INPUTS, "alarm": False}},
    evidently={},
    state=PolicyState(3, 2, 5),
)


@pytest.fixture
def batches(settings: Settings) -> Batches:
    return Batches(settings)


def test_a_decision_is_read_as_it_was_stored(batches: Batches) -> None:
    batches.decide(JUDGED)
    # then its file holds plain values
    stored = json.loads(batches.storage.read(f"monitoring/live/decisions/07-{'b' * 12}.json"))
    assert (stored["verdict"], stored["alarms"], stored["matured"]) == ("recalibrate", ["observed/expected"], [4, 5])
    assert (stored["window"]["batch"], stored["state"]["wait"], "repeats" in stored) == (5, 2, False)
    # and it is read as it was
    found = batches.decision(JUDGED.key)
    assert found == JUDGED and batches.decisions() == [JUDGED]
    assert found.judged == 5 and found.labelled_window == WINDOW
    assert found.inputs("training").alarm and not found.inputs("before").alarm
    # but for a window that another format kept
    assert replace(JUDGED, window={"format": 1, "batch": 5}).labelled_window is None


def test_of_a_batch_that_was_not_judged_nothing_is_known(batches: Batches) -> None:
    record = BatchDecision(
        batch=1, batch_digest="c" * 64, model_version="2", dataset_digest="d" * 64, reasons=("-",), quarantined=True
    )
    batches.decide(record)
    stored = json.loads(batches.storage.read(keys.record("live", keys.DECISIONS, record.key)))
    assert stored["window"] is None and not {"findings", "evidently", "state", "repeats"} & stored.keys()
    assert batches.decision(record.key) == record and batches.passed == {1} and batches.handled == frozenset()
    assert (record.judged, record.labelled_window, record.inputs("before").columns) == (None, None, ())


def test_the_end_of_a_batch_comes_with_the_state_of_the_policy(batches: Batches) -> None:
    record = SettledBatch(
        batch=7, batch_digest="b" * 64, outcome=Settlement.LOST, version_before="2", version_after="2"
    )
    batches.settle(record, PolicyState(7, 2, 9))
    assert batches.settlement(record.key) == record and batches.settled() == [record]
    assert batches.policy_state("") == PolicyState(7, 2, 9)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"batch": 7}', b'{"batch": 7, "verdict": "unheard of"}'])
def test_a_record_that_cannot_be_read_is_named(batches: Batches, content: bytes) -> None:
    batches.storage.write(f"monitoring/live/decisions/07-{'b' * 12}.json", content)
    with pytest.raises(StateError, match=r"decisions/07-b+\.json cannot be read as a record") as caught:
        batches.decisions()
    assert "HEALTH_PREDICT_STREAM" in caught.value.remedy
