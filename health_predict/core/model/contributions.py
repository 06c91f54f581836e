"""What each column of an encounter adds to its score: Shapley values, from plain tables.

Standard library and numpy only: the prediction service carries this module. `explained_model` makes the tables.

A linear model's contribution of a column is its own part of the sum less the mean of that part over the training rows.

A tree model's are the path-dependent TreeSHAP values (Lundberg et al. 2020, doi:10.1038/s42256-019-0138-9): a split
on an unknown position sends a row both ways, in the shares of the training rows. Here they are computed as integrals.
Let every position be known with chance t, independently. A leaf of value v is then reached with weight
v * prod_j (o_j t + z_j (1 - t)) over the positions j of its path, where o_j says whether the row satisfies all splits
on j and z_j is the share of training rows that do. The Shapley value of position i is the integral over t in [0, 1]
of the difference that knowing i makes (Owen 1972, multilinear extensions of games): of
v * (o_i - z_i) * prod_{j != i} (o_j t + z_j (1 - t)). It is a polynomial in t, so a Gauss-Legendre rule with half as
many points as a path has positions is exact. One pass down and one up over all trees at once gives all of it.

A recalibrated model (`calibration`) maps log-odds linearly, and so its contributions in log-odds. Those of a forest are
probabilities, which it maps along a curve: they are all multiplied by the change of the mapped score over the change
of the score, so that they add up again.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from health_predict.core.model.row_encoder import Amounts, RowEncoder
from health_predict.core.statistics import CLOSEST

LOG_ODDS, PROBABILITY = "log-odds", "probability"
SMALLEST = 1e-9

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class LinearTables:
    """`coefficients` (d,) of the positions, and `offsets` (columns,): each column's mean part over training rows."""

    coefficients: Floats
    offsets: Floats


@dataclass(frozen=True, slots=True)
class TreeTables:
    """All nodes but the roots, of all trees, by depth; the two children of a node stand side by side, left first.

    A row goes to a left child when its value at `position` is at most `bound`, else to the right one.
    """

    levels: Whole
    """Where each depth begins, and the end: depth k has the nodes levels[k - 1] to levels[k]."""
    parent: Whole
    """-1 below a root."""
    position: Whole
    bound: npt.NDArray[np.float32]
    share: Floats
    """Share of training rows that satisfy all splits of the path on `position`, this one included."""
    previous: Whole
    """The node of the path whose split on the same position comes before this one; -1: none."""
    value: Floats
    """What a leaf adds to the score; 0 for other nodes."""
    points: int
    """Points of the rule: half of the most positions that a path has."""
    start: float
    """The score to which the leaves add."""


