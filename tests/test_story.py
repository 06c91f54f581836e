"""A monitored month by the commands a user gives: what people are told is its story, in order and each event once."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cohorts import synthesize
from tests.conftest import as_if_real
from tests.contracts import ENCOUNTER
from tests.receivers import Webhook, webhook
from tests.shell import Shell, free_port

pytestmark = pytest.mark.slow

MONTH = Path(__file__).parents[1] / "docs" / "examples" / "month.py"
A_MONTH_LATER = ("--as-of", "2026-12-02")
SECRET = "t0ken"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Webhook]:
    with webhook() as found:
        yield found


@pytest.fixture(scope="module")
def shell(receiver: Webhook, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A home whose people are told by two webhooks, one of which does not run at first."""
    addresses = [f"{receiver.address}/{SECRET}", f"json://127.0.0.1:{free_port()}/{SECRET}"]
    settings = {"NOTIFY": json.dumps(addresses), "FAMILIES": '["LogisticRegression"]', "WINDOW": "month"}
    shell = Shell(tmp_path_factory.mktemp("story"), INITIAL_SHARE=0.8, FUTURE_BATCHES=2, **settings)
    try:
        yield shell
    finally:
        shell.end()


def test_the_messages_of_a_month_are_its_story(shell: Shell, receiver: Webhook) -> None:
    # given a model in service
    data = shell.folder / "cohort.csv"
    as_if_real(synthesize(14_000, seed=11)).to_csv(data, index=False)
    shell.ask("demo", DATA_SOURCE=data)
    # and a month of encounters in which the truth is reversed; a few are broken, one of them in a file of outcomes
    subprocess.run([sys.executable, str(MONTH), str(shell.folder)], check=True, env=shell.environment)
    broken = shell.folder / "week-1.csv"
    lines = broken.read_text().splitlines()
    patient = lines[1].split(",")[lines[0].split(",").index("patient_nbr")]
    at = lines[0].split(",").index("time_in_hospital")
    cells = lines[1].split(",")
    broken.write_text("\n".join([lines[0], ",".join([*cells[:at], "991", *cells[at + 1 :]]), *lines[2:], ""]))
    for week in range(1, 5):
        for _ in range(2):  # twice, as after a crash: told once
            shell.ask("data", "add", str(shell.folder / f"week-{week}.csv"), "--as-of", "2026-11-01")
        shell.ask("data", "outcomes", str(shell.folder / f"outcomes-{week}.csv"), "--as-of", "2026-11-02")
    (shell.home / "storage" / "outcomes" / "torn.csv").write_text(f"{ENCOUNTER}\n1\n")
    # when what arrived is judged once its outcomes are known, and once more, where a person is asked
    for _ in range(2):
        shell.ask("pipeline", "run", "monitoring", *A_MONTH_LATER, APPROVAL="ask")
    # then nothing has changed without one
    found = shell.json("status")
    assert (found["champion"], found["serving"]["model_version"]) == ("1", "1")
    # and the new version has learned from the champion's patients and from all that have arrived, in a shell that names
    # no data and has no network
    manifests = [json.loads(file.read_text()) for file in (shell.home / "storage" / "datasets").glob("*/manifest.json")]
    (learned,) = [one for one in manifests if "arrivals" in one]
    assert [one["batch"] for one in learned["arrivals"]] == [0]
    assert found["data"] == f"custom data (SHA-256 {hashlib.sha256(data.read_bytes()).hexdigest()[:12]})"
    # when a person approves, and another model is asked for from a file that is not there
    shell.ask("approve", "2", "--by", "A. Person", "--why", "the truth has turned", APPROVAL="ask")
    shell.ask("pipeline", "run", "training", "-p", f"data_source={shell.folder / 'absent.csv'}", code=3)
    assert shell.json("lineage")["intact"]
    # then that is what people read
    assert receiver.titles == [
        "deployed",
        "batch quarantined",
        "batch quarantined",
        "drift alarm",
        "retraining begun",
        "waiting for approval",
        "deployed",
        "run failed",
    ]
    said = [letter["message"] for letter in receiver.letters]
    assert "Version 1 is in service" in said[0] and "Version 2 is in service" in said[6]
    assert "time_in_hospital" in said[1] and "outcomes" in said[2]
    assert "Batch 0" in said[3] and "report.html" in said[3]
    assert "retrain version 1" in said[4]
    assert "Version 2 passed its gates and waits" in said[5] and "health-predict approve 2" in said[5]
    assert "of training failed" in said[7] and "`health-predict pipeline list`" in said[7]
    # and no value of a patient
    assert not any(patient in one or "991" in one for one in said)
    # and the other receiver's are kept and named
    kept = shell.json("notify", "list")
    assert [f"{message['event']}" for message in kept] == receiver.titles
    assert any("8 messages were not taken" in item for item in shell.json("status")["waiting"])
    # and what was written holds no address: neither storage, MLflow, nor any log
    files = [file for file in shell.home.rglob("*") if file.is_file()]
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []


def test_a_test_message_says_who_took_it(shell: Shell, receiver: Webhook) -> None:
    # when those who are told are tried out
    said = shell.ask("notify", "test", code=5)
    # then each is named without its secret
    assert f"ok      json://127.0.0.1:{receiver.port}" in said and "failed  json://127.0.0.1:" in said
    assert SECRET not in said
    assert receiver.titles[-1] == "test"
