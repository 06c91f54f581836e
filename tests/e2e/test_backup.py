"""Backup and restore on the cluster's own databases and object store."""

from __future__ import annotations

from pathlib import Path

import pytest

from health_predict.adapters.mlflow import Tracking
from health_predict.operations.backup import backup, backups, restore
from tests.e2e.conftest import MLFLOW, OBJECT_STORE, Place, kubectl, object_store_keys

pytestmark = pytest.mark.full


def test_what_was_lost_since_the_backup_is_back_and_what_came_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a run in MLflow, and a backup
    for name, value in object_store_keys().items():
        monkeypatch.setenv(name, value)
    (tmp_path / "home").mkdir()
    settings = Place(tmp_path / "home").settings(
        profile="kind",
        mlflow_tracking_uri=MLFLOW,
        storage_uri="s3://mlpipeline/health-predict",
        s3_endpoint_url=OBJECT_STORE,
    )
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
    assert (
        kubectl("-n", "health-predict", "get", "deployment", "mlflow", "-o", "jsonpath={.status.readyReplicas}") == "1"
    )
