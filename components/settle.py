"""The settle stage as a KFP component."""

from typing import NamedTuple

from kfp import dsl

from health_predict.components.image import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def settle(batch: int, batch_digest: str, done: str, run_id: str) -> NamedTuple("SettleOutputs", [("outcome", str)]):  # type: ignore[valid-type]
    """End the look at a batch: it is never repeated.

    Args:
        batch: Number of the batch; -1 when nothing was due.
        batch_digest: Digest of what was looked at.
        done: Outcome of the action.
        run_id: Kubeflow's id of the run, whose turn ends.

    Returns:
        outcome: deployed, unchanged, waiting (for approval) or lost (the challenger did not pass).
    """
    from health_predict.stages.settle import settle as stage
    from health_predict.stages.task import task

    with task("settle") as settings:
        result = stage(settings, batch=int(batch), batch_digest=batch_digest, done=done, run_id=run_id)
    return (result.value,)
