"""When a window of arrivals ends: pure rules, without storage and clock.

Arrivals lie in parts, each of one day: that of their date or, without one, of their receipt in the time zone of the
settings. A part never changes, so that its rows, counted from 0, name an arrival for ever. A window is closed once and
takes what came in and is in no window yet:

* By calendar (`day`, `week` from Monday, `month`): all arrivals of days before its end, once the watermark has reached
  that. One that comes later, or from a day whose window is closed, counts as late and belongs to the next window.
  A period without arrivals makes no window.
* By count: so many arrivals, in the order in which they came in.

The watermark is the latest moment that was ever given as now. A clock set back does not move it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from datetime import time as midnight
from enum import StrEnum
from zoneinfo import ZoneInfo


class Period(StrEnum):
    """The calendar's windows."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"

    def around(self, day: date) -> tuple[date, date]:
        """First day of the period that a day is in, and of the next one."""
        match self:
            case Period.DAY:
                return day, day + timedelta(days=1)
            case Period.WEEK:
                begin = day - timedelta(days=day.weekday())
                return begin, begin + timedelta(days=7)
            case Period.MONTH:
                begin = day.replace(day=1)
                return begin, (begin + timedelta(days=32)).replace(day=1)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows `first` to before `last` of a part, which is named `<day>/<number>`."""

    part: str
    first: int
    last: int

    @property
    def day(self) -> str:
        """As YYYY-MM-DD."""
        return self.part.partition("/")[0]

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(frozen=True, slots=True)
class Window:
    """A window that was `closed` at a moment. `end` is the first day after it; `late` arrivals are of days whose window
    was closed before."""

    number: int
    begin: str
    end: str
    rows: tuple[Rows, ...]
    late: int
    closed: datetime

    def __len__(self) -> int:
        return sum(map(len, self.rows))


@dataclass(frozen=True, slots=True)
class Windows:
    """How far the windows have come: the next number, the day through which they are closed, and what is open."""

    watermark: datetime = datetime(1, 1, 1, tzinfo=UTC)
    closed: str = ""
    number: int = 0
    open: tuple[Rows, ...] = ()

    @property
    def waiting(self) -> int:
        """How many arrivals are in no window yet."""
        return sum(map(len, self.open))

    def arrived(self, part: str, rows: int) -> Windows:
        """With a new part of so many rows."""
        return replace(self, open=(*self.open, Rows(part, 0, rows)))

    def close(self, size: str, zone: ZoneInfo, now: datetime) -> tuple[Windows, list[Window]]:
        """Close what has ended by `now`. `size`: a `Period`, or a count in digits."""
        moved = replace(self, watermark=max(self.watermark, now))
        steps = [*(moved._by_count(int(size)) if size.isdigit() else moved._by_calendar(Period(size), zone))]
        return (steps[-1][0] if steps else moved), [window for _, window in steps]

    def _by_count(self, count: int) -> Iterator[tuple[Windows, Window]]:
        windows = self
        while windows.waiting >= count:
            taken, left = _split(windows.open, count)
            days = sorted(rows.day for rows in taken)
            end = (date.fromisoformat(days[-1]) + timedelta(days=1)).isoformat()
            window = Window(windows.number, days[0], end, taken, 0, windows.watermark)
            windows = replace(windows, number=windows.number + 1, closed=max(windows.closed, end), open=left)
            yield windows, window

    def _by_calendar(self, period: Period, zone: ZoneInfo) -> Iterator[tuple[Windows, Window]]:
        windows = self
        while windows.open:
            earliest = max(min(rows.day for rows in windows.open), windows.closed)
            begin, end = (day.isoformat() for day in period.around(date.fromisoformat(earliest)))
            if windows.watermark < start_of(end, zone):
                return
            taken = tuple(rows for rows in windows.open if rows.day < end)
            left = tuple(rows for rows in windows.open if rows.day >= end)
            late = sum(len(rows) for rows in taken if rows.day < windows.closed)
            window = Window(windows.number, max(begin, windows.closed), end, taken, late, windows.watermark)
            windows = replace(windows, number=windows.number + 1, closed=end, open=left)
            yield windows, window


def start_of(day: str, zone: ZoneInfo) -> datetime:
    """When a day begins."""
    return datetime.combine(date.fromisoformat(day), midnight(), zone)


def _split(rows: Sequence[Rows], count: int) -> tuple[tuple[Rows, ...], tuple[Rows, ...]]:
    """The first `count` of some rows, and the others."""
    taken: list[Rows] = []
    for at, one in enumerate(rows):
        room = count - sum(map(len, taken))
        if len(one) >= room:
            taken.append(Rows(one.part, one.first, one.first + room))
            rest = [Rows(one.part, one.first + room, one.last)] if len(one) > room else []
            return tuple(taken), (*rest, *rows[at + 1 :])
        taken.append(one)
    return tuple(taken), ()
