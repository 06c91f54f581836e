"""The model of a Bento: its files, and scores of encounters."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime

from health_predict.core.columns import FEATURES, MISSING, Kind
from health_predict.core.contributions import PROBABILITY, Explainer, owners_of
from health_predict.core.row_encoder import ColumnTable, RowEncoder
from readmission_service.contract import DECODER, is_code, well_formed

INPUT = "rows"
OUTPUT = "probabilities"
TOLERANCE = 1e-6
EXPLAINER = "explainer.npz"
SHOWN_CONTRIBUTIONS = 10
EXPLAINED_GOLDEN, EXPLAINED_TOLERANCE = 3, 1e-4
# The place of values outside the tables.
NEW = 0
RISK_GROUPS = ("low", "medium", "high", "very high")


class Identity(msgspec.Struct, frozen=True):
    """Where the model comes from: the chain from the Bento back to the data."""

    model_name: str
    model_version: str
    run_id: str
    family: str
    dataset_digest: str
    dataset_source: str
    git_commit: str
    bento_tag: str
    threshold: float
    training_prevalence: float
    risk_cutoffs: tuple[float, float, float]
    """Lowest probability of the groups medium, high and very high."""
    metrics: dict[str, float]


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What the service says about one encounter."""

    prediction: int
    probability_score: float
    risk_group: str
    model_version: str
    prediction_id: str


class Contribution(msgspec.Struct, frozen=True):
    """What one column of the encounter added to the score."""

    column: str
    value: str | int | None
    contribution: float


class Explanation(msgspec.Struct, frozen=True):
    """The contributions with the largest amounts; `base`, all of them and `others` make the score."""

    unit: str
    base: float
    score: float
    contributions: list[Contribution]
    others: float


class GoldenMismatchError(Exception):
    """The model does not answer as it did when the Bento was built."""


class MalformedCodeError(ValueError):
    """Codes that are not written as codes; `rows` are the numbers of the encounters that hold them."""

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__(f"{len(rows)} encounters hold malformed codes")
        self.rows = rows


