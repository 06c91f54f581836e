"""Who may reach whom, asked by pods that stand in each place: as docs/kubernetes.md says it, no more and no less."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml

from health_predict.adapters.reachable import must_answer
from health_predict.errors import UnreachableError
from health_predict.settings import Settings
from tests.e2e import platform
from tests.e2e.conftest import BASE_IMAGE, KFP, MLFLOW, NAMESPACE, OBJECT_STORE, ROOT, TRACKING, kubectl, until

METADATA = "169.254.169.254"
# Set where the network is known to enforce policies: it must, then.
ENFORCED = bool(os.environ.get("E2E_POLICIES_ENFORCED"))
NAME = "app.kubernetes.io/name"
# As the table calls them: namespace, labels, and the port on which the server of that place listens.
PLACES: dict[str, tuple[str, dict[str, str], int]] = {
    "Postgres": (TRACKING, {NAME: "postgres"}, 5432),
    "MLflow": (TRACKING, {NAME: "mlflow"}, 5000),
    "the backup": (TRACKING, {NAME: "backup"}, 0),
    "the service": (NAMESPACE, {NAME: "readmission-api"}, 3000),
    "a candidate": (NAMESPACE, {NAME: "readmission-candidate"}, 3000),
    "another pod there": (NAMESPACE, {NAME: "another"}, 0),
    "another pod with MLflow": (TRACKING, {NAME: "another"}, 0),
    "a stage": ("kubeflow", {"pipelines.kubeflow.org/v2_component": "true"}, 0),
    "the object store": ("kubeflow", {"app": "seaweedfs"}, 8333),
    "Kubeflow's MySQL": ("kubeflow", {"app": "mysql"}, 3306),
    "a pod elsewhere": ("default", {NAME: "elsewhere"}, 0),
}
# It listens, and says which of the addresses that it is given can be reached.
PROGRAM = """
import json, socket, sys, threading
from concurrent.futures import ThreadPoolExecutor
def reach(target):
    try:
        socket.create_connection((target[0], target[1]), timeout=4).close()
        return True
    except OSError:
        return False
targets = json.loads(sys.argv[1])
with ThreadPoolExecutor(len(targets)) as pool:
    print(json.dumps(list(pool.map(reach, targets))))
"""
LISTEN = "from http.server import *; ThreadingHTTPServer(('', {port}), SimpleHTTPRequestHandler).serve_forever()"


def pod(name: str, place: str) -> dict[str, Any]:
    namespace, labels, port = PLACES[place]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {**labels, "health-predict/probe": "true"}},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "probe",
                    "image": BASE_IMAGE,
                    "command": ["python3", "-c", LISTEN.format(port=port or 8080)],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    # Never ready, so no Service sends it anything.
                    "readinessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 600},
                }
            ],
        },
    }


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Place -> name of the pod that stands in it."""
    folder = tmp_path_factory.mktemp("network")
    platform.prepare(folder)
    platform.up(folder)
    # It would keep the probes out.
    platform.set_policy_aside()
    mark = uuid.uuid4().hex[:6]
    names = {place: f"probe-{number}-{mark}" for number, place in enumerate(PLACES)}
    pods = yaml.safe_dump_all([pod(name, place) for place, name in names.items()])
    until(lambda: kubectl("apply", "-f", "-", data=pods), seconds=60)
    try:
        for place, name in names.items():
            kubectl(
                *("-n", PLACES[place][0], "wait", f"pod/{name}", "--timeout=240s"),
                "--for=jsonpath={.status.containerStatuses[0].started}=true",
            )
        yield names
    finally:
        for place, name in names.items():
            kubectl("-n", PLACES[place][0], "delete", "pod", name, "--ignore-not-found", "--wait=false")
        platform.up(folder)


def address(place: str, name: str) -> str:
    return kubectl("-n", PLACES[place][0], "get", "pod", name, "-o", "jsonpath={.status.podIP}").strip()


def reached(place: str, name: str, targets: list[tuple[str, int]]) -> list[bool]:
    asked = kubectl(
        *("-n", PLACES[place][0], "exec", name, "--", "python3", "-c", PROGRAM, json.dumps(targets)), timeout=60
    )
    return list(json.loads(asked))


