"""The whole of it as its user runs it: commands in a shell, on a small cohort given as a file.

The file is named to the demo alone. Every later command finds itself in a shell without that variable and without
network, and has to go on with the data of the champion.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from health_predict.core.choices import Scenario
from health_predict.core.data.partition import Parameters, batch_bounds
from tests.browser import address, browser, needs_chromium
from tests.cohorts import inject, synthesize
from tests.conftest import as_if_real
from tests.prometheus import needs, prometheus
from tests.shell import Shell, last_line

INITIAL_SHARE = 0.8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "cohort.csv"
    cohort = as_if_real(synthesize(14_000, seed=11))
    # Of the future encounters half as many again are readmitted: sure to be seen, and what a new calibration mends.
    future = batch_bounds(len(cohort), Parameters(INITIAL_SHARE, 2, ""))[0]
    inject(cohort, Scenario.PREVALENCE_UP, future, seed=1)[0].to_csv(file, index=False)
    return file


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A home, with everything in it stopped at the end."""
    shell = Shell(tmp_path_factory.mktemp("shell"), INITIAL_SHARE=INITIAL_SHARE, FUTURE_BATCHES=2)
    try:
        yield shell
    finally:
        shell.end()


@pytest.fixture(scope="module")
def demo(shell: Shell, data: Path) -> str:
    """What the demo says, after it was killed in the stage with the most processes and run again."""
    kill_in(shell, "hpo", "trial 1 of 2", DATA_SOURCE=data)
    # then nothing outlives the command: no stage, no Ray
    deadline = time.monotonic() + 30
    while left := shell.processes():
        assert time.monotonic() < deadline, [_command(process) for process in left]
        psutil.wait_procs(left, timeout=1)
    return shell.run("demo", DATA_SOURCE=data)


def kill_in(shell: Shell, stage: str, words: str, *arguments: str, **settings: object) -> list[str]:
    """Run a command, by default the demo, and kill -9 it once `stage` says some words; what was said until then."""
    process = shell.start(*(arguments or ("demo",)), **settings)
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(stage) and words in line:
            break
    else:
        pytest.fail(f"the command ended before stage {stage} said {words}: {''.join(said)}")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return said


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_demo_that_was_killed_ends_like_any_other(shell: Shell, demo: str) -> None:
    # then what the killed one had finished is used again, and it says what it did and how to talk to it
    assert "is in storage and whole" in demo
    assert "serves" in demo
    assert "test set" in demo
    assert "health-predict data add FILE, then health-predict pipeline run monitoring" in demo
    assert re.search(r"AUC +0\.\d+ \[0\.\d+, 0\.\d+\]", demo)
    # and the curl line works when it is pasted
    [line] = [line for line in demo.splitlines() if line.startswith("curl ")]
    answer = json.loads(subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout)
    assert answer["prediction"] in (0, 1)
    assert 0 < answer["probability_score"] < 1
    # and what was tried out does not count as an encounter
    assert "log=false" in line
    # and nothing half-done is left: no part files, no run that still seems to go on
    parts = [
        path for path in shell.home.rglob("*.part") if path.parent.name != "predictions"
    ]  # that one is being written
    assert parts == []
    assert {run["state"] for run in shell.json("pipeline", "list")} == {"killed", "succeeded"}
    from health_predict.adapters.tracking import Tracking
    from health_predict.settings import Settings

    tracking = Tracking(Settings(home=shell.home))
    assert tracking.runs("attributes.status = 'RUNNING'") == []
    # and there is one version and one champion
    assert [version.aliases for version in tracking.versions()] == [("champion",)]


def test_no_line_of_the_demo_is_a_stack_trace_or_a_warning(demo: str) -> None:
    assert "Traceback" not in demo
    assert "Warning" not in demo


