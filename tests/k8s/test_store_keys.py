"""`k8s/store-keys`: who may do what in the object store. Commands on PATH stand for kubectl and SeaweedFS' shell."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = Path(__file__).parent / "commands"
PLACES = {
    "service": "health-predict/readmission-api-object-store",
    "mlflow": "health-predict-tracking/mlflow-object-store",
    "backup": "health-predict-tracking/backup-object-store",
    "tasks": "kubeflow/health-predict-credentials",
    "operator": "kubeflow/health-predict-operator",
    "runs": "kubeflow/health-predict-artifacts",
}
ENDPOINT = "http://seaweedfs.kubeflow:9000"
Key = tuple[str, str]


class Store:
    """A cluster with Kubeflow's object store, as those commands remember it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name in ("kubectl", "weed"):
            shutil.copy(COMMANDS / name, folder / "bin")
        for name in ("objects", "containers"):
            (folder / name).mkdir()
        (folder / "containers" / "health-predict-control-plane").write_text("true\n")
        (folder / "kubeconfig").write_text("kind-health-predict\n")
        (folder / "objects" / "mlpipeline-minio-artifact").write_text("{}")

    def run(self, endpoint: str = ENDPOINT, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "WORLD": str(self.folder),
            "KUBECONFIG": str(self.folder / "kubeconfig"),
        }
        places = ("s3://mlpipeline/health-predict", "s3://mlpipeline/mlflow", "s3://mlpipeline/backups")
        return subprocess.run(
            [str(ROOT / "k8s" / "store-keys"), *places, endpoint],
            env={**kept, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def up(self, endpoint: str = ENDPOINT, **environment: str) -> str:
        done = self.run(endpoint, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def secret(self, workload: str) -> Path:
        return self.folder / "objects" / PLACES[workload].replace("/", "+")

    def key(self, workload: str) -> Key:
        """What lies in the Secret of that workload: access key and secret key."""
        text = self.secret(workload).read_text()
        access, secret = (
            re.search(rf'{name}: "(.*)"', text) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        )
        assert access and secret
        return access[1], secret[1]

    def keys(self) -> dict[str, Key]:
        return {workload: self.key(workload) for workload in PLACES if self.secret(workload).exists()}

    def known(self, workload: str) -> list[Key]:
        """The keys that the object store takes for that workload's."""
        lines = (self.folder / "store" / f"health-predict-{workload}").read_text().splitlines()
        return [(line.split()[0], line.split()[1]) for line in lines]

    def allowed(self, workload: str) -> set[tuple[str, str]]:
        """Action and place of all that the policy of that workload allows."""
        user = f"health-predict-{workload}"
        assert (self.folder / "store" / f"{user}.policies").read_text().split() == [user]
        policy = json.loads((self.folder / "store" / f"{user}.json").read_text())
        assert all(statement["Effect"] == "Allow" for statement in policy["Statement"])
        return {
            (action.removeprefix("s3:"), resource.removeprefix("arn:aws:s3:::"))
            for statement in policy["Statement"]
            for action in statement["Action"]
            for resource in statement["Resource"]
        }


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    yield Store(tmp_path)


def below(place: str, *actions: str) -> set[tuple[str, str]]:
    return {(action, f"mlpipeline/{place}/*") for action in actions}


def test_each_workload_has_a_key_that_may_do_what_it_needs(store: Store) -> None:
    # when the keys are made
    store.up()
    # then each is another one, of random bits, and the store knows exactly these
    made = store.keys()
    assert made.keys() == PLACES.keys() and len(set(made.values())) == len(PLACES)
    assert all(re.fullmatch("[0-9a-f]{20}", access) for access, _ in made.values())
    assert all(re.fullmatch("[0-9a-f]{48}", secret) for _, secret in made.values())
    assert {workload: store.known(workload) for workload in PLACES} == {name: [key] for name, key in made.items()}
    # and what they may do is narrow
    names, write = {("ListBucket", "mlpipeline")}, ("AbortMultipartUpload", "ListMultipartUploadParts", "PutObject")
    change = ("DeleteObject", *write)
    assert store.allowed("service") == below("health-predict/predictions", "AbortMultipartUpload", "PutObject")
    assert store.allowed("mlflow") == names | below("mlflow", "GetObject", *change)
    assert store.allowed("backup") == names | below("backups", *change)
    assert store.allowed("tasks") == names | below("raw", "GetObject") | below("health-predict", "GetObject", *change)
    places = ("raw", "health-predict", "backups")
    more = ("GetObject", "DeleteObjectVersion", *change)
    versions = {("ListBucketVersions", "mlpipeline")}
    assert store.allowed("operator") == names.union(versions, *(below(place, *more) for place in places))
    parts = (below(place, "GetObject", *write) for place in ("v2/artifacts", "private-artifacts"))
    assert store.allowed("runs") == names.union(*parts)
    # and no value stands on a command line, or is printed
    calls = (store.folder / "calls").read_text()
    assert not [value for key in made.values() for value in key if value in calls]


def test_keys_stay_and_one_that_is_deleted_is_replaced(store: Store) -> None:
    # given keys that were made
    store.up()
    made = store.keys()
    # when they are made again, then nothing changes
    assert store.up() == ""
    assert store.keys() == made
    # when one is deleted, then the store knows the new one and forgets the old one
    store.secret("mlflow").unlink()
    store.up()
    assert store.key("mlflow") != made["mlflow"] and store.known("mlflow") == [store.key("mlflow")]
    assert store.key("backup") == made["backup"]


def test_the_store_s_own_key_is_taken_from_the_tasks_of_before(store: Store) -> None:
    # given an installation whose tasks have the store's own key, which that kubectl calls so
    store.secret("tasks").write_text('AWS_ACCESS_KEY_ID: "made-once"\nAWS_SECRET_ACCESS_KEY: "made-once"\n')
    store.up()
    assert store.key("tasks")[0] != "made-once" and store.known("tasks") == [store.key("tasks")]


def test_a_store_that_does_not_take_the_keys_is_named(store: Store) -> None:
    # given a store that answers with errors, whose shell ends well all the same
    (store.folder / "store-fails").touch()
    done = store.run()
    assert done.returncode == 5 and "does not take the keys of its workloads -> " in done.stderr
    # when it answers again, then the same keys are brought in
    made = store.keys()
    (store.folder / "store-fails").unlink()
    store.up()
    assert store.keys() == made and store.known("service") == [made["service"]]


def test_a_store_without_identities_has_one_key_for_all(store: Store) -> None:
    # given another server in its place; keys of a person's shell are not for it
    (store.folder / "store-image").write_text("registry.example/moto:1")
    said = store.up(AWS_ACCESS_KEY_ID="mine", AWS_SECRET_ACCESS_KEY="my-secret")
    # then that is said, and all have its key
    assert "all workloads have one key" in said
    assert store.keys() == dict.fromkeys(PLACES.keys() - {"runs"}, ("made-once", "made-once"))


def test_another_store_has_the_keys_of_the_shell_and_kubeflow_s_runs_their_own(store: Store) -> None:
    store.up("https://objects.example", AWS_ACCESS_KEY_ID="mine", AWS_SECRET_ACCESS_KEY="my-secret")
    keys = store.keys()
    runs = keys.pop("runs")
    assert set(keys.values()) == {("mine", "my-secret")} and store.known("runs") == [runs]


def test_s3_itself_has_roles_in_place_of_keys(store: Store) -> None:
    store.up("")
    assert store.keys().keys() == {"runs"}
