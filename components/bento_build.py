"""The bento_build stage as a KFP component."""

from typing import NamedTuple

from kfp import dsl

from health_predict.components.image import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def bento_build(
    model_version: str,
    bento: dsl.Output[dsl.Artifact],
    approved_by: str = "",
    approval_why: str = "",
) -> NamedTuple("BentoBuildOutputs", [("tag", str), ("digest", str)]):  # type: ignore[valid-type]
    """Compile a model version, prove its parity and pack it as a Bento.

    Args:
        model_version: Version of the registered model, such as 3; MLflow lists them.
        approved_by: Person who approves it herewith; empty when it is approved already or waits for nobody.
        approval_why: Why, in that person's words.

    Returns:
        bento: The Bento as one archive.
        tag: Tag of the Bento, name:version.
        digest: Digest of its content; the same version gives the same.
    """
    from pathlib import Path

    from health_predict.stages.bento_build import bento_build as stage
    from health_predict.stages.task import task

    with task("bento_build") as settings:
        result = stage(
            settings,
            model_version=model_version,
            bento=Path(bento.path),
            approved_by=approved_by,
            approval_why=approval_why,
        )
        bento.metadata.update(tag=result.tag, digest=result.digest)
    return (result.tag, result.digest)
