"""One encounter to one row of numbers, by plain tables.

The same tables serve training (whole columns at a time, `features`) and the prediction service (one row at a
time), so both see the same numbers by construction. Beside the contract, standard library and numpy only.

A row is a sum: each column's value adds its amounts at some positions. All amounts are small whole numbers or
single values at a position of their own, so that the sum does not depend on its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from health_predict.core.data.codes import Chapters, System
from health_predict.core.data.contract import MISSING

FORMAT = 2
Amounts = tuple[tuple[int, float], ...]
Value = str | int | float | None


@dataclass(frozen=True, slots=True)
class ColumnTable:
    """What each value of one column adds to the row.

    `seen` holds the values of the training rows; a value outside it is `unseen`: it adds `otherwise`, or for a
    code what its chapter of `codes` adds. A number is never unseen: what is not in `amounts` is itself the amount at
    the positions `number`, rounded to float32.
    """

    column: str
    amounts: dict[str, Amounts]
    otherwise: Amounts
    seen: frozenset[str]
    codes: Chapters | None = None
    chapters: Mapping[str, Amounts] = field(default_factory=dict)
    number: tuple[int, ...] | None = None

    def of(self, value: str) -> Amounts:
        """Amounts of a value in its text form, `?` for missing."""
        found = self.amounts.get(value)
        if found is not None:
            return found
        if self.number is not None:
            amount = float(np.float32(float(value)))
            return tuple((at, amount) for at in self.number)
        if self.codes is not None:
            return self.chapters.get(self.codes.of(value), self.otherwise)
        return self.otherwise

    @property
    def positions(self) -> Iterator[int]:
        """Every position that a value may add to, some of them more than once."""
        for pairs in (*self.amounts.values(), *self.chapters.values(), self.otherwise):
            yield from (at for at, _ in pairs)
        yield from self.number or ()


class RowEncoder:
    """Tables of all columns and the names of the row's positions."""

    def __init__(self, names: tuple[str, ...], tables: tuple[ColumnTable, ...]) -> None:
        self.names = names
        self.tables = tables
        # What values of the training rows add, as they were met: numbers, text or None.
        self._known: list[dict[Value, Amounts]] = [{} for _ in tables]

    def encode(self, encounter: Mapping[str, Value]) -> tuple[npt.NDArray[np.float32], list[str]]:
        """One encounter, keyed by column name, to a float32 row of shape (len(names),), and its unseen columns.

        An absent key and None count as missing. Values must have passed the contract.
        """
        row = [0.0] * len(self.names)
        unseen: list[str] = []
        for table, known in zip(self.tables, self._known, strict=True):
            value = encounter.get(table.column)
            amounts = known.get(value)
            if amounts is None:
                text = _text(value)
                amounts = table.of(text)
                if text in table.seen:
                    known[value] = amounts
                elif table.number is None:  # not remembered: what clients make up must not pile up
                    unseen.append(table.column)
            for position, amount in amounts:
                row[position] += amount
        return np.array(row, dtype=np.float32), unseen

    def encode_columns(self, columns: Sequence[Sequence[Value]]) -> tuple[npt.NDArray[np.float32], dict[str, int]]:
        """The rows (n, len(names)) of n encounters, and how many values of each column were unseen.

        `columns` holds the values (n,) of each table's column, in the order of the tables. Each distinct value is
        looked up once.
        """
        count, width = len(columns[0]), len(self.names)
        # The last position takes the padding.
        rows = np.zeros((count, width + 1), dtype=np.float32)
        every = np.arange(count)
        unseen: dict[str, int] = {}
        for table, values in zip(self.tables, columns, strict=True):
            numbers = {value: number for number, value in enumerate(set(values))}
            codes = np.fromiter(map(numbers.__getitem__, values), dtype=np.intp, count=count)
            texts = [_text(value) for value in numbers]
            found = [table.of(text) for text in texts]
            for k in range(max(map(len, found))):
                positions = np.array([amounts[k][0] if k < len(amounts) else width for amounts in found])
                added = np.array([amounts[k][1] if k < len(amounts) else 0.0 for amounts in found], dtype=np.float32)
                rows[every, positions[codes]] += added[codes]
            new = np.array([text not in table.seen for text in texts])
            if table.number is None and new.any():
                unseen[table.column] = int(new[codes].sum())
        return np.ascontiguousarray(rows[:, :width]), unseen

    def amounts(self, encounter: Mapping[str, Value]) -> list[Amounts]:
        """What each column of an encounter adds, in the order of the tables."""
        return [table.of(_text(encounter.get(table.column))) for table in self.tables]

    def to_json(self) -> dict[str, Any]:
        """A plain structure, stable in its order, for `from_json`."""
        return {
            "format": FORMAT,
            "names": list(self.names),
            "tables": [
                {
                    "column": table.column,
                    "amounts": {value: _listed(table.amounts[value]) for value in sorted(table.amounts)},
                    "otherwise": _listed(table.otherwise),
                    "seen": sorted(table.seen),
                    "codes": table.codes and {"system": table.codes.system, "apart": table.codes.apart},
                    "chapters": {name: _listed(table.chapters[name]) for name in sorted(table.chapters)},
                    "number": table.number,
                }
                for table in self.tables
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RowEncoder:
        """Inverse of `to_json`. Raises ValueError for another format."""
        if data.get("format") != FORMAT:
            raise ValueError(f"row encoder format {data.get('format')!r} is not {FORMAT}")

        return cls(tuple(data["names"]), tuple(_table(entry) for entry in data["tables"]))


def _listed(amounts: Amounts) -> list[list[float]]:
    return [list(pair) for pair in amounts]


def _table(entry: Mapping[str, Any]) -> ColumnTable:
    def amounts(pairs: list[list[float]]) -> Amounts:
        return tuple((int(position), float(amount)) for position, amount in pairs)

    codes, number = entry["codes"], entry["number"]
    return ColumnTable(
        column=entry["column"],
        amounts={value: amounts(pairs) for value, pairs in entry["amounts"].items()},
        otherwise=amounts(entry["otherwise"]),
        seen=frozenset(entry["seen"]),
        codes=codes and Chapters(System(codes["system"]), codes["apart"]),
        chapters={name: amounts(pairs) for name, pairs in entry["chapters"].items()},
        number=None if number is None else tuple(number),
    )


def _text(value: Value) -> str:
    return MISSING if value is None else str(value)
