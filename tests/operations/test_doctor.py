"""What `doctor` finds, and that it finds everything that is wrong at once."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from health_predict.errors import UnreachableError
from health_predict.operations import doctor as examination
from health_predict.operations.doctor import Check, Health, doctor, room_left
from health_predict.operations.status import status
from health_predict.settings import ServingTarget, Settings


def named(checks: Iterable[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_machine_that_is_ready(tmp_path: Path, port: int) -> None:
    # given data, a free port, a commit, and a home that does not exist yet
    data = tmp_path / "data.csv"
    data.write_text("x")
    home = tmp_path / "new" / "home"
    # when
    checks = list(doctor(Settings(home=home, serving_port=port, data_source=str(data), git_commit="c" * 40)))
    # then nothing fails, and nothing was created
    assert [check for check in checks if check.health is Health.FAIL] == []
    assert named(checks, "git commit").finding == "c" * 40
    assert named(checks, "endpoint").finding == f"port {port} is free"
    assert "bentoml 1.4" in named(checks, "packages").finding
    assert not home.exists() and not home.parent.exists()


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a home inside a file, no such storage, a missing data file, a tracking server that is down
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = Settings(
        home=tmp_path / "file" / "home",
        storage_uri="ftp://somewhere",
        data_source=str(tmp_path / "missing.csv"),
        serving_port=port,
        mlflow_tracking_uri=f"http://127.0.0.1:{port}",
    )
    # when
    checks = list(doctor(settings))
    # then each has its line and a remedy
    failed = {check.name for check in checks if check.health is Health.FAIL}
    assert failed == {"home", "storage", "data", "tracking"}
    assert all(check.remedy for check in checks if check.health is Health.FAIL)


def test_folders_that_others_may_enter_are_named(tmp_path: Path, port: int) -> None:
    # given a home and a storage elsewhere of somebody who lets a group and everybody read
    home, storage = tmp_path / "the home", tmp_path / "storage"
    home.mkdir()
    storage.mkdir()
    home.chmod(0o755)
    storage.chmod(0o750)
    settings = Settings(home=home, serving_port=port, storage_uri=storage.as_uri())
    # then both are warned about, with a remedy that closes them
    for name, folder in (("home", home), ("storage", storage)):
        check = named(doctor(settings), name)
        assert check.health is Health.WARN and "others may enter it" in check.finding
        subprocess.run(shlex.split(check.remedy), check=True)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert named(doctor(settings), name).health is Health.OK


def test_a_taken_port_fails(tmp_path: Path, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        check = named(doctor(Settings(home=tmp_path, serving_port=port)), "endpoint")
    assert check.health is Health.FAIL and "HEALTH_PREDICT_SERVING_PORT" in check.remedy


@pytest.mark.parametrize(
    ("source", "health"), [("", Health.WARN), ("synthetic", Health.WARN), ("s3://bucket/key", Health.OK)]
)
def test_sources_of_data(tmp_path: Path, port: int, source: str, health: Health) -> None:
    checks = list(doctor(Settings(home=tmp_path, serving_port=port, data_source=source)))
    assert named(checks, "data").health is health


def test_a_source_that_does_not_answer_fails(tmp_path: Path, port: int) -> None:
    checks = list(doctor(Settings(home=tmp_path, serving_port=port, data_source=f"http://127.0.0.1:{port}/data.csv")))
    assert named(checks, "data").health is Health.FAIL


def test_a_cluster_that_nobody_configured_fails_with_a_remedy(tmp_path: Path, port: int) -> None:
    # given a local port that is taken, which does not matter where a cluster serves
    with socket.create_server(("127.0.0.1", port)):
        checks = list(doctor(Settings(home=tmp_path, serving_port=port, serving_target=ServingTarget.KUBERNETES)))
    # then
    for name in ("cluster", "endpoint"):
        check = named(checks, name)
        assert check.health is Health.FAIL and check.finding.startswith("no cluster is configured")
        assert "KUBECONFIG" in check.remedy


def test_a_small_machine_is_warned_about(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a machine that has less of everything than is needed
    for name in ("NEEDED_MEMORY_GIB", "NEEDED_DISK_GIB", "NEEDED_SHARED_MEMORY_GIB"):
        monkeypatch.setattr(examination, name, 1e9)
    monkeypatch.setattr(examination, "PACKAGES", "absent numpy")
    # when
    checks = list(doctor(Settings(home=tmp_path, serving_port=port)))
    # then each is told with a remedy, and only what cannot work fails
    found = {check.name: check.health for check in checks if check.health is not Health.OK}
    warned = {name for name, health in found.items() if health is Health.WARN}
    assert {"machine", "home"} <= warned and ("shared memory" in warned) == (sys.platform == "linux")
    assert {name for name, health in found.items() if health is Health.FAIL} == {"package absent"}
    assert all(check.remedy for check in checks if check.health is not Health.OK)


def test_an_endpoint_that_was_killed_is_named(tmp_path: Path, port: int) -> None:
    # given the record of an endpoint that nobody stopped
    (tmp_path / "serving").mkdir()
    record = {"state": "failed", "model_version": "7", "reason": "it crashed"}
    (tmp_path / "serving" / "active.json").write_text(json.dumps(record))
    # then
    check = named(doctor(Settings(home=tmp_path, serving_port=port)), "endpoint")
    assert check.health is Health.WARN and "version 7 was given up: it crashed" in check.finding


def test_servers_that_never_answer_are_named_in_seconds(tmp_path: Path) -> None:
    # given an address that takes connections and says nothing, as a forwarded port of a closed server does
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = Settings(
            home=tmp_path,
            storage_uri="s3://bucket/prefix",
            s3_endpoint_url=address,
            mlflow_tracking_uri=address,
            kfp_host=address,
        )
        told: list[str] = []
        began = time.monotonic()
        found = {check.name: check for check in doctor(settings, told.append)}
    # then each is a failure with a remedy, long before their clients would give up
    for name in ("storage", "tracking", "pipelines"):
        assert found[name].health is Health.FAIL and "does not answer within 5 s" in found[name].finding
        assert "HEALTH_PREDICT_" in found[name].remedy
    assert time.monotonic() - began < 60
    # and what is asked is told before it is
    assert told.index("storage") < told.index("tracking") < told.index("pipelines")


def test_status_names_the_server_that_never_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnreachableError, match="does not answer within 5 s"):
            status(Settings(home=tmp_path, storage_uri="s3://bucket/x", s3_endpoint_url=address))


def pod(node: str, phase: str, requests: list[str], first: str = "0") -> dict[str, Any]:
    return {
        "spec": {
            "nodeName": node,
            "containers": [{"resources": {"requests": {"cpu": cpu, "memory": "256Mi"}}} for cpu in requests],
            "initContainers": [{"resources": {"requests": {"cpu": first}}}],
        },
        "status": {"phase": phase},
    }


def test_room_on_a_node_is_counted_as_the_scheduler_does() -> None:
    # given a node of two processors and 4 GiB, pods there, elsewhere, and one that ended
    node = {"metadata": {"name": "here"}, "status": {"allocatable": {"cpu": "2", "memory": "4Gi"}}}
    pods = [
        pod("here", "Running", ["250m", "0.5"]),
        pod("here", "Pending", ["50m"], first="400m"),
        pod("there", "Running", ["1"]),
        pod("here", "Succeeded", ["1"]),
    ]
    # then of a pod's init containers the largest counts, where it is more than the others together
    cpus, memory = room_left(node, pods)
    assert cpus == pytest.approx(2 - 0.75 - 0.4) and memory == pytest.approx(4 - 0.75)
