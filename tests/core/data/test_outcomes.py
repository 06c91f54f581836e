"""Outcomes are matched by whichever key a file has, count when they can be known, and other files are named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from health_predict.core.data.outcomes import derived, join, matched, merged, read_outcomes, write_outcomes
from health_predict.errors import DataError
from tests.contracts import DIABETES

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ID, NUMBER, DAY = ("prediction_id",), ("encounter_id",), ("patient_nbr", "discharge_date")
ARRIVED = pd.DataFrame(
    {
        "prediction_id": ["a", "b", "c"],
        "encounter_id": ["1", "2", "?"],
        "patient_nbr": ["10", "10", "20"],
        "discharge_date": ["2026-01-01", "2026-01-20", "2026-01-02"],
    }
)


def test_what_is_written_is_read() -> None:
    assert read_outcomes(write_outcomes({"prediction_id": ["a", "b"]}, DIABETES, [True, False]), DIABETES, "f.csv") == {
        ID: {("a",): 1, ("b",): 0}
    }


@pytest.mark.parametrize(
    ("data", "key", "found"),
    [
        (b"prediction_id,readmitted\nb,1\nz,0\n", ID, {"b": 1}),
        (b"readmitted,encounter_id\n1,2\n0,9\n", NUMBER, {"b": 1}),
        (b"patient_nbr,discharge_date,readmitted\n10,2026-01-20,1\n10,2026-01-21,0\n", DAY, {"b": 1}),
    ],
)
def test_each_key_finds_its_arrival(data: bytes, key: tuple[str, ...], found: dict[str, int]) -> None:
    # given a file with an outcome of an arrival and one of nobody
    outcomes = read_outcomes(data, DIABETES, "f.csv")
    # then the one is known by the prediction's id, the other is left
    known, left = matched(outcomes, ARRIVED)
    assert known == found
    assert [*left] == [key] and len(left[key]) == 1


def test_what_is_not_known_is_nobodys_key() -> None:
    # given outcomes whose key says that it is not known, as that of one arrival does
    outcomes = {NUMBER: {("?",): 1}, DAY: {("?", "2026-01-02"): 1}}
    # then they belong to nobody
    assert matched(outcomes, ARRIVED.assign(patient_nbr="?")) == ({}, outcomes)


def test_the_later_of_two_outcomes_counts() -> None:
    one, other = {ID: {("a",): 1, ("b",): 1}}, {ID: {("a",): 0}, NUMBER: {("2",): 1}}
    assert merged(one, other) == {ID: {("a",): 0, ("b",): 1}, NUMBER: {("2",): 1}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no CSV"),
        (b"id,readmitted\na,1\n", "columns id"),
        (b"patient_nbr,readmitted\n10,1\n", "columns patient_nbr"),
        (b"prediction_id,encounter_id,readmitted\na,1,1\n", "columns prediction_id, encounter_id"),
        (b"prediction_id,readmitted\na,1\nb,<31\n", "line 3"),
        (b"prediction_id,readmitted\n,1\n", "line 2"),
        (b"patient_nbr,discharge_date,readmitted\n10,,1\n", "line 2"),
        (b"\xff\xfe\x00", "no CSV"),
    ],
)
def test_a_file_of_something_else_is_named(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_outcomes(data, DIABETES, "f.csv")
    assert "f.csv" in caught.value.problem


def test_only_outcomes_older_than_the_follow_up_count() -> None:
    # given three arrivals: old, old without an outcome, and young with one
    times = [NOW - timedelta(days=40), NOW - timedelta(days=40), NOW - timedelta(days=29)]
    # when
    joined = join(times, ["a", "b", "c"], {"a": 1, "c": 1}, now=NOW, follow_up_days=30)
    # then
    np.testing.assert_array_equal(joined.outcomes, [1, np.nan, np.nan])
    assert (joined.without_outcome, joined.in_follow_up) == (1, 1)
    assert not joined.matured
    assert joined.waiting == "1 within the follow-up window, 1 without an outcome"
    # and with all of them known, it has matured
    whole = join(times[:1] * 2, ["a", "b"], {"a": 1, "b": 0}, now=NOW, follow_up_days=30)
    assert whole.matured and whole.waiting == ""


@pytest.mark.parametrize(("days", "first"), [(30, 1), (19, 1), (18, 0)])
def test_who_arrives_again_within_the_follow_up_came_back(days: int, first: int) -> None:
    # given a patient who came again after 19 days, on another day twice, and somebody unknown
    later = ARRIVED[["patient_nbr", "discharge_date"]]
    again = pd.concat([later, later.tail(1), pd.DataFrame({"patient_nbr": ["?"], "discharge_date": ["2026-01-05"]})])
    # then the first counts as readmitted, the last admission does not, nor does a second one of the same day
    assert derived(ARRIVED, again, DIABETES, days) == {"a": first, "b": 0, "c": 0}
    # and of who has no patient or no date nothing is known
    assert derived(ARRIVED.assign(patient_nbr="?"), again, DIABETES, days) == {}
    assert derived(ARRIVED.assign(discharge_date="?"), again, DIABETES, days) == {}
