"""XGBoost on the levels that rows have, not on those that they do not: a third of the time for the same kind of model.

A row has one of a column's levels, so most of its positions are zero, and XGBoost's histograms cost a step for every
value that is stored. Here zeros of the positions that are only ever 0 or 1 are not stored. XGBoost takes them for
missing values, which a split sends to either side, and so finds the splits that it finds in dense rows. These are then
written as what they are, `x < 0.5`: the model takes dense rows, and nothing that reads it has to know.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from health_predict.core.families.family import Labels, Rows, Watch


class SparseXGBoost:
    """An unfitted XGBClassifier of these parameters; `fit` gives the fitted one."""

    def __init__(self, **parameters: Any) -> None:
        self.parameters = parameters

    def fit(
        self,
        rows: Rows,
        labels: Labels,
        at: Sequence[int] = (),
        watch: Watch | None = None,
    ) -> Any:
        """An XGBClassifier for dense rows; rows (n, d), labels (n,).

        `watch` is told the rounds done and the model so far after each number of rounds in `at`; True ends the fit.
        """
        from scipy.special import expit
        from xgboost import XGBClassifier
        from xgboost.callback import TrainingCallback

        indicators = ((rows == 0) | (rows == 1)).all(axis=0)
        # A tree that answered for a matrix before is not asked again.
        answered: dict[int, tuple[Rows, Any, int, Any]] = {}  # holds the matrix, so that its id stays its own

        class Watcher(TrainingCallback):  # type: ignore[misc]
            def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
                rounds = epoch + 1

                def score(matrix: Rows) -> npt.NDArray[Any]:
                    if id(matrix) not in answered:
                        answered[id(matrix)] = matrix, without_zeros(matrix, indicators), 0, None
                    _, stored, done, margins = answered[id(matrix)]
                    if done < rounds:
                        margins = model.inplace_predict(
                            stored, iteration_range=(done, rounds), predict_type="margin", base_margin=margins
                        )
                        answered[id(matrix)] = matrix, stored, rounds, margins
                    return np.asarray(expit(margins))

                return rounds in at and watch is not None and watch(rounds, score)

        estimator = XGBClassifier(**self.parameters, callbacks=[Watcher()])
        estimator.fit(without_zeros(rows, indicators), labels)
        _take_dense_rows(estimator.get_booster(), indicators)
        # A fitted model must not carry the callback along.
        return estimator.set_params(callbacks=None)


def without_zeros(rows: Rows, indicators: npt.NDArray[np.bool_]) -> Any:
    """A sparse matrix of all values but the zeros of these columns; rows (n, d), indicators (d,)."""
    from scipy.sparse import csr_matrix

    stored = (rows != 0) | ~indicators
    ends = np.concatenate([[0], np.cumsum(np.count_nonzero(stored, axis=1))])
    return csr_matrix((rows[stored], np.nonzero(stored)[1], ends), shape=rows.shape)


def _take_dense_rows(booster: Any, indicators: npt.NDArray[np.bool_]) -> None:
    """Write the splits of these columns, where a missing value stands for 0, as `x < 0.5`."""
    model = json.loads(booster.save_raw("json"))
    for tree in model["learner"]["gradient_booster"]["model"]["trees"]:
        conditions, missing_left = tree["split_conditions"], tree["default_left"]
        left, right = tree["left_children"], tree["right_children"]
        for node, column in enumerate(tree["split_indices"]):
            if left[node] >= 0 and indicators[column]:
                if not missing_left[node]:
                    left[node], right[node] = right[node], left[node]
                conditions[node], missing_left[node] = 0.5, 1
        _number_siblings(tree)
    booster.load_model(bytearray(json.dumps(model), "utf-8"))


def _number_siblings(tree: dict[str, Any]) -> None:
    """Number the nodes anew, so that each right child follows its left one: XGBoost's own contributions rely on it."""
    left, right = tree["left_children"], tree["right_children"]
    nodes = [0]  # their former numbers
    for node in nodes:  # grows while it is walked
        if left[node] >= 0:
            nodes += (left[node], right[node])
    number = {node: at for at, node in enumerate(nodes)}
    # The lists of another length tell of categories, which no tree here has.
    for name in [name for name, values in tree.items() if isinstance(values, list) and len(values) == len(left)]:
        tree[name] = [tree[name][node] for node in nodes]
    for name in ("left_children", "right_children", "parents"):
        tree[name] = [number.get(node, node) for node in tree[name]]  # none and no parent have numbers of their own
