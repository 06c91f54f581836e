"""A change of version of a Deployment.

A rollout never trusts the cluster's own: one candidate pod, which no Service selects, must become ready and stay so;
only then the Deployment gets the image, by server-side apply of nothing but that image and its identity. What the
Deployment was before stays written in its annotations until the change is committed, so that whoever comes next
can undo what a killed rollout left half done. Events tell its story.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes import client

from health_predict.adapters.serving.kubernetes.cluster import CONFLICT, NOT_FOUND, Cluster
from health_predict.adapters.serving.kubernetes.lease import Lease
from health_predict.errors import GateError, HealthPredictError, StateError
from health_predict.settings import Settings

log = logging.getLogger(__name__)

CONTAINER = "readmission"
MANAGER = "health-predict-rollout"
PREFIX = "health-predict/"
# Annotations of the Deployment: what was committed, and since when.
IMAGE, VERSION, SINCE, REPLICAS = (f"{PREFIX}{name}" for name in ("image", "model-version", "since", "replicas"))
# Annotations of the Deployment and of its pods: what the Bento says of itself in `IDENTITY_FILE`.
ORIGIN = {
    f"{PREFIX}bento": "bento_tag",
    f"{PREFIX}run-id": "run_id",
    f"{PREFIX}dataset-digest": "dataset_digest",
    f"{PREFIX}git-commit": "git_commit",
}
IDENTITY_FILE = "src/identity.json"
# What `kubectl rollout history` shows of a revision.
CAUSE = "kubernetes.io/change-cause"
# Label of both, for `kubectl get -L`.
VERSION_LABEL = "app.kubernetes.io/version"
# What the manifests name before the first rollout; the Deployment is paused then and has no pods.
NO_IMAGE = "health-predict/readmission:none"
CANDIDATE = {"app.kubernetes.io/name": "readmission-candidate", "app.kubernetes.io/part-of": "health-predict"}
PORT = 3000
PAUSE_SECONDS = 1.0
# Reasons that no waiting mends.
HOPELESS = ("InvalidImageName", "CreateContainerConfigError", "CreateContainerError", "RunContainerError")
CRASHES = 3


class KubernetesRollout:
    """One change of version (`port.Rollout`). What `stack` holds ends with the candidate."""

    def __init__(self, settings: Settings, cluster: Cluster, lease: Lease, stack: contextlib.ExitStack) -> None:
        self.settings = settings
        self.name, self.namespace = settings.kube_deployment, settings.kube_namespace
        self.cluster = cluster
        self.lease = lease
        self.stack = stack
        self.candidate = ""
        self.switched = False
        self._identity: dict[str, str] = {}
        self._before = self._deployment()

    def clean_up(self) -> None:
        """Undo what a rollout that was killed left: its candidate, and an image that was never committed."""
        selector = ",".join(f"{key}={value}" for key, value in CANDIDATE.items())
        pods = self.cluster.ask(self.cluster.core.list_namespaced_pod, self.namespace, label_selector=selector)
        for pod in pods.items:
            self._delete_pod(pod.metadata.name)
        if image_of(self._before.spec.template) != self._committed() and not self._before.spec.paused:
            log.warning("a rollout was left half done: %s is undone", image_of(self._before.spec.template))
            self.switched = True
            self.undo("the rollout before was interrupted")
            self._before = self._deployment()

    def start(self, image_uri: str, model_version: str, folder: Path) -> str:
        """Start a pod of the Deployment's own template outside its Service, and see that it stays ready."""
        self.lease.check()
        self._identity = {IMAGE: image_uri, VERSION: model_version, **_origin(folder)}
        self._tell("RolloutStarted", f"version {model_version}, {image_uri}")
        self.candidate = f"{self.name}-candidate-{secrets.token_hex(3)}"
        create = self.cluster.core.create_namespaced_pod
        self.cluster.ask(create, self.namespace, self._candidate_pod(), allowed=(CONFLICT,))
        pod = self._wait_ready()
        if self.settings.rollout_observation:
            log.info("watching the candidate for %g s", self.settings.rollout_observation)
            self._observe()
        self._tell("CandidateReady", f"version {model_version} answers in pod {self.candidate}")
        if self.cluster.inside:
            address = pod.status.pod_ip
            return f"{self.settings.serving_scheme}://{f'[{address}]' if ':' in address else address}:{PORT}"
        url = self.stack.enter_context(self.cluster.forwarded(self.namespace, self.candidate, PORT))
        return url.replace("http://", f"{self.settings.serving_scheme}://")

    def switch(self) -> None:
        """Give the Deployment the image and wait until all its pods are new and available."""
        self.lease.check()
        version = self._identity[VERSION]
        self._tell("TrafficSwitching", f"the candidate answered as expected; version {version} takes over")
        self.switched = True
        self._apply(self._identity, self._annotations(self._before), paused=False)
        self._scale_up()
        self._wait_rolled_out()
        self._remove_candidate()

    def undo(self, reason: str = "") -> None:
        """Give the Deployment back what was committed, and end the candidate."""
        if self.candidate:
            self._remove_candidate()
        if self.switched:
            committed = self._committed()
            log.warning("leading the traffic back to %s", committed)
            annotations = self._annotations(self._before)
            self._apply(annotations, annotations, paused=committed == NO_IMAGE)
            if committed == NO_IMAGE:
                self._remove_replica_sets()
            else:
                self._wait_rolled_out()
            self.switched = False
            self._tell("RolloutUndone", f"back to version {annotations.get(VERSION, 'none')}", warning=True)
        if reason:
            self._tell("RolloutFailed", reason, warning=True)

    def commit(self) -> None:
        """Write down that this version is the one that serves."""
        self.lease.check()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        version = self._identity[VERSION]
        cause = f"model version {version}, {self._identity[IMAGE]}"
        self._apply(self._identity, {**self._identity, SINCE: since, CAUSE: cause}, paused=False)
        self.switched = False
        self._tell("RolloutCommitted", f"version {version} serves")

    # The Deployment

    def _deployment(self) -> Any:
        read = self.cluster.apps.read_namespaced_deployment
        deployment = self.cluster.ask(read, self.name, self.namespace, allowed=(NOT_FOUND,))
        if deployment is None:
            raise StateError(
                f"there is no Deployment {self.name} in namespace {self.namespace}", "`make cluster-up` creates it"
            )
        return deployment

    def _annotations(self, deployment: Any) -> dict[str, str]:
        annotations = deployment.metadata.annotations or {}
        return {name: annotations[name] for name in (IMAGE, VERSION, SINCE, CAUSE, *ORIGIN) if name in annotations}

    def _committed(self) -> str:
        return self._annotations(self._before).get(IMAGE, NO_IMAGE)

    def _apply(self, serves: Mapping[str, str], committed: Mapping[str, str], *, paused: bool) -> None:
        """Server-side apply of the image and what says who it is; every other field is somebody else's.

        `serves` is the identity of the pods, `committed` are the annotations of the Deployment: until a version is
        committed they are those of the one before.
        """
        body = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": self.name, "labels": _labels(committed), "annotations": dict(committed)},
            "spec": {
                "paused": paused,
                "template": {
                    "metadata": {"labels": _labels(serves), "annotations": _of_pods(serves)},
                    "spec": {"containers": [{"name": CONTAINER, "image": serves.get(IMAGE, NO_IMAGE)}]},
                },
            },
        }
        patch = self.cluster.applying.patch_namespaced_deployment
        self.cluster.ask(patch, self.name, self.namespace, body, field_manager=MANAGER, force=True)

    def _scale_up(self) -> None:
        deployment = self._deployment()
        if not deployment.spec.replicas:
            replicas = int((deployment.metadata.annotations or {}).get(REPLICAS, "1"))
            patch = self.cluster.apps.patch_namespaced_deployment
            self.cluster.ask(patch, self.name, self.namespace, {"spec": {"replicas": replicas}})

    def _wait_rolled_out(self) -> None:
        end = time.monotonic() + self.settings.rollout_timeout
        while True:
            deployment = self._deployment()
            image, status, wanted = image_of(deployment.spec.template), deployment.status, deployment.spec.replicas
            pods = pods_of(self.cluster, deployment)
            counts = (status.updated_replicas, status.replicas, status.available_replicas)
            if (
                (status.observed_generation or 0) >= deployment.metadata.generation
                and all((count or 0) == wanted for count in counts)
                # One that is told to end answers until the Service has forgotten it.
                and all(image_of(pod) == image for pod in pods)
            ):
                return
            crashing = any(restarts_of(pod) >= CRASHES for pod in pods)
            late = any(item.reason == "ProgressDeadlineExceeded" for item in status.conditions or ())
            if late or crashing or time.monotonic() > end:
                told = "; ".join(filter(None, map(problem_of, pods))) or "its pods are not available"
                raise GateError(
                    f"the Deployment does not take {image}: {told}",
                    f"kubectl -n {self.namespace} describe deployment {self.name}",
                )
            self._pause()

    def _pause(self) -> None:
        self.lease.check()
        time.sleep(PAUSE_SECONDS)

    def _remove_replica_sets(self) -> None:
        """A paused Deployment makes no new ones: without them nothing runs, as before the first rollout."""
        apps = self.cluster.apps
        for item in self.cluster.ask(apps.list_namespaced_replica_set, self.namespace).items:
            if any(owner.uid == self._before.metadata.uid for owner in item.metadata.owner_references or ()):
                delete, name = apps.delete_namespaced_replica_set, item.metadata.name
                self.cluster.ask(delete, name, self.namespace, propagation_policy="Background", allowed=(NOT_FOUND,))

    # The candidate

    def _candidate_pod(self) -> Any:
        template = self._before.spec.template
        spec, metadata = template.spec, template.metadata
        spec.restart_policy = "Never"
        # Pods of a Deployment may be told to keep away from each other; the candidate need not.
        spec.topology_spread_constraints = None
        for container in spec.containers:
            if container.name == CONTAINER:
                container.image = self._identity[IMAGE]
        return client.V1Pod(
            metadata=client.V1ObjectMeta(
                name=self.candidate,
                labels={**(metadata.labels or {}), **_labels(self._identity), **CANDIDATE},
                annotations={**(metadata.annotations or {}), **_of_pods(self._identity)},
                # It goes with the Deployment, whatever becomes of this process.
                owner_references=[
                    client.V1OwnerReference(
                        api_version="apps/v1", kind="Deployment", name=self.name, uid=self._before.metadata.uid
                    )
                ],
            ),
            spec=spec,
        )

    def _pod(self) -> Any:
        read = self.cluster.core.read_namespaced_pod
        deployment = self.cluster.ask(read, self.candidate, self.namespace, allowed=(NOT_FOUND,))
        if deployment is None:
            raise GateError(f"candidate pod {self.candidate} is gone", "somebody deleted it: run the stage again")
        return deployment

    def _wait_ready(self) -> Any:
        end = time.monotonic() + self.settings.rollout_timeout
        while not is_ready(pod := self._pod()):
            problem = problem_of(pod)
            hopeless = pod.status.phase == "Failed" or any(reason in problem for reason in HOPELESS)
            if hopeless or time.monotonic() > end:
                raise GateError(
                    f"the candidate is not ready: {problem or 'it does not say why'}{self._last_words()}",
                    "see the logs above; a registry that is away mends by itself: run the stage again",
                )
            self._pause()
        return pod

    def _observe(self) -> None:
        end = time.monotonic() + self.settings.rollout_observation
        while time.monotonic() < end:
            if not is_ready(pod := self._pod()):
                raise GateError(
                    f"the candidate did not stay ready: {problem_of(pod) or 'its probe fails'}{self._last_words()}",
                    "see the logs above",
                )
            self._pause()

    def _last_words(self) -> str:
        lines = self.cluster.logs(self.namespace, self.candidate, CONTAINER)
        for line in lines:
            log.info("candidate: %s", line)
        return f": {lines[-1].strip()[:300]}" if lines else ""

    def _remove_candidate(self) -> None:
        self.stack.close()
        self._delete_pod(self.candidate)
        self.candidate = ""

    def _delete_pod(self, name: str) -> None:
        delete = self.cluster.core.delete_namespaced_pod
        self.cluster.ask(delete, name, self.namespace, grace_period_seconds=1, allowed=(NOT_FOUND,))

    def _tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        """An Event on the Deployment. One that cannot be written is no reason to fail."""
        now = datetime.now(UTC)
        event = client.CoreV1Event(
            metadata=client.V1ObjectMeta(generate_name=f"{self.name}.", namespace=self.namespace),
            involved_object=client.V1ObjectReference(
                api_version="apps/v1",
                kind="Deployment",
                name=self.name,
                namespace=self.namespace,
                uid=self._before.metadata.uid,
            ),
            reason=reason,
            message=message[:1000],
            type="Warning" if warning else "Normal",
            first_timestamp=now,
            last_timestamp=now,
            count=1,
            source=client.V1EventSource(component=MANAGER),
        )
        try:
            self.cluster.ask(self.cluster.core.create_namespaced_event, self.namespace, event)
        except HealthPredictError as error:
            log.warning("no Event: %s", error.problem)


