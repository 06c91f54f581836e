"""Trees as the tables from which the service tells what each column added to a score, see `contributions`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from health_predict.core.model.contributions import LOG_ODDS, PROBABILITY, Explainer, TreeTables
from health_predict.errors import StateError

if TYPE_CHECKING:
    import pandas as pd

    from health_predict.core.model.families.family import Explain, Rows, ToOnnx
    from health_predict.core.model.features import EncounterFeatures

# A split that no training row took one way would divide by nothing.
SMALLEST_SHARE = 1e-9


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree; node 0 is its root. A row goes left when its value is at most `bound`; a leaf has no `left`."""

    left: npt.NDArray[np.int64]
    """-1 for a leaf."""
    right: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    bound: npt.NDArray[np.float32]
    cover: npt.NDArray[np.float64]
    value: npt.NDArray[np.float64]


def at_most(threshold: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The largest float32 that is at most each threshold: for float32 values the same condition."""
    near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)


def tables_of(trees: Iterable[Tree], start: float = 0.0) -> tuple[TreeTables, float]:  # one walk through all levels
    """Tables of all trees that add to a score of `start`, and the mean score."""
    mean, most = 0.0, 1
    # By depth: (parent, position, bound, share, previous, value) of each node.
    levels: list[list[tuple[int, int, float, float, int, float]]] = []
    starts: list[int] = []
    # Nodes to look into: tree, node, its number among those of its depth, and the path's last node by position.
    waiting: list[tuple[Tree, int, int, dict[int, tuple[int, int]]]] = []
    for tree in trees:
        waiting.append((tree, 0, -1, {}))
    shares: list[list[float]] = []
    depth = 0
    while waiting:
        found: list[tuple[int, int, float, float, int, float]] = []
        found_shares: list[float] = []
        below: list[tuple[Tree, int, int, dict[int, tuple[int, int]]]] = []
        beginning = starts[-1] + len(levels[-1]) if levels else 0
        for tree, node, number, path in waiting:
            if tree.left[node] < 0:
                # What the leaf adds on average: its value by the shares of its path.
                share = math.prod(shares[level][index] for level, index in path.values())
                if path:
                    mean += float(tree.value[node]) * share
                else:  # no split at all
                    start += float(tree.value[node])
                most = max(most, len(path))
                continue
            position = int(tree.position[node])
            before = path.get(position)
            for child in (int(tree.left[node]), int(tree.right[node])):
                share = max(float(tree.cover[child] / tree.cover[node]), SMALLEST_SHARE)
                previous = -1
                if before is not None:
                    share *= shares[before[0]][before[1]]
                    previous = starts[before[0]] + before[1]
                own = (depth, len(found))
                leaf = tree.left[child] < 0
                value = float(tree.value[child]) if leaf else 0.0
                parent = starts[depth - 1] + number if depth else -1
                found.append((parent, position, float(tree.bound[node]), share, previous, value))
                found_shares.append(share)
                below.append((tree, child, own[1], {**path, position: own}))
        if found:
            levels.append(found)
            shares.append(found_shares)
            starts.append(beginning)
            depth += 1
        waiting = below
    nodes = [node for level in levels for node in level]

    def column(number: int, kind: type) -> npt.NDArray[Any]:
        return np.array([node[number] for node in nodes], dtype=kind)

    tables = TreeTables(
        levels=np.array([*starts, len(nodes)], dtype=np.int32),
        parent=column(0, np.int32),
        position=column(1, np.int32),
        bound=column(2, np.float32),
        share=column(3, np.float64),
        previous=column(4, np.int32),
        value=column(5, np.float64),
        points=math.ceil(most / 2),
        start=start,
    )
    return tables, start + mean


def tree_explainer(trees: Iterable[Tree], unit: str, start: float = 0.0) -> Explainer:
    """Contributions of a model whose trees add to a score of `start`, in `unit`."""
    tables, base = tables_of(trees, start)
    return Explainer(tables, base, unit)


def explain_graph(to_onnx: ToOnnx) -> Explain:
    """A family's `explain` that reads the trees from its ONNX graph: for estimators that have no public way to them.

    The training rows that take each way at a split are counted. Raises StateError for a graph of anything else.
    """

    def explain(estimator: Any, features: EncounterFeatures, training: pd.DataFrame) -> Explainer:
        from onnx.helper import get_attribute_value

        rows = features.transform(training)
        graph = to_onnx(estimator, rows.shape[1]).graph
        ensembles = [node for node in graph.node if node.op_type.startswith("TreeEnsemble")]
        given = {item.name: get_attribute_value(item) for node in ensembles for item in node.attribute}
        unit = {b"LOGISTIC": LOG_ODDS, b"NONE": PROBABILITY}.get(given.get("post_transform", b"NONE"))
        if len(ensembles) != 1 or unit is None or not set(given["nodes_modes"]) <= {b"LEAF", b"BRANCH_LEQ"}:
            raise StateError(
                f"the ONNX graph of {type(estimator).__name__} is not one ensemble of trees with splits of <=",
                "give the family an `explain` that makes its `Tree`s from the estimator itself",
            )
        return tree_explainer(_trees(given, rows), unit, sum(given.get("base_values", ())))

    return explain


def _trees(given: Mapping[str, Any], rows: Rows) -> Iterator[Tree]:
    """The trees of ONNX's TreeEnsembleClassifier, with the rows that reach each node as its cover."""
    tree_of, weight_of = np.array(given["nodes_treeids"]), np.array(given["class_treeids"])
    for number in np.unique(tree_of):
        # The nodes of a tree are listed by their numbers, from 0.
        here, weights = np.flatnonzero(tree_of == number), np.flatnonzero(weight_of == number)
        leaf = np.array([given["nodes_modes"][node] == b"LEAF" for node in here])
        left, right, position = (
            np.array(given[f"nodes_{name}"])[here] for name in ("truenodeids", "falsenodeids", "featureids")
        )
        bound = np.array(given["nodes_values"], dtype=np.float32)[here]
        value = np.zeros(len(here))
        value[np.array(given["class_nodeids"])[weights]] = np.array(given["class_weights"])[weights]
        cover = np.zeros(len(here))
        which, node = np.arange(len(rows)), np.zeros(len(rows), dtype=np.int64)
        while len(which):
            cover += np.bincount(node, minlength=len(here))
            which, node = which[~leaf[node]], node[~leaf[node]]
            node = np.where(rows[which, position[node]] <= bound[node], left[node], right[node])
        yield Tree(np.where(leaf, -1, left), right, position, bound, np.maximum(cover, SMALLEST_SHARE), value)
