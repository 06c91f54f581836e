"""The commands around the endpoint, as a person or a script calls them."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from health_predict.adapters.tracking import CHAMPION, Tracking
from health_predict.commands import operate
from health_predict.core.model.evaluation import COMPARED
from health_predict.errors import StateError
from health_predict.operations.status import Arrived
from health_predict.settings import Settings


@pytest.fixture
def settings(make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> Settings:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    settings = make_settings(serving_port=port, git_commit="c" * 40)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    return settings


def call(*arguments: str) -> Result:
    app = typer.Typer()
    operate.mount(app)
    return CliRunner().invoke(app, arguments)


def test_a_fresh_home(settings: Settings) -> None:
    # given nothing but an empty registry, then each command says so
    assert "nothing was running" in call("down").output
    answer = call("status")
    assert "nothing" in answer.output and "no champion yet" in answer.output
    assert "none yet" in answer.output and "0 of 0 batches" in answer.output
    refused = call("serve")
    assert isinstance(refused.exception, StateError) and "champion" in str(refused.exception)
    assert call("serve", "--logs").output.strip() == str(settings.home / "serving" / "serving.log")
    untraceable = call("lineage", "--json")
    assert isinstance(untraceable.exception, StateError) and untraceable.exception.exit_code == 4


def test_status_for_scripts_and_for_people(settings: Settings) -> None:
    # given a synthetic champion without an image
    tracking = Tracking(settings)
    run = tracking.start_search("a run", {}, {})
    estimate = {"value": 0.66, "low": 0.64, "high": 0.68}
    tested = {"rows": 2922, "positives": 343, "metrics": dict.fromkeys((*COMPARED, "f1"), estimate)}
    difference = {"one": estimate, "other": estimate, "difference": {"value": 0.0, "low": -0.01, "high": 0.01}}
    beside = {"against": "7", "on": "its rows", "rows": 2922, "metrics": dict.fromkeys(COMPARED, difference)}
    tracking.log_json(run, "evaluation.json", {"on_test": tested, "comparisons": [beside]})
    version = tracking.register(run, {"dataset_source": "synthetic", "family": "XGBoost"}, "").version
    tracking.set_alias(CHAMPION, version)
    # when
    found = json.loads(call("status", "--json").stdout)
    text = call("status").output
    # then both say the same
    assert found["champion"] == version and found["serving"] is None and found["synthetic"]
    assert found["on_test"]["metrics"]["auc"]["value"] == 0.66
    assert [beside["against"] for beside in found["comparisons"]] == ["7"]
    assert "2,922 encounters, 343 readmitted" in text and "0.660 [0.640, 0.680]" in text
    assert "beside version 7, on 2,922 encounters: its rows" in text and "Share flagged" in text
    assert "SYNTHETIC" in text and "health-predict serve" in text
    # and what cannot be served is refused with the next step
    refused = call("serve")
    assert isinstance(refused.exception, StateError) and "pipeline run deployment" in refused.exception.remedy


def test_what_arrived_is_told_in_a_line() -> None:
    counts = {"taken": 1200, "late": 0, "repeated": 3, "contradicting": 1, "unknown": 7, "damaged": ()}
    arrived = Arrived(1500, 300, 2, 40, 5, 0, counts)
    assert operate._arrivals(arrived) == (
        "1,500, of these 300 in the open window; 40 without a patient, never learned from; 5 repeated and left out"
    )
    assert operate._outcomes(counts) == "1,200 known; 3 repeated; 1 contradicting; 7 for nobody in a batch yet"


def test_doctor_fails_only_when_something_does_not_work(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a machine that is ready
    monkeypatch.setenv("HEALTH_PREDICT_DATA_SOURCE", "synthetic")
    ready = call("doctor")
    assert ready.exit_code == 0 and "uvloop" in ready.output
    # and says it whole, however narrow the terminal is
    assert "…" not in ready.output
    # when the port is taken
    with socket.create_server(("127.0.0.1", settings.serving_port)):
        broken = call("doctor", "--json")
    # then that is told, and the exit code says so
    failed = {check["name"] for check in json.loads(broken.stdout) if check["health"] == "fail"}
    assert broken.exit_code == 1 and failed == {"endpoint"}
