"""The model of a Bento: its files, and scores of encounters."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime

from health_predict.core.columns import FEATURES
from health_predict.core.contributions import PROBABILITY, Explainer, owners_of
from health_predict.core.row_encoder import Amounts, RowEncoder
from health_predict.core.tree_scores import TreeScores
from readmission_service.column_encoder import NEW, ColumnEncoder, Entries
from readmission_service.contract import DECODER, text_of

INPUT = "rows"
OUTPUT = "probabilities"
TOLERANCE = 1e-6
EXPLAINER = "explainer.npz"
SHOWN_CONTRIBUTIONS = 10
EXPLAINED_GOLDEN, EXPLAINED_TOLERANCE = 3, 1e-4
# Rows scored at once, by formulas and by the graph: some ten milliseconds.
PORTION, WALKED_PORTION = 5_000, 512
# Where the parts of an identifier begin and end among its 32 digits.
ID_PARTS = ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
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
            ColumnEncoder(position, column, tables[column.name]) for position, column in enumerate(FEATURES)
        )
        self._lookups = tuple(column.known for column in self._columns)
        self._entry_type = np.min_scalar_type(max(column.last for column in self._columns))
        # For many rows: what a column's entries add to the positions of the row.
        self._added = [list(column.added().items()) for column in self._columns]
        self.names = tuple(column.name for column in FEATURES)
        tables_of_contributions = folder / EXPLAINER
        self.explainer = (
            Explainer.from_bytes(tables_of_contributions.read_bytes()) if tables_of_contributions.is_file() else None
        )
        self._trees = TreeScores.of(self.explainer)
        # How many encounters `score_many` takes at once so that other requests need not wait for long.
        self.portion = WALKED_PORTION if self._trees is None else PORTION
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

    def entries_of(self, rows: Sequence[tuple[Any, ...]]) -> tuple[Entries, dict[int, int]]:
        """The entries (columns, n) of several encounters, and how many unseen values the column at a position had.

        Raises MalformedCodeError, which names all rows with such codes.
        """
        columns = list(zip(*rows, strict=True))
        entries = np.array(
            [column.entries(values) for column, values in zip(self._columns, columns, strict=True)],
            dtype=self._entry_type,
        )
        unseen: dict[int, int] = {}
        malformed: set[int] = set()
        looked_up: dict[tuple[int, Any], tuple[int, bool]] = {}
        for position, row in np.argwhere(entries == NEW).tolist():
            key = position, columns[position][row]
            if key not in looked_up:
                looked_up[key] = self._columns[position].entry_of_new(key[1])
            entry, seen = looked_up[key]
            entries[position, row] = entry
            if entry == NEW:
                malformed.add(row)
            elif not seen:
                unseen[position] = unseen.get(position, 0) + 1
        if malformed:
            raise MalformedCodeError(sorted(malformed))
        return entries, unseen

    def score_many(self, entries: Entries) -> npt.NDArray[np.float64]:
        """Probabilities (n,) of the encounters with these entries (columns, n)."""
        matrix = np.zeros((self._width, entries.shape[1]), dtype=np.float32)
        for column, added in zip(entries, self._added, strict=True):
            places = column.astype(np.intp)
            for at, amounts in added:
                matrix[at] += amounts.take(places)
        if self._trees is not None and entries.shape[1] >= self._trees.worth_from:
            return self._trees(matrix)
        return self._run(self._outputs, {INPUT: np.ascontiguousarray(matrix.T)})[0][:, 1].astype(np.float64)

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
                Contribution(self.names[at], text_of(values[at]), float(found[at]))
                for at in order[:SHOWN_CONTRIBUTIONS]
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
        entries, _ = self.entries_of(rows)
        # So often that the formulas are used, if there are any.
        times = 1 if self._trees is None else -(-self._trees.worth_from // len(rows)) + 1
        together, many = self.score_many(entries).tolist(), self.score_many(np.tile(entries, times)).tolist()
        for number, (row, golden) in enumerate(zip(rows, self.golden, strict=True)):
            expected = golden["answer"]
            # Both the graph and the formulas may be so far from the pipeline.
            scores = ((self.score(row)[0], TOLERANCE), (together[number], TOLERANCE), (many[number], 2 * TOLERANCE))
            for probability, tolerance in scores:
                answer = self.answer(probability, "")
                if (
                    not abs(probability - expected["probability_score"]) <= tolerance
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


def _of_new(column: ColumnEncoder, value: Any) -> tuple[Amounts, bool]:
    """`amounts_of_new` for the one encounter that is scored. Raises MalformedCodeError."""
    found = column.amounts_of_new(value)
    if found is None:
        raise MalformedCodeError([0])
    return found


def new_ids(count: int) -> list[str]:
    """Random identifiers in the form of a version 4 UUID (RFC 9562)."""
    drawn = np.frombuffer(os.urandom(16 * count), dtype=np.uint8).reshape(count, 16).copy()
    drawn[:, 6] = drawn[:, 6] & 0x0F | 0x40
    drawn[:, 8] = drawn[:, 8] & 0x3F | 0x80
    digits = np.frombuffer(drawn.tobytes().hex().encode(), dtype=np.uint8).reshape(count, 32)
    letters = np.full((count, 36), ord("-"), dtype=np.uint8)
    for number, (first, end) in enumerate(ID_PARTS):
        letters[:, first + number : end + number] = digits[:, first:end]
    text = letters.tobytes().decode()
    return [text[start : start + 36] for start in range(0, 36 * count, 36)]