def test_a_second_demo_finds_nothing_to_do(shell: Shell, demo: str) -> None:
    # given a demo that ended
    before = shell.json("status")
    # when it is asked for again
    output = shell.ask("demo")
    # then no stage runs, what serves is verified and reported as before
    assert "begins" not in output
    assert "every link from the endpoint to the data verified" in output
    assert [line for line in output.splitlines() if line.startswith("  AUC")] == [
        line for line in demo.splitlines() if line.startswith("  AUC")
    ]
    assert shell.json("status")["serving"] == before["serving"]


def test_a_demo_that_finds_a_loss_names_it_and_runs_the_stages(shell: Shell, demo: str) -> None:
    # given what a demo made, of which a file was lost
    (part,) = (shell.home / "storage" / "datasets").glob("*/train.parquet")
    content = part.read_bytes()
    part.unlink()
    # when it is asked for again
    said = kill_in(shell, "split", "begins")
    # then the loss is named before the stages begin
    assert any(line.startswith("lineage     dataset") for line in said)
    part.write_bytes(content)


def data_of(shell: Shell, data: Path) -> bool:
    """Whether what serves stands on the file that the demo was given."""
    sha256 = hashlib.sha256(data.read_bytes()).hexdigest()
    found = shell.json("status")
    assert found["champion"] == found["serving"]["model_version"]
    return bool(found["data"] == f"custom data (SHA-256 {sha256[:12]})")


def test_a_plain_training_goes_on_with_the_data_of_the_champion(shell: Shell, demo: str, data: Path) -> None:
    # when the pipeline is run in a shell that names no data
    outputs = last_line(shell.ask("pipeline", "run", "training", "--json"))["outputs"]
    # then it is the same training once more
    assert outputs == {"model_version": "1", "decision": "promote", "dataset_source": "custom"}
    assert data_of(shell, data)


def test_data_that_are_asked_for_replace_none_untold(shell: Shell, demo: str, data: Path, tmp_path: Path) -> None:
    # given other real data, and synthetic ones
    for name, cohort in (("real", as_if_real(synthesize(400, seed=1))), ("made up", synthesize(400, seed=1))):
        cohort.to_csv(tmp_path / f"{name}.csv", index=False)
    # when they are asked for, then the run is refused
    training = ("pipeline", "run", "training", "-p", f"data_source={tmp_path / 'real.csv'}")
    assert "--replace-data" in shell.ask(*training, code=3)
    simulation = shell.ask("simulate", REPLACE_DATA=1, DATA_SOURCE=tmp_path / "made up.csv", code=3)
    assert "another HEALTH_PREDICT_HOME" in simulation
    # and what served serves
    assert data_of(shell, data)


def test_lineage_is_whole(shell: Shell, demo: str) -> None:
    found = shell.json("lineage")
    assert found["intact"], found
    assert [link["name"] for link in found["links"]] == [
        "endpoint",
        "image",
        "Bento",
        "model version",
        "MLflow run",
        "dataset",
        "git commit",
    ]


@needs_chromium
def test_every_page_is_fit_to_be_shown(shell: Shell, demo: str) -> None:
    # given the overview of what serves, with the reports that the stages wrote, and the page of the service
    index = Path(shell.json("report", "build")["page"])
    pages = {file.name: file for file in sorted(index.parent.glob("*.html"))}
    assert {"index.html", "profile.html", "leaderboard.html", "card.html", "rollout.html"} <= pages.keys()
    own = f"http://127.0.0.1:{shell.port}/"
    # and what each says first
    first = {
        "index.html": "serving now",
        "profile.html": "From the initial encounters to the later ones",
        "leaderboard.html": "is chosen",
        "card.html": "Of 100 encounters that it flags, ",
        "rollout.html": "Deployed",
    }
    # when a browser opens them
    with browser() as chromium:
        found = {
            name: chromium.problems(address(file), text=first.get(name, "Not for clinical use"))
            for name, file in pages.items()
        }
        found["service"] = chromium.problems(own, own=own, text="number_inpatient")
    # then nothing is wrong at any width
    assert {name: problems for name, problems in found.items() if problems} == {}


