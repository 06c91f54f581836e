"""The model served by a Deployment of a Kubernetes cluster, by the typed API of Kubernetes' own client."""

from health_predict.adapters.serving.kubernetes.cluster import NOT_FOUND, Cluster
from health_predict.adapters.serving.kubernetes.rollout import CANDIDATE, KubernetesRollout
from health_predict.adapters.serving.kubernetes.target import KubernetesTarget

__all__ = ["CANDIDATE", "NOT_FOUND", "Cluster", "KubernetesRollout", "KubernetesTarget"]
