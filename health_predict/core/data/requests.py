"""Values as a request has them. The prediction service imports this module: no pandas."""

from __future__ import annotations

import re

from health_predict.core.data import codes
from health_predict.core.data.contract import MISSING, Column, Contract, Kind

Value = str | int | float | None


def as_value(column: Column, text: str) -> Value:
    """A valid text as a request has it: counts and numbers as such, `?` as None."""
    if text == MISSING:
        return None
    if column.kind is Kind.COUNT:
        return int(text)
    return float(text) if column.kind is Kind.NUMBER else text


def number_text(value: float) -> str:
    """A number as a file writes it: a whole one without a point, another by the shortest text that means it."""
    return str(int(value)) if value.is_integer() else repr(value)


def takes_numbers(column: Column) -> bool:
    """Whether whole numbers stand for its texts: of a count, and where all levels or codes are written in digits."""
    closed = column.kind in (Kind.LEVEL, Kind.FLAG) and all(re.fullmatch("[0-9]+", level) for level in column.levels)
    return column.kind in (Kind.COUNT, Kind.CODE) or column.is_code or closed


def example_of(contract: Contract) -> dict[str, Value]:
    """A made-up encounter: the contract's own, and the first thing that a column may hold where that says nothing."""
    return {
        column.name: as_value(column, contract.example.get(column.name, _first(column))) for column in contract.features
    }


def _first(column: Column) -> str:
    if column.nullable:
        return MISSING
    if column.system is not None:
        return codes.EXAMPLES[column.system]
    if column.kind in (Kind.COUNT, Kind.NUMBER):
        return str(column.minimum or 0)
    return column.levels[0] if column.levels else "text"
