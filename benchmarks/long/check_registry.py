"""Does the registered model answer like the endpoint, for somebody who has MLflow and nothing of ours?

In a fresh environment with MLflow and what the model asks for, it is loaded by `mlflow.pyfunc.load_model` and served by
`mlflow models serve`. Both get real encounters as people have them: counts and codes as numbers or text, missing as
null, NaN or `?`. Their answers and the endpoint's are compared. Without --home, a quick demo of two families is made in
a home of its own. Exit code 1 when an answer differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from health_predict.adapters.contracts import stored_contract
from health_predict.adapters.data.parts import stored_part
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import CHAMPION, Tag, Tracking
from health_predict.core.data.cohort import as_requests
from health_predict.core.data.contract import MISSING, Contract, Kind
from health_predict.settings import PREFIX, Settings

ROWS = 2000
TOLERANCE = 1e-6
SHOWN = 10
DEADLINE = 300.0
# Nothing of these reaches the fresh environment.
FOREIGN = (PREFIX, "PYTHON", "VIRTUAL_ENV", "MLFLOW_")
ANSWER = ("probability_score", "prediction", "risk_group")
LOAD = """
import importlib.util, json, sys
assert importlib.util.find_spec("health_predict") is None, "health-predict is installed here"
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
frame = pandas.DataFrame(json.load(open("rows.json")))
json.dump(model.predict(frame).to_dict("records"), open("answers.json", "w"))
"""


def main() -> int:
    """Compare them; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="a home whose champion serves")
    given = parser.parse_args().home
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="health-predict-registry-") as name:
        folder = Path(name)
        with _demo(folder / "home") if given is None else _endpoint(given) as settings:
            tracking = Tracking(settings)
            champion = tracking.by_alias(CHAMPION)
            assert champion is not None, "no model version is the champion"
            model = f"models:/{champion.name}@{CHAMPION}"
            storage = open_storage(settings.storage, settings.s3_endpoint_url)
            frame = stored_part(storage, champion.tags[Tag.DATASET_DIGEST], "test").tail(ROWS).reset_index(drop=True)
            contract = stored_contract(storage, champion.tags[Tag.CONTRACT_DIGEST])
            rows, missing = as_people_have_them(frame, contract)
            python = _environment(folder / "fresh", settings, model)
            elsewhere = folder / "elsewhere"
            elsewhere.mkdir()
            (elsewhere / "rows.json").write_text(json.dumps(rows))
            # JSON proper has no NaN.
            plain = [{name: None if cell != cell else cell for name, cell in row.items()} for row in rows]
            answers = {
                "pyfunc": _load(python, settings, model, elsewhere),
                "mlflow models serve": _serve(python, settings, model, elsewhere, {"dataframe_records": plain}),
            }
            url = f"http://127.0.0.1:{settings.serving_port}/predict/batch?log=false"
            expected = _post(url, as_requests(frame, contract.features))
    different = [
        f"row {number}, {name}: {_of(one)} instead of {_of(right)}"
        for name, found in answers.items()
        for number, (one, right) in enumerate(zip(found, expected, strict=True))
        if not _same(one, right)
    ]
    tags = champion.tags
    print(
        f"registered model, version {champion.version} ({tags[Tag.FAMILY]}, {tags[Tag.DATASET_SOURCE]} data): "
        f"{len(rows)} encounters, {missing} cells missing; pyfunc, mlflow models serve and the endpoint: probabilities "
        f"within {_apart(answers, expected):.1g}, {sum(right['prediction'] for right in expected)} flagged, "
        f"{len(different)} answers differ; {time.monotonic() - begin:.0f} s"
    )
    for line in different[:SHOWN]:
        print(line)
    return 1 if different else 0


