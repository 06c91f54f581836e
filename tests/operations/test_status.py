"""What `status` says of each state that the parts can be in."""

from __future__ import annotations

from typing import Any

from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.records import BatchDecision, SettledBatch
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import CHALLENGER, Tracking
from health_predict.core.monitoring.policy import PolicyState, Settlement
from health_predict.operations.status import status
from health_predict.settings import Settings


def test_nothing_was_ever_deployed(settings: Settings, tracking: Tracking) -> None:
    # given a registry without the model
    found = status(Settings(home=settings.home, serving_port=settings.serving_port, registered_model="none"))
    # then the next step is named
    assert found.serving is None and found.champion == "" and found.drift is None
    assert found.waiting == ("no champion yet: `health-predict demo`",)


def test_a_champion_with_batches_and_a_challenger(settings: Settings, tracking: Tracking, champion: str) -> None:
    # given a champion, three batches of its dataset of which one was monitored, and a challenger
    storage = open_storage(settings.storage)
    for number in (1, 2, 3):
        storage.write(f"datasets/{'d' * 64}/batches/{number:02d}.parquet", b"-")
    names: Any = {"batch": 1, "batch_digest": "b" * 64}
    judged = BatchDecision(
        **names, model_version=champion, dataset_digest="d" * 64, reasons=("nothing moved",), matured=(1,)
    )
    ended = SettledBatch(**names, outcome=Settlement.UNCHANGED, version_before=champion, version_after=champion)
    Batches(settings).decide(judged)
    Batches(settings).settle(ended, PolicyState())
    other = tracking.start_search("another run", {}, {})
    challenger = tracking.register(other, {}, "").version
    tracking.set_alias(CHALLENGER, challenger)
    # when
    found = status(settings)
    # then
    assert found.champion == champion and found.family == "XGBoost" and not found.synthetic
    assert found.on_test["metrics"] == {"auc": {"value": 0.66, "low": 0.64, "high": 0.68}}
    assert (found.on_test["rows"], found.on_test["positives"], found.comparisons) == (2922, 343, ())
    assert found.drift is not None and (found.drift.batch, found.drift.verdict) == (1, "steady")
    assert found.drift.report.endswith(f"monitoring/live/reports/01-{'b' * 12}/report.html")
    assert (found.batches, found.monitored) == (3, 1)
    down, waiting, batches = found.waiting
    assert down == "the endpoint is down: `health-predict serve`"
    assert f"challenger version {challenger}" in waiting
    assert batches == "2 of 3 batches are not monitored yet, next: 2"
