"""The compiled pipelines run, as the dashboard starts them: what it leaves empty is as the settings say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import components, local
from typer.testing import CliRunner

from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import Tracking
from health_predict.commands.pipeline import COMPILED, app
from health_predict.pipelines import PIPELINES
from health_predict.settings import PREFIX, Settings
from tests.cohorts import synthesize

# What the settings decide, where nothing is asked for: by their names in the environment.
CHOSEN = {
    "TRIALS": "1",
    "SEED": "5",
    "FAMILIES": '["LogisticRegression"]',
    "INITIAL_SHARE": "0.8",
    "FUTURE_BATCHES": "2",
    "SALT": "of the settings",
}


@pytest.mark.parametrize("name", PIPELINES)
def test_no_default_stands_in_the_way_of_a_setting(name: str) -> None:
    # given the inputs of a compiled pipeline that are settings too
    spec = next(yaml.safe_load_all((COMPILED / f"{name}.yaml").read_text()))
    inputs = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    for key in inputs.keys() & Settings.model_fields.keys():
        # then what a dashboard sends by itself says nothing
        assert inputs[key]["defaultValue"] in ("", [], False), key


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the compiled `training` has run on a synthetic file, with a single parameter."""
    folder = tmp_path_factory.mktemp("compiled")
    synthesize(3000, seed=5).to_csv(folder / "cohort.csv", index=False)
    values = {**CHOSEN, "HOME": str(folder / "home"), "DATA_SOURCE": str(folder / "cohort.csv"), "GIT_COMMIT": "c" * 40}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(PREFIX + name, value)
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
        local.init(
            runner=local.SubprocessRunner(use_venv=False),
            pipeline_root=str(folder / "artifacts"),
            workspace_root=str(folder / "workspace"),
            raise_on_error=True,
        )
        components.load_component_from_file(str(COMPILED / "training.yaml"))(salt="its own")
    return folder / "home"


def test_the_settings_decide_what_no_parameter_does(home: Path) -> None:
    # then the search is the settings'
    tracking = Tracking(Settings(home=home))
    (search,) = tracking.runs("tags.role = 'search'")
    assert [search.params[name] for name in ("trials", "seed", "families")] == ["1", "5", "LogisticRegression"]
    # and the dataset is cut as they say, but for the salt
    storage = open_storage(Settings(home=home).storage)
    manifest = json.loads(storage.read(f"datasets/{search.tags['dataset_digest']}/manifest.json"))
    found = [manifest["parameters"][name] for name in ("initial_share", "future_batches", "salt")]
    assert found == [0.8, 2, "its own"]


def test_what_stands_on_synthetic_data_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # when the same is asked for on the command line
    for name, value in {**CHOSEN, "HOME": str(home), "DATA_SOURCE": str(home.parent / "cohort.csv")}.items():
        monkeypatch.setenv(PREFIX + name, value)
    done = CliRunner().invoke(app, ["run", "training", "-p", "salt=its own"])
    assert done.exit_code == 0, done.output
    # then that says among its outputs and in its last line that nobody real stands behind it
    lines = done.output.strip().splitlines()
    assert "dataset_source: synthetic" in lines
    assert lines[-1].startswith("SYNTHETIC DATA")
    # and so do MLflow's pages of its runs and its version
    tracking = Tracking(Settings(home=home))
    (version,) = tracking.versions()
    runs = tracking.runs("")
    assert {run.tags["role"] for run in runs} == {"search", "trial", "best"}
    assert all("SYNTHETIC DATA" in run.tags["mlflow.note.content"] for run in runs)
    assert version.tags["dataset_source"] == "synthetic" and "SYNTHETIC DATA" in _description(tracking, version.version)


def _description(tracking: Tracking, version: str) -> str:
    import mlflow

    client: Any = mlflow.MlflowClient(tracking.uri, tracking.uri)
    return str(client.get_model_version(tracking.registered_model, version).description)
