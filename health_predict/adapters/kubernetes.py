"""The model served by a Deployment of a Kubernetes cluster.

A rollout never trusts the cluster's own: one candidate pod, which no Service selects, must become ready and stay so;
only then the Deployment gets the image, by server-side apply of nothing but that image and its identity. What the
Deployment was before stays written in its annotations until the change is committed, so that whoever comes next
can undo what a killed rollout left half done. A Lease keeps rollouts apart, Events tell their story.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from health_predict.adapters.target import Active
from health_predict.core.errors import GateError, HealthPredictError, StateError, UnreachableError
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
NAME_LABEL = "app.kubernetes.io/name"
PORT = 3000
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JSON = "application/json"
# How long a request is repeated while the API server is away, busy or in conflict.
PATIENCE_SECONDS = 60.0
REQUEST_SECONDS = 10.0
# Less than a client waits for its answer.
CONNECT_SECONDS = 6.0
PAUSE_SECONDS = 1.0
LEASE_SECONDS = 15
RENEW_SECONDS = 4.0
# Others' rollouts take a candidate's time, twice.
LEASE_WAIT_SECONDS = 900.0
TEMPORARY = (408, 409, 429, 500, 502, 503, 504)
NOT_FOUND, CONFLICT = 404, 409
# Reasons that no waiting mends.
HOPELESS = ("InvalidImageName", "CreateContainerConfigError", "CreateContainerError", "RunContainerError")
CRASHES = 3

JsonObject = dict[str, Any]


class Cluster:
    """The API server of the kubeconfig's context, or of the cluster that this process runs in."""

    def __init__(self, context: str = "", *, patience: float = PATIENCE_SECONDS) -> None:
        from kubernetes import client, config

        self.inside = False
        self.patience = patience
        try:
            self._client = config.new_client_from_config(context=context or None)
        except config.ConfigException as outside:
            configuration = client.Configuration()
            try:
                config.load_incluster_config(client_configuration=configuration)
            except config.ConfigException:
                raise UnreachableError(
                    f"no cluster is configured: {outside}", "set KUBECONFIG and HEALTH_PREDICT_KUBE_CONTEXT"
                ) from None
            self._client = client.ApiClient(configuration)
            self.inside = True
        # Repetitions are ours: they have a deadline.
        self._client.configuration.retries = False

    @property
    def address(self) -> str:
        """Where the API server is."""
        return str(self._client.configuration.host)

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        kind: str = JSON,
        absent: bool = False,
        conflict: bool = False,
        patience: float | None = None,
    ) -> JsonObject | None:
        """The answer as JSON. What is temporary is repeated.

        None for 404 where `absent` allows it, and for 409 where `conflict` does. Raises UnreachableError when the
        server does not answer in time, StateError when it refuses.
        """
        end = time.monotonic() + (self.patience if patience is None else patience)
        while True:
            status, text = self._once(method, path, body, query or {}, kind)
            if 200 <= status < 300:
                answer: JsonObject = json.loads(text)
                return answer
            if (status == NOT_FOUND and absent) or (status == CONFLICT and conflict):
                return None
            if status and status not in TEMPORARY:
                raise StateError(f"Kubernetes refuses {method} {path}: {status} {_message(text)}", _remedy(status))
            if time.monotonic() > end:
                raise UnreachableError(
                    f"Kubernetes does not do {method} {path}: {status or 'no answer'} {_message(text)}",
                    "check the API server, KUBECONFIG and HEALTH_PREDICT_KUBE_CONTEXT",
                )
            log.warning("Kubernetes: %s %s: %s %s; trying again", method, path, status or "no answer", _message(text))
            time.sleep(PAUSE_SECONDS)

    def _once(
        self, method: str, path: str, body: Mapping[str, Any] | None, query: Mapping[str, str], kind: str
    ) -> tuple[int, str]:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            response, status, _ = self._client.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Accept": JSON, "Content-Type": kind},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=REQUEST_SECONDS,
            )
            return int(status), response.data.decode(errors="replace")
        except ApiException as error:
            content = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
            return int(error.status or 0), content
        except (HTTPError, OSError) as error:
            return 0, str(error)

    def logs(self, namespace: str, pod: str, *, lines: int = 20, container: str = CONTAINER) -> list[str]:
        """The last lines that a pod wrote; none when they cannot be had."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        status, text = self._once("GET", path, None, {"tailLines": str(lines), "container": container}, JSON)
        return [line for line in text.splitlines() if line.strip()] if status == 200 else []

    @contextmanager
    def forwarded(self, namespace: str, pod: str, port: int) -> Iterator[str]:
        """A URL on loopback that leads to a port of a pod, for who is outside the cluster's network."""
        from kubernetes import client
        from kubernetes.stream import portforward

        def connect() -> Any:
            # A client of its own: while it connects, the library makes the client speak web sockets only.
            core = client.CoreV1Api(client.ApiClient(self._client.configuration))
            forward = portforward(core.connect_get_namespaced_pod_portforward, pod, namespace, ports=str(port))
            return forward.socket(port)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            host, number = listener.getsockname()[:2]
            threading.Thread(target=_accept, args=(listener, connect), daemon=True).start()
            yield f"http://{host}:{number}"
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, connect: Callable[[], Any]) -> None:
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_pump, args=(near, connect), daemon=True).start()


