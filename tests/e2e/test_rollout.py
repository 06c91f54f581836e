"""Rollouts on a real Deployment: the next version, and everything that must leave the one before in service."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from health_predict.adapters.files import unpack_archive
from health_predict.adapters.images import open_registry
from health_predict.adapters.serving.kubernetes import CANDIDATE, Cluster, KubernetesTarget
from health_predict.adapters.tracking import CHAMPION, Tracking
from health_predict.core.data.cohort import save_csv
from health_predict.errors import GateError, HealthPredictError, UnreachableError
from health_predict.operations.lineage import lineage
from health_predict.stages.bento_build import bento_build
from health_predict.stages.ecr_push import IDENTITY, ecr_push
from health_predict.stages.rollout import RolloutOutcome, RolloutResult, rollout
from health_predict.stages.split import split
from tests.cohorts import synthesize
from tests.e2e.conftest import NAMESPACE, SERVING_PORT, Place, as_operator, deployment, kubectl, served_version
from tests.e2e.faulty_api_server import in_front_of
from tests.rollouts import register_forest

CRASHING = """
import os, threading
threading.Timer({seconds}, lambda: os._exit(1)).start()
"""


@dataclass(frozen=True)
class Models:
    """Two versions, built and pushed."""

    place: Place
    images: dict[str, str]

    def tracking(self) -> Tracking:
        return Tracking(self.place.settings())

    def rollout(self, version: str, **changes: Any) -> RolloutResult:
        return rollout(
            self.place.settings(**changes),
            image_uri=self.images[version],
            model_version=version,
            report=self.place.home / "rollout.html",
        )

    def champion(self) -> str:
        champion = self.tracking().by_alias(CHAMPION)
        return champion.version if champion else ""

    def altered(self, alter: Callable[[Path], None]) -> Models:
        """The same, with another image for version 2: its Bento, changed by `alter`."""
        version = self.tracking().version("2")
        folder = self.place.home / "altered"
        shutil.rmtree(folder, ignore_errors=True)
        unpack_archive(self.place.home.parent / "2.tar", folder)
        alter(folder)
        archive = self.place.home.parent / "altered.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(folder, arcname=".", filter=_plain)
        identity = {name: version.tags.get(name, "") for name in IDENTITY} | {"model_version": "2"}
        # Whatever it is, it is what its digest says.
        identity["bento_digest"] = _content_digest(folder)
        uri = open_registry(self.place.settings()).push(archive, identity)
        self.tracking().tag_version("2", {"image_uri": uri})
        return Models(self.place, {**self.images, "2": uri})


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.name = entry.name.removeprefix("./")
    return entry


def _content_digest(folder: Path) -> str:
    from health_predict.adapters.archives import content_digest

    return content_digest(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path, serving: None) -> Models:
    home = tmp_path_factory.mktemp("cluster") / "home"
    home.mkdir()
    shutil.copy(mlflow_database, home / "mlflow.db")
    place = Place(home)
    data = home.parent / "data.csv"
    save_csv(synthesize(3000, seed=5), data)
    settings = place.settings(data_source=str(data), future_batches=2, initial_share=0.6)
    parts = {name: home.parent / f"{name}.parquet" for name in ("train", "validation", "test")}
    found = split(settings, labelled_batches=0, **parts, batches=home.parent / "b.json", profile=home.parent / "p.html")
    images = {}
    for number, depth in (("1", 2), ("2", 3)):
        register_forest(settings, parts, found.dataset_digest, depth)
        archive = home.parent / f"{number}.tar"
        bento_build(settings, model_version=number, bento=archive)
        images[number] = ecr_push(settings, bento=archive, model_version=number)
    return Models(place, images)


@pytest.fixture
def first(models: Models) -> Models:
    """Version 1 serves and is champion."""
    models.tracking().tag_version("2", {"image_uri": models.images["2"]})
    models.rollout("1")
    return models


@dataclass
class Load:
    """Requests at a steady rate, whatever becomes of the ones before."""

    statuses: list[int] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def one(self, body: bytes) -> None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", SERVING_PORT, timeout=20)
            connection.request("POST", "/predict", body, {"Content-Type": "application/json", **as_operator()})
            response = connection.getresponse()
            answer = json.loads(response.read())
            self.statuses.append(response.status)
            self.versions.add(str(answer.get("model_version")))
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.problems.append(repr(error))

    def run(self, body: bytes, per_second: float) -> None:
        threads = []
        begin, sent = time.monotonic(), 0
        while not self.ended.is_set():
            threads.append(threading.Thread(target=self.one, args=(body,)))
            threads[-1].start()
            sent += 1
            self.ended.wait(max(0.0, begin + sent / per_second - time.monotonic()))
        for thread in threads:
            thread.join()


@pytest.fixture
def under_load(models: Models) -> Iterator[Load]:
    """Twenty requests a second through the Service until the test says it is enough."""
    with tarfile.open(models.place.home.parent / "1.tar") as tar:
        file = tar.extractfile("src/golden.json")
        assert file is not None
        body = json.dumps(json.load(file)[0]["request"]).encode()
    load = Load()
    thread = threading.Thread(target=load.run, args=(body, 20))
    thread.start()
    yield load
    load.ended.set()
    thread.join()


def assert_as_before(models: Models) -> None:
    """Version 1 serves from its own image, is champion, and nothing else is left."""
    assert served_version() == models.champion() == "1"
    found = deployment()
    assert found["spec"]["template"]["spec"]["containers"][0]["image"] == models.images["1"]
    assert found["status"]["availableReplicas"] == 2
    label = ",".join(f"{key}={value}" for key, value in CANDIDATE.items())
    kubectl("-n", NAMESPACE, "wait", "--for=delete", "pod", "-l", label, "--timeout=60s")
    active = KubernetesTarget(models.place.settings()).active()
    assert active is not None and active.model_version == "1"
    assert "Undone" in (models.place.home / "rollout.html").read_text()


def events() -> str:
    return kubectl("-n", NAMESPACE, "describe", "deployment", "readmission-api")


def test_a_first_version_that_fails_leaves_nothing(models: Models) -> None:
    # given a Deployment that never served
    assert deployment()["spec"]["paused"] is True and KubernetesTarget(models.place.settings()).active() is None
    # when the first image does not start
    broken = models.altered(lambda folder: (folder / "src" / "service.py").write_text("raise RuntimeError('broken')\n"))
    with pytest.raises(GateError, match="not ready"):
        broken.rollout("2")
    # then nothing serves and nothing is champion
    assert deployment()["spec"]["paused"] is True and models.champion() == ""
    models.tracking().tag_version("2", {"image_uri": models.images["2"]})


def test_the_first_rollout_and_its_repetition(models: Models) -> None:
    # when
    result = models.rollout("1")
    # then it serves from the image that lineage names
    assert result.outcome in (RolloutOutcome.DEPLOYED, RolloutOutcome.UNCHANGED)
    assert served_version() == models.champion() == "1"
    links = lineage(models.place.settings())
    assert [link.problem for link in links] == [""] * 7
    pods = json.loads(
        kubectl("-n", NAMESPACE, "get", "pods", "-l", "app.kubernetes.io/name=readmission-api", "-o", "json")
    )
    (digest,) = {pod["status"]["containerStatuses"][0]["imageID"].rpartition("@")[2] for pod in pods["items"]}
    assert links[1].identity.endswith(f"@{digest}")
    # and kubectl shows which version that is, from which run and commit
    for item in (deployment(), *pods["items"]):
        assert item["metadata"]["labels"]["app.kubernetes.io/version"] == "1"
        told = item["metadata"]["annotations"]
        assert told["health-predict/run-id"] == models.tracking().version("1").run_id
        assert told["health-predict/git-commit"] == "c" * 40
    assert f"model version 1, {models.images['1']}" in kubectl(
        "-n", NAMESPACE, "rollout", "history", "deployment/readmission-api"
    )
    # and again changes nothing
    before = deployment()["metadata"]["generation"]
    assert models.rollout("1").outcome is RolloutOutcome.UNCHANGED
    assert deployment()["metadata"]["generation"] == before
    # and the cluster tells the story
    assert "RolloutStarted" in events() and "RolloutCommitted" in events()


def test_the_next_version_loses_no_request(first: Models, under_load: Load) -> None:
    begin = time.monotonic()
    # when version 2 is rolled out under load, and version 1 again
    assert first.rollout("2").outcome is RolloutOutcome.DEPLOYED
    assert served_version() == first.champion() == "2"
    first.rollout("1")
    under_load.ended.wait(max(0.0, begin + 60 - time.monotonic()))
    under_load.ended.set()
    # then every request was answered, some by each
    assert under_load.problems == [] and set(under_load.statuses) == {200}
    assert under_load.versions == {"1", "2"} and len(under_load.statuses) > 500


def test_a_broken_image(first: Models) -> None:
    broken = first.altered(lambda folder: (folder / "src" / "service.py").write_text("raise RuntimeError('broken')\n"))
    with pytest.raises(GateError, match="candidate"):
        broken.rollout("2")
    assert_as_before(first)
    assert "RolloutFailed" in events()


def test_an_image_that_fails_its_golden_requests(first: Models) -> None:
    def falsify(folder: Path) -> None:
        golden = folder / "src" / "golden.json"
        cases = json.loads(golden.read_text())
        cases[3]["answer"]["probability_score"] += 0.1
        golden.write_text(json.dumps(cases))

    wrong = first.altered(falsify)
    with pytest.raises(GateError, match=r"not ready|golden request"):
        wrong.rollout("2", rollout_timeout=60.0)
    assert_as_before(first)


def test_an_image_that_crashes_after_a_while(first: Models) -> None:
    def crash(folder: Path) -> None:
        service = folder / "src" / "service.py"
        service.write_text(service.read_text() + CRASHING.format(seconds=60))

    crashing = first.altered(crash)
    with pytest.raises(GateError, match="did not stay ready"):
        crashing.rollout("2", rollout_observation=120.0)
    assert_as_before(first)


def test_an_image_that_cannot_be_pulled(first: Models) -> None:
    # given an image that the registry lost after it was verified
    uri = first.images["2"]
    lost = f"{uri.partition('@')[0]}@sha256:{'0' * 64}"
    target = KubernetesTarget(first.place.settings(rollout_timeout=20.0))
    with pytest.raises(GateError, match=r"ErrImagePull|ImagePullBackOff"), target.rollout() as change:
        change.start(lost, "2", first.place.home)
    assert served_version() == "1" and deployment()["status"]["availableReplicas"] == 2


def test_a_registry_that_is_away(first: Models) -> None:
    with pytest.raises(UnreachableError, match="does not answer"):
        first.rollout("2", registry_endpoint="http://127.0.0.1:9")
    assert_as_before(first)


def test_an_api_server_that_fails_for_a_while(first: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_front_of(Path(os.environ["KUBECONFIG"]), tmp_path) as (kubeconfig, faults), monkeypatch.context() as patch:
        # The library reads the variable once, when it is imported.
        patch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
        # given one that answers every third request with 429, 500 or 503
        count = iter(range(10**6))
        faults.status = lambda _method, _path: (429, 500, 503)[n % 9 // 3] if (n := next(count)) % 3 == 0 else 0
        # when version 2 is rolled out, then it takes a little longer
        assert first.rollout("2").outcome is RolloutOutcome.DEPLOYED
        assert {status for *_, status in faults.given} == {429, 500, 503} and served_version() == "2"
        faults.status = lambda _method, _path: 0
        first.rollout("1")
        # given one that refuses to change the Deployment for longer than anybody waits
        patch.setattr(Cluster.__init__, "__kwdefaults__", {"retries": 3})
        patches = iter(range(10**6))
        faults.status = lambda method, path: 500 if method == "PATCH" and next(patches) < 4 else 0
        with pytest.raises(HealthPredictError, match="500"):
            first.rollout("2")
    assert_as_before(first)


def test_two_rollouts_wait_for_each_other(first: Models) -> None:
    outcomes: list[str] = []

    def roll(version: str) -> None:
        outcomes.append(f"{version} {first.rollout(version).outcome.value}")

    threads = [threading.Thread(target=roll, args=("2",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 2 and served_version() == first.champion() == "2"
    first.rollout("1")


def test_what_a_killed_rollout_left_is_undone(first: Models) -> None:
    # given a rollout that was killed after the switch: its lease and its image are left
    target = KubernetesTarget(first.place.settings())
    change = target.rollout()
    taken = change.__enter__()
    taken.start(first.images["2"], "2", first.place.home)
    taken.switch()
    assert served_version() == "2"
    taken.lease._ended.set()  # nobody renews it any more
    # when somebody rolls out again
    assert first.rollout("1").outcome in (RolloutOutcome.UNCHANGED, RolloutOutcome.DEPLOYED)
    # then
    active = target.active()
    assert active is not None and active.model_version == served_version() == "1"
