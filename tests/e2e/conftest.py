"""A real cluster: whatever KUBECONFIG names. Nothing in these tests is mocked.

What differs by cluster comes from E2E_* variables, so that no HEALTH_PREDICT_* of the person who runs them counts.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest

from health_predict.adapters.tokens import digest_of
from health_predict.errors import HealthPredictError
from health_predict.settings import PREFIX, Settings

Found = TypeVar("Found")

ROOT = Path(__file__).resolve().parents[2]
# Where nothing can be pulled, the databases' images are built here: one that is named by its digest would not be found.
OVERLAY = ROOT / ("tests/e2e/overlay" if os.environ.get("E2E_NODE_REGISTRY_PORT") else "k8s/overlays/kind")
KUBECTL = shutil.which("kubectl") or ""
NAMESPACE, TRACKING = "health-predict", "health-predict-tracking"

# Addresses on this machine; the defaults are those of `make kind-up`.
SERVING_PORT = int(os.environ.get("E2E_SERVING_PORT", "3000"))
MLFLOW = os.environ.get("E2E_MLFLOW", "http://127.0.0.1:5050")
OBJECT_STORE = os.environ.get("E2E_OBJECT_STORE", "http://127.0.0.1:9000")
KFP = os.environ.get("E2E_KFP", "http://127.0.0.1:8888")
# The registry: how images are called, and how this machine reaches it.
IMAGES = os.environ.get("E2E_IMAGES", "localhost:5001/health-predict")
REGISTRY = os.environ.get("E2E_REGISTRY", "http://localhost:5001")
BASE_IMAGE = os.environ.get("E2E_BASE_IMAGE", "docker.io/library/python:3.11-slim-bookworm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a cluster every test here is skipped, and says why."""
    reason = _absent()
    for item in items:
        if "tests/e2e" in str(item.path):
            item.add_marker(pytest.mark.e2e)
            if reason:
                item.add_marker(pytest.mark.skip(reason=f"skipped: {reason}"))


def _absent() -> str:
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names no cluster"
    if not KUBECTL:
        return "kubectl is not installed"
    done = subprocess.run([KUBECTL, "get", "--raw", "/readyz"], capture_output=True, text=True, timeout=30, check=False)
    return "" if done.returncode == 0 else f"the cluster of KUBECONFIG does not answer: {done.stderr.strip()[:200]}"


def kubectl(*arguments: str, data: str | None = None, check: bool = True, timeout: float = 300) -> str:
    """What kubectl answers."""
    done = subprocess.run(
        [KUBECTL, *arguments], input=data, capture_output=True, text=True, timeout=timeout, check=False
    )
    if check:
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def deployment() -> dict[str, Any]:
    """The serving Deployment as it is."""
    found: dict[str, Any] = json.loads(kubectl("-n", NAMESPACE, "get", "deployment", "readmission-api", "-o", "json"))
    return found


def token_file() -> str:
    """A file with the operator's token of the endpoint, as `k8s/up` made it; else as one is made here."""
    name = "readmission-api-token"
    found = kubectl("-n", "kubeflow", "get", "secret", name, "--ignore-not-found", "-o", "jsonpath={.data.token}")
    token = base64.b64decode(found).decode() or secrets.token_hex(32)
    if not found:
        kubectl("-n", "kubeflow", "create", "secret", "generic", name, f"--from-literal=token={token}")
    file = Path(tempfile.gettempdir()) / f"{name}-{os.getpid()}"
    file.touch(mode=0o600)
    file.write_text(token)
    return str(file)


def let_in(file: str) -> None:
    """Have the service take the token of that file."""
    line = f"rollout operator {digest_of(Path(file).read_bytes())}"
    kubectl("-n", NAMESPACE, "delete", "secret", "readmission-api-tokens", "--ignore-not-found")
    kubectl("-n", NAMESPACE, "create", "secret", "generic", "readmission-api-tokens", f"--from-literal=tokens={line}")


