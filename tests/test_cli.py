"""The command line: every expected failure is one line with its remedy, and nothing is damaged."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

from health_predict import cli
from health_predict.adapters.pipelines.local import list_runs
from health_predict.settings import PREFIX
from tests.shell import free_port

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in this process with settings of its own; its exit code, output and errors."""

    def run(*arguments: str, **settings: object) -> tuple[int, str, str]:
        for name, value in {"home": tmp_path / "home", **settings}.items():
            monkeypatch.setenv(PREFIX + name.upper(), str(value))
        monkeypatch.setattr(sys, "argv", ["health-predict", *arguments])
        monkeypatch.setenv("COLUMNS", "500")
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    return run


def one_line(error: str) -> str:
    # A slow machine may have said before how long it takes.
    (error,) = (line for line in error.splitlines() if not re.search(r" \.\.\. [0-9]+ s$", line))
    assert error.startswith("error: ")
    assert " -> " in error
    assert "Traceback" not in error
    return error


@pytest.fixture
def csv(cohort: pd.DataFrame, tmp_path: Path) -> Path:
    file = tmp_path / "cohort.csv"
    cohort.to_csv(file, index=False)
    return file


Damage = Callable[[Path, pd.DataFrame], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (lambda file, frame: file.unlink(), "does not exist"),
    "empty": (lambda file, frame: file.write_text(""), "is empty"),
    "html": (lambda file, frame: file.write_text("<!doctype html><html></html>"), "web page"),
    "truncated": (lambda file, frame: file.write_bytes(file.read_bytes()[:-70]), "line"),
    "header": (lambda file, frame: frame.rename(columns={"age": "Alter"}).to_csv(file, index=False), "age"),
    "duplicates": (lambda file, frame: pd.concat([frame, frame.head(3)]).to_csv(file, index=False), "encounter_id"),
    "no positive": (lambda file, frame: frame.assign(readmitted="NO").to_csv(file, index=False), "positive|<30"),
    "wrong value": (lambda file, frame: frame.assign(age="[200-210)").to_csv(file, index=False), "age"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_data_is_refused_in_one_line(
    run: Run, csv: Path, cohort: pd.DataFrame, tmp_path: Path, damage: str
) -> None:
    # given a damaged file
    spoil, words = DAMAGES[damage]
    spoil(csv, cohort)
    # when the pipeline runs on it
    code, _, error = run("pipeline", "run", "training", data_source=csv)
    # then one line says what is wrong and what to do, and nothing was stored
    assert code == 3
    assert re.search(words, one_line(error))
    assert not (tmp_path / "home" / "storage").exists()
    # and the run is on record as failed, not as running
    _, out, _ = run("pipeline", "list", "--json")
    assert [record["state"] for record in json.loads(out)] == ["failed"]


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "words"),
    [
        (("pipeline", "run", "trainng"), {}, 2, "choose from training"),
        (("pipeline", "run", "[/red]"), {}, 2, r"unknown pipeline '\[/red\]'"),
        (("pipeline", "run", "training", "-p", "trails=3"), {}, 2, "has no parameter 'trails'"),
        (("pipeline", "run", "training", "-p", "trials=x"), {}, 2, "parameter trials: .* integer"),
        (("pipeline", "run", "training", "-p", "initial_share=2"), {}, 2, "parameter initial_share: .* less than 1"),
        (("pipeline", "run", "training", "-p", "labelled_batches=x"), {}, 2, "takes a number"),
        (("pipeline", "run", "training", "-p", "replace_data=x"), {}, 2, "takes true or false"),
        (("pipeline", "run", "monitoring", "--replace-data"), {}, 2, "has no parameter 'replace_data'"),
        (
            ("pipeline", "run", "training"),
            {"profile": "kind", "kfp_host": "http://127.0.0.1:1"},
            2,
            "is a path on this machine",
        ),
        (("pipeline", "run", "training", "-p", "trials"), {}, 2, "name=value"),
        (("pipeline", "run", "deployment"), {}, 2, "-p model_version="),
        (
            ("pipeline", "run", "training"),
            {
                "profile": "kind",
                "kfp_host": "http://127.0.0.1:1",
                "data_source": "s3://hospital/data.csv",
                "data_sha256": "a" * 64,
            },
            5,
            "HEALTH_PREDICT_KFP_HOST",
        ),
        (("pipeline", "schedule", "monitoring", "--cron", "0 30 2 * * *"), {}, 2, "--every 3600"),
        (("pipeline", "schedule", "monitorin", "--every", "5"), {}, 2, "choose from training"),
        (("pipeline", "list"), {"trails": 3}, 2, "did you mean HEALTH_PREDICT_TRIALS"),
        (("serve",), {}, 4, "health-predict demo"),
        (("simulate", "--pipelines"), {"profile": "kind"}, 2, "leave it out"),
        (("pipeline", "run", "monitoring", "-p", "batch=1"), {}, 2, "has no parameter 'batch'"),
        (("pipeline", "run", "monitoring", "--as-of", "2026-01-01"), {"profile": "kind"}, 2, "leave --as-of out"),
        (("pipeline", "run", "monitoring"), {"window": "fortnight"}, 2, "HEALTH_PREDICT_WINDOW"),
        (("data", "add", "any.csv"), {}, 4, "health-predict demo"),
        (("data", "outcomes", "none.csv"), {}, 3, "cannot be read"),
        (("data", "fetch"), {"data_sha256": "0" * 64}, 3, "checksum|SHA-256"),
        (("predict", "none.csv", "--out", "/proc/none/a.csv"), {}, 5, "/proc/none .* name another file with --out"),
        (("predict", "none.csv", "--out", "/proc"), {}, 5, "name another file with --out"),
        (("data", "profile", "--out", "/proc/none/a.html"), {}, 5, "name another file with --out"),
        (("data", "synthesize", "--out", "/proc/none/a.csv"), {}, 5, "name another file with --out"),
        (("pipeline", "compile", "--out", "/proc/none"), {}, 5, "name another folder with --out"),
        (("report", "build", "--to", "/proc/none"), {}, 5, "name another folder with --to"),
    ],
)
def test_wrong_use_is_refused_in_one_line(
    run: Run, csv: Path, arguments: tuple[str, ...], settings: dict[str, object], code: int, words: str
) -> None:
    found, _, error = run(*arguments, **{"data_source": csv, **settings})
    assert found == code
    assert re.search(words, one_line(error))


