"""Serving by a Deployment and the Service in front of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from health_predict.adapters.serving.kubernetes.cluster import NOT_FOUND, Cluster
from health_predict.adapters.serving.kubernetes.lease import Lease
from health_predict.adapters.serving.kubernetes.rollout import (
    IMAGE,
    REPLICAS,
    SINCE,
    VERSION,
    KubernetesRollout,
    pods_of,
    problem_of,
    restarts_of,
)
from health_predict.adapters.serving.port import Active
from health_predict.errors import HealthPredictError
from health_predict.settings import Settings


class KubernetesTarget:
    """Serving by the Deployment that the settings name (`port.Target`)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cluster = Cluster(settings.kube_context, account=settings.kube_account)
        self._place = settings.kube_deployment, settings.kube_namespace

    @property
    def url(self) -> str:
        return f"{self._settings.serving_scheme}://{self._settings.serving_host}:{self._settings.serving_port}"

    def _deployment(self) -> Any:
        """The Deployment as it is; None when there is none."""
        read = self._cluster.apps.read_namespaced_deployment
        return self._cluster.ask(read, *self._place, allowed=(NOT_FOUND,))

    def active(self) -> Active | None:
        """What was committed, while pods answer for it; None when nothing serves."""
        deployment = self._deployment()
        annotations = (deployment.metadata.annotations or {}) if deployment else {}
        if not annotations.get(IMAGE) or not deployment.status.ready_replicas:
            return None
        pods = [pod for pod in pods_of(self._cluster, deployment) if not pod.metadata.deletion_timestamp]
        return Active(
            image_uri=annotations[IMAGE],
            model_version=annotations.get(VERSION, ""),
            since=annotations.get(SINCE, ""),
            restarts=sum(restarts_of(pod) for pod in pods),
            workers=tuple(sorted(pod.metadata.name for pod in pods)),
        )

    def trouble(self) -> str:
        """Why no pod is ready although a version was committed; empty when all is well."""
        name, namespace = self._place
        deployment = self._deployment()
        if deployment is None:
            return f"there is no Deployment {name} in namespace {namespace}"
        wanted = (deployment.metadata.annotations or {}).get(IMAGE) and deployment.spec.replicas
        if not wanted or deployment.status.ready_replicas:
            return ""
        pods = [pod for pod in pods_of(self._cluster, deployment) if not pod.metadata.deletion_timestamp]
        reasons = "; ".join(filter(None, map(problem_of, pods)))
        return f"no pod of {name} is ready{': ' if reasons else ''}{reasons}"

    @contextmanager
    def rollout(self) -> Iterator[KubernetesRollout]:
        name, namespace = self._place
        with Lease(self._cluster, namespace, f"{name}-rollout") as lease, contextlib.ExitStack() as stack:
            change = KubernetesRollout(self._settings, self._cluster, lease, stack)
            change.clean_up()
            try:
                yield change
            except BaseException as error:
                change.undo(error.problem if isinstance(error, HealthPredictError) else repr(error))
                raise
            finally:
                change.undo()

    def stop(self) -> bool:
        """Scale to nothing; the next rollout scales back. False when nothing ran."""
        apps = self._cluster.apps
        deployment = self._deployment()
        if deployment is None or not deployment.spec.replicas or deployment.spec.paused:
            return False
        body = {"metadata": {"annotations": {REPLICAS: str(deployment.spec.replicas)}}, "spec": {"replicas": 0}}
        self._cluster.ask(apps.patch_namespaced_deployment, *self._place, body)
        return True