def as_people_have_them(frame: pd.DataFrame, contract: Contract) -> tuple[list[dict[str, Any]], int]:
    """Encounters with counts and codes as numbers or text, and three ways to say that something is missing."""
    rows: list[dict[str, Any]] = []
    missing = 0
    features = contract.features
    for number, cells in enumerate(frame[[column.name for column in features]].itertuples(index=False, name=None)):
        row = {}
        for position, (column, cell) in enumerate(zip(features, cells, strict=True)):
            turn = number + position
            if cell == MISSING:
                missing += 1
                row[column.name] = (MISSING, None, float("nan"))[turn % 3]
            elif column.kind is Kind.COUNT or column.is_code:
                row[column.name] = (str, int, float)[turn % 3](cell)
            else:
                row[column.name] = cell
        rows.append(row)
    return rows, missing


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def _demo(home: Path) -> Iterator[Settings]:
    """A home with a champion that serves, from a small search."""
    values = {"HOME": home, "SERVING_PORT": _free_port(), "TRIALS": 1, "FAMILIES": '["LogisticRegression", "LightGBM"]'}
    environment = {**os.environ, **{PREFIX + name: str(value) for name, value in values.items()}}
    command = [sys.executable, "-m", "health_predict"]
    try:
        subprocess.run([*command, "demo"], env=environment, check=True, stdout=subprocess.DEVNULL)
        yield Settings(home=home, serving_port=values["SERVING_PORT"])
    finally:
        subprocess.run([*command, "down"], env=environment, check=False, stdout=subprocess.DEVNULL)


@contextmanager
def _endpoint(home: Path) -> Iterator[Settings]:
    yield Settings(home=home)


def _environment(folder: Path, settings: Settings, model: str) -> Path:
    """The interpreter of a fresh environment with MLflow and the requirements of the model, nothing else."""
    from mlflow.pyfunc import get_model_dependencies

    uv = shutil.which("uv", path=os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"])))
    assert uv is not None, "uv is not installed"
    python = folder / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", python, "-r", get_model_dependencies(model)], check=True
    )
    return python


def _plain(python: Path, settings: Settings) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    path = os.pathsep.join((str(python.parent), kept["PATH"]))
    return {**kept, "PATH": path, "MLFLOW_TRACKING_URI": settings.tracking_uri}


def _load(python: Path, settings: Settings, model: str, folder: Path) -> list[dict[str, Any]]:
    subprocess.run([python, "-c", LOAD, model], cwd=folder, env=_plain(python, settings), check=True)
    found: list[dict[str, Any]] = json.loads((folder / "answers.json").read_text())
    return found


def _serve(python: Path, settings: Settings, model: str, folder: Path, body: object) -> list[dict[str, Any]]:
    port = _free_port()
    command = [str(python.parent / "mlflow"), "models", "serve", "-m", model, "--env-manager", "local", "-p", str(port)]
    with (folder / "serve.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=_plain(python, settings), stdout=log, stderr=log, start_new_session=True
        )
    try:
        end = time.monotonic() + DEADLINE
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            assert server.poll() is None and time.monotonic() < end, (folder / "serve.log").read_text()
            time.sleep(0.2)
        found: list[dict[str, Any]] = _post(f"http://127.0.0.1:{port}/invocations", body)["predictions"]
        return found
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _post(url: str, body: object) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=DEADLINE) as response:
        return json.load(response)


def _same(one: dict[str, Any], right: dict[str, Any]) -> bool:
    apart = abs(one["probability_score"] - right["probability_score"])
    return apart <= TOLERANCE and all(one[name] == right[name] for name in ANSWER[1:])


def _of(answer: dict[str, Any]) -> str:
    return ", ".join(str(answer[name]) for name in ANSWER)


def _apart(answers: dict[str, list[dict[str, Any]]], expected: list[dict[str, Any]]) -> float:
    scores = np.array([[one["probability_score"] for one in found] for found in (*answers.values(), expected)])
    return float(np.abs(scores - scores[-1]).max())


if __name__ == "__main__":
    raise SystemExit(main())
