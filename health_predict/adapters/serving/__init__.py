"""Where a model serves: local processes, or a Deployment of Kubernetes."""