def _pump(near: socket.socket, connect: Callable[[], Any]) -> None:
    with near:
        far = _connected(connect)
        if far is None:
            return  # the client sees a closed connection
        with contextlib.closing(far):
            while True:
                readable, _, _ = select.select([near, far], [], [], 60)
                if not readable:
                    return
                for source in readable:
                    data = source.recv(65536)
                    if not data:
                        return
                    (far if source is near else near).sendall(data)


def _connected(connect: Callable[[], Any]) -> Any | None:
    """The far end, asked for again while the API server fails; None when it does for too long."""
    end = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            return connect()
        except Exception as error:  # the library raises many kinds
            log.warning("port-forward: %s", error)
            if time.monotonic() > end:
                return None
        time.sleep(PAUSE_SECONDS)


@dataclass(frozen=True)
class _Names:
    """Paths of what belongs to the Deployment."""

    namespace: str
    deployment: str

    @property
    def path(self) -> str:
        return f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{self.deployment}"

    @property
    def replica_sets(self) -> str:
        return f"/apis/apps/v1/namespaces/{self.namespace}/replicasets"

    @property
    def pods(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods"

    @property
    def events(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/events"

    @property
    def leases(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"

    @property
    def lease(self) -> str:
        return f"{self.deployment}-rollout"


class KubernetesTarget:
    """Serving by a Deployment and the Service in front of it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cluster = Cluster(settings.kube_context)
        self._names = _Names(settings.kube_namespace, settings.kube_deployment)

    @property
    def url(self) -> str:
        return f"http://{self._settings.serving_host}:{self._settings.serving_port}"

    def active(self) -> Active | None:
        """What was committed, while pods answer for it; None when nothing serves."""
        found = self._cluster.request("GET", self._names.path, absent=True)
        if found is None:
            return None
        annotations = found["metadata"].get("annotations", {})
        if not annotations.get(IMAGE) or not found.get("status", {}).get("readyReplicas"):
            return None
        pods = self._pods(found)
        return Active(
            image_uri=annotations[IMAGE],
            model_version=annotations.get(VERSION, ""),
            since=annotations.get(SINCE, ""),
            restarts=sum(_restarts(pod) for pod in pods),
            workers=tuple(sorted(pod["metadata"]["name"] for pod in pods)),
        )

    def trouble(self) -> str:
        """Why no pod is ready although a version was committed; empty when all is well."""
        found = self._cluster.request("GET", self._names.path, absent=True)
        if found is None:
            return f"there is no Deployment {self._names.deployment} in namespace {self._names.namespace}"
        if not found["metadata"].get("annotations", {}).get(IMAGE) or not found["spec"].get("replicas"):
            return ""
        if found.get("status", {}).get("readyReplicas"):
            return ""
        reasons = [reason for pod in self._pods(found) if (reason := _problem(pod))]
        return f"no pod of {self._names.deployment} is ready{': ' if reasons else ''}{'; '.join(reasons)}"

    def _pods(self, deployment: JsonObject) -> list[JsonObject]:
        found = self._cluster.request("GET", self._names.pods, query={"labelSelector": _selector(deployment)})
        assert found is not None
        return [pod for pod in found["items"] if not pod["metadata"].get("deletionTimestamp")]

    @contextmanager
    def rollout(self) -> Iterator[KubernetesRollout]:
        with _Lease(self._cluster, self._names) as lease, contextlib.ExitStack() as stack:
            change = KubernetesRollout(self._settings, self._cluster, self._names, lease, stack)
            change.clean_up()
            try:
                yield change
            except BaseException as error:
                reason = error.problem if isinstance(error, HealthPredictError) else repr(error)
                change.undo(reason)
                raise
            finally:
                change.undo()

    def stop(self) -> bool:
        """Scale to nothing; the next rollout scales back. False when nothing ran."""
        found = self._cluster.request("GET", self._names.path, absent=True)
        if found is None or not found["spec"].get("replicas") or found["spec"].get("paused"):
            return False
        replicas = found["spec"]["replicas"]
        body = {"metadata": {"annotations": {REPLICAS: str(replicas)}}, "spec": {"replicas": 0}}
        self._cluster.request("PATCH", self._names.path, body, kind=MERGE)
        return True


@dataclass
class KubernetesRollout:
    """One change of version (`target.Rollout`)."""

    settings: Settings
    cluster: Cluster
    names: _Names
    lease: _Lease
    stack: contextlib.ExitStack
    candidate: str = ""
    image: str = ""
    version: str = ""
    switched: bool = False
    _identity: dict[str, str] = field(default_factory=dict)
    _before: JsonObject = field(default_factory=dict)

    def clean_up(self) -> None:
        """Undo what a rollout that was killed left: its candidate, and an image that was never committed."""
        selector = ",".join(f"{key}={value}" for key, value in CANDIDATE.items())
        found = self.cluster.request("GET", self.names.pods, query={"labelSelector": selector})
        assert found is not None
        for pod in found["items"]:
            self._delete_pod(pod["metadata"]["name"])
        self._before = self._deployment()
        if _image(self._before) != self._committed() and not self._before["spec"].get("paused"):
            log.warning("a rollout was left half done: %s is undone", _image(self._before))
            self.switched = True
            self.undo("the rollout before was interrupted")
            self._before = self._deployment()

    def start(self, image_uri: str, model_version: str, folder: Path) -> str:
        """Start a pod of the Deployment's own template outside its Service, and see that it stays ready."""
        self.lease.check()
        self.image, self.version = image_uri, model_version
        self._identity = {IMAGE: image_uri, VERSION: model_version, **_origin(folder)}
        self._tell("RolloutStarted", f"version {model_version}, {image_uri}")
        self.candidate = f"{self.names.deployment}-candidate-{secrets.token_hex(3)}"
        self.cluster.request("POST", self.names.pods, self._candidate_pod(), conflict=True)
        pod = self._wait_ready()
        if self.settings.rollout_observation:
            log.info("watching the candidate for %g s", self.settings.rollout_observation)
            pod = self._observe()
        self._tell("CandidateReady", f"version {model_version} answers in pod {self.candidate}")
        if self.cluster.inside:
            address = pod["status"]["podIP"]
            return f"http://{f'[{address}]' if ':' in address else address}:{PORT}"
        return self.stack.enter_context(self.cluster.forwarded(self.names.namespace, self.candidate, PORT))

    def switch(self) -> None:
        """Give the Deployment the image and wait until all its pods are new and available."""
        self.lease.check()
        self._tell("TrafficSwitching", f"the candidate answered as expected; version {self.version} takes over")
        self.switched = True
        self._apply(self._identity, self._annotations(self._before), paused=False)
        self._scale_up()
        self._wait_rolled_out(self.settings.rollout_timeout)
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
                self._wait_rolled_out(self.settings.rollout_timeout)
            self.switched = False
            self._tell("RolloutUndone", f"back to version {annotations.get(VERSION, 'none')}", warning=True)
        if reason:
            self._tell("RolloutFailed", reason, warning=True)

    def commit(self) -> None:
        """Write down that this version is the one that serves."""
        self.lease.check()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        cause = f"model version {self.version}, {self.image}"
        self._apply(self._identity, {**self._identity, SINCE: since, CAUSE: cause}, paused=False)
        self.switched = False
        self._tell("RolloutCommitted", f"version {self.version} serves")

    # The Deployment

    def _deployment(self) -> JsonObject:
        found = self.cluster.request("GET", self.names.path, absent=True)
        if found is None:
            raise StateError(
                f"there is no Deployment {self.names.deployment} in namespace {self.names.namespace}",
                "`make cluster-up` creates it",
            )
        return found

    def _annotations(self, deployment: JsonObject) -> dict[str, str]:
        found: dict[str, str] = deployment["metadata"].get("annotations", {})
        return {name: found[name] for name in (IMAGE, VERSION, SINCE, CAUSE, *ORIGIN) if name in found}

    def _committed(self) -> str:
        return str(self._annotations(self._before).get(IMAGE, NO_IMAGE))

    def _apply(self, serves: Mapping[str, str], committed: Mapping[str, str], *, paused: bool) -> None:
        """Server-side apply of the image and what says who it is; every other field is somebody else's.

        `serves` is the identity of the pods, `committed` are the annotations of the Deployment: until a version is
        committed they are those of the one before.
        """
        body = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": self.names.deployment,
                "labels": _labels(committed),
                "annotations": dict(committed),
            },
            "spec": {
                "paused": paused,
                "template": {
                    "metadata": {"labels": _labels(serves), "annotations": _of_pods(serves)},
                    "spec": {"containers": [{"name": CONTAINER, "image": serves.get(IMAGE, NO_IMAGE)}]},
                },
            },
        }
        self.cluster.request(
            "PATCH", self.names.path, body, query={"fieldManager": MANAGER, "force": "true"}, kind=APPLY
        )

    def _scale_up(self) -> None:
        found = self._deployment()
        if not found["spec"].get("replicas"):
            replicas = int(found["metadata"].get("annotations", {}).get(REPLICAS, "1"))
            self.cluster.request("PATCH", self.names.path, {"spec": {"replicas": replicas}}, kind=MERGE)

    def _wait_rolled_out(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            found = self._deployment()
            status, wanted = found.get("status", {}), found["spec"].get("replicas", 0)
            if (
                status.get("observedGeneration", 0) >= found["metadata"]["generation"]
                and status.get("updatedReplicas", 0) == wanted
                and status.get("replicas", 0) == wanted
                and status.get("availableReplicas", 0) == wanted
                # One that is told to end answers until the Service has forgotten it.
                and all(_image(pod) == _image(found) for pod in self._pods(found))
            ):
                return
            problems = [(problem, _restarts(pod)) for pod in self._pods(found) if (problem := _problem(pod))]
            late = any(item.get("reason") == "ProgressDeadlineExceeded" for item in status.get("conditions", ()))
            crashed = [text for text, crashes in problems if crashes >= CRASHES]
            if late or crashed or time.monotonic() > end:
                told = "; ".join(crashed or [text for text, _ in problems]) or "its pods are not available"
                raise GateError(
                    f"the Deployment does not take {_image(found)}: {told}",
                    f"kubectl -n {self.names.namespace} describe deployment {self.names.deployment}",
                )
            self.lease.check()
            time.sleep(PAUSE_SECONDS)

    def _pods(self, deployment: JsonObject) -> list[JsonObject]:
        """The Deployment's pods, those that are about to end as well."""
        found = self.cluster.request("GET", self.names.pods, query={"labelSelector": _selector(deployment)})
        assert found is not None
        items: list[JsonObject] = found["items"]
        return items

    def _remove_replica_sets(self) -> None:
        """A paused Deployment makes no new ones: without them nothing runs, as before the first rollout."""
        found = self.cluster.request("GET", self.names.replica_sets)
        assert found is not None
        for item in found["items"]:
            owners = item["metadata"].get("ownerReferences", ())
            if any(owner["uid"] == self._before["metadata"]["uid"] for owner in owners):
                path = f"{self.names.replica_sets}/{item['metadata']['name']}"
                self.cluster.request("DELETE", path, {"propagationPolicy": "Background"}, absent=True)

    # The candidate

    def _candidate_pod(self) -> JsonObject:
        template = json.loads(json.dumps(self._before["spec"]["template"]))
        spec = template["spec"]
        spec["restartPolicy"] = "Never"
        # Pods of a Deployment may be told to keep away from each other; the candidate need not.
        spec.pop("topologySpreadConstraints", None)
        for container in spec["containers"]:
            if container["name"] == CONTAINER:
                container["image"] = self.image
        annotations = template["metadata"].get("annotations", {})
        foreign = {name: value for name, value in annotations.items() if name not in (VERSION, *ORIGIN)}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.candidate,
                "labels": {**template["metadata"].get("labels", {}), **_labels(self._identity), **CANDIDATE},
                "annotations": {**foreign, **_of_pods(self._identity)},
                # It goes with the Deployment, whatever becomes of this process.
                "ownerReferences": [
                    {
                        "apiVersion": "apps/v1",
                        "kind": "Deployment",
                        "name": self.names.deployment,
                        "uid": self._before["metadata"]["uid"],
                    }
                ],
            },
            "spec": spec,
        }

    def _pod(self) -> JsonObject:
        found = self.cluster.request("GET", f"{self.names.pods}/{self.candidate}", absent=True)
        if found is None:
            raise GateError(f"candidate pod {self.candidate} is gone", "somebody deleted it: run the stage again")
        return found

    def _wait_ready(self) -> JsonObject:
        end = time.monotonic() + self.settings.rollout_timeout
        while True:
            pod = self._pod()
            if _is_ready(pod):
                return pod
            problem = _problem(pod)
            hopeless = pod["status"].get("phase") == "Failed" or any(reason in problem for reason in HOPELESS)
            if hopeless or time.monotonic() > end:
                waited = "" if hopeless else f" within {self.settings.rollout_timeout:g} s"
                raise GateError(
                    f"the candidate is not ready{waited}: {problem or 'it does not say why'}{self._last_words()}",
                    "see the logs above; a registry that is away mends by itself: run the stage again",
                )
            self.lease.check()
            time.sleep(PAUSE_SECONDS)

    def _observe(self) -> JsonObject:
        end = time.monotonic() + self.settings.rollout_observation
        while True:
            pod = self._pod()
            if not _is_ready(pod):
                raise GateError(
                    f"the candidate did not stay ready: {_problem(pod) or 'its probe fails'}{self._last_words()}",
                    "see the logs above",
                )
            if time.monotonic() > end:
                return pod
            self.lease.check()
            time.sleep(PAUSE_SECONDS)

    def _last_words(self) -> str:
        lines = self.cluster.logs(self.names.namespace, self.candidate)
        for line in lines:
            log.info("candidate: %s", line)
        return f": {lines[-1].strip()[:300]}" if lines else ""

    def _remove_candidate(self) -> None:
        self.stack.close()
        self._delete_pod(self.candidate)
        self.candidate = ""

    def _delete_pod(self, name: str) -> None:
        self.cluster.request("DELETE", f"{self.names.pods}/{name}", {"gracePeriodSeconds": 1}, absent=True)

    def _tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        """An Event on the Deployment. One that cannot be written is no reason to fail."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{self.names.deployment}.", "namespace": self.names.namespace},
            "involvedObject": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": self.names.deployment,
                "namespace": self.names.namespace,
                "uid": self._before.get("metadata", {}).get("uid", ""),
            },
            "reason": reason,
            "message": message[:1000],
            "type": "Warning" if warning else "Normal",
            "firstTimestamp": f"{now[:19]}Z",
            "lastTimestamp": f"{now[:19]}Z",
            "count": 1,
            "source": {"component": MANAGER},
            "reportingComponent": MANAGER,
            "reportingInstance": socket.gethostname(),
        }
        try:
            self.cluster.request("POST", self.names.events, event, patience=5)
        except HealthPredictError as error:
            log.warning("no Event: %s", error.problem)


class _Lease:
    """Held by one rollout at a time. Who dies holding it is followed after `LEASE_SECONDS`."""

    def __init__(self, cluster: Cluster, names: _Names) -> None:
        self._cluster = cluster
        self._path = f"{names.leases}/{names.lease}"
        self._collection = names.leases
        self._name = names.lease
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._ended = threading.Event()
        self._lost = ""
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> _Lease:
        end = time.monotonic() + LEASE_WAIT_SECONDS
        seen, since = "", time.monotonic()
        while not self._take(seen if time.monotonic() - since > LEASE_SECONDS else ""):
            found = self._cluster.request("GET", self._path, absent=True) or {"spec": {}}
            holder = found["spec"].get("holderIdentity", "")
            # By our own clock: how long nothing has changed, whatever the holder's says.
            now = f"{holder} {found['spec'].get('renewTime', '')}"
            if now != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() > end:
                raise UnreachableError(
                    f"another rollout, {holder}, has been under way for {LEASE_WAIT_SECONDS:g} s",
                    "let it finish, then try again",
                )
            time.sleep(PAUSE_SECONDS)
        self._renewer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._renewer.join()
        if not self._lost:
            with contextlib.suppress(HealthPredictError):
                found = self._cluster.request("GET", self._path, absent=True)
                if found is not None and found["spec"].get("holderIdentity") == self._holder:
                    self._write(found, "")

    def check(self) -> None:
        """Raises GateError when somebody else took over."""
        if self._lost:
            raise GateError(f"the rollout's lease was lost: {self._lost}", "run the stage again")

    def _take(self, abandoned: str) -> bool:
        found = self._cluster.request("GET", self._path, absent=True)
        if found is None:
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._name},
                "spec": self._spec(self._holder),
            }
            return self._cluster.request("POST", self._collection, body, conflict=True) is not None
        holder = found["spec"].get("holderIdentity", "")
        if holder and f"{holder} {found['spec'].get('renewTime', '')}" != abandoned:
            return False
        return self._write(found, self._holder)

    def _write(self, found: JsonObject, holder: str) -> bool:
        # The resource version in it makes the server refuse what somebody else changed in between.
        body = {**found, "spec": self._spec(holder)}
        return self._cluster.request("PUT", self._path, body, conflict=True) is not None

    def _spec(self, holder: str) -> JsonObject:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {"holderIdentity": holder, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now, "acquireTime": now}

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                found = self._cluster.request("GET", self._path, absent=True)
                if found is None or found["spec"].get("holderIdentity") != self._holder:
                    self._lost = f"{(found or {'spec': {}})['spec'].get('holderIdentity') or 'nobody'} holds it"
                    return
                self._write(found, self._holder)
            except Exception as error:  # whatever it is, the next attempt may do
                log.warning("the lease could not be renewed: %s", error)


def _origin(folder: Path) -> dict[str, str]:
    """The Bento's own word on where it comes from, as annotations. Without it a rollout goes on: people miss it."""
    try:
        found = json.loads((folder / IDENTITY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: str(found[key]) for name, key in ORIGIN.items() if found.get(key)}


def _labels(identity: Mapping[str, str]) -> dict[str, str]:
    return {VERSION_LABEL: identity[VERSION]} if identity.get(VERSION) else {}


def _of_pods(identity: Mapping[str, str]) -> dict[str, str]:
    """Annotations of the pods. Nothing that changes while a version serves: each change would replace them."""
    return {name: identity[name] for name in (VERSION, *ORIGIN) if name in identity}


def _selector(deployment: JsonObject) -> str:
    return ",".join(f"{key}={value}" for key, value in deployment["spec"]["selector"]["matchLabels"].items())


def _image(item: JsonObject) -> str:
    """The image of a Deployment's template, or of a pod."""
    spec = item["spec"].get("template", item)["spec"]
    return str(next(container["image"] for container in spec["containers"] if container["name"] == CONTAINER))


def _is_ready(pod: JsonObject) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def _restarts(pod: JsonObject) -> int:
    return sum(int(item.get("restartCount", 0)) for item in pod.get("status", {}).get("containerStatuses", ()))


def _problem(pod: JsonObject) -> str:
    """Why a pod is not ready, in the cluster's words; empty when it is, or only begins."""
    status = pod.get("status", {})
    if _is_ready(pod):
        return ""
    for item in status.get("containerStatuses", ()):
        state = item.get("state", {})
        last = item.get("lastState", {}).get("terminated") or {}
        ended = state.get("terminated") or last
        if ended:
            return f"{pod['metadata']['name']} ended with code {ended.get('exitCode')} ({ended.get('reason', '')})"
        waiting = state.get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{pod['metadata']['name']}: {waiting['reason']}: {waiting.get('message', '')}".strip(": ")
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{pod['metadata']['name']}: {condition.get('reason')}: {condition.get('message', '')}"
    return f"{pod['metadata']['name']}: {status['reason']}" if status.get("reason") else ""


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])[:400]
    except (ValueError, KeyError, TypeError):
        return text[:400]


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "give this account the role of k8s/base/rbac.yaml"
    return "check that the manifests of k8s/ are applied: `make cluster-up`"
