"""Feature engineering: one scikit-learn transformer, fitted, saved and loaded with its model.

`EncounterFeatures` learns the tables of a `RowEncoder` and applies them to whole columns at a time. The service
applies the same tables to single rows, so training and serving cannot differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from health_predict.core.data.codes import System, category
from health_predict.core.data.contract import MISSING, Column, Contract, Kind
from health_predict.core.model.row_encoder import Amounts, ColumnTable, RowEncoder
from health_predict.errors import StateError

Categories = frozenset[tuple[System, str]]


class EncounterFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Encounters as strings to a dense float32 matrix.

    Counts and numbers stay what they are (a count of the contract's `logarithm` as log1p, and as its `steps`); where
    one is missing, a position says so and the training median stands in its place. Levels that at least
    `minimum_rows` training rows have get a position each and the rarer ones share one, which unseen levels join; a
    code marks its chapter by column and its category in any column; the contract's groups are also counted.
    Positions that are constant in training are dropped.

    `fit` takes a frame (n, columns) with the features of the contract, all text, `?` for missing. `transform` gives
    shape (n, d). Both raise ValueError when a column is absent.
    """

    def __init__(self, contract: Contract, minimum_rows: int = 100) -> None:
        self.contract = contract
        self.minimum_rows = minimum_rows

    def fit(self, X: pd.DataFrame, y: object = None) -> Self:
        """Learn the tables from training rows only."""
        layout, features = _Layout(), self.contract.features
        values = {column.name: _text(X, column.name).value_counts() for column in features}
        categories = _frequent_categories(self.contract, values, self.minimum_rows)
        tables = []
        for column in features:
            seen = values[column.name]
            if column.kind is Kind.COUNT:
                table = _count_table(layout, column, seen)
            elif column.kind is Kind.NUMBER:
                table = _number_table(layout, column, seen)
            elif column.kind is Kind.CODE:
                table = _code_table(layout, column, seen, categories)
            else:
                table = _level_table(layout, column, seen, self.minimum_rows)
            tables.append(_counted_together(layout, self.contract, table))
        encoder = RowEncoder(tuple(layout), tuple(tables))
        matrix = _encode(encoder, X)
        constant = matrix.min(axis=0) == matrix.max(axis=0)
        self.encoder_ = _without(encoder, constant)
        return self

    def transform(self, X: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Apply the tables; values unseen in training fall back as described above."""
        check_is_fitted(self, "encoder_")
        return _encode(self.encoder_, X)

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """Names of the positions: the column's, with a level `column=level`, with a step `column>=step`."""
        check_is_fitted(self, "encoder_")
        return np.asarray(self.encoder_.names, dtype=object)

    def __getstate__(self) -> dict[str, Any]:
        # Contract and tables travel as JSON text: the saved preprocessor holds nothing that could run code, and
        # skops, which writes a node for each element of a structure, takes a second for them otherwise.
        state = {**self.__dict__, "contract": self.contract.to_json().decode()}
        if "encoder_" in state:
            state["encoder_"] = json.dumps(state["encoder_"].to_json())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "contract" not in state:
            raise StateError(
                "the model was fitted by an earlier version, before there were data contracts",
                "train again: `health-predict pipeline run training`",
            )
        state = {**state, "contract": Contract.from_json(state["contract"].encode())}
        if "encoder_" in state:
            state["encoder_"] = RowEncoder.from_json(json.loads(state["encoder_"]))
        self.__dict__.update(state)


class _Layout(dict[str, int]):
    """Positions handed out in order, one for each name."""

    def position(self, name: str) -> int:
        return self.setdefault(name, len(self))


def _text(frame: pd.DataFrame, column: str) -> pd.Series[str]:
    if column not in frame.columns:
        raise ValueError(f"column {column!r} is absent")
    return frame[column]


def _count_table(layout: _Layout, column: Column, seen: pd.Series[int]) -> ColumnTable:
    amount: Callable[[int], float] = (lambda n: float(np.float32(np.log1p(n)))) if column.logarithm else float
    position = layout.position(column.name)
    steps = [(step, layout.position(f"{column.name}>={step}")) for step in column.steps]
    # A count is a number: one that training never had is as good as its neighbours, so every valid one is seen.
    table: dict[str, Amounts] = {
        str(n): ((position, amount(n)), *((at, 1.0) for step, at in steps if n >= step)) for n in column.counts
    }
    most = table[str(column.counts[-1])]
    if column.nullable:
        table[MISSING] = (*table[_median(column, seen)], (layout.position(f"{column.name} missing"), 1.0))
    return ColumnTable(column.name, table, most, frozenset(table))


def _number_table(layout: _Layout, column: Column, seen: pd.Series[int]) -> ColumnTable:
    table = ColumnTable(column.name, {}, (), frozenset(), number=(layout.position(column.name),))
    if column.nullable:
        missing = (*table.of(_median(column, seen)), (layout.position(f"{column.name} missing"), 1.0))
        table = replace(table, amounts={MISSING: missing})
    return table


def _median(column: Column, seen: pd.Series[int]) -> str:
    """The middle one of the values that are there, the lower one of two; the smallest possible when none is."""
    present = seen[seen.index != MISSING]
    ordered = present.iloc[np.argsort([float(value) for value in present.index], kind="stable")]
    if ordered.empty:
        return str(column.minimum or 0)
    return str(ordered.index[int(np.searchsorted(np.cumsum(ordered), ordered.sum() / 2))])


def _level_table(layout: _Layout, column: Column, seen: pd.Series[int], minimum_rows: int) -> ColumnTable:
    other = layout.position(f"{column.name}=other")
    table: dict[str, Amounts] = {}
    for level in sorted(seen.index):
        frequent = seen[level] >= minimum_rows
        table[level] = ((layout.position(f"{column.name}={level}") if frequent else other, 1.0),)
    if column.ordered:
        place = layout.position(column.name)
        for number, level in enumerate(column.levels):
            table[level] = (*table.get(level, ((other, 1.0),)), (place, float(number)))
    return ColumnTable(column.name, table, ((other, 1.0),), frozenset(str(level) for level in seen.index))


def _counted_together(layout: _Layout, contract: Contract, table: ColumnTable) -> ColumnTable:
    """The table of a column with what its groups count."""
    amounts = dict(table.amounts)
    for group in contract.groups:
        if table.column in group.columns:
            for name, levels in group.counts.items():
                position = layout.position(name)
                for level in levels:
                    amounts[level] = (*amounts.get(level, table.of(level)), (position, 1.0))
    return replace(table, amounts=amounts)


def _frequent_categories(contract: Contract, values: Mapping[str, pd.Series[int]], minimum_rows: int) -> Categories:
    rows: dict[tuple[System, str], int] = {}
    for column in contract.features:
        if column.system is not None:
            for code, count in values[column.name].items():
                if code != MISSING:
                    key = column.system, category(str(code), column.system)
                    rows[key] = rows.get(key, 0) + int(count)
    return frozenset(key for key, count in rows.items() if count >= minimum_rows)


def _code_table(layout: _Layout, column: Column, seen: pd.Series[int], categories: Categories) -> ColumnTable:
    assert column.system is not None
    system, codes = column.system, column.chapters
    chapters: dict[str, Amounts] = {
        chapter: ((layout.position(f"{column.name} chapter={chapter}"), 1.0),) for chapter in codes.names
    }
    # Two systems may write the same code for different things.
    prefix = "diagnosis" if len({each for each, _ in categories}) < 2 else system
    table: dict[str, Amounts] = {}
    # Whole categories too, so that a new decimal of a known disease counts as that disease.
    for code in sorted({*seen.index, *(name for each, name in categories if each is system)}):
        amounts = chapters[codes.of(code)]
        if (system, category(code, system)) in categories:
            amounts = (*amounts, (layout.position(f"{prefix}={category(code, system)}"), 1.0))
        table[code] = amounts
    return ColumnTable(column.name, table, (), frozenset(str(code) for code in seen.index), codes, chapters)


def _encode(encoder: RowEncoder, frame: pd.DataFrame) -> npt.NDArray[np.float32]:
    # Column by column: the distinct values are looked up once, the rows only add numbers.
    width = len(encoder.names)
    rows = np.zeros((len(frame), width + 1), dtype=np.float32)  # the last position takes the padding
    every = np.arange(len(frame))
    for table in encoder.tables:
        codes, distinct = pd.factorize(_text(frame, table.column))
        found = [table.of(str(value)) for value in distinct]
        for k in range(max((len(amounts) for amounts in found), default=0)):
            positions = np.array([amounts[k][0] if k < len(amounts) else width for amounts in found])
            values = np.array([amounts[k][1] if k < len(amounts) else 0.0 for amounts in found], dtype=np.float32)
            rows[every, positions[codes]] += values[codes]
    return np.ascontiguousarray(rows[:, :width])


def _without(encoder: RowEncoder, dropped: npt.NDArray[np.bool_]) -> RowEncoder:
    kept = np.flatnonzero(~dropped)
    new = {int(old): position for position, old in enumerate(kept)}

    def moved(amounts: Amounts) -> Amounts:
        return tuple((new[position], amount) for position, amount in amounts if position in new)

    return RowEncoder(
        tuple(encoder.names[position] for position in kept),
        tuple(
            replace(
                table,
                amounts={value: moved(amounts) for value, amounts in table.amounts.items()},
                otherwise=moved(table.otherwise),
                chapters={chapter: moved(amounts) for chapter, amounts in table.chapters.items()},
                number=table.number and tuple(new[at] for at in table.number if at in new),
            )
            for table in encoder.tables
        ),
    )