@cache
def as_operator() -> dict[str, str]:
    """The header by which a request comes in."""
    return {"Authorization": f"Bearer {Path(token_file()).read_text()}"}


def served_version() -> str:
    """The version that says that it serves."""
    connection = http.client.HTTPConnection("127.0.0.1", SERVING_PORT, timeout=20)
    try:
        connection.request("GET", "/health", headers=as_operator())
        return str(json.loads(connection.getresponse().read())["model_version"])
    finally:
        connection.close()


@pytest.fixture(scope="session")
def serving() -> Iterator[None]:
    """The manifests of the service alone: namespace, accounts, policies, Deployment, Service."""
    import yaml

    rendered = kubectl("kustomize", str(OVERLAY))
    kubectl("create", "namespace", "kubeflow", check=False)
    wanted = ("Namespace", "ServiceAccount", "NetworkPolicy", "Role", "RoleBinding", "PodDisruptionBudget")
    wanted += ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    items = [
        item
        for item in yaml.safe_load_all(rendered)
        if item["kind"] in wanted or item["metadata"]["name"] in ("readmission-api", "health-predict-pods")
    ]
    for item in items:
        if item["kind"] == "ConfigMap" and item["metadata"]["namespace"] == NAMESPACE:
            item["data"]["images"] = f"{IMAGES}/readmission"
    kubectl("-n", NAMESPACE, "delete", "deployment", "readmission-api", "--ignore-not-found", "--wait")
    for kind in ("Namespace", ""):
        chosen = [item for item in items if not kind or item["kind"] == kind]
        kubectl(
            *("apply", "--server-side", "--force-conflicts", "--field-manager=health-predict-platform", "-f", "-"),
            data=yaml.safe_dump_all(chosen),
        )
        if kind:
            let_in(token_file())
    yield


@dataclass(frozen=True)
class Place:
    """Settings of a home whose images go to the cluster's registry and whose endpoint is its Deployment."""

    home: Path

    def settings(self, **changes: Any) -> Settings:
        values: dict[str, Any] = {
            "home": self.home,
            "serving_target": "kubernetes",
            "serving_port": SERVING_PORT,
            "serving_token_file": token_file(),
            "image_registry": f"{IMAGES}/readmission",
            "registry_endpoint": REGISTRY,
            "base_image": BASE_IMAGE,
            "rollout_timeout": 240.0,
            "git_commit": "c" * 40,
        }
        return Settings(**{**values, **changes})


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], None]:
    """Sets HEALTH_PREDICT_* variables for a command."""

    def put(values: Mapping[str, str]) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"{PREFIX}{name.upper()}", value)

    return put


def outside() -> dict[str, Any]:
    """The settings of a shell outside the cluster, by name."""
    return {
        "profile": "kind",
        "mlflow_tracking_uri": MLFLOW,
        "s3_endpoint_url": OBJECT_STORE,
        "image_registry": f"{IMAGES}/readmission",
        "registry_endpoint": REGISTRY,
        "serving_port": SERVING_PORT,
        "serving_token_file": token_file(),
    }


def object_store_keys() -> dict[str, str]:
    """What a shell outside needs to reach the object store, as `k8s/env` says it."""
    said = subprocess.run([str(ROOT / "k8s" / "env")], capture_output=True, text=True, timeout=60, check=True).stdout
    pairs = (line.removeprefix("export ").partition("=") for line in said.splitlines())
    return {name: value.strip("'") for name, _, value in pairs if name.startswith("AWS_")}


def until(ask: Callable[[], Found], seconds: float = 180) -> Found:
    """What is asked for, once it is there; errors on the way are those of servers that come back."""
    end = time.monotonic() + seconds
    while True:
        try:
            if found := ask():
                return found
        except (HealthPredictError, AssertionError):
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, f"nothing after {seconds} s"
        time.sleep(1)
