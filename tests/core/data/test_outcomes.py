"""Outcomes count when they can be known, and files that hold something else are named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from health_predict.core.data.outcomes import join, read_outcomes, write_outcomes
from health_predict.errors import DataError

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_what_is_written_is_read() -> None:
    assert read_outcomes(write_outcomes(["a", "b"], [True, False]), "f.csv") == {"a": 1, "b": 0}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no CSV"),
        (b"id,readmitted\na,1\n", "columns id"),
        (b"prediction_id,readmitted\na,1\nb,<30\n", "line 3"),
        (b"prediction_id,readmitted\n,1\n", "line 2"),
        (b"\xff\xfe\x00", "no CSV"),
    ],
)
def test_a_file_of_something_else_is_named(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_outcomes(data, "f.csv")
    assert "f.csv" in caught.value.problem


def test_only_outcomes_older_than_the_window_count() -> None:
    # given four predictions: old, old without an outcome, young with one, and one that was not logged
    times = [NOW - timedelta(days=40), NOW - timedelta(days=40), NOW - timedelta(days=29), None]
    # when
    joined = join(times, ["a", "b", "c", "d"], {"a": 1, "c": 1, "d": 0}, now=NOW, follow_up_days=30)
    # then
    np.testing.assert_array_equal(joined.outcomes, [1, np.nan, np.nan, np.nan])
    assert (joined.without_outcome, joined.in_follow_up, joined.not_logged) == (1, 1, 1)
    assert not joined.matured
    assert joined.waiting == (
        "1 within the follow-up window, 1 without an outcome, 1 not in the shipped prediction log"
    )
    # and with all of them known, it has matured
    whole = join(times[:1] * 2, ["a", "b"], {"a": 1, "b": 0}, now=NOW, follow_up_days=30)
    assert whole.matured and whole.waiting == ""
