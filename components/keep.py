"""The gate's other branch as a KFP component: nothing changes."""

from typing import NamedTuple

from kfp import dsl

from health_predict.components.image import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def keep(gate: str, value: str, expected: str, result: str = "unchanged") -> NamedTuple(  # type: ignore[valid-type]
    "KeepOutputs", [("outcome", str)]
):
    """The other branch of a gate: what serves stays. Fails when the gate's value is not the one that leads here.

    Args:
        gate: Name of the gate.
        value: Its value.
        expected: The value that means that nothing changes.
        result: What that is called.

    Returns:
        outcome: The result.
    """
    from health_predict.errors import GateError
    from health_predict.stages.task import task

    with task("keep"):
        if value != expected:
            raise GateError(
                f"gate {gate} has the unknown value {value!r}", f"{expected!r} or a value with a branch was expected"
            )
    return (result,)
