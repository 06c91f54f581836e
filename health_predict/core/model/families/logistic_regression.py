"""The baseline: scikit-learn's logistic regression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from health_predict.core.model.contributions import LOG_ODDS, Explainer, LinearTables
from health_predict.core.model.families import scikit_learn
from health_predict.core.model.families.family import Family, Labels, Range, Rows

if TYPE_CHECKING:
    import pandas as pd

    from health_predict.core.model.features import EncounterFeatures


LARGEST_INTERCEPT = 10.0  # that leaves single precision the digits that the parity proof asks for


class StandardizedLogisticRegression:
    """Fits on standardised positions and folds the scales into the coefficients.

    The result is scikit-learn's own LogisticRegression on the raw positions: one matrix product to serve and to
    explain. Folding happens in float64.
    """

    def __init__(self, **parameters: Any) -> None:
        self.parameters = parameters

    def fit(self, rows: Rows, labels: Labels) -> Any:
        """scikit-learn's LogisticRegression; rows (n, d), labels (n,)."""
        from sklearn.linear_model import LogisticRegression

        mean, scale = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
        scale[scale == 0] = 1.0
        model = LogisticRegression(**self.parameters).fit((rows - mean) / scale, labels)
        model.coef_ = model.coef_ / scale
        model.intercept_ = model.intercept_ - model.coef_ @ mean
        return model


def _build(parameters: Mapping[str, Any], seed: int, threads: int) -> Any:
    return StandardizedLogisticRegression(max_iter=1000, random_state=seed, **parameters)


def _to_onnx(estimator: Any, width: int) -> Any:
    """scikit-learn's graph for rows (n, width); one in double precision where a score is what large numbers leave.

    A year of 2020 adds a thousand times its coefficient, and the folded intercept takes that away again.
    """
    if abs(float(estimator.intercept_[0])) <= LARGEST_INTERCEPT:
        return scikit_learn.to_onnx(estimator, width)
    from onnx import TensorProto, helper, numpy_helper

    constants = {"coefficients": estimator.coef_.T, "intercept": estimator.intercept_, "one": np.ones(1)}
    steps: tuple[tuple[str, list[str], str, dict[str, int]], ...] = (
        ("Cast", ["rows"], "wide", {"to": TensorProto.DOUBLE}),
        ("MatMul", ["wide", "coefficients"], "parts", {}),
        ("Add", ["parts", "intercept"], "score", {}),
        ("Sigmoid", ["score"], "positive", {}),
        ("Sub", ["one", "positive"], "negative", {}),
        ("Concat", ["negative", "positive"], "both", {"axis": 1}),
        ("Cast", ["both"], "probabilities", {"to": TensorProto.FLOAT}),
    )
    graph = helper.make_graph(
        [helper.make_node(kind, given, [made], **options) for kind, given, made, options in steps],
        "risk",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(np.asarray(value, np.float64), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _explain(estimator: Any, features: EncounterFeatures, training: pd.DataFrame) -> Explainer:
    coefficients = np.asarray(estimator.coef_[0], dtype=np.float64)
    offsets = []
    for table in features.encoder_.tables:
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


FAMILY = Family(
    "LogisticRegression",
    space={"C": Range(3e-5, 3e-2, log=True)},
    first={"C": 3e-4},
    build=_build,
    to_onnx=_to_onnx,
    explain=_explain,
    importance="absolute coefficient of a feature on its own scale",
)
