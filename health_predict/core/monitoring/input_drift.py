"""Do the encounters of a batch look like those of a reference? One decision over all columns.

Each column is cut into a few cells: frequent levels, chapters of rare codes, intervals of counts and numbers,
missing, and one for all else. A column's statistic is Pearson's chi-square between the shares of batch and reference;
its cube root is nearly normal (Wilson and Hilferty 1931, doi:10.1073/pnas.17.12.684), which makes columns with
few and many cells comparable. The batch is called different when the largest of these z values is larger than
in all but a share `alpha` of resamples of the reference, so columns that depend on each other are counted as
they are and looking at many columns does not raise the false alarms.

Apart from that decision, missing-value switches, new, appeared and vanished levels are named: they are questions to
those who supply the data, not evidence about patients. A level has vanished when hardly any of it is left, and appeared
when there was hardly any: a few stray entries do not make it a level in use. Whether that can be chance is asked by the
exact test of two Poisson counts (Przyborowski and Wilenski 1940, doi:10.1093/biomet/31.3-4.313), at a probability that
all levels share.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from health_predict.core.data.contract import MISSING, Column, Contract, Kind

Floats = npt.NDArray[np.float64]

RARE = 0.01  # a level below this share is pooled; also the floor of a cell's expected share
OTHER = "other levels"
SIZES = (500, 2000, 5000)  # rows of the resampled batches; thresholds in between are interpolated
_QUANTILES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
_LEAST_SHARE = 1e-4  # of an empty cell in the population stability index
_MISSING_STEP = 0.05  # change of the share of missing values that is named
_LEVEL_STEP = 0.005  # share of rows with levels never seen that is named
_RELEVANT = 0.02  # share of a level that is named when hardly any of it is left, or was there before
_HARDLY = 0.05  # of its former share
_CHANCE = 1e-4  # share of batches without drift in which any level may seem to have vanished or appeared


@dataclass(frozen=True, slots=True)
class Cells:
    """How one column is cut, and the reference's share of rows in each cell."""

    column: str
    names: tuple[str, ...]
    shares: tuple[float, ...]
    levels: Mapping[str, int] = field(default_factory=dict)  # level or `chapter:<name>` to cell
    edges: tuple[float, ...] = ()  # of a count or a number: cell i holds values up to edges[i]
    seen: Mapping[str, float] = field(default_factory=dict)  # share of each value in the reference; see `_kept`
    unseen_expected: float = 0.0  # share of rows with new values to expect without drift

    def cell(self, value: str, column: Column) -> int:
        """Cell of a value of the column in its text form. Raises ValueError for an amount that is no number."""
        found = self.levels.get(value)
        if found is None and self.edges:
            return bisect_left(self.edges, float(value))
        if found is None and column.kind is Kind.CODE:
            found = self.levels.get(f"chapter:{column.chapters.of(value)}")
        return len(self.names) - 1 if found is None else found

    @property
    def missing(self) -> int | None:
        """Cell of the missing values, if the column may lack them."""
        return self.levels.get(MISSING)


@dataclass(frozen=True, slots=True)
class Move:
    """A cell whose share changed."""

    cell: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class ColumnFinding:
    """One column of a batch against the reference. `z` is comparable between columns; `psi` is the effect size."""

    column: str
    z: float
    psi: float
    alarm: bool
    # The same with missing values left out: small when only the share of missing values changed.
    z_recorded: float
    moves: tuple[Move, ...]


class QualityKind(StrEnum):
    """What is odd about how a column was recorded."""

    MISSING = "missing values"
    NEW = "new levels"
    APPEARED = "appeared levels"
    VANISHED = "vanished levels"


@dataclass(frozen=True, slots=True)
class QualityFinding:
    """A question to the supplier of the data, as a sentence; `before` and `after` are shares of rows.

    `level`: which one appeared or vanished; empty where the finding is about the column.
    """

    kind: QualityKind
    column: str
    before: float
    after: float
    sentence: str
    level: str = ""


