"""The platform from nothing: MLflow on Postgres, what each account may do, and what survives the death of a pod."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from health_predict.adapters.tracking import Tracking
from health_predict.operations.backup import backup, backups, restore
from health_predict.operations.doctor import Health, doctor
from health_predict.settings import Settings
from tests.e2e import platform
from tests.e2e.conftest import MLFLOW, NAMESPACE, ROOT, TRACKING, Place, kubectl, object_store_keys, outside, until

PIPELINE = "system:serviceaccount:kubeflow:health-predict-pipeline"
ROLLOUT = "system:serviceaccount:kubeflow:health-predict-rollout"


@pytest.fixture(scope="module", autouse=True)
def platform_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """From nothing."""
    folder = tmp_path_factory.mktemp("platform")
    platform.down()
    platform.prepare(folder)
    platform.up(folder)
    yield


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "home").mkdir()
    return Place(tmp_path / "home")


@pytest.fixture
def tracking(place: Place) -> Tracking:
    return Tracking(place.settings(mlflow_tracking_uri=MLFLOW))


@pytest.fixture
def settings(place: Place, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Those of a shell outside, with the object store's keys in its environment."""
    for name, value in object_store_keys().items():
        monkeypatch.setenv(name, value)
    return place.settings(**outside(), storage_uri="s3://mlpipeline/health-predict")


def pods(name: str) -> list[str]:
    found = kubectl("-n", TRACKING, "get", "pods", "-l", f"app.kubernetes.io/name={name}", "-o", "json")
    return [item["metadata"]["uid"] for item in json.loads(found)["items"]]


def test_a_repetition_changes_nothing(tmp_path: Path) -> None:
    # given what runs
    before = {name: pods(name) for name in ("postgres", "mlflow")}
    password = kubectl("-n", TRACKING, "get", "secret", "postgres", "-o", "jsonpath={.data.password}")
    # when it is brought up again
    platform.up(tmp_path)
    # then nothing was restarted and no secret made anew
    assert {name: pods(name) for name in before} == before
    assert kubectl("-n", TRACKING, "get", "secret", "postgres", "-o", "jsonpath={.data.password}") == password


def test_runs_survive_postgres_and_a_new_password(tracking: Tracking) -> None:
    # given a run with an artifact that went through the server to the object store
    run = tracking.start_search("survives", {}, {"trials": 3})
    tracking.log_json(run, "kept.json", {"answer": 42})
    tracking.end_search(run, {"auc": 0.7})
    # when Postgres is killed
    (old,) = pods("postgres")
    kubectl("-n", TRACKING, "delete", "pod", "postgres-0", "--grace-period=0", "--force")
    until(lambda: old not in pods("postgres") and len(pods("postgres")) == 1)
    kubectl("-n", TRACKING, "rollout", "status", "statefulset/postgres", "--timeout=180s")
    # then everything is there
    found = until(lambda: tracking.run(run))
    assert found.metrics["auc"] == 0.7 and found.params["trials"] == "3"
    assert tracking.read_json(run, "kept.json") == {"answer": 42}
    # and a new password changes nothing for who asks
    before = kubectl("-n", TRACKING, "get", "secret", "postgres", "-o", "jsonpath={.data.password}")
    assert subprocess.run([str(ROOT / "k8s" / "rotate")], timeout=420, check=False).returncode == 0
    assert kubectl("-n", TRACKING, "get", "secret", "postgres", "-o", "jsonpath={.data.password}") != before
    assert until(lambda: tracking.run(run)).run_id == run


def test_the_backup_is_written_to_the_object_store() -> None:
    kubectl("-n", TRACKING, "delete", "job", "backup-now", "--ignore-not-found", "--wait")
    kubectl("-n", TRACKING, "create", "job", "backup-now", "--from=cronjob/backup")
    kubectl("-n", TRACKING, "wait", "--for=condition=complete", "job/backup-now", "--timeout=180s")
    log = kubectl("-n", TRACKING, "logs", "job/backup-now", "-c", "upload").splitlines()
    # then there is a dump of each database that the cluster has
    stored = {line.split()[0].rpartition("/")[2].partition("-")[0]: int(line.split()[1]) for line in log}
    assert all(line.startswith("s3://mlpipeline/backups/") for line in log)
    assert stored.keys() == {"mlflow", *(["pipelines"] if platform.have_pipelines() else [])}
    assert min(stored.values()) > 10_000