@needs("prometheus")
def test_a_prometheus_scrapes_the_endpoint(shell: Shell, demo: str, tmp_path: Path) -> None:
    # given the endpoint, and a Prometheus with our configuration
    with prometheus(tmp_path, {"readmission-api": shell.port}) as ask:
        # then it knows the model that is served
        assert ask('count(health_predict_model{model_version="1"} == 1)') == {(): 1.0}


def test_a_killed_server_comes_back(shell: Shell, demo: str) -> None:
    # given every process of the endpoint killed at once
    for process in shell.processes():
        process.kill()
    psutil.wait_procs(shell.processes(), timeout=10)
    # when the champion is asked to serve
    shell.ask("serve")
    # then it answers on the same port
    with urllib.request.urlopen(f"http://127.0.0.1:{shell.port}/health", timeout=10) as response:
        assert json.load(response)["model_version"] == "1"


def arrive(shell: Shell, number: int) -> dict[str, object]:
    """Add a future batch of the champion's dataset with its outcomes; the settings by which it is one to be judged."""
    (file,) = (shell.home / "storage" / "datasets").glob(f"*/batches/0{number}.parquet")
    added = shell.json("data", "add", str(file))
    assert added["rows"] == added["outcomes"] > 1000 and added["quarantined"] == 0
    return {"WINDOW": added["rows"], "FOLLOW_UP_DAYS": 0}


def test_where_nothing_arrived_monitoring_does_nothing(shell: Shell, demo: str) -> None:
    outputs = last_line(shell.ask("pipeline", "run", "monitoring", "--json"))["outputs"]
    assert (outputs["verdict"], outputs["action"], outputs["outcome"]) == ("steady", "none", "unchanged")
    found = shell.json("status")
    assert (found["drift"], found["arrivals"]["total"]) == (None, 0)


def test_a_new_version_waits_for_a_person_who_approves_it_and_rolls_it_back(shell: Shell, demo: str) -> None:
    # given encounters with more readmissions than this champion expects, at the door with their outcomes
    window = arrive(shell, 0)
    assert shell.json("status")["arrivals"]["at_door"] == 1
    # when what arrived is judged where a person is asked
    ask = {**window, "APPROVAL": "ask"}
    outputs = last_line(shell.ask("pipeline", "run", "monitoring", "--json", **ask))["outputs"]
    # then the verdict led to a new version of the same estimator, which waits, and nothing has changed
    found = {"verdict": "recalibrate", "action": "recalibrate", "outcome": "waiting", "dataset_source": "custom"}
    assert outputs == found
    found = shell.json("status")
    assert (found["champion"], found["serving"]["model_version"]) == ("1", "1")
    assert any("version 2 waits for approval" in item for item in found["waiting"])
    refused = shell.ask("pipeline", "run", "deployment", "-p", "model_version=2", code=6, **ask)
    assert "version 2 waits for approval" in refused and "health-predict approve 2" in refused
    # and what it would change is shown on the same rows
    compared = shell.json("compare")
    assert (compared["version"], compared["against"], compared["approval"]["state"]) == ("2", "1", "waiting")
    assert compared["on_arrivals"][0]["rows"] > 0 and Path(compared["page"].removeprefix("file://")).exists()
    assert "of the" in shell.ask("compare", "2", "1").lower()
    # when a person approves it, then it serves, and who, when and why is kept
    shell.ask("approve", "2", "--by", "A. Person", "--why", "the risks fit again", **ask)
    two, one = shell.json("versions")
    assert (
        "champion, passed its gates; approved by A. Person at" in two["state"] and "the risks fit again" in two["state"]
    )
    assert one["state"] == "served before" and one["served"][-1][1] == two["served"][-1][0]
    assert "cannot be refused" in shell.ask("refuse", "2", "--why", "no", code=6)
    # when it is rolled back, then the version before serves, pinned: also where nobody is asked, new ones wait
    shell.ask("rollback", "--by", "B. Person", "--why", "the night shift wants it")
    found = shell.json("status")
    assert (found["champion"], found["serving"]["model_version"]) == ("1", "1")
    assert any("version 1 is pinned by B. Person" in item for item in found["waiting"])
    assert "version 1 is pinned" in shell.ask("rollback") and shell.json("status")["champion"] == "1"
    # when it is approved once more and the pin is released, then it serves and nothing waits
    shell.ask("approve", "2", "--by", "A. Person")
    assert "version 1 is pinned no longer" in shell.ask("rollback", "--release")
    assert "no version was pinned" in shell.ask("rollback", "--release")
    found = shell.json("status")
    assert not any("pinned" in item or "approval" in item for item in found["waiting"])
    assert (found["champion"], found["serving"]["model_version"]) == ("2", "2")
    assert (found["drift"]["batch"], found["drift"]["verdict"], found["monitored"]) == (0, "recalibrate", 1)
    assert (found["arrivals"]["total"], found["arrivals"]["outcomes"]["taken"]) == (window["WINDOW"],) * 2
    assert shell.json("lineage")["intact"]


