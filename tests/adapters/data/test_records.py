"""The records of a batch: what is stored, what is read back, and one that cannot be read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from health_predict.adapters import keys
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.records import KEPT_WINDOWS, BatchDecision, KeptWindow, Progress, SettledBatch
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
    windows=(
        KeptWindow(batch=4, model_version="2", window=WINDOW),
        KeptWindow(batch=5, model_version="2", window=WINDOW),
    ),
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
    stored = json.loads(batches.storage.read(f"monitoring/live/decisions/0007-{'b' * 12}.json"))
    assert (stored["verdict"], stored["alarms"], stored["matured"]) == ("recalibrate", ["observed/expected"], [4, 5])
    assert ([one["batch"] for one in stored["windows"]], stored["state"]["wait"]) == ([4, 5], 2)
    # and it is read as it was
    found = batches.decision(JUDGED.key)
    assert found == JUDGED and batches.decisions() == [JUDGED]
    assert found.judged == 5 and found.windows[-1].window == WINDOW
    assert found.inputs("training").alarm and not found.inputs("before").alarm
    # and it is the one that has to end
    assert batches.progress() == Progress(pending=JUDGED.key)


def test_what_was_not_asked_is_not_stored(batches: Batches) -> None:
    # given a batch of which every encounter was removed
    record = BatchDecision(batch=1, batch_digest="c" * 64, model_version="2", dataset_digest="d" * 64, reasons=("-",))
    batches.decide(record)
    stored = json.loads(batches.storage.read(keys.record("live", keys.DECISIONS, record.key)))
    assert not {"findings", "evidently", "state"} & stored.keys()
    assert batches.decision(record.key) == record
    assert (record.judged, record.windows, record.inputs("before").columns) == (None, (), ())


def test_the_end_of_a_batch_comes_with_how_far_monitoring_is(batches: Batches) -> None:
    # given a look that was decided
    batches.decide(JUDGED)
    record = SettledBatch(
        batch=7, batch_digest="b" * 64, outcome=Settlement.LOST, version_before="2", version_after="2"
    )
    # when it ends
    progress = batches.progress().after(JUDGED, PolicyState(7, 2, 9))
    batches.settle(record, progress)
    # then
    assert batches.settlement(record.key) == record and batches.settled() == [record]
    assert batches.progress() == progress
    assert (progress.settled, progress.waiting, progress.last, progress.pending) == (8, (7,), JUDGED.key, "")
    assert progress.policy == PolicyState(7, 2, 9) and [one.batch for one in progress.windows] == [4, 5]


def test_a_look_that_ends_twice_counts_once() -> None:
    # given batches that are waited for, of which a look finds one matured and one that never will
    before = Progress(settled=7, waiting=(3, 4, 5))
    decision = replace(JUDGED, matured=(4, 5), lapsed=(3,))
    after = before.after(decision, PolicyState())
    # then
    assert (after.settled, after.waiting, after.lapsed) == (8, (7,), (3,))
    assert after.after(decision, PolicyState()) == after
    # and the outcomes of a batch that are looked at alone leave the batches as they are
    alone = after.after(replace(JUDGED, matured=(7,), outcomes_alone=True), PolicyState())
    assert (alone.settled, alone.waiting) == (8, ())


def test_evidence_is_kept_of_the_newest_outcomes_alone() -> None:
    # given a year and more of weeks
    progress = Progress()
    for number in range(KEPT_WINDOWS + 20):
        window = KeptWindow(batch=number, model_version="2", window=WINDOW)
        decision = replace(JUDGED, batch=number, matured=(number,), windows=(window,))
        progress = progress.after(decision, PolicyState())
    # then what a look reads has not grown with them
    assert [one.batch for one in progress.windows] == [*range(20, KEPT_WINDOWS + 20)]
    assert progress.waiting == ()


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"batch": 7}', b'{"batch": 7, "verdict": "unheard of"}'])
def test_a_record_that_cannot_be_read_is_named(batches: Batches, content: bytes) -> None:
    batches.storage.write(f"monitoring/live/decisions/0007-{'b' * 12}.json", content)
    with pytest.raises(StateError, match=r"decisions/0007-b+\.json cannot be read as a record") as caught:
        batches.decisions()
    assert "HEALTH_PREDICT_STREAM" in caught.value.remedy