@pytest.mark.full
def test_what_was_lost_since_a_backup_is_back_and_what_came_is_gone(settings: Settings) -> None:
    # given a run in MLflow, and a backup
    tracking = Tracking(settings)
    before = tracking.start_search("before the backup", {}, {})
    tracking.end_search(before, {"auc": 0.7})
    made = {item.database: item for item in backup(settings)}
    assert made["mlflow"] in backups(settings)
    # when more happens, and the backup is put back
    after = tracking.start_search("after the backup", {}, {})
    tracking.end_search(after, {"auc": 0.1})
    restore(settings, made["mlflow"].name)
    # then MLflow has what it had then
    assert Tracking(settings).run(before).metrics["auc"] == 0.7
    assert after not in {run.run_id for run in Tracking(settings).runs("")}
    assert kubectl("-n", TRACKING, "get", "deployment", "mlflow", "-o", "jsonpath={.status.readyReplicas}") == "1"


@pytest.mark.parametrize(
    ("account", "allowed", "arguments"),
    [
        (ROLLOUT, True, ("patch", "deployments/readmission-api", "-n", NAMESPACE)),
        (ROLLOUT, True, ("create", "pods", "-n", NAMESPACE)),
        (ROLLOUT, True, ("create", "leases.coordination.k8s.io", "-n", NAMESPACE)),
        (ROLLOUT, True, ("update", "leases.coordination.k8s.io/readmission-api-rollout", "-n", NAMESPACE)),
        (ROLLOUT, True, ("create", "events", "-n", NAMESPACE)),
        (ROLLOUT, False, ("delete", "deployments/readmission-api", "-n", NAMESPACE)),
        (ROLLOUT, False, ("get", "pods", "-n", "kubeflow")),
        (PIPELINE, True, ("get", "secrets/health-predict-artifacts", "-n", "kubeflow")),
        (PIPELINE, True, ("create", "workflowtaskresults.argoproj.io", "-n", "kubeflow")),
        (PIPELINE, False, ("get", "secrets/health-predict-rollout", "-n", "kubeflow")),
        (PIPELINE, False, ("create", "pods", "-n", "kubeflow")),
        (PIPELINE, False, ("patch", "deployments/readmission-api", "-n", NAMESPACE)),
        (PIPELINE, False, ("get", "pods", "-n", NAMESPACE)),
        *(
            (account, False, arguments)
            for account in (ROLLOUT, PIPELINE)
            for arguments in (
                ("get", "secrets/postgres", "-n", TRACKING),
                ("get", "secrets/readmission-api-object-store", "-n", NAMESPACE),
                ("get", "secrets/mlpipeline-minio-artifact", "-n", "kubeflow"),
                ("list", "secrets", "-n", NAMESPACE),
                ("list", "secrets", "-n", "kubeflow"),
                ("patch", "deployments/mlflow", "-n", TRACKING),
                ("create", "pods", "-n", TRACKING),
                ("create", "pods", "-n", "kubeflow"),
                ("create", "pods", "--subresource=exec", "-n", NAMESPACE),
                ("create", "serviceaccounts/health-predict-rollout", "--subresource=token", "-n", "kubeflow"),
                ("patch", "configmaps/health-predict-pods", "-n", NAMESPACE),
                ("delete", "validatingadmissionpolicybindings.admissionregistration.k8s.io"),
                ("get", "nodes"),
                ("list", "pods", "-A"),
                ("create", "clusterrolebindings"),
            )
        ),
    ],
)
def test_each_account_may_do_what_it_needs_and_no_more(account: str, allowed: bool, arguments: tuple[str, ...]) -> None:
    if "argoproj.io" in arguments[1] and not platform.have_pipelines():
        pytest.skip("skipped: a cluster without Kubeflow Pipelines does not know this resource")
    answer = kubectl("auth", "can-i", *arguments, f"--as={account}", check=False).strip()
    assert answer.endswith("yes") is allowed, answer


def test_every_pod_passes_the_restricted_standard() -> None:
    # the namespaces enforce it; what would break it is warned of by a dry run
    for namespace in (NAMESPACE, TRACKING):
        done = kubectl(
            *("label", "--dry-run=server", "--overwrite", "namespace", namespace),
            "pod-security.kubernetes.io/enforce=restricted",
        )
        assert "Warning" not in done


def test_the_doctor_examines_the_cluster(settings: Settings) -> None:
    # when it looks from outside, then each part is found
    checks = {check.name: check for check in doctor(settings)}
    wanted = {"cluster", "postgres", "mlflow", "registry", "storage", "tracking"}
    assert {name: checks[name].health for name in wanted} == dict.fromkeys(wanted, Health.OK)