def test_every_command_speaks_before_it_imports_what_takes_seconds() -> None:
    # when the command line is ready to show a sign of life
    program = "import sys, health_predict.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    # then nothing is loaded that makes it wait
    assert {"bentoml", "kfp", "matplotlib", "mlflow", "numpy", "pandas", "ray", "sklearn"} & {*loaded} == set()


def test_a_taken_port_is_named_before_anything_is_trained(run: Run, csv: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, error = run("demo", data_source=csv, serving_port=port)
    assert code == 5
    assert f":{port} is taken by another program" in one_line(error)
    assert "HEALTH_PREDICT_SERVING_PORT" in error
    assert not (tmp_path / "home" / "runs").exists()


def test_a_home_that_is_a_file_is_named(run: Run, csv: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, error = run("pipeline", "run", "training", data_source=csv, home=tmp_path / "file" / "home")
    assert code == 5
    one_line(error)


def test_debug_shows_the_stack_trace(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from health_predict.errors import SettingsError

    monkeypatch.setattr(sys, "argv", ["health-predict", "--debug", "pipeline", "run", "trainng"])
    monkeypatch.setenv(f"{PREFIX}HOME", str(tmp_path))
    with pytest.raises(SettingsError):
        cli.main()


def test_the_unexpected_has_a_code_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(cli, "app", fail)
    found, _, said = run("status")
    assert found == 70 and "--debug" in said


@pytest.mark.parametrize("command", cli.GO_ON)
def test_what_breaks_because_of_an_interrupt_is_no_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    # given a library that makes another exception of Ctrl-C
    def fail() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("half imported") from None

    monkeypatch.setattr(cli, "app", fail)
    # when
    code, _, said = run(command)
    # then one line says what stays and how to go on
    assert code == 130 and said.startswith("interrupted: ") and said.count("\n") == 1 and "half" not in said
    assert "kept" in said or "nothing was written" in said
    assert "same command" in said or "again" in said


def test_the_working_folder_is_no_place_to_import_from(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a file there that has the name of a module, and data that are none
    (tmp_path / "token.py").write_text("raise RuntimeError('mine')")
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    monkeypatch.chdir(tmp_path)
    # when a stage runs, then it comes as far as the data
    code, _, error = run("pipeline", "run", "training", data_source=tmp_path / "data.csv")
    assert (code, "mine" in error) == (3, False)


def test_what_a_person_wrote_is_printed_as_it_is(run: Run, csv: Path, tmp_path: Path) -> None:
    # given a file with words that rich would take for an emoji and for a colour
    file = tmp_path / "[red]:x:.csv"
    file.write_text(csv.read_text().replace("Female", ":x: [red]"))
    # when it is checked, then they stand there
    code, output, _ = run("data", "check", str(file))
    assert (code, ":x: [red]" in output) == (3, True)
    # and so they do in an error
    assert "[red]:x:" in run("data", "check", str(tmp_path / "[red]:x:"))[2]


@pytest.mark.parametrize(
    ("words", "number"),
    [("pipeline", signal.SIGINT), ("split       begins", signal.SIGINT), ("split       begins", signal.SIGTERM)],
)
def test_an_interrupted_run_says_so_and_leaves_nothing(
    csv: Path, tmp_path: Path, words: str, number: signal.Signals
) -> None:
    # given a run that has come so far, in a terminal of its own
    environment = {**os.environ, f"{PREFIX}HOME": str(tmp_path / "home"), f"{PREFIX}DATA_SOURCE": str(csv)}
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "health_predict", "pipeline", "run", "training"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert any(words in line for line in process.stdout)
    begun = psutil.Process(process.pid).children(recursive=True)
    # when Ctrl-C is pressed, which all of it hears, or it is told to end
    (os.killpg if number is signal.SIGINT else os.kill)(process.pid, number)
    rest = process.stdout.read()
    # then
    assert process.wait(30) == 128 + number, rest
    assert "Traceback" not in rest
    assert psutil.wait_procs(begun, 30)[1] == []
    if "begins" in words:
        assert "interrupted: stages and trials that ended are kept" in rest and "the same command goes on" in rest
        [record] = list_runs(tmp_path / "home")
        assert record["state"] == "interrupted"
        assert not (tmp_path / "home" / "runs" / record["run_id"] / "tmp").exists()


def test_two_runs_in_one_home_do_not_mix(run: Run, csv: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "home" / "runs").mkdir(parents=True)
    with (tmp_path / "home" / "runs" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        code, _, error = run("pipeline", "run", "training", data_source=csv)
    assert code == 4
    assert "process 4711" in one_line(error)


def test_mlflow_pages_open_and_end(mlflow_database: Path, tmp_path: Path, awkward: Path) -> None:
    # given MLflow's pages by an interpreter whose path holds a percent sign, too
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    said = tmp_path / "said"
    plain = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    with said.open("w") as output:
        pages = subprocess.Popen(
            [awkward, "-m", "health_predict", "mlflow-ui", "--port", str(free_port())],
            env={**plain, f"{PREFIX}HOME": str(tmp_path)},
            stdout=output,
            stderr=output,
        )
    try:
        # when they are there
        deadline = time.monotonic() + 300
        while not (found := re.search(r"MLflow's pages: (http\S+)", said.read_text())):
            assert pages.poll() is None and time.monotonic() < deadline, said.read_text()
            time.sleep(0.2)
        with urllib.request.urlopen(found[1], timeout=60) as response:
            assert b"<title>MLflow</title>" in response.read()
        assert found[1].endswith("workflowType=machine_learning")
    finally:
        # and are interrupted
        pages.send_signal(signal.SIGINT)
        code = pages.wait(60)
    # then nothing is left of them, and nobody reads where they were
    assert code == 130
    assert "Traceback" not in said.read_text()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(found[1], timeout=5)
