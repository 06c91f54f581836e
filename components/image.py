"""The image of the pipeline's tasks, as the compiled pipelines name it; a submission puts the digest in its place."""

PIPELINE_IMAGE = "health-predict/pipeline"
