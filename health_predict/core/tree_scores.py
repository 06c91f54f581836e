"""Scores of many rows at once, by a model of small trees.

Standard library and numpy only: the prediction service carries this module.

Walking down a tree is a chain of reads of which each waits for the one before, row after row. Here the leaves of a
tree are numbered, and each bit of the number of a row's leaf is a formula of the tree's conditions, made of &, | and
^. A formula is computed for all rows together, a byte a row, and conditions that trees have in common once. The bits
of the leaves of several trees are an index into a table of their summed values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from health_predict.core.contributions import LOG_ODDS, Explainer, TreeTables

INDEX_BITS = 8
# An operation costs half a microsecond and .1 ns a row; more would keep other requests waiting.
MOST_OPERATIONS = 12_000
# What walking down the trees costs a row, in operations.
ROW_IN_OPERATIONS = 12
# What a bit of a leaf's number is when it does not depend on a condition; other bits are numbers of arrays.
ZERO, ONE = -1, -2

# Both operands and the result are numbers of arrays.
Operation = tuple[Callable[..., Any], int, int, int]


class TreeScores:
    """Probabilities of a boosted model whose trees have at most 256 leaves each.

    `worth_from` is the number of rows from which it is cheaper than walking down the trees.
    """

    def __init__(self, tables: TreeTables) -> None:
        self._start = tables.start
        left = slice(0, None, 2)
        conditions, condition_of = np.unique(
            np.stack([tables.position[left].astype(np.float64), tables.bound[left].astype(np.float64)]),
            axis=1,
            return_inverse=True,
        )
        self._positions: list[int] = conditions[0].astype(int).tolist()
        self._bounds = conditions[1].astype(np.float32)
        below = {int(parent): 2 * pair for pair, parent in enumerate(tables.parent[left]) if parent >= 0}
        trees = [_Tree(root, below, condition_of, tables.value) for root in range(0, int(tables.levels[1]), 2)]
        groups: list[list[_Tree]] = []
        for tree in trees:
            if groups and sum(one.bits for one in groups[-1]) + tree.bits <= INDEX_BITS:
                groups[-1].append(tree)
            else:
                groups.append([tree])
        self._groups = [_Group(members, len(self._bounds)) for members in groups]
        self._arrays = max(group.arrays for group in self._groups)
        self._operations = sum(len(group.operations) for group in self._groups)
        self.worth_from = self._operations // ROW_IN_OPERATIONS

    @classmethod
    def of(cls, explainer: Explainer | None) -> TreeScores | None:
        """From the tables of a model's explanation; None when the model is no booster of few and small trees."""
        if explainer is None or explainer.unit != LOG_ODDS or not isinstance(explainer.tables, TreeTables):
            return None
        tables = explainer.tables
        # A tree of n leaves has n - 1 pairs of children.
        root = np.arange(len(tables.parent))
        for first, end in zip(tables.levels[1:-1].tolist(), tables.levels[2:].tolist(), strict=True):
            root[first:end] = root[tables.parent[first:end]]
        if not len(root) or np.bincount(root // 2).max() // 2 >= 2**INDEX_BITS:
            return None
        # Of more splits than that the formulas are not even made: it takes time when the service starts.
        if len(root) // 2 > MOST_OPERATIONS:
            return None
        scores = cls(tables)
        return scores if scores._operations <= MOST_OPERATIONS else None

    def __call__(self, matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Probabilities (n,) of the rows of `matrix` (d, n), one row of the model in each of its columns."""
        count = matrix.shape[1]
        arrays = list(np.empty((self._arrays, count), dtype=np.uint8))
        conditions = len(self._bounds)
        for number, (position, bound) in enumerate(zip(self._positions, self._bounds, strict=True)):
            np.less_equal(matrix[position], bound, arrays[number].view(np.bool_))
            np.bitwise_xor(arrays[number], 1, arrays[conditions + number])
        total = np.full(count, self._start)
        for group in self._groups:
            for operation, one, other, result in group.operations:
                operation(arrays[one], arrays[other], arrays[result])
            total += group.table.take(arrays[group.index])
        probabilities: npt.NDArray[np.float64] = 1 / (1 + np.exp(-total))
        return probabilities


class _Tree:
    """A tree as formulas: `of_bit` gives one bit of the number of the leaf."""

    def __init__(self, root: int, below: dict[int, int], condition_of: Any, value: Any) -> None:
        self._root, self._below, self._condition_of = root, below, condition_of
        self.values: list[float] = []
        waiting = [root + 1, root]
        while waiting:
            node = waiting.pop()
            if node in below:
                waiting += [below[node] + 1, below[node]]
            else:
                self.values.append(float(value[node]))
        self.bits = (len(self.values) - 1).bit_length()

    def of_bit(self, bit: int, select: Callable[[int, int, int], int]) -> int:
        """The bit of the leaf's number; `select(condition, yes, no)` gives the choice between two bits."""
        found, _ = self._of_pair(self._root, 0, bit, select)
        return found

    def _of_pair(self, left: int, number: int, bit: int, select: Callable[[int, int, int], int]) -> tuple[int, int]:
        """The bit among the leaves below two children, of which the first has `number`; and the number after them."""
        sides = []
        for child in (left, left + 1):
            if child in self._below:
                found, number = self._of_pair(self._below[child], number, bit, select)
            else:
                found, number = (ONE if number >> bit & 1 else ZERO), number + 1
            sides.append(found)
        return select(int(self._condition_of[left // 2]), *sides), number


class _Group:
    """Trees that share an index: `operations` make it in array `index`, `table` (2 ** bits,) holds their sums."""

    def __init__(self, trees: Sequence[_Tree], conditions: int) -> None:
        self._conditions = conditions
        # The first arrays hold the conditions, the next ones their opposites.
        self.arrays = 2 * conditions
        self.operations: list[Operation] = []
        self._known: dict[tuple[Any, int, int], int] = {}
        self.table = np.zeros(1)
        bits: list[int] = []
        for tree in trees:
            bits += [tree.of_bit(bit, self._select) for bit in reversed(range(tree.bits))]
            values = np.zeros(2**tree.bits)
            values[: len(tree.values)] = tree.values
            self.table = np.add.outer(self.table, values).ravel()
        self.index = bits[0]
        for bit in bits[1:]:
            self.index = self._do(np.bitwise_or, self._do(np.add, self.index, self.index), bit)

    def _do(self, operation: Callable[..., Any], one: int, other: int) -> int:
        key = operation, min(one, other), max(one, other)
        if key not in self._known:
            self._known[key] = self.arrays
            self.operations.append((*key, self.arrays))
            self.arrays += 1
        return self._known[key]

    def _select(self, condition: int, yes: int, no: int) -> int:
        opposite = self._conditions + condition
        if yes == no:
            return yes
        if yes == ZERO:
            return opposite if no == ONE else self._do(np.bitwise_and, no, opposite)
        if no == ZERO:
            return condition if yes == ONE else self._do(np.bitwise_and, yes, condition)
        if yes == ONE:
            return self._do(np.bitwise_or, no, condition)
        if no == ONE:
            return self._do(np.bitwise_or, yes, opposite)
        differ = self._do(np.bitwise_and, condition, self._do(np.bitwise_xor, yes, no))
        return self._do(np.bitwise_xor, no, differ)
