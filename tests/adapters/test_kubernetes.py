"""What a rollout writes into a cluster for the people who look with kubectl. tests/e2e examines it on a real one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import kubernetes_validate
import pytest
import yaml

from health_predict.adapters.kubernetes import APPLY, CANDIDATE, Cluster, KubernetesRollout, _Lease, _Names
from health_predict.settings import Settings

NAMES = _Names("health-predict", "readmission-api")
VERSION = "app.kubernetes.io/version"
ORIGIN = {"bento_tag": "readmission:v2-ab", "run_id": "4711", "dataset_digest": "dd", "git_commit": "c" * 40}


class Recorder:
    """An API server's answers to a rollout that succeeds, and what it was asked."""

    inside = True

    def __init__(self, deployment: dict[str, Any]) -> None:
        self.deployment = deployment
        self.applied: list[dict[str, Any]] = []
        self.pods: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> dict[str, Any]:
        if method == "PATCH" and options.get("kind") == APPLY:
            self.applied.append(body)
        elif method == "POST" and path == NAMES.pods:
            self.pods.append(body)
        elif method == "POST" and path == NAMES.events:
            self.told.append(body)
        if path.startswith(f"{NAMES.pods}/"):
            return {"status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}}
        return self.deployment if path == NAMES.path else {"items": []}


class Held:
    def check(self) -> None:
        """Nobody else rolls out."""


def deployment(annotations: Mapping[str, str]) -> dict[str, Any]:
    """The Deployment of the manifests, rolled out."""
    base = Path(__file__).parents[2] / "k8s" / "base" / "readmission-api.yaml"
    found = next(item for item in yaml.safe_load_all(base.read_text()) if item["kind"] == "Deployment")
    found["metadata"] |= {"annotations": dict(annotations), "generation": 1, "uid": "u"}
    found["status"] = dict.fromkeys(("observedGeneration", "updatedReplicas", "replicas", "availableReplicas"), 2)
    return cast("dict[str, Any]", found)


@pytest.fixture
def bento(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "identity.json").write_text(json.dumps({**ORIGIN, "threshold": 0.2}))
    return tmp_path


def rollout(recorder: Recorder) -> KubernetesRollout:
    found = KubernetesRollout(
        Settings(), cast("Cluster", recorder), NAMES, cast("_Lease", Held()), contextlib.ExitStack()
    )
    found._before = recorder.deployment
    return found


def labels_and_annotations(item: dict[str, Any]) -> tuple[str | None, dict[str, str]]:
    return item["metadata"].get("labels", {}).get(VERSION), item["metadata"]["annotations"]


def test_the_pods_and_then_the_deployment_say_what_they_serve(bento: Path) -> None:
    # given version 1 in service, rolled out before there was more to tell than its image
    before = {"health-predict/image": "r@sha256:1", "health-predict/model-version": "1"}
    recorder = Recorder(deployment(before))
    change = rollout(recorder)
    origin = {
        "health-predict/model-version": "2",
        "health-predict/bento": "readmission:v2-ab",
        "health-predict/run-id": "4711",
        "health-predict/dataset-digest": "dd",
        "health-predict/git-commit": "c" * 40,
    }
    # when version 2 is rolled out
    change.start("r@sha256:2", "2", bento)
    change.switch()
    change.commit()
    # then candidate and pods are of version 2 from the beginning
    (candidate,) = recorder.pods
    kubernetes_validate.validate(candidate, "1.34", strict=True)
    assert labels_and_annotations(candidate) == ("2", origin)
    assert candidate["metadata"]["labels"].items() >= CANDIDATE.items()
    switched, committed = recorder.applied
    templates = [body["spec"]["template"] for body in recorder.applied]
    assert templates[0] == templates[1], "a commit must not replace the pods"
    assert labels_and_annotations(templates[0]) == ("2", origin)
    # and the Deployment is of version 1 until version 2 is committed
    assert labels_and_annotations(switched) == ("1", before)
    version, annotations = labels_and_annotations(committed)
    assert version == "2" and annotations.items() >= origin.items()
    assert annotations["kubernetes.io/change-cause"] == "model version 2, r@sha256:2"
    # and its Events tell the story
    assert [event["reason"] for event in recorder.told] == [
        "RolloutStarted", "CandidateReady", "TrafficSwitching", "RolloutCommitted"
    ]  # fmt: skip


def test_what_is_undone_is_as_it_was(bento: Path) -> None:
    # given version 1 in service, and the traffic led to version 2
    before = {
        "health-predict/image": "r@sha256:1",
        "health-predict/model-version": "1",
        "health-predict/run-id": "1",
        "health-predict/since": "2026-01-01T00:00:00+00:00",
        "kubernetes.io/change-cause": "model version 1, r@sha256:1",
    }
    recorder = Recorder(deployment(before))
    change = rollout(recorder)
    change.start("r@sha256:2", "2", bento)
    change.switch()
    # when
    change.undo("golden request 1 of 40: prediction is 0, expected 1")
    # then
    undone = recorder.applied[-1]
    template = undone["spec"]["template"]
    assert labels_and_annotations(undone) == ("1", before)
    assert labels_and_annotations(template) == (
        "1", {"health-predict/model-version": "1", "health-predict/run-id": "1"}
    )  # fmt: skip
    assert template["spec"]["containers"][0]["image"] == "r@sha256:1"
    assert [(event["type"], event["reason"]) for event in recorder.told[-2:]] == [
        ("Warning", "RolloutUndone"), ("Warning", "RolloutFailed")
    ]  # fmt: skip


def test_without_a_version_before_nothing_is_said(tmp_path: Path) -> None:
    # given a Deployment that never served, and a Bento that does not say what it is
    recorder = Recorder(deployment({}))
    change = rollout(recorder)
    change.start("r@sha256:2", "2", tmp_path)
    change.switch()
    # when
    change.undo()
    # then
    undone = recorder.applied[-1]
    assert undone["spec"]["paused"] is True
    for item in (undone, undone["spec"]["template"]):
        assert labels_and_annotations(item) == (None, {})
