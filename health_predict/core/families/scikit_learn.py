"""What families of scikit-learn's estimators have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from health_predict.core.families.family import Labels, Rows, Score, Watch, Watched


def to_onnx(estimator: Any, width: int) -> Any:
    """skl2onnx's model of a fitted classifier for rows (n, width)."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    return convert_sklearn(
        estimator,
        initial_types=[("rows", FloatTensorType([None, width]))],
        options={id(estimator): {"zipmap": False}},
        target_opset={"": 17, "ai.onnx.ml": 3},
    )


def _positive(estimator: Any) -> Score:
    return lambda matrix: estimator.predict_proba(matrix)[:, 1]


def warm_start(rounds: str, scorer: Callable[[Any], Score] = _positive) -> Watched:
    """Watches an ensemble by fitting it on from one number of rounds to the next; `rounds` is the parameter's name."""

    def watched(estimator: Any, rows: Rows, labels: Labels, at: Sequence[int], watch: Watch) -> Any:
        whole = estimator.get_params()[rounds]
        score = scorer(estimator)
        estimator.set_params(warm_start=True)
        for done in at:
            estimator.set_params(**{rounds: done}).fit(rows, labels)
            if watch(done, score) or done == whole:
                break
        else:
            estimator.set_params(**{rounds: whole}).fit(rows, labels)
        return estimator.set_params(warm_start=False)

    return watched
