"""Values beside their texts. The prediction service imports this module: no pandas."""

from __future__ import annotations

import re

from health_predict.core.data.contract import Column, Kind

Value = str | int | float | None  # as a request has it


def number_text(value: float) -> str:
    """A number as a file writes it: a whole one without a point, another by the shortest text that means it."""
    return str(int(value)) if value.is_integer() else repr(value)


def takes_numbers(column: Column) -> bool:
    """Whether whole numbers stand for its texts: of a count, and where all levels or codes are written in digits."""
    closed = column.kind in (Kind.LEVEL, Kind.FLAG) and all(re.fullmatch("[0-9]+", level) for level in column.levels)
    return column.kind in (Kind.COUNT, Kind.CODE) or column.is_code or closed