def documented() -> dict[str, dict[str, bool]]:
    """The table of docs/kubernetes.md: from -> to -> whether it is open."""
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    lines = text.partition("| from \\ to |")[2].splitlines()
    columns = [cell.strip() for cell in lines[0].strip("|").split("|")]
    table = {}
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        place, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        table[place] = {column: cell == "yes" for column, cell in zip(columns, cells, strict=True)}
    return table


def test_who_may_reach_whom_is_as_documented(probes: dict[str, str]) -> None:
    # given a pod in each place, which listens where the server of that place would
    table = documented()
    assert set(table) == {*PLACES, "this machine"}
    servers = {place: (address(place, probes[place]), port) for place, (_, _, port) in PLACES.items() if port}
    names = kubectl("-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath={.spec.clusterIP}")
    servers["names"] = (names, 53)
    assert all(set(row) == set(servers) for row in table.values())
    if not ENFORCED and reached("another pod there", probes["another pod there"], [servers["Postgres"]]) == [True]:
        pytest.skip("skipped: this cluster's network does not enforce NetworkPolicies")

    # when each asks all others
    def ask(place: str) -> dict[str, bool]:
        return dict(zip(servers, reached(place, probes[place], list(servers.values())), strict=True))

    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(PLACES, pool.map(ask, PLACES), strict=True))
    # then it is as the table says; a pod reaches itself whatever a policy says
    differing = [
        f"{place} -> {server}: {'open' if is_open else 'closed'}"
        for place, row in found.items()
        for server, is_open in row.items()
        if is_open is not table[place][server] and place != server
    ]
    assert differing == []


def test_this_machine_reaches_what_it_is_told_to() -> None:
    # given the addresses that `make kind-up` names
    row = documented()["this machine"]
    settings = Settings(mlflow_tracking_uri=MLFLOW, s3_endpoint_url=OBJECT_STORE, kfp_host=KFP)
    for server, name in (("MLflow", "mlflow_tracking_uri"), ("the object store", "s3_endpoint_url")):
        try:
            must_answer(settings, name)
            answered = True
        except UnreachableError:
            answered = False
        assert answered is row[server], server


@pytest.fixture
def metadata_service() -> Iterator[None]:
    """A server at the address of AWS' metadata service, outside Kind's node, as EC2 has it."""
    docker, node = shutil.which("docker"), "health-predict-control-plane"
    if docker is None or subprocess.run([docker, "inspect", node], capture_output=True, check=False).returncode:
        pytest.skip("skipped: no Kind node, beside which a metadata service could stand")

    def run(*arguments: str, check: bool = True) -> str:
        done = subprocess.run([docker, *arguments], capture_output=True, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    name = f"metadata-{uuid.uuid4().hex[:6]}"
    # The node's own image is there already, and has both commands. What answers does not matter.
    image = run("inspect", "--format", "{{.Config.Image}}", node)
    serve = f"kubectl proxy --server http://127.0.0.1:1 --address {METADATA} --port 80"
    listen = f"ip address add {METADATA}/32 dev eth0 && exec {serve}"
    run(
        "run",
        "-d",
        "--name",
        name,
        "--network",
        "kind",
        "--cap-add",
        "NET_ADMIN",
        "--entrypoint",
        "sh",
        image,
        "-c",
        listen,
    )
    try:
        near = run("inspect", "--format", "{{.NetworkSettings.Networks.kind.IPAddress}}", name)
        run("exec", node, "ip", "route", "replace", METADATA, "via", near)
        yield
    finally:
        run("exec", node, "ip", "route", "del", METADATA, check=False)
        run("rm", "-f", name, check=False)


def test_no_pod_asks_for_the_machine_s_role(probes: dict[str, str], metadata_service: None) -> None:
    # given the network policies of AWS, a stage, and another pod of Kubeflow
    if not ENFORCED and reached("another pod there", probes["another pod there"], [("10.96.0.1", 443)]) == [True]:
        pytest.skip("skipped: this cluster's network does not enforce NetworkPolicies")
    policies = str(ROOT / "k8s" / "overlays" / "aws" / "amazon.yaml")
    kubectl("apply", "-f", policies)
    try:
        # then none of them reaches the metadata service, whose answers the machine's hop limit would keep from them too
        for place in ("a stage", "Kubeflow's MySQL", "the backup", "the service", "MLflow"):
            assert reached(place, probes[place], [(METADATA, 80)]) == [False], place
    finally:
        kubectl("delete", "-f", policies)