@dataclass(frozen=True, slots=True)
class InputFindings:
    """The decision over all columns (`alarm`, with its calibrated p value) and each column, largest z first."""

    alarm: bool
    p_value: float
    largest_z: float
    threshold: float
    columns: tuple[ColumnFinding, ...]
    quality: tuple[QualityFinding, ...]


@dataclass(frozen=True)
class InputReference:
    """The reference's shares and, by batch size, the largest z of resamples without drift (sorted)."""

    rows: int
    cells: tuple[Cells, ...]
    largest: Mapping[int, tuple[float, ...]]

    @classmethod
    def fit(cls, frame: pd.DataFrame, contract: Contract, *, seed: int = 0, draws: int = 1000) -> Self:
        """From a cohort frame of at least one row; other columns than features are ignored."""
        coded = [_code(frame[column.name], column) for column in contract.features if column.name in frame.columns]
        cells = tuple(cell for cell, _ in coded)
        return cls(len(frame), cells, _null(cells, [codes for _, codes in coded], seed, draws))

    def compare(self, frame: pd.DataFrame, contract: Contract, *, alpha: float = 0.01) -> InputFindings:
        """A batch of n rows against the reference of this contract. `alpha`: the share of clean batches that may alarm.

        Raises ValueError for an empty batch and KeyError for a column that the reference has and the batch lacks.
        """
        n = len(frame)
        if n == 0:
            raise ValueError("an empty batch cannot be compared")
        scale = n * self.rows / (n + self.rows)
        threshold = self._between(n, lambda largest: float(np.quantile(largest, 1 - alpha)))
        columns: list[ColumnFinding] = []
        batches: list[_Batch] = []
        for cells in self.cells:
            column = contract.by_name[cells.column]
            counts = _counted(frame[cells.column], column)
            shares = np.zeros(len(cells.names))
            for value, count in counts.items():
                shares[cells.cell(value, column)] += count
            batches.append(_Batch(cells, self.rows, n, counts, shares / n))
            columns.append(_column(cells, shares / n, scale, threshold))
        frequent = [_frequent(batch) for batch in batches]
        limit = _CHANCE / max(1, sum(map(len, frequent)))
        quality: list[QualityFinding] = []
        for batch, levels in zip(batches, frequent, strict=True):
            column = contract.by_name[batch.cells.column]
            quality += [*_missing(batch), *_new(batch, column), *_levels(batch, column, levels, limit)]
        columns.sort(key=lambda finding: -finding.z)
        largest = columns[0].z if columns else 0.0
        # The null is sorted.
        p_value = self._between(n, lambda null: (1 + len(null) - bisect_left(null, largest)) / (1 + len(null)))
        return InputFindings(
            largest > threshold,
            round(p_value, 5),
            round(largest, 3),
            round(threshold, 3),
            tuple(columns),
            tuple(quality),
        )

    def _between(self, n: int, of: Callable[[tuple[float, ...]], float]) -> float:
        sizes = sorted(self.largest)
        return float(np.interp(math.log(n), np.log(sizes), [of(self.largest[size]) for size in sizes]))


@dataclass(frozen=True, slots=True)
class _Batch:
    """One column of a batch of n rows: how often each value occurs, and the share of rows in each cell."""

    cells: Cells
    reference_rows: int
    n: int
    counts: Mapping[str, int]
    shares: Floats


def _counted(series: pd.Series[str], column: Column) -> dict[str, int]:
    """How often each value occurs. Arrow counts its own text several times faster than pandas does."""
    counted = pa.array(series).value_counts()
    counts: dict[str, int] = {}
    for value, count in zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True):
        same = _same(value, column)
        counts[same] = counts.get(same, 0) + count
    return counts


def _same(value: str, column: Column) -> str:
    """One text for all ways to write a number: 5, 5.0 and 5.00."""
    return f"{float(value):.12g}" if column.kind is Kind.NUMBER and value != MISSING else value