class Explainer:
    """Contributions of one model, whose score is `base` plus all contributions, in `unit`.

    `curve` (intercept and slope on the logit scale) is the calibration of a model whose tables hold probabilities.
    """

    def __init__(
        self, tables: LinearTables | TreeTables, base: float, unit: str, curve: tuple[float, float] | None = None
    ) -> None:
        self.tables, self.unit, self._curve, self._raw_base = tables, unit, curve, base
        self.base = self._mapped(base)
        if isinstance(tables, TreeTables):
            points, weights = np.polynomial.legendre.leggauss(max(1, tables.points))
            self._at, self._weights = (points + 1) / 2, weights / 2

    def calibrated(self, intercept: float, slope: float) -> Explainer:
        """Of the same model after its probabilities went through logit(q) = intercept + slope * logit(p)."""
        if self.unit == PROBABILITY:
            return Explainer(self.tables, self._raw_base, self.unit, (intercept, slope))
        tables: LinearTables | TreeTables
        if isinstance(self.tables, LinearTables):
            tables = LinearTables(slope * self.tables.coefficients, slope * self.tables.offsets)
        else:
            start = intercept + slope * self.tables.start
            tables = replace(self.tables, value=slope * self.tables.value, start=start)
        return Explainer(tables, intercept + slope * self._raw_base, self.unit)

    def _mapped(self, score: float) -> float:
        if self._curve is None:
            return score
        intercept, slope = self._curve
        kept = min(max(score, CLOSEST), 1 - CLOSEST)
        return 1 / (1 + math.exp(-(intercept + slope * math.log(kept / (1 - kept)))))

    def by_column(self, amounts: Sequence[Amounts], owners: Sequence[Sequence[int]]) -> Floats:
        """Contributions (columns,) of an encounter, given what each of its columns adds to the row.

        `owners` is `owners_of` the row's encoder. What several columns add to (such as the number of drugs) is
        divided as they add; when none does, its absence is shared by all that could.
        """
        tables = self.tables
        if isinstance(tables, LinearTables):
            parts = [sum(float(tables.coefficients[at]) * amount for at, amount in pairs) for pairs in amounts]
            return np.array(parts) - tables.offsets
        row = np.zeros(len(owners), dtype=np.float32)
        for pairs in amounts:
            for at, amount in pairs:
                row[at] += amount
        found = self.by_position(row)
        columns = np.zeros(len(amounts))
        for column, pairs in enumerate(amounts):
            for at, amount in pairs:
                if row[at]:
                    columns[column] += found[at] * amount / float(row[at])
        for at in np.flatnonzero(row == 0).tolist():
            for column in owners[at]:
                columns[column] += found[at] / len(owners[at])
        return self._rescaled(columns)

    def _rescaled(self, contributions: Floats) -> Floats:
        total = float(contributions.sum())
        # Too close to the base, a quotient of differences says nothing, and nothing depends on it.
        if self._curve is None or abs(total) < SMALLEST:
            return contributions
        return contributions * ((self._mapped(self._raw_base + total) - self.base) / total)

    def by_position(self, row: npt.NDArray[np.float32]) -> Floats:
        """Contributions (d,) of the positions of a row (d,) to the score of a tree model."""
        tables = self.tables
        assert isinstance(tables, TreeTables)
        count = len(tables.parent)
        values, left = row[tables.position], np.arange(count) % 2 == 0
        satisfied = np.where(left, values <= tables.bound, values > tables.bound)
        known = satisfied.astype(np.float64)
        again = tables.previous >= 0
        # Both by node and point: the factor of the node's own position, and the product of the path.
        own = np.empty((count, len(self._at)))
        product = np.empty_like(own)
        for first, end in zip(tables.levels[:-1].tolist(), tables.levels[1:].tolist(), strict=True):
            here = slice(first, end)
            repeated = np.flatnonzero(again[here]) + first
            before = tables.previous[repeated]
            known[repeated] *= known[before]
            own[here] = known[here, None] * self._at + tables.share[here, None] * (1 - self._at)
            product[here] = own[here] * (product[tables.parent[here]] if first else 1.0)
            product[repeated] /= own[before]
        below = product
        below *= tables.value[:, None]
        for first, end in zip(tables.levels[-2:0:-1].tolist(), tables.levels[:1:-1].tolist(), strict=True):
            below[tables.parent[first:end:2]] += below[first:end:2] + below[first + 1 : end : 2]
        below *= self._weights
        gain = known - tables.share
        amounts = gain * (below / own).sum(axis=1)
        repeated = np.flatnonzero(again)
        before = tables.previous[repeated]
        # Leaves below a later split on the same position belong to that one.
        amounts[repeated] -= gain[before] * (below[repeated] / own[before]).sum(axis=1)
        total: Floats = np.bincount(tables.position, weights=amounts, minlength=len(row)).astype(np.float64)
        return total

    def to_bytes(self) -> bytes:
        """Arrays without code in NumPy's own format, the same bytes each time."""
        file = io.BytesIO()
        names = self.tables.__slots__
        arrays: dict[str, Any] = {name: np.asarray(getattr(self.tables, name)) for name in names}
        arrays |= {"base": np.float64(self._raw_base), "unit": np.str_(self.unit)}
        if self._curve is not None:
            arrays["curve"] = np.array(self._curve)
        np.savez_compressed(file, allow_pickle=False, **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Explainer:
        """Inverse of `to_bytes`."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        base, unit = float(arrays.pop("base")), str(arrays.pop("unit"))
        curve = arrays.pop("curve").tolist() if "curve" in arrays else None
        if "coefficients" in arrays:
            return cls(LinearTables(**arrays), base, unit)
        points, start = int(arrays.pop("points")), float(arrays.pop("start"))
        return cls(TreeTables(**arrays, points=points, start=start), base, unit, curve)


def owners_of(encoder: RowEncoder) -> list[list[int]]:
    """For each position, the columns (by number) that can add to it."""
    owners: list[dict[int, None]] = [{} for _ in encoder.names]
    for column, table in enumerate(encoder.tables):
        for at in table.positions:
            owners[at][column] = None
    return [list(columns) for columns in owners]
