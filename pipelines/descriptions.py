"""Descriptions of a pipeline's inputs and outputs, taken from the components that take and give them."""

import inspect
from collections.abc import Callable
from typing import Any


def described(*tasks: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Describe the inputs and outputs of a pipeline as these components or pipelines describe theirs, by name.

    KFP reads descriptions from a function's docstring. A pipeline hands most of its inputs on as they are, so each is
    described once, where it is used. Of several tasks that describe a name the first one counts.
    Raises KeyError when none does.
    """
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    for task in tasks:
        for found, items in ((inputs, task.component_spec.inputs), (outputs, task.component_spec.outputs)):
            for name, item in (items or {}).items():
                found.setdefault(name, " ".join(item.description.split()))

    def describe(pipeline: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(pipeline)
        pipeline.__doc__ = "\n".join(
            [
                *(inspect.getdoc(pipeline) or "", "", "Args:"),
                *(f"    {name}: {inputs[name]}" for name in signature.parameters),
                *("", "Returns:"),
                *(f"    {name}: {outputs[name]}" for name in signature.return_annotation._fields),
            ]
        )
        return pipeline

    return describe
