"""Encounters of any origin as text, and which of them keep the data contract: one rule for files and the service."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.data.contract import MISSING, WORDS_FOR_MISSING, Column, Contract
from health_predict.core.data.values import number_text
from health_predict.errors import DataError

_SHOWN = 5  # lines that are named where the same thing is wrong in many
_NESTED = "\x00"  # stands for a list or a structure, which no column may hold


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is wrong with some rows, without a value of theirs: the column, the rule, how many, the first lines."""

    column: str
    rule: str
    count: int
    lines: tuple[int, ...]

    @classmethod
    def of(cls, column: str, rule: str, lines: Sequence[int]) -> Self:
        """Of rows with these line numbers."""
        return cls(column, rule, len(lines), tuple(lines[:_SHOWN]))


def accepted(contract: Contract) -> tuple[Column, ...]:
    """What an arrival may say: who it is about and when, and its features."""
    return (*contract.identifiers, *contract.features)


def names_of(contract: Contract) -> list[str]:
    """Names of the `accepted` columns."""
    return [column.name for column in accepted(contract)]


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame of any types as text (n, columns): nulls are missing, whole numbers have no point, days no time."""
    return pd.DataFrame({name: _column_as_text(frame[name]) for name in frame}, dtype="str")


def _column_as_text(column: pd.Series[Any]) -> npt.NDArray[np.object_]:
    codes, distinct = pd.factorize(column.astype(object), use_na_sentinel=True) if _hashable(column) else (None, None)
    if codes is None or distinct is None:
        return np.array([_cell(value) for value in column], dtype=object)
    texts = np.array([*(_cell(value) for value in distinct), MISSING], dtype=object)
    return texts[codes]  # a null has code -1: the last


def _hashable(column: pd.Series[Any]) -> bool:
    return column.dtype != object or all(value.__hash__ is not None for value in column)


def _cell(value: Any) -> str:
    if value is None or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return MISSING
    if isinstance(value, str):
        return value
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat()
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, bool | np.bool_):
        return str(value)
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return number_text(float(value))
    return str(value) if value.__hash__ is not None else _NESTED


def complete(frame: pd.DataFrame, contract: Contract, name: object) -> pd.DataFrame:
    """A frame of text with all `accepted` columns, in their order: one that may be missing may be absent.

    Raises DataError for columns that are unknown, named twice, or absent and not nullable.
    """
    names = names_of(contract)
    twice = sorted({str(column) for column in frame.columns[frame.columns.duplicated()]})
    absent = [column.name for column in accepted(contract) if not column.nullable and column.name not in frame]
    unknown = [str(column)[:60] for column in frame.columns if column not in (*names, *contract.ignore)]
    found = (("names more than once:", twice), ("lacks", absent), ("has unknown", unknown))
    if problems := [f"{what} {', '.join(some[:6])}{', ...' * (len(some) > 6)}" for what, some in found if some]:
        raise DataError(f"{name} {'; '.join(problems)}", "give the columns of the contract by their names, each once")
    return frame.reindex(columns=names, fill_value=MISSING)


def refused(
    frame: pd.DataFrame, contract: Contract, lines: Sequence[int]
) -> tuple[npt.NDArray[np.bool_], list[Refusal]]:
    """Which rows of a complete frame of text break the contract (n,), and why; `lines` number them for people."""
    wrong = np.zeros(len(frame), dtype=bool)
    found: list[Refusal] = []
    for column in accepted(contract):
        codes, distinct = pd.factorize(frame[column.name])
        problems = [_problem(column, str(value)) for value in distinct]
        for rule in dict.fromkeys(filter(None, problems)):
            rows = np.flatnonzero(np.array([problem == rule for problem in problems])[codes])
            wrong[rows] = True
            found.append(Refusal.of(column.name, rule, [lines[row] for row in rows.tolist()]))
    return wrong, found


def _problem(column: Column, value: str) -> str:
    if column.holds(value):
        return ""
    if value == MISSING:
        return "must not be missing"
    if value.lower() in WORDS_FOR_MISSING and column.nullable:
        return f"holds a word for missing; write {MISSING}, or leave the cell null"
    return f"must be {column.described}"


def dates_of(frame: pd.DataFrame, contract: Contract) -> npt.NDArray[np.object_]:
    """The date of each arrival (n,) as YYYY-MM-DD, `?` where none is known."""
    if not contract.date:
        return np.full(len(frame), MISSING, dtype=object)
    return frame[contract.date].to_numpy(dtype=object)


def days_of(frame: pd.DataFrame, contract: Contract, received: Sequence[str]) -> npt.NDArray[np.object_]:
    """The day of each arrival (n,): of its date, else of its receipt, as YYYY-MM-DD."""
    dates = dates_of(frame, contract)
    return np.where(dates == MISSING, np.asarray(received, dtype=object), dates)
