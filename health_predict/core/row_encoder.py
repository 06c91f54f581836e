"""One encounter to one row of numbers, by plain tables.

The same tables serve training (whole columns at a time, `features`) and the prediction service (one row at a
time), so both see the same numbers by construction. Standard library and numpy only.

A row is a sum: each column's value adds its amounts at some positions. All amounts are small whole numbers or
single values at a position of their own, so that the sum does not depend on its order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from health_predict.core.columns import MISSING, icd9_chapter

FORMAT = 1
Amounts = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class ColumnTable:
    """What each value of one column adds to the row.

    `seen` holds the values of the training rows; a value outside it is `unseen`: it adds `otherwise`, or for a
    diagnosis what its ICD-9 chapter adds.
    """

    column: str
    amounts: dict[str, Amounts]
    otherwise: Amounts
    chapters: dict[str, Amounts] | None
    seen: frozenset[str]

    def of(self, value: str) -> Amounts:
        """Amounts of a value in its text form, `?` for missing."""
        found = self.amounts.get(value)
        if found is not None:
            return found
        if self.chapters is not None:
            return self.chapters.get(icd9_chapter(value), self.otherwise)
        return self.otherwise


class RowEncoder:
    """Tables of all columns and the names of the row's positions."""

    def __init__(self, names: tuple[str, ...], tables: tuple[ColumnTable, ...]) -> None:
        self.names = names
        self.tables = tables
        self._zeros = np.zeros(len(names), dtype=np.float32)

    def encode(self, encounter: Mapping[str, str | int | None]) -> tuple[npt.NDArray[np.float32], list[str]]:
        """One encounter, keyed by column name, to a float32 row of shape (len(names),), and its unseen columns.

        An absent key and None count as missing. Values must have passed the contract.
        """
        row = self._zeros.copy()
        unseen: list[str] = []
        for table in self.tables:
            value = encounter.get(table.column)
            text = MISSING if value is None else str(value)
            amounts = table.amounts.get(text)
            if amounts is None:
                amounts = table.of(text)
            if text not in table.seen:
                unseen.append(table.column)
            for position, amount in amounts:
                row[position] += amount
        return row, unseen

    def to_json(self) -> dict[str, Any]:
        """A plain structure, stable in its order, for `from_json`."""
        return {
            "format": FORMAT,
            "names": list(self.names),
            "tables": [
                {
                    "column": table.column,
                    "amounts": {
                        value: [list(pair) for pair in table.amounts[value]] for value in sorted(table.amounts)
                    },
                    "otherwise": [list(pair) for pair in table.otherwise],
                    "chapters": None
                    if table.chapters is None
                    else {value: [list(pair) for pair in table.chapters[value]] for value in sorted(table.chapters)},
                    "seen": sorted(table.seen),
                }
                for table in self.tables
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RowEncoder:
        """Inverse of `to_json`. Raises ValueError for another format."""
        if data.get("format") != FORMAT:
            raise ValueError(f"row encoder format {data.get('format')!r} is not {FORMAT}")

        def amounts(pairs: list[list[float]]) -> Amounts:
            return tuple((int(position), float(amount)) for position, amount in pairs)

        return cls(
            tuple(data["names"]),
            tuple(
                ColumnTable(
                    column=entry["column"],
                    amounts={value: amounts(pairs) for value, pairs in entry["amounts"].items()},
                    otherwise=amounts(entry["otherwise"]),
                    chapters=None
                    if entry["chapters"] is None
                    else {value: amounts(pairs) for value, pairs in entry["chapters"].items()},
                    seen=frozenset(entry["seen"]),
                )
                for entry in data["tables"]
            ),
        )