def psi(before: Floats, after: Floats) -> float:
    """Population stability index of two vectors of shares; empty cells count as 0.01 %.

    Source: Siddiqi, Credit Risk Scorecards, 2006, chapter 9.
    """
    a, b = np.maximum(before, _LEAST_SHARE), np.maximum(after, _LEAST_SHARE)
    return float(((b - a) * np.log(b / a)).sum())


def standardised(before: Floats, after: Floats, scale: float) -> Floats:
    """z of the chi-square between shares, over the last axis. `scale`: n m / (n + m) for samples of n and m rows.

    The expected share is floored at RARE, so that a few rows in a rare cell raise no alarm.
    """
    chi_square = scale * ((after - before) ** 2 / np.maximum(before, RARE)).sum(axis=-1)
    freedom = max(1, before.shape[-1] - 1)
    normal: Floats = (np.cbrt(chi_square / freedom) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return normal


def _code(series: pd.Series[str], column: Column) -> tuple[Cells, npt.NDArray[np.int64]]:
    """The cells of one reference column and the cell of each of its rows."""
    codes, written = pd.factorize(series.to_numpy(dtype=object))
    same, values = pd.factorize(np.array([_same(str(value), column) for value in written], dtype=object))
    codes = same[codes]
    counts = np.bincount(codes, minlength=len(values))
    share = {str(value): count / len(series) for value, count in zip(values, counts, strict=True)}
    # Good 1953, doi:10.1093/biomet/40.3-4.237: new values come as often as values seen once.
    unseen = float((counts == 1).sum()) / len(series)
    amounts = column.kind in (Kind.COUNT, Kind.NUMBER)
    edges = _edges(values, counts, whole=column.kind is Kind.COUNT) if amounts else ()
    names, levels = ([], {}) if edges else _level_cells(share, column)
    if edges:
        names = [*_intervals(edges, whole=column.kind is Kind.COUNT), *([MISSING] if column.nullable else [])]
        levels = {MISSING: len(names) - 1} if column.nullable else {}
    cells = Cells(column.name, tuple(names), (), levels, edges, _kept(share, counts, column), unseen)
    by_row = np.array([cells.cell(str(value), column) for value in values], dtype=np.int64)[codes]
    shares = np.bincount(by_row, minlength=len(names)) / len(series)
    return replace(cells, shares=tuple(shares.tolist())), by_row


def _level_cells(share: Mapping[str, float], column: Column) -> tuple[list[str], dict[str, int]]:
    """Names of the cells of a column of levels or codes, and the cell of each level and chapter that has one."""
    names = [level for level in sorted(share) if share[level] >= RARE or level == MISSING]
    if column.nullable and MISSING not in names:
        names.append(MISSING)
    levels = {level: i for i, level in enumerate(names)}
    if column.kind is Kind.CODE:
        chapters: dict[str, float] = {}
        for level, part in share.items():
            if level not in levels:
                chapter = column.chapters.of(level)
                chapters[chapter] = chapters.get(chapter, 0.0) + part
        for chapter in sorted(chapter for chapter, part in chapters.items() if part >= RARE):
            levels[f"chapter:{chapter}"] = len(names)
            names.append(f"other {chapter} codes")
    return [*names, OTHER], levels


def _edges(values: npt.NDArray[np.object_], counts: npt.NDArray[np.int64], *, whole: bool) -> tuple[float, ...]:
    """Where the intervals of a count or a number end: at quantiles of what is there; none when nothing is."""
    present = np.array([value != MISSING for value in values])
    amounts = np.repeat(np.array([float(value) for value in values[present]]), counts[present])
    if not len(amounts):
        return ()
    inner = np.unique(np.quantile(amounts, _QUANTILES, method="inverted_cdf"))
    return tuple(int(edge) if whole else float(edge) for edge in inner)


def _intervals(edges: Sequence[float], *, whole: bool) -> list[str]:
    """Names of the intervals that end at the edges, and of the one beyond."""
    if not whole:
        between = [f"over {low:.12g} to {high:.12g}" for low, high in pairwise(edges)]
        return [f"up to {edges[0]:.12g}", *between, f"over {edges[-1]:.12g}"]
    between = [_span(int(low) + 1, int(high)) for low, high in pairwise(edges)]
    return [f"up to {edges[0]}", *between, f"{edges[-1] + 1} and over"]


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _kept(share: Mapping[str, float], counts: npt.NDArray[np.int64], column: Column) -> dict[str, float]:
    """Shares by value, of which the single ones of a number, which may be as many as rows, say nothing."""
    often = counts > (1 if column.kind is Kind.NUMBER else 0)
    return {value: part for (value, part), kept in zip(share.items(), often, strict=True) if kept}


def _null(
    cells: Sequence[Cells], codes: Sequence[npt.NDArray[np.int64]], seed: int, draws: int
) -> dict[int, tuple[float, ...]]:
    """The largest z over the columns in resampled batches of each size.

    A batch drawn with replacement against the reference itself has, scaled by its rows, the distribution of two
    samples scaled by n m / (n + m).
    """
    from scipy.sparse import csr_matrix

    rows = len(codes[0])
    starts = np.cumsum([0, *(len(cell.names) for cell in cells)])
    positions = np.concatenate([start + code for start, code in zip(starts, codes, strict=False)])
    membership = csr_matrix(
        (np.ones(len(positions), dtype=np.float32), (positions, np.tile(np.arange(rows), len(codes)))),
        shape=(int(starts[-1]), rows),
    )
    random = np.random.default_rng(seed)
    largest: dict[int, tuple[float, ...]] = {}
    for size in SIZES:
        found: list[Floats] = []
        for first in range(0, draws, 250):  # a part at a time bounds the memory
            weights = np.stack(
                [np.bincount(random.integers(0, rows, size), minlength=rows) for _ in range(min(250, draws - first))],
                axis=1,
            ).astype(np.float32)
            shares = np.asarray(membership @ weights, dtype=np.float64).T / size
            z = [
                standardised(np.array(cell.shares), shares[:, start : start + len(cell.names)], size)
                for start, cell in zip(starts, cells, strict=False)
            ]
            found.append(np.max(z, axis=0))
        largest[size] = tuple(np.round(np.sort(np.concatenate(found)), 4).tolist())
    return largest


def _column(cells: Cells, after: Floats, scale: float, threshold: float) -> ColumnFinding:
    before = np.array(cells.shares)
    z = z_recorded = float(standardised(before, after, scale))
    if cells.missing is not None:
        kept = np.arange(len(before)) != cells.missing
        old, new = before[kept].sum(), after[kept].sum()
        # Without recorded values on one side there is nothing to compare.
        comparable = min(old, new) > 0
        z_recorded = (
            float(standardised(before[kept] / old, after[kept] / new, scale * min(old, new))) if comparable else 0.0
        )
    largest = np.argsort(-np.abs(after - before), kind="stable")[:3].tolist()
    moves = [Move(cells.names[i], round(float(before[i]), 5), round(float(after[i]), 5)) for i in largest]
    moved = tuple(move for move in moves if move.before != move.after)
    return ColumnFinding(
        cells.column, round(z, 3), round(psi(before, after), 5), z > threshold, round(z_recorded, 3), moved
    )


def _missing(batch: _Batch) -> Iterator[QualityFinding]:
    """Whether the share of missing values changed."""
    cells, n, rows = batch.cells, batch.n, batch.reference_rows
    before, after = cells.seen.get(MISSING, 0.0), batch.counts.get(MISSING, 0) / n
    pooled = (before * rows + after * n) / (rows + n)
    error = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / rows))
    if abs(after - before) >= _MISSING_STEP and abs(after - before) > 4 * error:
        sentence = (
            f"{cells.column}: the share of missing values {'rose' if after > before else 'fell'} from {before:.1%} to "
            f"{after:.1%}. A change of recording is likelier than a change of patients."
        )
        yield QualityFinding(QualityKind.MISSING, cells.column, before, after, sentence)


