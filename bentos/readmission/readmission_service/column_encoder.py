"""What the values of one column add to a row of the model: one value at a time, or those of many encounters at once.

For many, values become entries: small numbers, one for all values that add the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from health_predict.core.columns import MISSING, Column, Kind
from health_predict.core.row_encoder import Amounts, ColumnTable
from readmission_service.contract import LEVELS, text_of, well_formed

# The entry of values that training did not have.
NEW = 0

Entries = npt.NDArray[np.unsignedinteger[Any]]


class ColumnEncoder:
    """A column's table with the keys that requests use: levels and numbers as decoded, nothing as None."""

    def __init__(self, position: int, column: Column, table: ColumnTable) -> None:
        self._position, self._table = position, table
        # Only values of the training rows; the others take the slow way, where they are counted.
        seen = {value: table.of(value) for value in sorted(table.seen)}
        self.known: dict[Any, Amounts] = {}
        for value, amounts in seen.items():
            if column.kind is not Kind.COUNT:
                self.known[LEVELS[column.name](value) if column.kind is Kind.LEVEL else value] = amounts
            if column.kind is Kind.COUNT or (column.is_code and value.isdigit()):
                self.known[int(value)] = amounts
        if MISSING in seen:
            self.known[None] = seen[MISSING]
        # `setdefault` keeps the first number of equal amounts.
        self._entry_of: dict[Amounts, int] = {}
        for amounts in (*self.known.values(), *self._all_amounts()):
            self._entry_of.setdefault(amounts, len(self._entry_of) + 1)
        self.last = len(self._entry_of)
        """The largest entry."""
        self._entries = _Entries({value: self._entry_of[amounts] for value, amounts in self.known.items()})
        self._bytes = self._as_bytes(column)
        self._translation = bytes(self._of_byte(number) for number in range(256)) if self._bytes else b""

    def _all_amounts(self) -> Iterator[Amounts]:
        yield from self._table.amounts.values()
        yield from (self._table.chapters or {}).values()
        yield self._table.otherwise

    def _as_bytes(self, column: Column) -> Callable[[tuple[Any, ...]], bytes] | None:
        """What makes a byte of each value in one step, where the column's values are bytes by themselves."""
        if self.last > 255 or column.nullable:
            return None
        if column.kind is Kind.LEVEL:
            return b"".join
        return bytes if column.kind is Kind.COUNT and column.minimum >= 0 and column.maximum < 256 else None

    def _of_byte(self, number: int) -> int:
        return self._entries[bytes([number]) if self._bytes is not bytes else number]

    def amounts_of_new(self, value: Any) -> tuple[Amounts, bool] | None:
        """What a value outside `known` adds, and whether the training rows had it; None for a malformed code."""
        if not well_formed(self._position, value):
            return None
        text = MISSING if value is None else str(text_of(value))
        return self._table.of(text), text in self._table.seen

    def entries(self, values: tuple[Any, ...]) -> Entries:
        """The entries (n,) of values of n encounters; `NEW` for those outside `known`."""
        if self._bytes is not None:
            return np.frombuffer(self._bytes(values).translate(self._translation), dtype=np.uint8)
        found = map(self._entries.__getitem__, values)
        if self.last < 256:  # `bytes` takes half the time of `fromiter`
            return np.frombuffer(bytes(found), dtype=np.uint8)
        return np.fromiter(found, dtype=np.uint32, count=len(values))

    def entry_of_new(self, value: Any) -> tuple[int, bool]:
        """The entry of a value outside `known`, and whether training had it; `NEW` for a malformed code."""
        found = self.amounts_of_new(value)
        return (NEW, False) if found is None else (self._entry_of[found[0]], found[1])

    def added(self) -> dict[int, npt.NDArray[np.float32]]:
        """For each position of the row that the column adds to, what each entry adds (`last` + 1,)."""
        found: dict[int, npt.NDArray[np.float32]] = {}
        for amounts, entry in self._entry_of.items():
            for at, amount in amounts:
                found.setdefault(at, np.zeros(self.last + 1, dtype=np.float32))[entry] += amount
        return found


class _Entries(dict[Any, int]):
    def __missing__(self, value: Any) -> int:
        return NEW
