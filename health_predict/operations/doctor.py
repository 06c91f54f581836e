"""doctor: what is installed, reachable, writable and free, each with a remedy."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import platform
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from health_predict.adapters.images import RemoteRegistry, open_registry
from health_predict.adapters.reachable import must_answer
from health_predict.adapters.source_control import UNKNOWN, commit
from health_predict.adapters.storage import open_storage
from health_predict.adapters.target import open_target
from health_predict.core.errors import HealthPredictError
from health_predict.settings import PREFIX, ServingTarget, Settings, known_variables, unknown_variables

MINIMUM_PYTHON, BEYOND_PYTHON = (3, 11), (3, 13)
# The two-command demonstration stays below this much memory and disk.
NEEDED_MEMORY_GIB = 3.0
NEEDED_DISK_GIB = 2.0
NEEDED_SHARED_MEMORY_GIB = 0.5

# (import name, distribution, what it is for)
PACKAGES = (
    ("bentoml", "bentoml", "serving"),
    ("evidently", "evidently", "drift reports"),
    ("kfp", "kfp", "pipelines"),
    ("lightgbm", "lightgbm", "training"),
    ("mlflow", "mlflow", "tracking"),
    ("numpy", "numpy", "everything"),
    ("onnxruntime", "onnxruntime", "serving"),
    ("requests", "requests", "pushing images"),
    ("pandas", "pandas", "training"),
    ("ray", "ray", "the search"),
    ("sklearn", "scikit-learn", "training"),
    ("uvloop", "uvloop", "serving"),
    ("xgboost", "xgboost", "training"),
)


class Health(StrEnum):
    """How a check ended. Only `fail` keeps something from working."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's findings."""

    name: str
    health: Health
    finding: str
    remedy: str = ""


def doctor(settings: Settings, begins: Callable[[str], object] = lambda _: None) -> Iterator[Check]:
    """All checks, in the order of their dependence, each when it is done. Changes nothing that stays.

    Args:
        settings: What is examined.
        begins: Told the name of each examination before it, since a server may take seconds not to answer.
    """
    for examine in (
        _settings,
        _python,
        _packages,
        _home,
        _machine,
        _shared_memory,
        _cluster,
        _capacity,
        _storage,
        _data,
        _tracking,
        _registry,
        _pipelines,
        _endpoint,
        _commit,
    ):
        name = examine.__name__.strip("_").replace("_", " ")
        begins(name)
        yield from _guarded(name, examine, settings)


def _guarded(name: str, examine: Callable[[Settings], Iterator[Check]], settings: Settings) -> Iterator[Check]:
    try:
        yield from examine(settings)
    except HealthPredictError as error:
        yield Check(name, Health.FAIL, error.problem, error.remedy)
    except Exception as error:  # a doctor that breaks down helps nobody
        yield Check(name, Health.FAIL, f"{type(error).__name__}: {error}", "run with --debug for the whole story")


def _settings(settings: Settings) -> Iterator[Check]:
    unknown = unknown_variables()
    if unknown:
        yield Check("settings", Health.FAIL, f"unknown: {', '.join(unknown)}", f"known: {', '.join(known_variables())}")
        return
    changed = ", ".join(f"{name}={value}" for name, value in settings.environment().items() if name != f"{PREFIX}HOME")
    yield Check("settings", Health.OK, f"profile {settings.profile.value}; {changed or 'all others at their defaults'}")


def _python(_: Settings) -> Iterator[Check]:
    found = f"{platform.python_version()} at {sys.executable}"
    if MINIMUM_PYTHON <= sys.version_info[:2] < BEYOND_PYTHON:
        yield Check("python", Health.OK, found)
    else:
        yield Check("python", Health.FAIL, found, "use Python 3.11 or 3.12; `make` installs one through uv")


def _packages(_: Settings) -> Iterator[Check]:
    present: list[str] = []
    for module, distribution, purpose in PACKAGES:
        try:
            number = version(distribution)
        except PackageNotFoundError:
            yield Check(f"package {distribution}", Health.FAIL, f"missing; needed for {purpose}", "`make install`")
            continue
        # Finding the module is enough; importing all of them would take half a minute.
        if importlib.util.find_spec(module) is None:
            yield Check(f"package {distribution}", Health.FAIL, f"{number} cannot be imported", "`make clean install`")
        else:
            present.append(f"{distribution} {number}")
    yield Check("packages", Health.OK, ", ".join(present))


def _home(settings: Settings) -> Iterator[Check]:
    home = settings.home
    with _probe(home) as problem:
        if problem:
            yield Check("home", Health.FAIL, f"{home}: {problem}", "set HEALTH_PREDICT_HOME to a writable folder")
            return
    free = shutil.disk_usage(_existing(home)).free / 2**30
    if free < NEEDED_DISK_GIB:
        found = f"{home}: only {free:.1f} GiB free"
        yield Check("home", Health.WARN, found, "free some space, or set HEALTH_PREDICT_HOME to another disk")
    else:
        yield Check("home", Health.OK, f"{home} is writable, {free:.1f} GiB free")


def _machine(_: Settings) -> Iterator[Check]:
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = psutil.virtual_memory().available / 2**30
    found = f"{cores} cores, {free:.1f} GiB of memory free"
    if free < NEEDED_MEMORY_GIB:
        yield Check("machine", Health.WARN, found, f"a search wants {NEEDED_MEMORY_GIB:g} GiB: close some programs")
    elif cores < 2:
        yield Check("machine", Health.WARN, found, "a search takes longer than the README says")
    else:
        yield Check("machine", Health.OK, found)


def _shared_memory(_: Settings) -> Iterator[Check]:
    folder = Path("/dev/shm")  # noqa: S108 - not to write there: Ray does
    if not folder.is_dir():  # macOS has none; Ray uses a temporary folder
        yield Check("shared memory", Health.OK, "none on this system; Ray uses a temporary folder")
        return
    free = shutil.disk_usage(folder).free / 2**30
    if free < NEEDED_SHARED_MEMORY_GIB or not os.access(folder, os.W_OK):
        found = f"{folder}: {free:.2f} GiB free"
        yield Check("shared memory", Health.WARN, found, "Ray is slow without; in a container: --shm-size=1g")
    else:
        yield Check("shared memory", Health.OK, f"{folder}: {free:.1f} GiB free")


def _storage(settings: Settings) -> Iterator[Check]:
    if urlsplit(settings.storage).scheme == "file":
        folder = Path(urlsplit(settings.storage).path)
        with _probe(folder) as problem:
            if problem:
                yield Check("storage", Health.FAIL, f"{folder}: {problem}", "set HEALTH_PREDICT_STORAGE_URI")
                return
        yield Check("storage", Health.OK, f"{settings.storage} is writable")
        return
    must_answer(settings, "s3_endpoint_url")
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    key = "doctor/probe"
    storage.write(key, uuid.uuid4().bytes)
    storage.read(key)
    yield Check("storage", Health.OK, f"{storage.uri(key)} was written and read")


def _data(settings: Settings) -> Iterator[Check]:
    source = settings.data_source or settings.data_copy
    name = "HEALTH_PREDICT_DATA_SOURCE" if settings.data_source else "HEALTH_PREDICT_DATA_COPY"
    if not source:
        found = "the champion's; where there is none, downloaded from UCI"
        yield Check(
            "data", Health.WARN, found, "for the first model: set HEALTH_PREDICT_DATA_SOURCE to a file you have"
        )
    elif source == "synthetic":
        yield Check("data", Health.WARN, "a synthetic cohort", "set HEALTH_PREDICT_DATA_SOURCE for real data")
    elif urlsplit(source).scheme in ("", "file"):
        path = Path(urlsplit(source).path).expanduser()
        if path.is_file() and os.access(path, os.R_OK):
            yield Check("data", Health.OK, f"{path}, {path.stat().st_size / 2**20:.1f} MiB")
        else:
            yield Check("data", Health.FAIL, f"{path} is not a readable file", f"correct or unset {name}")
    else:
        parts = urlsplit(source)
        if parts.scheme in ("http", "https"):
            port = parts.port or (443 if parts.scheme == "https" else 80)
            with socket.create_connection((parts.hostname or "", port), timeout=5):
                pass
        yield Check("data", Health.OK, source)


def _tracking(settings: Settings) -> Iterator[Check]:
    database = urlsplit(settings.tracking_uri)
    if database.scheme == "sqlite" and not Path(settings.tracking_uri.removeprefix("sqlite:///")).exists():
        yield Check("tracking", Health.OK, f"{settings.tracking_uri} will be created")
        return
    must_answer(settings, "mlflow_tracking_uri")
    from health_predict.adapters.mlflow import CHAMPION, Tracking

    champion = Tracking(settings).by_alias(CHAMPION)
    found = f"champion is version {champion.version}" if champion else "no champion yet"
    yield Check("tracking", Health.OK, f"{settings.tracking_uri} answers: {found}")


# What must run in the cluster: kind, namespace, name.
_PARTS = (
    ("statefulset", "health-predict", "postgres"),
    ("deployment", "health-predict", "mlflow"),
    ("deployment", "kubeflow", "ml-pipeline"),
    ("deployment", "kubeflow", "workflow-controller"),
)


def _cluster(settings: Settings) -> Iterator[Check]:
    if settings.serving_target is ServingTarget.PROCESS:
        return
    from kubernetes.client import VersionApi

    from health_predict.adapters.kubernetes import NOT_FOUND, Cluster

    cluster = Cluster(settings.kube_context, retries=3)
    version = cluster.ask(VersionApi(cluster.api).get_code)
    yield Check("cluster", Health.OK, f"Kubernetes {version.git_version} answers at {cluster.address}")
    read = {
        "deployment": cluster.apps.read_namespaced_deployment,
        "statefulset": cluster.apps.read_namespaced_stateful_set,
    }
    for kind, namespace, name in _PARTS:
        found = cluster.ask(read[kind], name, namespace, allowed=(NOT_FOUND,))
        where = f"{kind} {name} in {namespace}"
        if found is None:
            yield Check(name, Health.FAIL, f"there is no {where}", "`make cluster-up`, or `make kind-up`")
        elif not found.status.ready_replicas:
            remedy = f"kubectl -n {namespace} describe {kind} {name}"
            yield Check(name, Health.FAIL, f"{where} has no ready pod", remedy)
        else:
            yield Check(name, Health.OK, f"{where}: {found.status.ready_replicas} ready")


# What the hungriest moment asks for beside what runs: the search with its driver, or a rollout's stage, candidate and
# one more pod.
NEEDED_CPUS, NEEDED_POD_MEMORY_GIB = 0.6, 2.1


def _capacity(settings: Settings) -> Iterator[Check]:
    """Whether a run finds room: a pod that asks for more than a node has left waits without a word."""
    if settings.serving_target is ServingTarget.PROCESS:
        return
    from health_predict.adapters.kubernetes import Cluster

    cluster = Cluster(settings.kube_context, retries=3)
    listed = [cluster.ask(cluster.core.list_pod_for_all_namespaces), cluster.ask(cluster.core.list_node)]
    pods, nodes = (cluster.api.sanitize_for_serialization(one.items) for one in listed)
    for pod in pods:
        for condition in pod["status"].get("conditions", ()):
            if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
                where = f"{pod['metadata']['name']} in {pod['metadata']['namespace']}"
                remedy = "give Docker, or the nodes, more processors or memory"
                yield Check("capacity", Health.FAIL, f"pod {where} waits: {condition.get('message', '')}", remedy)
    cpus, memory = max(room_left(node, pods) for node in nodes)
    found = f"{cpus:.1f} CPUs and {memory:.1f} GiB are not requested on the node with most room"
    if cpus < NEEDED_CPUS or memory < NEEDED_POD_MEMORY_GIB:
        remedy = f"a run needs {NEEDED_CPUS:g} CPUs and {NEEDED_POD_MEMORY_GIB:g} GiB: give Docker, or the nodes, more"
        yield Check("capacity", Health.FAIL, found, remedy)
    else:
        yield Check("capacity", Health.OK, found)


def room_left(node: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """CPUs and GiB that no pod of the node has requested, by the scheduler's rule.

    Args:
        node: A Node as the API server gives it.
        pods: Pods of the cluster, of this and of other nodes; those that ended ask for nothing.
    """
    from kubernetes.utils.quantity import parse_quantity

    left = []
    for resource in ("cpu", "memory"):

        def asked(containers: Sequence[Mapping[str, Any]], name: str = resource) -> list[float]:
            requests = (one.get("resources", {}).get("requests", {}).get(name, 0) for one in containers)
            return [float(parse_quantity(value)) for value in requests]

        requested = sum(
            max(sum(asked(pod["spec"]["containers"])), *asked(pod["spec"].get("initContainers", ())), 0)
            for pod in pods
            if pod["spec"].get("nodeName") == node["metadata"]["name"]
            and pod["status"].get("phase") not in ("Succeeded", "Failed")
        )
        left.append(float(parse_quantity(node["status"]["allocatable"][resource])) - requested)
    return left[0], left[1] / 2**30


def _registry(settings: Settings) -> Iterator[Check]:
    if settings.registry.startswith("oci:"):
        return
    registry = open_registry(settings)
    assert isinstance(registry, RemoteRegistry)
    registry.probe()
    yield Check("registry", Health.OK, f"{settings.registry} answers")


def _pipelines(settings: Settings) -> Iterator[Check]:
    if not settings.kfp_host:
        return
    must_answer(settings, "kfp_host")
    from health_predict.adapters.kfp_cluster import ClusterPipelines

    runs = ClusterPipelines(settings).runs(1)
    last = f"the last run, {runs[0]['pipeline']}, {runs[0]['state']}" if runs else "no run yet"
    yield Check("pipelines", Health.OK, f"{settings.kfp_host} answers: {last}")


def _endpoint(settings: Settings) -> Iterator[Check]:
    if settings.serving_target is not ServingTarget.PROCESS:
        target = open_target(settings)
        active = target.active()
        if active is None:
            found = target.trouble() or "no version was rolled out yet"
            yield Check("endpoint", Health.WARN, found, "`health-predict pipeline run readmission --on ...`")
            return
        connection = http.client.HTTPConnection(urlsplit(target.url).netloc, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/readyz")
            answer = connection.getresponse().status
        found = f"version {active.model_version} at {target.url}, {len(active.workers)} pods"
        if answer == http.HTTPStatus.OK:
            yield Check("endpoint", Health.OK, found)
        else:
            yield Check("endpoint", Health.FAIL, f"{found}, answers {answer}", "kubectl describe its Deployment")
        return
    from health_predict.adapters.processes import ProcessTarget

    target = ProcessTarget(settings)
    if target.trouble():
        yield Check("endpoint", Health.WARN, target.trouble(), "`health-predict serve`")
        return
    place = target.place()
    if place:
        mine = place["port"] == settings.serving_port
        yield Check(
            "endpoint",
            Health.OK if mine else Health.WARN,
            f"running on {place['host']}:{place['port']}",
            "" if mine else f"the settings say port {settings.serving_port}: `health-predict down` first",
        )
        return
    target.check_port()
    yield Check("endpoint", Health.OK, f"port {settings.serving_port} is free")


def _commit(settings: Settings) -> Iterator[Check]:
    found = settings.git_commit or commit()
    if found == UNKNOWN:
        yield Check(
            "git commit",
            Health.WARN,
            "unknown, so lineage ends at the data",
            "install git and clone, or set HEALTH_PREDICT_GIT_COMMIT",
        )
    else:
        yield Check("git commit", Health.OK, found)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


@contextmanager
def _probe(folder: Path) -> Iterator[str]:
    """Why the folder cannot be written to, or nothing. What does not exist yet is not left behind."""
    place = _existing(folder)
    file = place / f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        file.write_bytes(b"x")
    except OSError as error:
        yield error.strerror or str(error)
    else:
        file.unlink()
        yield ""
