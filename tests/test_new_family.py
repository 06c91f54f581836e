"""The example of docs/extend.md is all that a new family needs, from its search to its explanations."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from health_predict.core.data.cohort import load_part, save_part
from tests.conftest import Parts
from tests.contracts import POSITIVE, TARGET
from tests.documented_family import documented_family, documented_module

ROOT = Path(__file__).parents[1]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the sources with the example in it, as the page says: a module, and its line in FAMILIES."""
    for name in ("health_predict", "bentos", "components", "contracts", "pipelines"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    package = tmp_path / "health_predict" / "core" / "model" / "families"
    (package / "hist_gradient_boosting.py").write_text(documented_module())
    listed = (package / "__init__.py").read_text()
    listed = listed.replace("families import lightgbm,", "families import hist_gradient_boosting, lightgbm,")
    listed = listed.replace("lightgbm.FAMILY,", "lightgbm.FAMILY,\n        hist_gradient_boosting.FAMILY,")
    (package / "__init__.py").write_text(listed)
    return tmp_path


@pytest.fixture
def intertwined(parts: Parts, tmp_path: Path) -> Path:
    """The parts of the cohort with outcomes of which a linear model sees nothing."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("train", "validation", "test"):
        frame: pd.DataFrame = load_part(getattr(parts, name))
        likely = (frame["gender"] == "Male") ^ (frame["insulin"] == "No")
        drawn = np.random.default_rng(1).random(len(frame)) < np.where(likely, 0.5, 0.05)
        save_part(frame.assign(**{TARGET: np.where(drawn, POSITIVE, "NO")}), folder / f"{name}.parquet")
    return folder


@pytest.mark.slow
def test_the_documented_family_from_search_to_explanation(
    sources: Path, intertwined: Path, mlflow_database: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "home").mkdir()
    shutil.copy(mlflow_database, tmp_path / "home" / "mlflow.db")
    name = documented_family().name
    # when it is searched beside the baseline, registered, built and served
    command = [sys.executable, "-P", "-m", "tests.new_family", tmp_path / "home", intertwined, port]
    done = subprocess.run(
        [*map(str, command), "LogisticRegression", name],
        env={**os.environ, "PYTHONPATH": f"{sources}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    said = json.loads(done.stdout.splitlines()[-1])
    # then it is the family that won, and the service scores as its pipeline does
    assert said["family"] == name
    scores = [answer["probability_score"] for answer in said["answers"]]
    assert scores == pytest.approx(said["scores"], abs=1e-6)
    assert len(set(scores)) > 2
    # and explains each score, by the two columns that made the outcomes
    amounts: Counter[str] = Counter()
    for answer in said["answers"]:
        explanation = answer["explanation"]
        assert explanation["unit"] == "log-odds"
        assert 1 / (1 + math.exp(-explanation["score"])) == pytest.approx(answer["probability_score"], abs=1e-4)
        amounts.update({item["column"]: abs(item["contribution"]) for item in explanation["contributions"]})
    assert {column for column, _ in amounts.most_common(2)} == {"gender", "insulin"}
