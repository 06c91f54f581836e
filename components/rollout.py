"""The rollout stage as a KFP component."""

from typing import NamedTuple

from kfp import dsl

from health_predict.components.image import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def rollout(image_uri: str, model_version: str, report: dsl.Output[dsl.HTML]) -> NamedTuple(  # type: ignore[valid-type]
    "RolloutOutputs", [("outcome", str)]
):
    """Bring an image into service beside the running one, check it, and only then move the champion alias.

    Args:
        image_uri: URI of the image by digest.
        model_version: Version of the registered model in the image.

    Returns:
        report: What was checked and what became of it.
        outcome: deployed or unchanged; a rollout that was undone fails.
    """
    from pathlib import Path

    from health_predict.stages.rollout import rollout as stage
    from health_predict.stages.task import task

    with task("rollout") as settings:
        result = stage(settings, image_uri=image_uri, model_version=model_version, report=Path(report.path))
    return (result.outcome.value,)
