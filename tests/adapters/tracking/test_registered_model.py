"""The registered model: what it holds, what it answers, and that it needs nothing else of the library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PythonModelContext
from mlflow.types.schema import AnyType
from sklearn.pipeline import Pipeline

from health_predict.adapters.tracking import REGISTERED, REGISTERED_CODE, ModelVersion, Tracking, registered_model
from health_predict.core.data.cohort import target
from health_predict.core.data.contract import MISSING, Kind
from health_predict.core.model.calibration import CalibratedClassifier
from health_predict.core.model.families import FAMILIES
from health_predict.core.model.features import EncounterFeatures
from health_predict.settings import Settings
from tests.contracts import DIABETES

THRESHOLD = 0.14
CUTOFFS = [0.1, 0.13, 0.16]
FAMILY = "LightGBM"


@dataclass
class Registered:
    tracking: Tracking
    pipeline: Pipeline
    run_id: str
    version: ModelVersion
    folder: Path


@pytest.fixture(scope="module")
def registered(cohort: pd.DataFrame, mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    """A calibrated booster, registered. Tests add runs beside it."""
    settings = Settings(home=tmp_path_factory.mktemp("registered"))
    shutil.copy(mlflow_database, settings.home / "mlflow.db")
    features = EncounterFeatures(DIABETES).fit(cohort)
    family = FAMILIES[FAMILY]
    estimator = family.fit(
        {**family.first, "n_estimators": 40}, features.transform(cohort), target(cohort, DIABETES), seed=1
    )
    pipeline = Pipeline([("features", features), ("estimator", CalibratedClassifier(estimator, 0.1, 1.2))])
    tracking = Tracking(settings)
    run_id = tracking.log_best(
        tracking.start_search("s", {}, {}), FAMILY, pipeline, {}, {"threshold": THRESHOLD}, {}, {}
    )
    tracking._client.set_terminated(run_id)
    tracking.log_registered(run_id, FAMILY, DIABETES, THRESHOLD, CUTOFFS)
    version = tracking.register(run_id, {}, "")
    return Registered(tracking, pipeline, run_id, version, folder_of(tracking, run_id))


def folder_of(tracking: Tracking, run_id: str) -> Path:
    model_id = tracking._logged_model(run_id, REGISTERED)
    return Path(urlsplit(tracking._client.get_logged_model(model_id).artifact_location).path)


def as_people_have_them(frame: pd.DataFrame) -> pd.DataFrame:
    """The features with counts and codes as numbers, and four ways to say that something is missing."""
    found = pd.DataFrame(index=frame.index)
    for column in DIABETES.features:
        cells = frame[column.name].astype(object)
        if column.kind is Kind.COUNT or column.is_code:
            cells = pd.Series([(int, float, str)[row % 3](cell) for row, cell in enumerate(cells)], dtype=object)
        nothing = (MISSING, None, np.nan, pd.NA)
        found[column.name] = [nothing[row % 4] if cell == MISSING else cell for row, cell in enumerate(cells)]
    return found


def load(registered: Registered) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """The model in this process, with the library's own modules."""
    artifacts = {
        name: str(registered.folder / "artifacts" / path)
        for name, path in (
            ("pipeline", "model.skops"),
            ("decision", "decision.json"),
            ("contract", "contract.json"),
        )
    }
    context = PythonModelContext(artifacts, None)
    model = registered_model.RiskModel()
    model.load_context(context)
    return lambda frame: model.predict(context, frame)


def test_it_answers_like_the_endpoint(registered: Registered, cohort: pd.DataFrame) -> None:
    # given encounters as people have them
    frame = cohort.head(400)
    raw = as_people_have_them(frame)
    raw.index = pd.Index([f"encounter {row}" for row in range(len(raw))])
    # when they are scored
    found = load(registered)(raw)
    # then the probabilities are the pipeline's
    expected = registered.pipeline.predict_proba(frame)[:, 1]
    np.testing.assert_allclose(found["probability_score"], expected, rtol=0, atol=1e-12)
    # and the decision is that of the stored threshold, not of .5
    assert found["prediction"].tolist() == (expected >= THRESHOLD).astype(int).tolist()
    assert expected.max() < 0.5 and 0 < found["prediction"].mean() < 1
    # and the groups are those of their bounds
    groups = ["low" if p < 0.1 else "medium" if p < 0.13 else "high" if p < 0.16 else "very high" for p in expected]
    assert found["risk_group"].tolist() == groups and len(set(groups)) == 4
    assert found.index.equals(raw.index)
    # and nothing asked is nothing answered
    assert load(registered)(raw.head(0)).shape == (0, 3)


