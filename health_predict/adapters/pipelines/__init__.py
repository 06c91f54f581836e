"""Where pipelines run: on this machine, or on Kubeflow Pipelines."""
