"""From rows of numbers to probabilities: the one way, which the parity proof examines and the service goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from health_predict.core.statistics import logit

INPUT = "rows"
OUTPUT = "probabilities"

Rows = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]


def calibrated(scores: npt.ArrayLike, intercept: float, slope: float) -> Scores:
    """Probabilities (n,) after the map of `calibration`: logit(q) = intercept + slope * logit(p)."""
    found: Scores = 1 / (1 + np.exp(-(intercept + slope * logit(scores))))
    return found


class GraphScorer:
    """An ONNX graph that takes `rows` (n, d) and gives `probabilities` (n, 2), and the calibration behind it."""

    def __init__(self, graph: bytes, calibration: tuple[float, float] | None = None, *, threads: int = 1) -> None:
        """`calibration` is the intercept and the slope of the map; None: the graph's probabilities stand."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # One row at a time gains nothing from threads, and the pools of several workers would fight.
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._calibration = calibration

    def __call__(self, rows: Rows) -> Scores:
        """Probability of the outcome of each row; rows (n, d), result (n,)."""
        scores = self._session.run([OUTPUT], {INPUT: rows})[0][:, 1].astype(np.float64)
        return scores if self._calibration is None else calibrated(scores, *self._calibration)