def _new(batch: _Batch, column: Column) -> Iterator[QualityFinding]:
    """Whether more rows than chance brings have levels that the reference never had."""
    cells, n = batch.cells, batch.n
    new = {value: count for value, count in batch.counts.items() if value != MISSING and value not in cells.seen}
    total = sum(new.values())
    # Poisson tail by its normal approximation, four standard errors above what chance brings.
    expected = n * cells.unseen_expected
    if not cells.edges and total / n >= _LEVEL_STEP and total > expected + 4 * math.sqrt(expected + 1):
        most = sorted(new, key=lambda value: (-new[value], value))[:4]
        examples = ", ".join(column.in_words(value) for value in most)
        sentence = (
            f"{cells.column}: {total:,} encounters ({total / n:.1%}) have levels that the reference never had "
            f"({examples}{', …' if len(new) > 4 else ''})."
        )
        yield QualityFinding(QualityKind.NEW, cells.column, 0.0, total / n, sentence)


def _frequent(batch: _Batch) -> list[tuple[str, int, int]]:
    """The levels that reference or batch hold often enough to ask about: name, rows of the reference and of the batch.

    What is pooled in a cell is only asked whether it vanished, and a new level not at all, unless it is a count: new
    levels are named together (`_new`).
    """
    cells, counts, n, rows = batch.cells, batch.counts, batch.n, batch.reference_rows
    values = [value for value, share in cells.seen.items() if share >= _RELEVANT]
    values += [
        value
        for value, count in counts.items()
        if count / n >= _RELEVANT > cells.seen.get(value, 0.0) and (value in cells.seen or cells.edges)
    ]
    found = [
        (value, round(cells.seen.get(value, 0.0) * rows), counts.get(value, 0)) for value in values if value != MISSING
    ]
    if not cells.edges:
        found += [
            (name, round(share * rows), round(float(after) * n))
            for name, share, after in zip(cells.names, cells.shares, batch.shares, strict=True)
            if share >= _RELEVANT and name not in cells.seen and name != MISSING
        ]
    return found


