"""A fitted pipeline as the tables from which the service tells what each column added to a score.

The counterpart of `compiled_model`: what is made here is checked against the estimator's own scores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.calibration import CalibratedClassifier, uncalibrated
from health_predict.core.columns import FEATURES
from health_predict.core.contributions import LOG_ODDS, PROBABILITY, Explainer, LinearTables, TreeTables, owners_of
from health_predict.core.errors import GateError, StateError
from health_predict.core.row_encoder import RowEncoder

# Scores of boosters are sums of float32.
TOLERANCE = 1e-4
# A split that no training row took one way would divide by nothing.
SMALLEST_SHARE = 1e-9
CHECKED_ROWS = 50


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


def explain_pipeline(pipeline: Any, training: pd.DataFrame) -> Explainer:
    """Contribution tables of a fitted Pipeline([("features", EncounterFeatures), ("estimator", ...)]).

    `training` holds the rows that it was fitted on; a linear model's contributions are relative to their mean.
    Raises StateError for an estimator that nothing is known about, GateError when contributions do not add up.
    """
    encoder: RowEncoder = pipeline.named_steps["features"].encoder_
    outer = pipeline.named_steps["estimator"]
    estimator = uncalibrated(outer)
    name = type(estimator).__name__
    if name not in _TABLES:
        raise StateError(f"no explanation is known for {name}", f"choose one of {', '.join(_TABLES)}")
    explainer = _TABLES[name](estimator, encoder, training)
    if isinstance(outer, CalibratedClassifier):
        explainer = explainer.calibrated(outer.intercept, outer.slope)
    _check(explainer, pipeline, training)
    return explainer


def scores(pipeline: Any, rows: npt.NDArray[np.float32], unit: str) -> npt.NDArray[np.float64]:
    """What contributions add up to: the estimator's own scores (n,) of rows (n, d), in the explainer's unit."""
    probability = np.asarray(pipeline.named_steps["estimator"].predict_proba(rows)[:, 1], dtype=np.float64)
    return probability if unit == PROBABILITY else np.log(probability / (1 - probability))


def _check(explainer: Explainer, pipeline: Any, training: pd.DataFrame) -> None:
    encoder: RowEncoder = pipeline.named_steps["features"].encoder_
    frame = training.head(CHECKED_ROWS)
    rows = np.asarray(pipeline.named_steps["features"].transform(frame), dtype=np.float32)
    owners = owners_of(encoder)
    tables = {table.column: table for table in encoder.tables}
    wrong = []
    for number, expected in enumerate(scores(pipeline, rows, explainer.unit)):
        amounts = [tables[column.name].of(str(frame[column.name].iloc[number])) for column in FEATURES]
        total = explainer.base + explainer.by_column(amounts, owners).sum()
        if not abs(total - expected) <= TOLERANCE:
            wrong.append(f"training row {number}: {total:.6f} instead of {expected:.6f}")
    if wrong:
        raise GateError(
            f"contributions do not add up to the score: {'; '.join(wrong[:5])}",
            "this version cannot be explained; report the rows with the library versions",
        )


def _linear(estimator: Any, encoder: RowEncoder, training: pd.DataFrame) -> Explainer:
    coefficients = np.asarray(estimator.coef_[0], dtype=np.float64)
    offsets = []
    for table in encoder.tables:
        shares = training[table.column].value_counts(normalize=True)
        offsets.append(
            sum(
                share * float(coefficients[at]) * amount
                for value, share in shares.items()
                for at, amount in table.of(str(value))
            )
        )
    tables = LinearTables(coefficients, np.array(offsets, dtype=np.float64))
    return Explainer(tables, float(estimator.intercept_[0] + tables.offsets.sum()), LOG_ODDS)


def _forest(estimator: Any, encoder: RowEncoder, training: pd.DataFrame) -> Explainer:
    def trees() -> Iterable[Tree]:
        for member in estimator.estimators_:
            tree = member.tree_
            share = tree.value[:, 0, 1] / tree.value[:, 0, :].sum(axis=1)
            yield Tree(
                tree.children_left,
                tree.children_right,
                tree.feature,
                _at_most(tree.threshold),
                tree.weighted_n_node_samples,
                share / len(estimator.estimators_),
            )

    tables, base = tables_of(trees())
    return Explainer(tables, base, PROBABILITY)


def _xgboost(estimator: Any, encoder: RowEncoder, training: pd.DataFrame) -> Explainer:
    learner = json.loads(bytes(estimator.get_booster().save_raw("json")))["learner"]
    prior = float(learner["learner_model_param"]["base_score"].strip("[]"))

    def trees() -> Iterable[Tree]:
        for tree in learner["gradient_booster"]["model"]["trees"]:
            condition = np.array(tree["split_conditions"], dtype=np.float32)
            left = np.array(tree["left_children"], dtype=np.int64)
            yield Tree(
                left,
                np.array(tree["right_children"], dtype=np.int64),
                np.array(tree["split_indices"], dtype=np.int64),
                # It sends a value left when it is below the condition.
                np.nextafter(condition, np.float32(-np.inf)),
                np.array(tree["sum_hessian"], dtype=np.float64),
                condition.astype(np.float64),
            )

    tables, base = tables_of(trees(), math.log(prior / (1 - prior)))
    return Explainer(tables, base, LOG_ODDS)


def _lightgbm(estimator: Any, encoder: RowEncoder, training: pd.DataFrame) -> Explainer:
    def trees() -> Iterable[Tree]:
        for info in estimator.booster_.dump_model()["tree_info"]:
            nodes: list[dict[str, Any]] = [info["tree_structure"]]
            left, right = [], []
            for node in nodes:  # grows while it is walked: parents before children
                inner = "left_child" in node
                left.append(len(nodes) if inner else -1)
                right.append(len(nodes) + 1 if inner else -1)
                nodes += [node["left_child"], node["right_child"]] if inner else []
            yield Tree(
                np.array(left),
                np.array(right),
                np.array([node.get("split_feature", -1) for node in nodes]),
                _at_most(np.array([node.get("threshold", 0.0) for node in nodes])),
                np.array([node.get("internal_count", node.get("leaf_count", 1)) for node in nodes], dtype=np.float64),
                np.array([node.get("leaf_value", 0.0) for node in nodes], dtype=np.float64),
            )

    tables, base = tables_of(trees())
    return Explainer(tables, base, LOG_ODDS)


_TABLES: Mapping[str, Callable[[Any, RowEncoder, pd.DataFrame], Explainer]] = {
    "LogisticRegression": _linear,
    "RandomForestClassifier": _forest,
    "XGBClassifier": _xgboost,
    "LGBMClassifier": _lightgbm,
}


def _at_most(threshold: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The largest float32 that is at most each threshold: for float32 values the same condition."""
    near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)


def tables_of(trees: Iterable[Tree], start: float = 0.0) -> tuple[TreeTables, float]:
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
