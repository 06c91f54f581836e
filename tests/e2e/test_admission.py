"""What a pod may be where the pipelines or a rollout have pods made: attempts on the cluster's own API server."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes.client import AuthenticationV1Api, V1SelfSubjectReview

from health_predict.adapters.serving.kubernetes import Cluster
from tests.e2e import platform
from tests.e2e.conftest import IMAGES, KUBECTL, NAMESPACE, deployment, kubectl, until

ARGO = "system:serviceaccount:kubeflow:argo"
ROLLOUT = "system:serviceaccount:kubeflow:health-predict-rollout"
DIGEST = f"sha256:{'0' * 64}"
LOCKED = {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}}
Pod = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def platform_up(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("admission")
    platform.prepare(folder)
    platform.up(folder, pipeline_image=f"{IMAGES}/pipeline@{DIGEST}")
    # Argo's controller may create pods there; without Kubeflow Pipelines its account stands here alone.
    if not platform.have_pipelines():
        kubectl("-n", "kubeflow", "create", "role", "argo-role", "--verb=create", "--resource=pods", check=False)
        bind = ("create", "rolebinding", "argo-binding", "--role=argo-role", "--serviceaccount=kubeflow:argo")
        kubectl("-n", "kubeflow", *bind, check=False)
    # A policy, and what it admits, is in force some moments after it was written.
    for user, pod in ((ROLLOUT, candidate()), (ARGO, task())):
        refused = changed(pod, lambda pod: labelled(pod, "x", "y"))
        until(lambda user=user, pod=pod, refused=refused: attempt(user, refused) and not attempt(user, pod), seconds=90)  # type: ignore[misc]


def attempt(user: str, item: dict[str, Any], *arguments: str) -> str:
    """Why the API server refuses an object that this user makes; empty when it takes it. Nothing is stored."""
    done = subprocess.run(
        [KUBECTL, f"--as={user}", "create", "--dry-run=server", "-f", "-", *arguments],
        input=json.dumps(item),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stderr.strip() if done.returncode else ""


def candidate() -> Pod:
    """The pod that a rollout makes: the Deployment's own template, under the candidate's name."""
    template = deployment()["spec"]["template"]
    template["spec"]["containers"][0]["image"] = f"{IMAGES}/readmission@{DIGEST}"
    labels = {**template["metadata"]["labels"], "app.kubernetes.io/name": "readmission-candidate"}
    metadata = {"name": "readmission-api-candidate-x", "namespace": NAMESPACE, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def task() -> Pod:
    """A task's pod as Argo's controller makes it for Kubeflow Pipelines 2.17.0, in what the policy looks at."""
    secret = {"secretKeyRef": {"name": "health-predict-credentials", "key": "AWS_ACCESS_KEY_ID", "optional": True}}
    labels = {
        "workflows.argoproj.io/workflow": "readmission-x",
        "workflows.argoproj.io/completed": "false",
        "pipelines.kubeflow.org/v2_component": "true",
        "pipeline/runid": "x",
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "readmission-x", "namespace": "kubeflow", "labels": labels},
        "spec": {
            "serviceAccountName": "health-predict-pipeline",
            "initContainers": [
                {"name": "init", "image": "quay.io/argoproj/argoexec:v4.0.5"},
                {"name": "kfp-launcher", "image": "ghcr.io/kubeflow/kfp-launcher:2.17.0"},
            ],
            "containers": [
                {"name": "wait", "image": "quay.io/argoproj/argoexec:v4.0.5"},
                {
                    "name": "main",
                    "image": f"{IMAGES}/pipeline@{DIGEST}",
                    "env": [{"name": "AWS_ACCESS_KEY_ID", "valueFrom": secret}, {"name": "A", "value": "b"}],
                    "securityContext": LOCKED,
                },
            ],
            "volumes": [
                {"name": "var-run-argo", "emptyDir": {}},
                {"name": "health-predict-artifacts", "secret": {"secretName": "health-predict-artifacts"}},
                {"name": "health-predict-aws", "secret": {"secretName": "health-predict-aws", "optional": True}},
                {"name": "health-predict-rollout", "secret": {"secretName": "health-predict-rollout"}},
            ],
        },
    }


def changed(pod: Pod, change: Callable[[Pod], object]) -> Pod:
    copy = deepcopy(pod)
    change(copy)
    return copy


def labelled(pod: Pod, key: str, value: str) -> None:
    pod["metadata"]["labels"][key] = value


def mounted(volume: dict[str, Any]) -> Callable[[Pod], object]:
    return lambda pod: pod["spec"].setdefault("volumes", []).append({"name": "attack", **volume})


def with_env(entry: dict[str, Any], containers: str = "containers") -> Callable[[Pod], object]:
    def change(pod: Pod) -> None:
        helper = {"name": "helper", "image": pod["spec"]["containers"][-1]["image"], "securityContext": LOCKED}
        pod["spec"].setdefault(containers, []).append({**helper, **entry})

    return change


# What no pod may be, in either place. Each with a part of what the API server says.
ATTACKS: dict[str, tuple[Callable[[Pod], object], str]] = {
    "a Secret as a volume": (mounted({"secret": {"secretName": "attacked"}}), "mounts something else"),
    "a Secret as a projected volume": (
        mounted({"projected": {"sources": [{"secret": {"name": "attacked"}}]}}),
        "mounts something else",
    ),
    "another's claim": (mounted({"persistentVolumeClaim": {"claimName": "mysql-pv-claim"}}), "mounts something else"),
    "a Secret as a variable": (
        with_env({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "attacked", "key": "x"}}}]}),
        "reads, as environment",
    ),
    "a Secret as variables": (with_env({"envFrom": [{"secretRef": {"name": "attacked"}}]}), "reads, as environment"),
    "a Secret in an init container": (
        with_env({"envFrom": [{"secretRef": {"name": "attacked"}}]}, "initContainers"),
        "reads, as environment",
    ),
    "a Secret to pull by": (
        lambda pod: pod["spec"].update(imagePullSecrets=[{"name": "attacked"}]),
        "pulls its images by another Secret",
    ),
    "another image": (lambda pod: pod["spec"]["containers"][-1].update(image="docker.io/a/b:1"), "another repository"),
    "an image whose name begins alike": (
        lambda pod: pod["spec"]["containers"][-1].update(image=f"{IMAGES}/readmission-evil:1"),
        "another repository",
    ),
    "another image in an init container": (
        with_env({"image": "docker.io/a/b:1"}, "initContainers"),
        "another repository",
    ),
    "another account": (lambda pod: pod["spec"].update(serviceAccountName="attacked"), "another account"),
    "no account named": (
        lambda pod: pod["spec"].update(serviceAccountName=None, serviceAccount=None),
        "another account",
    ),
    "the labels of a database": (lambda pod: labelled(pod, "app", "mysql"), "another label"),
    "the labels of MLflow": (lambda pod: labelled(pod, "app.kubernetes.io/name", "mlflow"), "another label"),
}
# The restricted Pod Security standard refuses these in the service's namespace before the policy does.
OF_THE_NODE: dict[str, Callable[[Pod], object]] = {
    "a folder of the node": mounted({"hostPath": {"path": "/"}}),
    "the node's network": lambda pod: pod["spec"].update(hostNetwork=True),
    "the node's processes": lambda pod: pod["spec"].update(hostPID=True),
    "the node's memory": lambda pod: pod["spec"].update(hostIPC=True),
    "privileges": with_env({"securityContext": {"privileged": True}}),
    "capabilities": with_env({"securityContext": {"capabilities": {"add": ["NET_RAW"]}}}),
    "a port of the node": with_env({"ports": [{"containerPort": 80, "hostPort": 80}]}),
}


@pytest.fixture(scope="module")
def other_account() -> None:
    """An account that a pod could name, since one that does not exist is refused anyway."""
    for namespace in (NAMESPACE, "kubeflow"):
        kubectl("-n", namespace, "create", "serviceaccount", "attacked", check=False)


def test_what_the_pipelines_need_is_admitted() -> None:
    assert attempt(ROLLOUT, candidate()) == ""
    assert attempt(ARGO, task()) == ""
    # and Kubeflow's own servers, which an administrator starts, are nobody's business here
    server = {"containers": [{"name": "server", "image": "docker.io/library/mysql:8.4"}]}
    named = {"name": "server", "namespace": "kubeflow", "labels": {"app": "mysql"}}
    kubectl(
        "apply",
        "--dry-run=server",
        "-f",
        "-",
        data=json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": named, "spec": server}),
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_a_rollout_s_pod_is_no_way_to_more(name: str, other_account: None) -> None:
    change, said = ATTACKS[name]
    refusal = attempt(ROLLOUT, changed(candidate(), change))
    assert "health-predict-pods" in refusal and said in refusal, refusal


@pytest.mark.parametrize("name", [*ATTACKS, *OF_THE_NODE])
def test_a_run_s_pod_is_no_way_to_more(name: str, other_account: None) -> None:
    change, said = ATTACKS[name] if name in ATTACKS else (OF_THE_NODE[name], "")
    refusal = attempt(ARGO, changed(task(), change))
    assert "health-predict-pods" in refusal and said in refusal, refusal


@pytest.mark.parametrize("name", OF_THE_NODE)
def test_a_rollout_s_pod_gets_nothing_of_the_node(name: str) -> None:
    assert "forbidden" in attempt(ROLLOUT, changed(candidate(), OF_THE_NODE[name]))


def test_a_rollout_makes_no_pod_that_the_service_selects() -> None:
    serving = changed(candidate(), lambda pod: labelled(pod, "app.kubernetes.io/name", "readmission-api"))
    assert "a rollout makes candidates" in attempt(ROLLOUT, serving)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_deployment_s_template_is_no_way_to_more(name: str) -> None:
    # given the Deployment as a rollout patches it
    template = {"metadata": {"labels": {}}, "spec": candidate()["spec"]}
    patch = json.dumps({"spec": {"template": changed(template, ATTACKS[name][0])}})
    where = ("-n", NAMESPACE, "patch", "deployment", "readmission-api", "--dry-run=server", "--patch", patch)
    done = subprocess.run([KUBECTL, f"--as={ROLLOUT}", *where], capture_output=True, text=True, check=False, timeout=60)
    # then the policy refuses it; what its selector wants is refused by the server itself
    assert done.returncode != 0 and ("health-predict-pods" in done.stderr or "selector" in done.stderr), done.stderr


def test_a_debugging_container_is_no_way_around() -> None:
    # given a pod of the service's namespace, by an administrator
    pod = changed(candidate(), lambda pod: pod["metadata"].update(name="debugged"))
    kubectl("apply", "-f", "-", data=json.dumps(pod))
    try:
        done = subprocess.run(
            [KUBECTL, "-n", NAMESPACE, "debug", "debugged", "--image=docker.io/a/b:1", "--profile=restricted"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode != 0 and "another repository" in done.stderr, done.stderr
    finally:
        kubectl("-n", NAMESPACE, "delete", "pod", "debugged", "--wait=false")


def test_a_rollout_asks_by_an_account_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given the token that `k8s/up` has made, mounted as the task `rollout` has it
    for key, name in (("token", "token"), ("ca.crt", "ca.crt")):
        (tmp_path / name).write_text(until(lambda key=key: _value("health-predict-rollout", key)))  # type: ignore[misc]
    server = urlsplit(kubectl("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(server.hostname))
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    # when the stage asks the cluster
    cluster = Cluster(account=str(tmp_path))
    review = cluster.ask(AuthenticationV1Api(cluster.api).create_self_subject_review, V1SelfSubjectReview())
    # then it is that account
    assert review.status.user_info.username == ROLLOUT and cluster.inside


def _value(secret: str, key: str) -> str:
    wanted = f'go-template={{{{index .data "{key}" | base64decode}}}}'
    return kubectl("-n", "kubeflow", "get", "secret", secret, "-o", wanted)