class Scorer:
    """Tables, graph and threshold of one model version.

    Rows are tuples of an encounter's values in the order of `columns.FEATURES`, as decoded by the contract.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.identity = msgspec.json.decode((folder / "identity.json").read_bytes(), type=Identity)
        self.golden: list[dict[str, Any]] = msgspec.json.decode((folder / "golden.json").read_bytes())
        encoder = RowEncoder.from_json(msgspec.json.decode((folder / "encoder.json").read_bytes()))
        self._width = len(encoder.names)
        tables = {table.column: table for table in encoder.tables}
        self._pack = struct.Struct(f"={self._width}f").pack
        self._columns = tuple(
            _Column(position, tables[column.name], column.kind, is_code(column))
            for position, column in enumerate(FEATURES)
        )
        self._lookups = tuple(column.known for column in self._columns)
        # The same for many rows: what each value adds, one after another in flat arrays. Place 0 adds nothing.
        everything: list[Any] = [()]
        self._entries = []
        for column in self._columns:
            self._entries.append(_Entries(zip(column.known, count(len(everything)), strict=False)))
            everything += column.known.values()
        self._lengths = np.array([len(amounts) for amounts in everything], dtype=np.intp)
        self._starts = self._lengths.cumsum() - self._lengths
        flat = list(chain.from_iterable(everything))
        self._positions = np.array([at for at, _ in flat], dtype=np.intp)
        self._amounts = np.array([amount for _, amount in flat], dtype=np.float64)
        self.names = tuple(column.name for column in FEATURES)
        tables_of_contributions = folder / EXPLAINER
        self.explainer = (
            Explainer.from_bytes(tables_of_contributions.read_bytes()) if tables_of_contributions.is_file() else None
        )
        self._owners = owners_of(RowEncoder(encoder.names, tuple(tables[name] for name in self.names)))
        options = onnxruntime.SessionOptions()
        # One row at a time gains nothing from threads, and the pools of several workers would fight.
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = (folder / "model.onnx").read_bytes()
        self._run = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]).run
        self._outputs = [OUTPUT]
        self._threshold = self.identity.threshold
        self._cutoffs = self.identity.risk_cutoffs
        self._version = self.identity.model_version

    def score(self, values: tuple[Any, ...]) -> tuple[float, Sequence[int]]:
        """Probability of one encounter, and the positions of the columns whose value training never had.

        Raises MalformedCodeError.
        """
        row = [0.0] * self._width
        unseen: list[int] = []
        for position, (value, known) in enumerate(zip(values, self._lookups, strict=True)):
            amounts = known.get(value)
            if amounts is None:
                amounts, seen = _of_new(self._columns[position], value)
                if not seen:
                    unseen.append(position)
            for at, amount in amounts:
                row[at] += amount
        rows = np.frombuffer(self._pack(*row), dtype=np.float32).reshape(1, -1)
        return float(self._run(self._outputs, {INPUT: rows})[0][0, 1]), unseen

    def score_many(self, rows: Sequence[tuple[Any, ...]]) -> tuple[npt.NDArray[np.float32], dict[int, int]]:
        """Probabilities (n,) of several encounters, and how many unseen values each column's position had.

        Raises MalformedCodeError, which names all rows with such codes.
        """
        columns = list(zip(*rows, strict=True))
        entries = np.fromiter(
            chain.from_iterable(map(self._entries[at].__getitem__, values) for at, values in enumerate(columns)),
            dtype=np.intp,
            count=len(columns) * len(rows),
        )
        # Each entry is a run of the flat tables: repeat its first place, and count on from there.
        lengths = self._lengths.take(entries)
        ends = lengths.cumsum()
        places = np.arange(ends[-1]) + (self._starts.take(entries) - ends + lengths).repeat(lengths)
        firsts = np.tile(np.arange(len(rows)) * self._width, len(columns)).repeat(lengths)
        cells = self._positions.take(places) + firsts
        matrix = np.bincount(cells, self._amounts.take(places), len(rows) * self._width).astype(np.float32)
        unseen: dict[int, int] = {}
        new = np.flatnonzero(entries == NEW)
        if new.size:
            self._add_new(matrix, columns, new.tolist(), unseen)
        return self._run(self._outputs, {INPUT: matrix.reshape(len(rows), -1)})[0][:, 1], unseen

    def _add_new(
        self,
        matrix: npt.NDArray[np.float32],
        columns: Sequence[tuple[Any, ...]],
        new: list[int],
        unseen: dict[int, int],
    ) -> None:
        """Add the amounts of values outside the tables; `new` counts through the columns, one after another."""
        found: dict[tuple[int, Any], tuple[Any, bool] | None] = {}
        malformed: set[int] = set()
        for place in new:
            position, row = divmod(place, len(columns[0]))
            key = position, columns[position][row]
            if key not in found:
                found[key] = self._columns[position].amounts_of_new(key[1])
            known = found[key]
            if known is None:
                malformed.add(row)
                continue
            amounts, seen = known
            if not seen:
                unseen[position] = unseen.get(position, 0) + 1
            for at, amount in amounts:
                matrix[row * self._width + at] += amount
        if malformed:
            raise MalformedCodeError(sorted(malformed))

    def answer(self, probability: float, prediction_id: str) -> Answer:
        """Decision and risk group of a probability."""
        medium, high, very_high = self._cutoffs
        if probability < high:
            group = "low" if probability < medium else "medium"
        else:
            group = "high" if probability < very_high else "very high"
        return Answer(1 if probability >= self._threshold else 0, probability, group, self._version, prediction_id)

    def explain(self, values: tuple[Any, ...]) -> Explanation:
        """What the columns added to the score of an encounter, the largest amounts first."""
        explainer = self.explainer
        assert explainer is not None
        amounts = []
        for column, value in zip(self._columns, values, strict=True):
            known = column.known.get(value)
            amounts.append(_of_new(column, value)[0] if known is None else known)
        found = explainer.by_column(amounts, self._owners)
        order = np.argsort(-np.abs(found), kind="stable")
        return Explanation(
            unit=explainer.unit,
            base=explainer.base,
            score=explainer.base + float(found.sum()),
            contributions=[
                Contribution(self.names[at], values[at], float(found[at])) for at in order[:SHOWN_CONTRIBUTIONS]
            ],
            others=float(found[order[SHOWN_CONTRIBUTIONS:]].sum()),
        )

    def check(self) -> None:
        """Answer the golden requests, one by one and together, and explain some.

        Raises GoldenMismatchError at the first other answer.
        """
        rows = [
            msgspec.structs.astuple(DECODER.decode(msgspec.json.encode(golden["request"]))) for golden in self.golden
        ]
        if not rows:
            raise GoldenMismatchError("the Bento has no golden requests")
        together, _ = self.score_many(rows)
        for number, (row, golden, other) in enumerate(zip(rows, self.golden, together.tolist(), strict=True)):
            expected = golden["answer"]
            for probability in (self.score(row)[0], other):
                answer = self.answer(probability, "")
                if (
                    not abs(probability - expected["probability_score"]) <= TOLERANCE
                    or answer.prediction != expected["prediction"]
                    or answer.risk_group != expected["risk_group"]
                ):
                    raise GoldenMismatchError(f"golden request {number} is answered otherwise than at build time")
        if self.explainer is not None:
            for row in rows[:: max(1, len(rows) // EXPLAINED_GOLDEN)]:
                score = self.explain(row).score
                expected = score if self.explainer.unit == PROBABILITY else 1 / (1 + math.exp(-score))
                if not abs(expected - self.score(row)[0]) <= EXPLAINED_TOLERANCE:
                    raise GoldenMismatchError("the contributions do not add up to the score")


class _Column:
    """A column's table with the keys that requests use: numbers as numbers, nothing as None."""

    def __init__(self, position: int, table: ColumnTable, kind: Kind, code: bool) -> None:
        self._position, self._table = position, table
        # Only values of the training rows; the others take the slow way, where they are counted.
        seen = {value: table.of(value) for value in sorted(table.seen)}
        self.known: dict[Any, Any] = {}
        for value, amounts in seen.items():
            if kind is not Kind.COUNT:
                self.known[value] = amounts
            if kind is Kind.COUNT or (code and value.isdigit()):
                self.known[int(value)] = amounts
        if MISSING in seen:
            self.known[None] = seen[MISSING]

    def amounts_of_new(self, value: Any) -> tuple[Any, bool] | None:
        """What a value outside `known` adds, and whether the training rows had it; None for a malformed code."""
        if not well_formed(self._position, value):
            return None
        text = MISSING if value is None else str(value)
        return self._table.of(text), text in self._table.seen


def _of_new(column: _Column, value: Any) -> tuple[Any, bool]:
    """`amounts_of_new` for the one encounter that is scored. Raises MalformedCodeError."""
    found = column.amounts_of_new(value)
    if found is None:
        raise MalformedCodeError([0])
    return found


class _Entries(dict[Any, int]):
    """A column's values to their places in the tables of all columns."""

    def __missing__(self, value: Any) -> int:
        return NEW


def new_ids(count: int) -> list[str]:
    """Random identifiers in the form of a version 4 UUID (RFC 9562)."""
    digits = os.urandom(16 * count).hex()
    return [
        f"{d[:8]}-{d[8:12]}-4{d[13:16]}-{'89ab'[int(d[16], 16) & 3]}{d[17:20]}-{d[20:]}"
        for d in (digits[start : start + 32] for start in range(0, 32 * count, 32))
    ]
