"""Backup and restore without a cluster: what is stored where, and what is said when something is missing.

The databases themselves are in `tests/e2e/test_platform.py`; here a script in kubectl's place shows what it is asked.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from health_predict.errors import SettingsError, StateError, UnreachableError
from health_predict.operations.backup import backup, backups, restore
from health_predict.settings import Settings

KUBECTL = """#!/bin/sh
echo "$@" >>"$CALLS"
case "$*" in
    *"$BROKEN"*) echo "the pod is away" >&2; exit 1 ;;
    *"get pod postgres-0"*) echo pod/postgres-0 ;;
    *pg_dump*) echo "a dump" ;;
    *pg_restore*) cat >"$CALLS.restored" ;;
esac
"""


@pytest.fixture
def settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_settings: Callable[..., Settings], s3_endpoint: str
) -> Settings:
    tool = tmp_path / "bin" / "kubectl"
    tool.parent.mkdir()
    tool.write_text(KUBECTL)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("BROKEN", "nothing is broken")
    bucket = f"bucket-{uuid.uuid4().hex}"  # servers of one process share their buckets
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket=bucket)
    return make_settings(storage_uri=f"s3://{bucket}/health-predict", s3_endpoint_url=s3_endpoint)


def test_a_dump_is_stored_beside_the_nightly_ones_and_put_back(settings: Settings, tmp_path: Path) -> None:
    # given a cluster with Postgres alone
    (made,) = backup(settings)
    # then its dump lies where the CronJob's lie
    assert "/backups/mlflow-" in made.uri
    assert backups(settings) == [made]
    # when it is restored
    restore(settings, made.name)
    # then those bytes went in, while MLflow was away
    assert (tmp_path / "calls.restored").read_text() == "a dump\n"
    asked = [line for line in (tmp_path / "calls").read_text().splitlines() if "scale" in line or "pg_restore" in line]
    assert ["replicas=0" in asked[0], "pg_restore" in asked[1], "replicas=1" in asked[2]] == [True, True, True]


def test_a_restore_that_fails_brings_mlflow_back(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made,) = backup(settings)
    monkeypatch.setenv("BROKEN", "pg_restore")
    with pytest.raises(StateError, match="the pod is away"):
        restore(settings, made.name)
    assert "replicas=1" in (tmp_path / "calls").read_text()


def test_a_dump_that_fails_stores_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKEN", "pg_dump")
    with pytest.raises(StateError, match="the pod is away"):
        backup(settings)
    assert backups(settings) == []


def test_what_is_missing_is_named(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_settings: Callable[..., Settings]
) -> None:
    with pytest.raises(StateError, match="there is no backup mlflow-x"):
        restore(settings, "mlflow-x.dump")
    with pytest.raises(SettingsError, match="is no bucket"):
        backups(make_settings())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnreachableError, match="kubectl is not installed"):
        backup(settings)
