"""The ecr_push stage as a KFP component."""

from kfp import dsl

from health_predict.components.image import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def ecr_push(model_version: str, bento: dsl.Input[dsl.Artifact]) -> str:
    """Write the service's image and push what the registry lacks; gives the image's URI by digest.

    Args:
        model_version: Version of the registered model.
        bento: The Bento as one archive.

    Returns:
        Output: URI of the image by digest.
    """
    from pathlib import Path

    from health_predict.stages.ecr_push import ecr_push as stage
    from health_predict.stages.task import task

    with task("ecr_push") as settings:
        image_uri = stage(settings, bento=Path(bento.path), model_version=model_version)
    return image_uri
