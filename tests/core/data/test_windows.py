"""Windows of arrivals: by calendar and by count, late and out of order, whatever the clock says."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from health_predict.core.data.windows import Period, Rows, Windows

BERLIN, UTC_ZONE = ZoneInfo("Europe/Berlin"), ZoneInfo("UTC")


def at(text: str, zone: ZoneInfo = UTC_ZONE) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone)


@pytest.mark.parametrize(
    ("period", "day", "begin", "end"),
    [
        (Period.DAY, "2026-02-28", "2026-02-28", "2026-03-01"),
        (Period.WEEK, "2026-01-01", "2025-12-29", "2026-01-05"),
        (Period.WEEK, "2026-01-05", "2026-01-05", "2026-01-12"),
        (Period.MONTH, "2026-12-31", "2026-12-01", "2027-01-01"),
    ],
)
def test_a_period_begins_and_ends_by_the_calendar(period: Period, day: str, begin: str, end: str) -> None:
    assert period.around(date.fromisoformat(day)) == (date.fromisoformat(begin), date.fromisoformat(end))


def test_a_window_closes_at_midnight_of_its_zone() -> None:
    # given arrivals of a Sunday
    windows = Windows().arrived("2026-01-11/000000", 5)
    # when it is a minute before Monday in Berlin, then nothing is closed
    early, closed = windows.close("week", BERLIN, at("2026-01-11T23:59", BERLIN))
    assert closed == [] and early.waiting == 5
    # when it is Monday there, though not yet in UTC, then the week is
    late, [window] = windows.close("week", BERLIN, at("2026-01-12T00:00", BERLIN))
    assert (window.number, window.begin, window.end, len(window), window.late) == (0, "2026-01-05", "2026-01-12", 5, 0)
    assert (late.number, late.waiting, late.closed) == (1, 0, "2026-01-12")


def test_a_clock_set_back_opens_nothing_again() -> None:
    # given a week that was closed
    windows, _ = Windows().arrived("2026-01-06/000000", 1).close("week", UTC_ZONE, at("2026-01-12T01:00"))
    # when the clock is set back a year and more of that week comes in
    windows, closed = windows.arrived("2026-01-07/000001", 2).close("week", UTC_ZONE, at("2025-01-01T00:00"))
    # then the watermark stands, and what came late waits for the next window
    assert windows.watermark == at("2026-01-12T01:00") and closed == []
    windows, [window] = windows.arrived("2026-01-13/000002", 3).close("week", UTC_ZONE, at("2026-01-19T00:00"))
    assert (window.begin, window.late, len(window)) == ("2026-01-12", 2, 5)


def test_periods_without_arrivals_make_no_windows_and_a_history_makes_many() -> None:
    # given arrivals of two days that are months apart, the later ones first
    windows = Windows().arrived("2026-06-01/000000", 1).arrived("2026-01-01/000000", 1)
    # when time is far beyond
    windows, closed = windows.close("month", UTC_ZONE, at("2027-01-01T00:00"))
    # then there are two windows, in order of time
    assert [(one.number, one.begin) for one in closed] == [(0, "2026-01-01"), (1, "2026-06-01")]


def test_a_count_takes_arrivals_in_the_order_in_which_they_came() -> None:
    # given parts of 3, 4 and 1 arrivals
    windows = Windows()
    for number, rows in enumerate((3, 4, 1)):
        windows = windows.arrived(f"2026-01-0{number + 1}/{number:06d}", rows)
    # when three make a window
    windows, closed = windows.close("3", UTC_ZONE, at("2026-01-01T00:00"))
    # then a part may be cut, and what is left waits
    assert [one.rows for one in closed] == [
        (Rows("2026-01-01/000000", 0, 3),),
        (Rows("2026-01-02/000001", 0, 3),),
    ]
    assert windows.open == (Rows("2026-01-02/000001", 3, 4), Rows("2026-01-03/000002", 0, 1))


@given(
    steps=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 5), st.integers(-10, 70)), min_size=1, max_size=25),
    size=st.sampled_from(["day", "week", "month", "1", "4"]),
)
def test_every_arrival_is_in_exactly_one_window(steps: list[tuple[int, int, int]], size: str) -> None:
    # given arrivals of any days, in any order, and a clock that goes back and forth
    first = datetime(2026, 1, 1, tzinfo=UTC)
    windows, closed, sent = Windows(), [], set()
    for number, (day, rows, now) in enumerate(steps):
        part = f"{(first + timedelta(days=day)).date()}/{number:06d}"
        sent |= {(part, row) for row in range(rows)}
        windows, some = windows.arrived(part, rows).close(size, UTC_ZONE, first + timedelta(days=now))
        closed += some
    # when all time has passed
    windows, rest = windows.close(size, UTC_ZONE, first + timedelta(days=1000))
    closed += rest
    # then each is in one window, or waits for a count to be full
    found = [(one.part, row) for window in closed for one in window.rows for row in range(one.first, one.last)]
    waiting = [(one.part, row) for one in windows.open for row in range(one.first, one.last)]
    assert sorted([*found, *waiting]) == sorted(sent)
    assert [window.number for window in closed] == list(range(len(closed)))
    assert windows.waiting == 0 if not size.isdigit() else windows.waiting < int(size)
    # and calendar windows follow each other
    if not size.isdigit():
        assert all(one.end <= other.begin for one, other in itertools.pairwise(closed))
