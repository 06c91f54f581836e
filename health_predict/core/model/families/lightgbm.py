"""LightGBM's boosted trees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from health_predict.core.model.contributions import LOG_ODDS, Explainer
from health_predict.core.model.families.family import Family, Labels, Range, Rows, Watch
from health_predict.core.model.tree_tables import Tree, at_most, tree_explainer

if TYPE_CHECKING:
    import pandas as pd

    from health_predict.core.model.features import EncounterFeatures


def _build(parameters: Mapping[str, Any], seed: int, threads: int) -> Any:
    from lightgbm import LGBMClassifier

    return LGBMClassifier(random_state=seed, n_jobs=threads, **parameters)


def _watched(estimator: Any, rows: Rows, labels: Labels, at: Sequence[int], watch: Watch) -> Any:
    def watcher(state: Any) -> None:
        def score(matrix: Rows) -> npt.NDArray[Any]:
            # A booster would take every core.
            return np.asarray(state.model.predict(matrix, num_threads=estimator.n_jobs))

        done = state.iteration + 1
        if done in at:
            watch(done, score)

    return estimator.fit(rows, labels, callbacks=[watcher])


def _to_onnx(estimator: Any, width: int) -> Any:
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    types = [("rows", FloatTensorType([None, width]))]
    return convert_lightgbm(estimator, initial_types=types, target_opset=15, zipmap=False)


def _explain(estimator: Any, features: EncounterFeatures, training: pd.DataFrame) -> Explainer:
    def trees() -> Iterator[Tree]:
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
                at_most(np.array([node.get("threshold", 0.0) for node in nodes])),
                np.array([node.get("internal_count", node.get("leaf_count", 1)) for node in nodes], dtype=np.float64),
                np.array([node.get("leaf_value", 0.0) for node in nodes], dtype=np.float64),
            )

    return tree_explainer(trees(), LOG_ODDS)


FAMILY = Family(
    "LightGBM",
    space={
        "n_estimators": Range(100, 500, integer=True),
        "num_leaves": Range(4, 32, log=True, integer=True),
        "learning_rate": Range(0.01, 0.1, log=True),
        "min_child_samples": Range(10, 100, log=True, integer=True),
        "colsample_bytree": Range(0.2, 0.8),
        "reg_lambda": Range(1, 30, log=True),
    },
    first={
        "n_estimators": 300,
        "num_leaves": 8,
        "learning_rate": 0.03,
        "min_child_samples": 40,
        "colsample_bytree": 0.3,
        "reg_lambda": 10,
    },
    build=_build,
    to_onnx=_to_onnx,
    explain=_explain,
    trusted_types=(
        "collections.OrderedDict",
        "collections.defaultdict",
        "lightgbm.basic.Booster",
        "lightgbm.sklearn.LGBMClassifier",
    ),
    libraries=("lightgbm",),
    fixed={"subsample": 0.8, "subsample_freq": 1, "verbose": -1, "deterministic": True, "force_row_wise": True},
    rounds="n_estimators",
    watched=_watched,
    importance="number of splits on a feature",
)