def _origin(folder: Path) -> dict[str, str]:
    """The Bento's own word on where it comes from, as annotations. Without it a rollout goes on: people miss it."""
    try:
        identity = json.loads((folder / IDENTITY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: str(identity[key]) for name, key in ORIGIN.items() if identity.get(key)}


def _labels(identity: Mapping[str, str]) -> dict[str, str]:
    return {VERSION_LABEL: identity[VERSION]} if identity.get(VERSION) else {}


def _of_pods(identity: Mapping[str, str]) -> dict[str, str]:
    """Annotations of the pods. Nothing that changes while a version serves: each change would replace them."""
    return {name: identity[name] for name in (VERSION, *ORIGIN) if name in identity}


def pods_of(cluster: Cluster, deployment: Any) -> list[Any]:
    """The Deployment's pods, those that are about to end as well."""
    selector = ",".join(f"{key}={value}" for key, value in deployment.spec.selector.match_labels.items())
    pods = cluster.ask(cluster.core.list_namespaced_pod, deployment.metadata.namespace, label_selector=selector)
    return list(pods.items)


def image_of(item: Any) -> str:
    """The image of a pod, or of a Deployment's template."""
    return str(next(container.image for container in item.spec.containers if container.name == CONTAINER))


def is_ready(pod: Any) -> bool:
    """Whether a pod is ready."""
    return any(item.type == "Ready" and item.status == "True" for item in pod.status.conditions or ())


def restarts_of(pod: Any) -> int:
    """How often the containers of a pod were started again."""
    return sum(item.restart_count for item in pod.status.container_statuses or ())


def problem_of(pod: Any) -> str:
    """Why a pod is not ready, in the cluster's words; empty when it is, or only begins."""
    name, status = pod.metadata.name, pod.status
    if is_ready(pod):
        return ""
    for item in status.container_statuses or ():
        ended = item.state.terminated or (item.last_state and item.last_state.terminated)
        if ended:
            return f"{name} ended with code {ended.exit_code} ({ended.reason or ''})"
        waiting = item.state.waiting
        if waiting and waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
            return f"{name}: {waiting.reason}: {waiting.message or ''}".strip(": ")
    for condition in status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"{name}: {condition.reason}: {condition.message or ''}"
    return f"{name}: {status.reason}" if status.reason else ""
