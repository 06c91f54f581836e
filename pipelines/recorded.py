"""The end of a run in a cluster is recorded by an exit handler around its pipeline."""

import inspect
from typing import Any

from kfp import dsl

from health_predict.components import record_end
from health_predict.pipelines.wiring import wire


def recorded(pipeline: Any) -> Any:
    """The pipeline as a cluster runs it: its end is recorded by an exit handler, even when a task fails.

    It has the same inputs and no outputs, since KFP lets no value leave an exit handler. On this machine the process
    that runs a pipeline records its end itself.
    """
    tasks = pipeline.pipeline_func

    def outer(*arguments: Any) -> None:
        end = record_end(pipeline=pipeline.name, run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
        with dsl.ExitHandler(wire(end, "Record the end"), name=pipeline.name):
            tasks(*arguments)

    # KFP reads the inputs from the signature, and their descriptions from the docstring.
    signature = inspect.signature(tasks)
    outer.__signature__ = signature.replace(return_annotation=inspect.Signature.empty)  # type: ignore[attr-defined]
    outer.__doc__ = (tasks.__doc__ or "").partition("Returns:")[0]
    return dsl.pipeline(name=pipeline.name, description=pipeline.description)(outer)
