"""The model of a Bento: its files, and scores of encounters."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime

from health_predict.core.columns import FEATURES, MISSING, Kind
from health_predict.core.contributions import PROBABILITY, Explainer, owners_of
from health_predict.core.row_encoder import ColumnTable, RowEncoder
from readmission_service.contract import DECODER, is_code

INPUT = "rows"
OUTPUT = "probabilities"
TOLERANCE = 1e-6
EXPLAINER = "explainer.npz"
SHOWN_CONTRIBUTIONS = 10
EXPLAINED_GOLDEN, EXPLAINED_TOLERANCE = 3, 1e-4
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
            _Column(tables[column.name], column.kind, is_code(column), self._width) for column in FEATURES
        )
        self._lookups = tuple(column.known for column in self._columns)
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
        """Probability of one encounter, and the positions of the columns whose value training never had."""
        row = [0.0] * self._width
        unseen: list[int] = []
        for position, (value, known) in enumerate(zip(values, self._lookups, strict=True)):
            amounts = known.get(value)
            if amounts is None:
                amounts = self._columns[position].amounts_of_new(value)
                if not self._columns[position].is_seen(value):
                    unseen.append(position)
            for at, amount in amounts:
                row[at] += amount
        rows = np.frombuffer(self._pack(*row), dtype=np.float32).reshape(1, -1)
        return float(self._run(self._outputs, {INPUT: rows})[0][0, 1]), unseen

    def score_many(self, rows: Sequence[tuple[Any, ...]]) -> tuple[npt.NDArray[np.float32], dict[int, int]]:
        """Probabilities (n,) of several encounters, and how many unseen values each column's position had."""
        matrix = np.zeros((len(rows), self._width + 1), dtype=np.float32)  # the last position takes the padding
        flat = matrix.reshape(-1)
        start = np.arange(len(rows)) * (self._width + 1)
        unseen: dict[int, int] = {}
        for position, values in enumerate(zip(*rows, strict=True)):
            column = self._columns[position]
            codes: list[Any] = list(map(column.codes.get, values))
            positions, amounts = column.positions, column.amounts
            if None in codes:
                codes, positions, amounts, new = column.with_new(codes, values)
                if new:
                    unseen[position] = new
            index = np.array(codes, dtype=np.intp)
            for slot in range(positions.shape[0]):
                flat[start + positions[slot].take(index)] += amounts[slot].take(index)
        scores = self._run(self._outputs, {INPUT: np.ascontiguousarray(matrix[:, : self._width])})[0][:, 1]
        return scores, unseen

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
            amounts.append(column.amounts_of_new(value) if known is None else known)
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

    def __init__(self, table: ColumnTable, kind: Kind, code: bool, padding: int) -> None:
        self._table = table
        self._padding = padding
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
        entries = list(self.known.values())
        self.codes = {value: index for index, value in enumerate(self.known)}
        self._slots = max(map(len, (*entries, *table.amounts.values(), *(table.chapters or {}).values())), default=0)
        self._slots = max(self._slots, len(table.otherwise))
        self.positions, self.amounts = self._arrays(entries)

    def _arrays(self, entries: Iterable[Any]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        padded = [(*amounts, *(((self._padding, 0.0),) * (self._slots - len(amounts)))) for amounts in entries]
        shape = (len(padded), self._slots)
        positions = np.array([[at for at, _ in amounts] for amounts in padded], dtype=np.intp).reshape(shape)
        values = np.array([[amount for _, amount in amounts] for amounts in padded], dtype=np.float32).reshape(shape)
        return np.ascontiguousarray(positions.T), np.ascontiguousarray(values.T)

    @staticmethod
    def _text(value: Any) -> str:
        return MISSING if value is None else str(value)

    def amounts_of_new(self, value: Any) -> Any:
        """What a value outside the training rows adds."""
        return self._table.of(self._text(value))

    def is_seen(self, value: Any) -> bool:
        """Whether the training rows had the value."""
        return self._text(value) in self._table.seen

    def with_new(
        self, codes: list[int | None], values: Sequence[Any]
    ) -> tuple[list[int], npt.NDArray[np.intp], npt.NDArray[np.float32], int]:
        """Codes and tables that also hold the new values among `values`, and how many rows are unseen."""
        new = list(dict.fromkeys(value for code, value in zip(codes, values, strict=True) if code is None))
        added = {value: len(self.codes) + number for number, value in enumerate(new)}
        positions, amounts = self._arrays([self.amounts_of_new(value) for value in new])
        complete = [added[value] if code is None else code for code, value in zip(codes, values, strict=True)]
        unseen = sum(code is None and not self.is_seen(value) for code, value in zip(codes, values, strict=True))
        return (
            complete,
            np.concatenate([self.positions, positions], axis=1),
            np.concatenate([self.amounts, amounts], axis=1),
            unseen,
        )


def new_ids(count: int) -> list[str]:
    """Random identifiers in the form of a version 4 UUID (RFC 9562)."""
    digits = os.urandom(16 * count).hex()
    return [
        f"{d[:8]}-{d[8:12]}-4{d[13:16]}-{'89ab'[int(d[16], 16) & 3]}{d[17:20]}-{d[20:]}"
        for d in (digits[start : start + 32] for start in range(0, 32 * count, 32))
    ]
