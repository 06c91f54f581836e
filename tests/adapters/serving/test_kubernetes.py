"""What a rollout writes into a cluster for the people who look with kubectl. tests/e2e examines it on a real one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import certifi
import kubernetes_validate
import pytest
import yaml

from health_predict.adapters.serving.kubernetes import CANDIDATE, Cluster, KubernetesTarget
from health_predict.errors import GateError, StateError, UnreachableError
from health_predict.settings import Settings

VERSION = "app.kubernetes.io/version"
ORIGIN = {"bento_tag": "readmission:v2-ab", "run_id": "4711", "dataset_digest": "dd", "git_commit": "c" * 40}
READY = {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}


class ApiServer(ThreadingHTTPServer):
    """The few resources that a rollout touches, of a cluster in which all goes well, and what was written to them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, dict[str, Any]] = {}
        self.applied: list[dict[str, Any]] = []
        self.pods: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []
        self.failures: list[int] = []


class Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def answer(self) -> None:
        name = urlsplit(self.path).path.rpartition("/")[2]
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        status, found = 200, self.server.objects.get(name)
        if self.server.failures:
            status, found = self.server.failures.pop(), {"message": "made to fail"}
        elif self.command == "PATCH" and self.headers["Content-Type"] == "application/apply-patch+yaml":
            self.server.applied.append(body)
        elif self.command == "POST":
            found = self.server.objects[body["metadata"].get("name", "event")] = body
            if name == "pods":
                self.server.pods.append(json.loads(json.dumps(body)))
                body["status"] = READY
            elif name == "events":
                self.server.told.append(body)
        elif self.command == "PUT":
            found = self.server.objects[name] = body
        elif self.command == "DELETE":
            found = self.server.objects.pop(name, None)
        elif name in ("pods", "replicasets"):
            found = {"items": []}
        if found is None:
            status, found = 404, {"message": f"{name} not found"}
        data = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def log_message(self, *args: object) -> None:
        """Silence."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with ApiServer() as server:
        kubeconfig = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
            "current-context": "c",
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
        # The library reads the variable once, when it is imported.
        location = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
        monkeypatch.setattr(location, str(tmp_path / "kubeconfig"))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def serving(server: ApiServer) -> Callable[[Mapping[str, str]], KubernetesTarget]:
    """A target whose Deployment is that of the manifests, rolled out with these annotations."""

    def make(annotations: Mapping[str, str]) -> KubernetesTarget:
        base = Path(__file__).parents[3] / "k8s" / "base" / "readmission-api.yaml"
        found = next(item for item in yaml.safe_load_all(base.read_text()) if item["kind"] == "Deployment")
        found["metadata"] |= {"annotations": dict(annotations), "generation": 1, "uid": "u"}
        found["metadata"]["namespace"] = "health-predict"
        if annotations:
            found["spec"]["paused"] = False
            found["spec"]["template"]["spec"]["containers"][0]["image"] = annotations["health-predict/image"]
        replicas = found["spec"]["replicas"]
        counts = ("updatedReplicas", "replicas", "availableReplicas")
        found["status"] = {"observedGeneration": 1, **dict.fromkeys(counts, replicas)}
        server.objects["readmission-api"] = found
        return KubernetesTarget(Settings())

    return make


@pytest.fixture
def bento(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "identity.json").write_text(json.dumps({**ORIGIN, "threshold": 0.2}))
    return tmp_path


def labels_and_annotations(item: dict[str, Any]) -> tuple[str | None, dict[str, str]]:
    return item["metadata"].get("labels", {}).get(VERSION), item["metadata"]["annotations"]


Serving = Callable[[Mapping[str, str]], KubernetesTarget]


def test_what_is_temporary_is_asked_again_and_what_is_not_is_named(server: ApiServer) -> None:
    server.objects["x"] = {"metadata": {"name": "x"}}
    cluster = Cluster(retries=2)
    # given an API server that fails twice
    server.failures = [503, 429]
    assert cluster.ask(cluster.core.read_namespaced_pod, "x", "n").metadata.name == "x"
    # given one that fails for longer, or refuses
    server.failures = [500] * 3
    with pytest.raises(UnreachableError, match="500 made to fail"):
        cluster.ask(cluster.core.read_namespaced_pod, "x", "n")
    server.failures = [403]
    with pytest.raises(StateError, match="403 made to fail") as caught:
        cluster.ask(cluster.core.read_namespaced_pod, "x", "n")
    assert "rbac" in caught.value.remedy


def test_the_pods_and_then_the_deployment_say_what_they_serve(server: ApiServer, serving: Serving, bento: Path) -> None:
    # given version 1 in service, rolled out before there was more to tell than its image
    before = {"health-predict/image": "r@sha256:1", "health-predict/model-version": "1"}
    target = serving(before)
    origin = {
        "health-predict/model-version": "2",
        "health-predict/bento": "readmission:v2-ab",
        "health-predict/run-id": "4711",
        "health-predict/dataset-digest": "dd",
        "health-predict/git-commit": "c" * 40,
    }
    # when version 2 is rolled out
    with target.rollout() as change:
        change.start("r@sha256:2", "2", bento)
        change.switch()
        change.commit()
    # then candidate and pods are of version 2 from the beginning
    (candidate,) = server.pods
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **candidate}, "1.34", strict=True)
    assert labels_and_annotations(candidate) == ("2", origin)
    assert candidate["metadata"]["labels"].items() >= CANDIDATE.items()
    switched, committed = server.applied
    templates = [body["spec"]["template"] for body in server.applied]
    assert templates[0] == templates[1], "a commit must not replace the pods"
    assert labels_and_annotations(templates[0]) == ("2", origin)
    # and the Deployment is of version 1 until version 2 is committed
    assert labels_and_annotations(switched) == ("1", before)
    version, annotations = labels_and_annotations(committed)
    assert version == "2" and annotations.items() >= origin.items()
    assert annotations["kubernetes.io/change-cause"] == "model version 2, r@sha256:2"
    # and its Events tell the story
    assert [event["reason"] for event in server.told] == [
        "RolloutStarted", "CandidateReady", "TrafficSwitching", "RolloutCommitted"
    ]  # fmt: skip


def test_what_is_undone_is_as_it_was(server: ApiServer, serving: Serving, bento: Path) -> None:
    # given version 1 in service, and the traffic led to version 2
    before = {
        "health-predict/image": "r@sha256:1",
        "health-predict/model-version": "1",
        "health-predict/run-id": "1",
        "health-predict/since": "2026-01-01T00:00:00+00:00",
        "kubernetes.io/change-cause": "model version 1, r@sha256:1",
    }
    target = serving(before)
    # when
    with pytest.raises(GateError), target.rollout() as change:
        change.start("r@sha256:2", "2", bento)
        change.switch()
        raise GateError("golden request 1 of 40: prediction is 0, expected 1")
    # then
    undone = server.applied[-1]
    template = undone["spec"]["template"]
    assert labels_and_annotations(undone) == ("1", before)
    assert labels_and_annotations(template) == (
        "1", {"health-predict/model-version": "1", "health-predict/run-id": "1"}
    )  # fmt: skip
    assert template["spec"]["containers"][0]["image"] == "r@sha256:1"
    assert [(event["type"], event["reason"]) for event in server.told[-2:]] == [
        ("Warning", "RolloutUndone"), ("Warning", "RolloutFailed")
    ]  # fmt: skip


def test_without_a_version_before_nothing_is_said(server: ApiServer, serving: Serving, tmp_path: Path) -> None:
    # given a Deployment that never served, and a Bento that does not say what it is
    # when a rollout is undone
    with serving({}).rollout() as change:
        change.start("r@sha256:2", "2", tmp_path)
        change.switch()
    # then
    undone = server.applied[-1]
    assert undone["spec"]["paused"] is True
    for item in (undone, undone["spec"]["template"]):
        assert labels_and_annotations(item) == (None, {})


def test_a_rollout_asks_by_its_own_account_where_that_is_mounted(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a shell of a person, and the address of the cluster as a pod has it
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    # when the folder of an account is empty, then the person's own is asked
    assert not Cluster(account=str(tmp_path)).inside
    # when it holds a token, as in the task of a rollout, then that one counts
    (tmp_path / "token").write_text("of-the-rollout")
    (tmp_path / "ca.crt").write_text(Path(certifi.where()).read_text())
    cluster = Cluster(account=str(tmp_path))
    assert cluster.inside and cluster.address == "https://10.96.0.1:443"
    assert cluster.api.configuration.api_key["authorization"] == "bearer of-the-rollout"
