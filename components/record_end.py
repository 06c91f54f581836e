"""The record_end stage as a KFP component."""

from kfp import dsl

from health_predict.components.image import PIPELINE_IMAGE


@dsl.component(base_image=PIPELINE_IMAGE, install_kfp_package=False)
def record_end(pipeline: str, run_id: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """Write down how a run in a cluster ended, whatever became of it.

    Args:
        pipeline: Name of the pipeline.
        run_id: Kubeflow's id of the run.
        status: How its tasks ended.
    """
    from health_predict.stages.record_end import record_end as stage
    from health_predict.stages.task import task

    with task("record_end") as settings:
        stage(settings, pipeline=pipeline, run_id=run_id, state=status.state)
