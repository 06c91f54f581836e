"""What families of scikit-learn's estimators have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from health_predict.core.model.families.family import Labels, Rows, Watch, Watched


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


def warm_start(rounds: str) -> Watched:
    """Watches an ensemble by fitting it on from one number of rounds to the next; `rounds` is the parameter's name."""

    def watched(estimator: Any, rows: Rows, labels: Labels, at: Sequence[int], watch: Watch) -> Any:
        def score(matrix: Rows) -> npt.NDArray[Any]:
            return np.asarray(estimator.predict_proba(matrix)[:, 1])

        whole = estimator.get_params()[rounds]
        estimator.set_params(warm_start=True)
        for done in sorted({*at, whole}):
            estimator.set_params(**{rounds: done}).fit(rows, labels)
            if done in at:
                watch(done, score)
        return estimator.set_params(warm_start=False)

    return watched