def _levels(
    batch: _Batch, column: Column, levels: Sequence[tuple[str, int, int]], limit: float
) -> Iterator[QualityFinding]:
    """Which of the levels vanished from the batch, or appeared in it.

    Shares are compared among the recorded values: that more or fewer are missing is another finding.
    """
    n, rows = batch.n, batch.reference_rows
    recorded = n - batch.counts.get(MISSING, 0)
    recorded_before = round(rows * (1 - batch.cells.seen.get(MISSING, 0.0)))
    if min(recorded, recorded_before) == 0:
        return
    # Of all rows with a level, the batch holds a binomial share when nothing changed.
    part = recorded / (recorded + recorded_before)
    for name, old, new in levels:
        before, after = old / rows, new / n
        change = (new / recorded) / (old / recorded_before) if old else math.inf
        if change <= _HARDLY and _at_most(new, old + new, part) < limit:
            few = f"hardly occurs any more ({new:,} of {n:,} encounters)" if new else "no longer occurs"
            sentence = f"{column.name}: {column.in_words(name)} {few}; it was {before:.1%} of the reference."
            yield QualityFinding(QualityKind.VANISHED, column.name, before, after, sentence, name)
        elif change >= 1 / _HARDLY and _at_most(old, old + new, 1 - part) < limit:
            few = f"hardly occurred before ({old:,} of {rows:,} encounters)" if old else "is new"
            sentence = f"{column.name}: {column.in_words(name)} {few}; it is {after:.1%} of the batch."
            yield QualityFinding(QualityKind.APPEARED, column.name, before, after, sentence, name)


def _at_most(count: int, total: int, share: float) -> float:
    """Probability that a binomial number out of `total` is at most `count`."""
    from scipy.special import bdtr

    return float(bdtr(count, total, share))
