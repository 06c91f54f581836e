"""Bringing the platform up where nothing can be pulled: what a cluster with network has by itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import boto3
import yaml

from tests.e2e.conftest import BASE_IMAGE, IMAGES, NAMESPACE, OBJECT_STORE, OVERLAY, REGISTRY, ROOT, TRACKING, kubectl

# Set where the cluster pulls from a registry that listens on the node's loopback only: its port.
NODE_REGISTRY_PORT = os.environ.get("E2E_NODE_REGISTRY_PORT", "")
PIPELINE_IMAGE = os.environ.get("E2E_PIPELINE_IMAGE", "")


def have_pipelines() -> bool:
    """Whether Kubeflow Pipelines is in the cluster."""
    found = kubectl("-n", "kubeflow", "get", "deployment", "ml-pipeline", "--ignore-not-found", "-o", "name")
    return bool(found.strip())


def have_store() -> bool:
    """Whether the cluster has Kubeflow's object store, SeaweedFS, which knows identities."""
    image = "jsonpath={.spec.template.spec.containers[0].image}"
    found = kubectl("-n", "kubeflow", "get", "deployment", "seaweedfs", "--ignore-not-found", "-o", image)
    return "seaweedfs" in found


def prepare(folder: Path) -> None:
    """Namespace, a stand-in object store where Kubeflow's is not there, Postgres' image where none can be pulled."""
    kubectl("create", "namespace", "kubeflow", check=False)
    if NODE_REGISTRY_PORT:
        _build_databases()
        _registry_for_pods()
    if not have_store():
        text = (Path(__file__).parent / "object_store.yaml").read_text()
        kubectl("apply", "-f", "-", data=text.replace("MLFLOW_IMAGE", _mlflow_image()))
        kubectl("-n", "kubeflow", "rollout", "status", "deployment/seaweedfs", "--timeout=240s")
        keys = {"aws_access_key_id": "minio", "aws_secret_access_key": "minio-secret", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=OBJECT_STORE, **keys).create_bucket(Bucket="mlpipeline")


def up(folder: Path, **settings: str) -> None:
    """`make cluster-up`, with more settings for the tasks."""
    file = folder / "settings.env"
    file.write_text("".join(f"HEALTH_PREDICT_{name.upper()}={value}\n" for name, value in settings.items()))
    environment = {**os.environ, "SETTINGS": str(file), "WAIT": "420"}
    if PIPELINE_IMAGE:
        environment["PIPELINE_IMAGE"] = PIPELINE_IMAGE
    done = subprocess.run(
        [str(ROOT / "k8s" / "up"), str(OVERLAY)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def down() -> None:
    """Everything away but Kubeflow itself, as before the first `make cluster-up`."""
    set_policy_aside()
    kubectl("delete", "namespace", NAMESPACE, TRACKING, "--ignore-not-found", "--wait", "--timeout=180s")
    keys = ("health-predict-credentials", "health-predict-operator")
    kubectl("-n", "kubeflow", "delete", "secret", *keys, "--ignore-not-found")
    kubectl("-n", "kubeflow", "delete", "configmap", "health-predict-settings", "--ignore-not-found")


def set_policy_aside() -> None:
    """What a pod may be (k8s/base/admission.yaml) is not enforced from here to the next `up`.

    The policy is not deleted: of one that is made again the API server (1.34) keeps the parameters of before.
    """
    found = kubectl(
        "get", "validatingadmissionpolicybindings", "-l", "app.kubernetes.io/part-of=health-predict", "-o", "name"
    )
    # Where a namespace goes, its ConfigMap goes too, and a binding without it denies everything.
    aside = {"validationActions": ["Audit"], "paramRef": {"parameterNotFoundAction": "Allow"}}
    for binding in found.split():
        kubectl("patch", binding, "--type=merge", "--patch", json.dumps({"spec": aside}))


def _mlflow_image() -> str:
    rendered = yaml.safe_load_all(kubectl("kustomize", str(OVERLAY)))
    (server,) = [item for item in rendered if item["kind"] == "Deployment" and item["metadata"]["name"] == "mlflow"]
    return str(server["spec"]["template"]["spec"]["containers"][0]["image"])


def _build_databases() -> None:
    """Postgres, and the client of Kubeflow's database where that is not there already."""
    rendered = list(yaml.safe_load_all(kubectl("kustomize", str(OVERLAY))))
    (server,) = [item for item in rendered if item["kind"] == "StatefulSet"]
    (nightly,) = [item for item in rendered if item["kind"] == "CronJob"]
    _build("postgres", server["spec"]["template"]["spec"]["containers"][0]["image"])
    if not have_pipelines():
        dumps = nightly["spec"]["jobTemplate"]["spec"]["template"]["spec"]["initContainers"]
        _build("mysql", next(item["image"] for item in dumps if "mysql" in item["image"]))


def _build(folder: str, image: str) -> None:
    local = f"{REGISTRY.removeprefix('http://')}/{image.removeprefix('docker.io/')}"
    assert shutil.which("buildah"), "buildah builds what cannot be pulled: apt-get install buildah"
    commands = (
        ["buildah", "bud", "-q", "--layers", "-t", local, str(Path(__file__).parent / folder)],
        ["buildah", "push", "-q", "--tls-verify=false", local, f"docker://{local}"],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr


def _registry_for_pods() -> None:
    text = (Path(__file__).parent / "registry_for_pods.yaml").read_text()
    text = text.replace("BASE_IMAGE", BASE_IMAGE).replace("REGISTRY_PORT", NODE_REGISTRY_PORT)
    kubectl("apply", "-f", "-", data=text)
    kubectl("-n", "node-registry", "rollout", "status", "deployment/health-predict-registry", "--timeout=240s")
    assert IMAGES
