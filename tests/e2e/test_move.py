"""An installation whose MLflow and database still lie beside the service, and what `k8s/up` makes of it."""

from __future__ import annotations

from pathlib import Path

import yaml

from health_predict.adapters.tracking import Tracking
from tests.e2e import platform
from tests.e2e.conftest import MLFLOW, NAMESPACE, OVERLAY, TRACKING, Place, kubectl, until

PASSWORD = "of-before"


def tracking_as_before() -> None:
    """MLflow and Postgres in the namespace of the service, as they were up to 0.1."""
    rendered = yaml.safe_load_all(kubectl("kustomize", str(OVERLAY)))
    kinds = ("ServiceAccount", "ConfigMap", "Service", "StatefulSet", "Deployment", "CronJob")
    items = [item for item in rendered if item["kind"] in kinds and item["metadata"].get("namespace") == TRACKING]
    for item in items:
        item["metadata"]["namespace"] = NAMESPACE
    values = {"password": PASSWORD, "uri": f"postgresql+psycopg2://mlflow:{PASSWORD}@postgres:5432/mlflow"}
    named = {"name": "postgres", "namespace": NAMESPACE}
    items.append({"apiVersion": "v1", "kind": "Secret", "metadata": named, "stringData": values})
    keys = {"AWS_ACCESS_KEY_ID": "minio", "AWS_SECRET_ACCESS_KEY": "minio-secret"}
    named = {"name": "object-store", "namespace": NAMESPACE}
    items.append({"apiVersion": "v1", "kind": "Secret", "metadata": named, "stringData": keys})
    kubectl("create", "namespace", NAMESPACE)
    kubectl("apply", "-f", "-", data=yaml.safe_dump_all(items))
    kubectl("-n", NAMESPACE, "rollout", "status", "deployment/mlflow", "--timeout=420s", timeout=440)


def test_an_older_installation_keeps_its_runs(tmp_path: Path) -> None:
    # given a run of an installation of before
    platform.down()
    platform.prepare(tmp_path)
    tracking_as_before()
    (tmp_path / "home").mkdir()
    settings = Place(tmp_path / "home").settings(mlflow_tracking_uri=MLFLOW)
    run = until(lambda: Tracking(settings).start_search("before the move", {}, {}))
    Tracking(settings).end_search(run, {"auc": 0.7})
    # when the platform is brought up, and once more
    platform.up(tmp_path)
    platform.up(tmp_path)
    # then the run is there, with the password that its database knows, and nothing of it is left beside the service
    assert until(lambda: Tracking(settings).run(run)).metrics["auc"] == 0.7
    password = "go-template={{.data.password | base64decode}}"
    assert kubectl("-n", TRACKING, "get", "secret", "postgres", "-o", password) == PASSWORD
    left = kubectl("-n", NAMESPACE, "get", "statefulsets,persistentvolumeclaims,cronjobs,secrets", "-o", "name").split()
    assert left == ["secret/readmission-api-object-store", "secret/readmission-api-tokens"]
    assert kubectl("-n", NAMESPACE, "get", "deployments", "-o", "name").split() == ["deployment.apps/readmission-api"]