def test_a_simulation_that_was_killed_goes_on_and_does_nothing_twice(shell: Shell, demo: str) -> None:
    # given a simulation of two batches, killed in the middle of bringing a new version into service
    arguments = ("simulate", "--batches", "2", "--delay", "0")
    kill_in(shell, "rollout", "Golden requests through the endpoint", *arguments)
    # when it is begun again
    found = last_line(shell.ask(*arguments, "--json"))
    # then both batches were predicted over HTTP, and handled once each, as by the pipeline
    first, second = found["moments"]
    assert (first["verdict"], first["outcome"]) == ("recalibrate", "deployed")
    assert (first["served_by"], second["served_by"]) == ("1", "2")
    # and the version that the same findings had led to before was found, not made again
    assert first["version_after"] == second["version_after"] == shell.json("status")["champion"] == "2"
    page = Path(found["page"]).read_text()
    assert "SYNTHETIC" not in page.upper() and "<svg" in page
    # and once more, nothing is done
    again = shell.json(*arguments)
    assert again == found


def test_what_served_before_a_simulation_serves_again_at_its_end(shell: Shell, demo: str) -> None:
    # given a later version in service, and a simulation with falsified outcomes, killed while version 1 serves it
    before = shell.json("status")["serving"]["model_version"]
    arguments = ("simulate", "--batches", "1", "--policy", "never", "--scenario", "concept-flip", "--from-batch", "0")
    kill_in(shell, "replay", "batch 0: sending", *arguments)
    found = shell.json("status")
    assert before != "1" and (found["serving"]["model_version"], found["champion"]) == ("1", "1")
    assert any(f"brings back version {before}" in item for item in found["waiting"])
    # when it goes on to its end, by the pipeline instead of the stages
    said = shell.ask(*arguments, "--pipelines")
    assert re.search(r"^drift +begins$.*^settle +begins$.*^batch 0", said, re.MULTILINE | re.DOTALL)
    # then that is told, and the version before serves again and is champion, through every link
    assert f"version {before}, which served before, serves again" in said
    after = shell.json("status")
    assert (after["serving"]["model_version"], after["champion"]) == (before, before)
    assert not any("simulation" in item for item in after["waiting"])
    assert shell.json("lineage")["intact"]
    # when it is asked for once more, then its timeline is shown and nothing moves
    assert shell.json(*arguments)["serving"] == before
    assert shell.json("status")["serving"] == after["serving"]
    # when its model is to be kept, then it serves, and the way back is told
    said = shell.ask(*arguments, "--keep")
    assert f"`health-predict pipeline run deployment -p model_version={before}` brings back version {before}" in said
    assert shell.json("status")["champion"] == "1"


def test_down_leaves_nothing_running(shell: Shell, demo: str) -> None:
    shell.ask("down")
    assert shell.processes() == []
    shell.ask("down")
