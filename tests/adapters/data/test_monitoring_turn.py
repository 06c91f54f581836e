"""One run monitors a stream at a time, wherever it runs."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import boto3
import pytest

from health_predict.adapters import keys
from health_predict.adapters.data.monitoring_turn import LONGEST, Turn
from health_predict.adapters.storage import Storage, open_storage
from health_predict.errors import UnreachableError
from health_predict.settings import Settings

PROCESSES = 4
processes = multiprocessing.get_context("fork")


@pytest.fixture
def cluster(s3_endpoint: str, tmp_path: Path) -> Settings:
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket="turns")
    uri = f"s3://turns/{tmp_path.name}"
    return Settings(profile="kind", home=tmp_path, storage_uri=uri, s3_endpoint_url=s3_endpoint)  # type: ignore[arg-type]


def storage_of(settings: Settings) -> Storage:
    return open_storage(settings.storage, settings.s3_endpoint_url)


def test_a_second_run_ends_with_the_reason(cluster: Settings) -> None:
    # given a run whose turn it is
    turn: Callable[[str], Turn] = lambda run: Turn(cluster, storage_of(cluster), run)  # noqa: E731
    turn("by-schedule").take()
    # then its own repetition goes on, and another one is told whom it waits for
    turn("by-schedule").take()
    with pytest.raises(UnreachableError, match="another run of monitoring, by-schedule"):
        turn("by-hand").take()
    # and cannot end what is not its own
    turn("by-hand").end()
    with pytest.raises(UnreachableError):
        turn("by-hand").take()
    # when the first one ends, it is the other's turn, and then nothing is left
    turn("by-schedule").end()
    turn("by-hand").take()
    turn("by-hand").end()
    assert storage_of(cluster).keys("") == []


@pytest.mark.parametrize("how", ["its end is recorded", "it is long ago"])
def test_a_run_that_died_is_followed(cluster: Settings, how: str) -> None:
    # given a run that died in its turn
    storage = storage_of(cluster)
    Turn(cluster, storage, "dead").take()
    # when its end is recorded, or nobody has heard of it for long
    if how == "it is long ago":
        since = (datetime.now(UTC) - LONGEST - timedelta(minutes=1)).isoformat()
        storage.write(keys.turn("live"), json.dumps({"holder": "dead", "since": since}).encode())
    else:
        storage.write(keys.run_end("dead"), b"{}")
    # then it is the next one's turn
    Turn(cluster, storage, "next").take()
    with pytest.raises(UnreachableError, match="next"):
        Turn(cluster, storage, "another").take()


def _take(settings: Settings, run: str, barrier: Barrier, results: Any) -> None:
    turn = Turn(settings, storage_of(settings), run)
    barrier.wait()
    try:
        turn.take()
    except UnreachableError:
        results.put("")
    else:
        results.put(run)


@pytest.mark.parametrize("where", ["bucket", "folder"])
def test_of_processes_that_begin_at_once_one_goes_on(cluster: Settings, tmp_path: Path, where: str) -> None:
    # given several processes of as many runs
    settings = cluster if where == "bucket" else cluster.model_copy(update={"storage_uri": tmp_path.as_uri()})
    for attempt in range(3):
        barrier, results = processes.Barrier(PROCESSES), processes.Queue()
        runs = [f"{attempt}-{number}" for number in range(PROCESSES)]
        started = [processes.Process(target=_take, args=(settings, run, barrier, results)) for run in runs]
        # when they take their turn in the same moment
        for process in started:
            process.start()
        taken = [run for run in (results.get(timeout=60) for _ in started) if run]
        for process in started:
            process.join()
        # then one has it
        assert len(taken) == 1
        Turn(settings, storage_of(settings), taken[0]).end()
