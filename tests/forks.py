"""Processes that may be killed, from a server that has imported once what the stages import when they need it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [
        "health_predict.adapters.evidently",
        "health_predict.stages.bento_build",
        "health_predict.stages.drift",
        "health_predict.stages.ecr_push",
        "health_predict.stages.register",
        "health_predict.stages.rollout",
        "health_predict.stages.split",
        "bentoml",
        "evidently.presets",
        "lightgbm",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "mlflow.sklearn",
        "onnxmltools",
        "onnxruntime",
        "pytest",
        "skl2onnx",
        "sklearn.pipeline",
        "tests.conftest",
        "tests.feed",
    ]
)


def ended(function: Callable[..., Any], *arguments: Any) -> int | None:
    """The exit code of a process of its own, which starts in milliseconds: negative where a signal ended it."""
    process = _processes.Process(target=function, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode
