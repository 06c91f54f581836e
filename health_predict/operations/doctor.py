"""doctor: what is installed, reachable, writable and free, each with a remedy."""

from __future__ import annotations

import http
import os
import platform
import shlex
import shutil
import socket
import stat
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from health_predict.adapters.files import OTHERS
from health_predict.adapters.images import RemoteRegistry, open_registry
from health_predict.adapters.reachable import must_answer
from health_predict.adapters.serving.endpoint import NOT_LET_IN, REFUSED, ask
from health_predict.adapters.serving.target import open_target
from health_predict.adapters.source_control import UNKNOWN, commit
from health_predict.adapters.storage import file_path, open_storage
from health_predict.adapters.tokens import own_token
from health_predict.errors import HealthPredictError
from health_predict.settings import PREFIX, ServingTarget, Settings

# The two-command demonstration stays below this much memory and disk.
NEEDED_MEMORY_GIB = 3.0
NEEDED_DISK_GIB = 2.0
NEEDED_SHARED_MEMORY_GIB = 0.5
# What the hungriest moment asks for beside what runs: the search with its driver, or a rollout's stage, candidate and
# one more pod.
NEEDED_CPUS, NEEDED_POD_MEMORY_GIB = 0.6, 2.1

PACKAGES = "bentoml evidently kfp lightgbm mlflow numpy onnxruntime pandas ray requests scikit-learn uvloop xgboost"
# What must run in the cluster: kind, namespace, name.
PARTS = (
    ("statefulset", "health-predict-tracking", "postgres"),
    ("deployment", "health-predict-tracking", "mlflow"),
    ("deployment", "kubeflow", "ml-pipeline"),
    ("deployment", "kubeflow", "workflow-controller"),
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
    examinations: dict[str, Callable[[Settings], Iterator[Check]]] = {
        "settings": _settings,
        "packages": _packages,
        "home": _home,
        "machine": _machine,
        "cluster": _cluster,
        "capacity": _capacity,
        "storage": _storage,
        "data": _data,
        "tracking": _tracking,
        "registry": _registry,
        "pipelines": _pipelines,
        "token": _secret,
        "endpoint": _endpoint,
        "git commit": _commit,
    }
    for name, examine in examinations.items():
        begins(name)
        try:
            yield from examine(settings)
        except HealthPredictError as error:
            yield Check(name, Health.FAIL, error.problem, error.remedy)
        except Exception as error:  # a doctor that breaks down helps nobody
            yield Check(name, Health.FAIL, f"{type(error).__name__}: {error}", "run with --debug for the whole story")


def _check(name: str, finding: str, *, warn: str = "", fail: str = "") -> Check:
    """A check that is well unless it has a remedy to `warn` with, or to `fail` with."""
    return Check(name, Health.FAIL if fail else Health.WARN if warn else Health.OK, finding, fail or warn)


def _settings(settings: Settings) -> Iterator[Check]:
    hidden = (f"{PREFIX}HOME", f"{PREFIX}NOTIFY")  # the addresses of who is told hold secrets
    changed = ", ".join(f"{name}={value}" for name, value in settings.environment().items() if name not in hidden)
    yield _check("settings", f"profile {settings.profile.value}; {changed or 'all others at their defaults'}")


def _packages(_: Settings) -> Iterator[Check]:
    present = [f"Python {platform.python_version()}"]
    for name in PACKAGES.split():
        try:
            present.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            yield _check(f"package {name}", "missing", fail="`make install`")
    yield _check("packages", ", ".join(present))


def _home(settings: Settings) -> Iterator[Check]:
    home = settings.home
    if problem := _unwritable(home):
        yield _check("home", f"{home}: {problem}", fail="set HEALTH_PREDICT_HOME to a writable folder")
        return
    yield from _private("home", home)
    free = shutil.disk_usage(_existing(home)).free / 2**30
    remedy = "free some space, or set HEALTH_PREDICT_HOME to another disk" if free < NEEDED_DISK_GIB else ""
    yield _check("home", f"{home} is writable, {free:.1f} GiB free", warn=remedy)


def _machine(_: Settings) -> Iterator[Check]:
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = psutil.virtual_memory().available / 2**30
    remedy = "a search takes longer than the README says" if cores < 2 else ""
    if free < NEEDED_MEMORY_GIB:
        remedy = f"a search wants {NEEDED_MEMORY_GIB:g} GiB: close some programs"
    yield _check("machine", f"{cores} cores, {free:.1f} GiB of memory free", warn=remedy)
    shared = Path("/dev/shm")  # noqa: S108 - not to write there: Ray does
    if shared.is_dir():  # macOS has none; Ray uses a temporary folder
        free = shutil.disk_usage(shared).free / 2**30
        remedy = "" if free >= NEEDED_SHARED_MEMORY_GIB else "Ray is slow without; in a container: --shm-size=1g"
        yield _check("shared memory", f"{shared}: {free:.2f} GiB free", warn=remedy)
    elif sys.platform == "linux":
        remedy = f"Ray starts and works more slowly without: `mount -t tmpfs tmpfs {shared}`"
        yield _check("shared memory", f"there is no {shared}", warn=remedy)


def _cluster(settings: Settings) -> Iterator[Check]:
    if settings.serving_target is ServingTarget.PROCESS:
        return
    from kubernetes.client import VersionApi

    from health_predict.adapters.serving.kubernetes import NOT_FOUND, Cluster

    cluster = Cluster(settings.kube_context, retries=3)
    server = cluster.ask(VersionApi(cluster.api).get_code)
    yield _check("cluster", f"Kubernetes {server.git_version} answers at {cluster.address}")
    read = {
        "deployment": cluster.apps.read_namespaced_deployment,
        "statefulset": cluster.apps.read_namespaced_stateful_set,
    }
    for kind, namespace, name in PARTS:
        resource = cluster.ask(read[kind], name, namespace, allowed=(NOT_FOUND,))
        where = f"{kind} {name} in {namespace}"
        if resource is None:
            yield _check(name, f"there is no {where}", fail="`make cluster-up`, or `make kind-up`")
        else:
            ready = resource.status.ready_replicas or 0
            remedy = "" if ready else f"kubectl -n {namespace} describe {kind} {name}"
            yield _check(name, f"{where}: {ready} pods ready", fail=remedy)


def _capacity(settings: Settings) -> Iterator[Check]:
    """Whether a run finds room: a pod that asks for more than a node has left waits without a word."""
    if settings.serving_target is ServingTarget.PROCESS:
        return
    from health_predict.adapters.serving.kubernetes import Cluster

    cluster = Cluster(settings.kube_context, retries=3)
    listed = [cluster.ask(cluster.core.list_pod_for_all_namespaces), cluster.ask(cluster.core.list_node)]
    pods, nodes = (cluster.api.sanitize_for_serialization(one.items) for one in listed)
    for pod in pods:
        for condition in pod["status"].get("conditions", ()):
            if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
                where = f"{pod['metadata']['name']} in {pod['metadata']['namespace']}"
                finding = f"pod {where} waits: {condition.get('message', '')}"
                yield _check("capacity", finding, fail="give Docker, or the nodes, more processors or memory")
    cpus, memory = max(room_left(node, pods) for node in nodes)
    short = cpus < NEEDED_CPUS or memory < NEEDED_POD_MEMORY_GIB
    needs = f"a run needs {NEEDED_CPUS:g} CPUs and {NEEDED_POD_MEMORY_GIB:g} GiB: give Docker, or the nodes, more"
    finding = f"{cpus:.1f} CPUs and {memory:.1f} GiB are not requested on the node with most room"
    yield _check("capacity", finding, fail=needs if short else "")


def room_left(node: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """CPUs and GiB that no pod of the node has requested, by the scheduler's rule.

    Args:
        node: A Node as the API server gives it.
        pods: Pods of the cluster, of this and of other nodes; those that ended ask for nothing.
    """
    from kubernetes.utils.quantity import parse_quantity

    here = [
        pod["spec"]
        for pod in pods
        if pod["spec"].get("nodeName") == node["metadata"]["name"]
        and pod["status"].get("phase") not in ("Succeeded", "Failed")
    ]

    def left(resource: str) -> float:
        def asked(containers: Sequence[Mapping[str, Any]]) -> list[float]:
            requests = (one.get("resources", {}).get("requests", {}).get(resource, 0) for one in containers)
            return [float(parse_quantity(value)) for value in requests]

        requested = (max(sum(asked(pod["containers"])), *asked(pod.get("initContainers", ())), 0) for pod in here)
        return float(parse_quantity(node["status"]["allocatable"][resource])) - sum(requested)

    return left("cpu"), left("memory") / 2**30


def _storage(settings: Settings) -> Iterator[Check]:
    if folder := file_path(settings.storage):
        if problem := _unwritable(folder):
            yield _check("storage", f"{folder}: {problem}", fail="set HEALTH_PREDICT_STORAGE_URI")
            return
        if not folder.is_relative_to(settings.home):
            yield from _private("storage", folder)
        yield _check("storage", f"{settings.storage} is writable")
        return
    must_answer(settings, "s3_endpoint_url")
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    key = "doctor/probe"
    storage.write(key, uuid.uuid4().bytes)
    storage.read(key)
    yield _check("storage", f"{storage.uri(key)} was written and read")


def _data(settings: Settings) -> Iterator[Check]:
    source, place = settings.data_source or settings.data_copy, urlsplit(settings.data_source or settings.data_copy)
    name = "HEALTH_PREDICT_DATA_SOURCE" if settings.data_source else "HEALTH_PREDICT_DATA_COPY"
    if not source:
        remedy = "for the first model: set HEALTH_PREDICT_DATA_SOURCE to a file you have"
        yield _check("data", "the champion's; where there is none, downloaded", warn=remedy)
    elif source == "synthetic":
        yield _check("data", "a synthetic cohort", warn="set HEALTH_PREDICT_DATA_SOURCE for real data")
    elif path := file_path(source):
        readable = path.is_file() and os.access(path, os.R_OK)
        finding = str(path) if readable else f"{path} is not a readable file"
        yield _check("data", finding, fail="" if readable else f"correct or unset {name}")
    else:
        if place.scheme in ("http", "https"):
            port = place.port or (443 if place.scheme == "https" else 80)
            socket.create_connection((place.hostname or "", port), timeout=5).close()
        yield _check("data", source)


def _tracking(settings: Settings) -> Iterator[Check]:
    if not settings.mlflow_tracking_uri and not settings.database.exists():
        yield _check("tracking", f"{settings.tracking_uri} will be created")
        return
    must_answer(settings, "mlflow_tracking_uri")
    from health_predict.adapters.tracking import CHAMPION, Tracking

    champion = Tracking(settings).by_alias(CHAMPION)
    found = f"champion is version {champion.version}" if champion else "no champion yet"
    yield _check("tracking", f"{settings.tracking_uri} answers: {found}")


def _registry(settings: Settings) -> Iterator[Check]:
    registry = open_registry(settings)
    if isinstance(registry, RemoteRegistry):
        registry.probe()
        yield _check("registry", f"{settings.registry} answers")


def _pipelines(settings: Settings) -> Iterator[Check]:
    if not settings.kfp_host:
        return
    must_answer(settings, "kfp_host")
    from health_predict.adapters.pipelines.kubeflow import ClusterPipelines

    runs = ClusterPipelines(settings).runs(1)
    last = f"the last run, {runs[0]['pipeline']}, {runs[0]['state']}" if runs else "no run yet"
    yield _check("pipelines", f"{settings.kfp_host} answers: {last}")


def _endpoint(settings: Settings) -> Iterator[Check]:
    target = open_target(settings)
    if settings.serving_target is ServingTarget.PROCESS:
        yield from _process(settings)
        return
    active = target.active()
    if active is None:
        remedy = "`health-predict pipeline run readmission --on ...`"
        yield _check("endpoint", target.trouble() or "no version was rolled out yet", warn=remedy)
        return
    answer = ask(f"{target.url}/readyz", settings)
    finding = f"version {active.model_version} at {target.url}, {len(active.workers)} pods, answers {answer.status}"
    remedy = NOT_LET_IN if answer.status in REFUSED else "kubectl describe its Deployment"
    yield _check("endpoint", finding, fail="" if answer.status == http.HTTPStatus.OK else remedy)


def _process(settings: Settings) -> Iterator[Check]:
    from health_predict.adapters.serving.processes import ProcessTarget

    target = ProcessTarget(settings)
    if trouble := target.trouble():
        yield _check("endpoint", trouble, warn="`health-predict serve`")
    elif place := target.place():
        other = "" if place["port"] == settings.serving_port else f"the settings say port {settings.serving_port}: "
        remedy = other and other + "`health-predict down` first"
        yield _check("endpoint", f"running on {place['host']}:{place['port']}", warn=remedy)
    else:
        target.check_port()
        yield _check("endpoint", f"port {settings.serving_port} is free")


def _commit(settings: Settings) -> Iterator[Check]:
    revision = settings.git_commit or commit()
    remedy = "install git and clone, or set HEALTH_PREDICT_GIT_COMMIT: else lineage ends at the data"
    yield _check("git commit", revision, warn=remedy if revision == UNKNOWN else "")


def _private(name: str, folder: Path) -> Iterator[Check]:
    """What is made is the owner's alone; a folder of before, or of somebody else's making, may be open to others."""
    if folder.is_dir() and (mode := stat.S_IMODE(folder.stat().st_mode)) & OTHERS:
        finding = f"{folder} holds data of patients, and others may enter it (mode {mode:o})"
        yield _check(name, finding, warn=f"chmod -R go= {shlex.quote(str(folder))}")


def _secret(settings: Settings) -> Iterator[Check]:
    """The token that our clients send is the owner's alone, as a key of ssh is."""
    if not settings.serving_token_file:
        return
    file = Path(settings.serving_token_file)
    own_token(settings)
    open_to_others = stat.S_IMODE(file.stat().st_mode) & OTHERS
    remedy = f"chmod go= {shlex.quote(str(file))}" if open_to_others else ""
    yield _check("token", f"{file}{' may be read by others' if open_to_others else ''}", warn=remedy)


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _unwritable(folder: Path) -> str:
    """Why the folder cannot be written to, or nothing. What does not exist yet is not left behind."""
    file = _existing(folder) / f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        file.write_bytes(b"x")
        file.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""
