"""XGBoost's boosted trees."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from health_predict.core.model.contributions import LOG_ODDS, Explainer
from health_predict.core.model.families.family import Family, Labels, Range, Rows, Watch
from health_predict.core.model.tree_tables import Tree, tree_explainer

if TYPE_CHECKING:
    import pandas as pd

    from health_predict.core.model.features import EncounterFeatures


def _build(parameters: Mapping[str, Any], seed: int, threads: int) -> Any:
    from xgboost import XGBClassifier

    return XGBClassifier(random_state=seed, n_jobs=threads, **parameters)


def _watched(estimator: Any, rows: Rows, labels: Labels, at: Sequence[int], watch: Watch) -> Any:
    from xgboost.callback import TrainingCallback

    class Watcher(TrainingCallback):  # type: ignore[misc]
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            if epoch + 1 in at:
                watch(epoch + 1, model.inplace_predict)
            return False

    # A fitted model must not carry the callback along.
    return estimator.set_params(callbacks=[Watcher()]).fit(rows, labels).set_params(callbacks=None)


def _to_onnx(estimator: Any, width: int) -> Any:
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    return convert_xgboost(estimator, initial_types=[("rows", FloatTensorType([None, width]))], target_opset=15)


def _explain(estimator: Any, features: EncounterFeatures, training: pd.DataFrame) -> Explainer:
    learner = json.loads(bytes(estimator.get_booster().save_raw("json")))["learner"]
    prior = float(learner["learner_model_param"]["base_score"].strip("[]"))

    def trees() -> Iterator[Tree]:
        for tree in learner["gradient_booster"]["model"]["trees"]:
            condition = np.array(tree["split_conditions"], dtype=np.float32)
            yield Tree(
                np.array(tree["left_children"], dtype=np.int64),
                np.array(tree["right_children"], dtype=np.int64),
                np.array(tree["split_indices"], dtype=np.int64),
                # It sends a value left when it is below the condition.
                np.nextafter(condition, np.float32(-np.inf)),
                np.array(tree["sum_hessian"], dtype=np.float64),
                condition.astype(np.float64),
            )

    return tree_explainer(trees(), LOG_ODDS, math.log(prior / (1 - prior)))


FAMILY = Family(
    "XGBoost",
    space={
        "n_estimators": Range(100, 500, integer=True),
        "max_depth": Range(2, 6, integer=True),
        "learning_rate": Range(0.01, 0.1, log=True),
        "min_child_weight": Range(1, 30, log=True),
        "colsample_bytree": Range(0.2, 0.8),
        "reg_lambda": Range(1, 30, log=True),
    },
    first={
        "n_estimators": 400,
        "max_depth": 3,
        "learning_rate": 0.03,
        "min_child_weight": 10,
        "colsample_bytree": 0.3,
        "reg_lambda": 10,
    },
    build=_build,
    to_onnx=_to_onnx,
    explain=_explain,
    trusted_types=("xgboost.core.Booster", "xgboost.sklearn.XGBClassifier"),
    libraries=("xgboost",),
    fixed={"subsample": 0.8, "tree_method": "hist", "objective": "binary:logistic"},
    rounds="n_estimators",
    watched=_watched,
    importance="mean gain of the splits on a feature",
)