def test_what_breaks_the_contract_is_a_clear_error(registered: Registered, cohort: pd.DataFrame) -> None:
    raw = as_people_have_them(cohort.head(3))
    raw.loc[1, "number_inpatient"] = 1000
    with pytest.raises(MlflowException, match="row 1, number_inpatient: must be a whole number from 0") as caught:
        load(registered)(raw)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_the_version_is_of_it_and_says_what_it_takes(registered: Registered) -> None:
    # when its entry is read, as MLflow's pages do
    item = registered.tracking._client.get_model_version(registered.version.name, registered.version.version)
    model = Model.load(str(registered.folder))
    # then the version is of this model, not of the pipeline that our own stages load
    assert item.source == f"models:/{model.model_id}"
    # and columns may hold anything, while those that may be missing may be absent
    taken = model.signature.inputs.inputs
    assert [column.name for column in taken] == [column.name for column in DIABETES.features]
    assert all(isinstance(column.type, AnyType) for column in taken)
    assert [column.required for column in taken] == [not column.nullable for column in DIABETES.features]
    assert model.signature.outputs.input_names() == ["probability_score", "prediction", "risk_group"]
    # and an example is there, and what it needs is exact, without the library and other families
    assert list(model.load_input_example(str(registered.folder))) == [column.name for column in DIABETES.features]
    needed = (registered.folder / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in needed} == {
        *("lightgbm", "mlflow", "numpy", "pandas", "scikit-learn", "scipy", "skops")
    }
    assert all(line == f"{(name := line.partition('==')[0])}=={installed(name)}" for line in needed)


PROGRAM = """
import json, sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(model.input_example)
ours = {name: module.__file__ for name, module in sys.modules.items() if name.startswith("health_predict.")}
ours = {name: file for name, file in ours.items() if not file.endswith("__init__.py")}
print(json.dumps({"answer": answer.to_dict("records"), "modules": ours}))
"""


def test_its_code_is_all_that_it_needs(registered: Registered, tmp_path: Path) -> None:
    # when a process that finds nothing else of the library loads it, far from any checkout
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, str(registered.folder)],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    # then it answers, with the modules that lie beside it, each of them and no other
    (answer,) = said["answer"]
    assert set(answer) == {"probability_score", "prediction", "risk_group"}
    code = registered.folder / "code" / "health_predict"
    modules = {f"health_predict.{name.removesuffix('.py').replace('/', '.')}": code / name for name in REGISTERED_CODE}
    assert said["modules"] == {name: str(path) for name, path in modules.items()}


def test_a_kill_while_it_is_written_leaves_nothing_behind_that_counts(
    registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a run whose registered model could not be written to its end
    tracking = registered.tracking
    run_id = tracking.log_best(
        tracking.start_search("s", {}, {}), FAMILY, registered.pipeline, {}, {"threshold": THRESHOLD}, {}, {}
    )
    tracking._client.set_terminated(run_id)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tracking._client, "log_model_artifacts", killed)
        tracking.log_registered(run_id, FAMILY, DIABETES, THRESHOLD, CUTOFFS)
    assert tracking.run(run_id).status == "FINISHED"
    assert tracking._logged_model(run_id, REGISTERED) is None
    # when it is written again, and once more
    tracking.log_registered(run_id, FAMILY, DIABETES, THRESHOLD, CUTOFFS)
    first = tracking._logged_model(run_id, REGISTERED)
    tracking.log_registered(run_id, FAMILY, DIABETES, THRESHOLD, CUTOFFS)
    # then there is one, whole
    assert tracking._logged_model(run_id, REGISTERED) == first
    assert [item.name for item in tracking._logged_models(run_id) if item.name == REGISTERED] == [REGISTERED]
    assert (folder_of(tracking, run_id) / "MLmodel").is_file()
