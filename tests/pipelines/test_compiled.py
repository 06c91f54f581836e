"""The compiled pipelines run, as the dashboard starts them: what it leaves empty is as the settings say.

They run on a table of somebody's own, and what they made goes on from there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from kfp import components, local
from typer.testing import CliRunner

from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import Tracking
from health_predict.cli import app as cli
from health_predict.commands.pipeline import COMPILED
from health_predict.core.data.contract import Contract
from health_predict.settings import Settings, load_settings
from health_predict.simulation.monitoring import deploy
from tests.own_table import Table, contract_for, goes_on, health_registry
from tests.shell import Shell

# What the settings decide, where nothing is asked for: by their names in the environment.
CHOSEN = {"TRIALS": 2, "SEED": 5, "FAMILIES": '["LogisticRegression"]', "SALT": "of the settings"}


@pytest.mark.parametrize("file", sorted(COMPILED.iterdir()), ids=lambda file: file.stem)
def test_no_default_stands_in_the_way_of_a_setting(file: Path) -> None:
    # given the inputs of a compiled pipeline that are settings too
    spec = next(yaml.safe_load_all(file.read_text()))
    inputs = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    for key in inputs.keys() & Settings.model_fields.keys():
        # then what a dashboard sends by itself says nothing
        assert inputs[key]["defaultValue"] in ("", [], False), key


def test_a_file_for_upload_by_hand_names_an_image_that_can_be_pulled(tmp_path: Path) -> None:
    # given the files of the checkout, whose image no cluster has
    for file in COMPILED.iterdir():
        # then each says what to do
        assert "pipeline compile --image" in file.read_text()
    # when they are compiled for an image
    image = f"registry.example/health-predict/pipeline@sha256:{'a' * 64}"
    done = CliRunner().invoke(cli, ["pipeline", "compile", "--out", str(tmp_path), "--image", image])
    assert done.exit_code == 0, done.output
    for file in COMPILED.iterdir():
        # then Kubeflow's own reader takes them, and every task has it
        components.load_component_from_file(str(tmp_path / file.name))
        spec = next(yaml.safe_load_all((tmp_path / file.name).read_text()))
        executors = spec["deploymentSpec"]["executors"].values()
        assert {one["container"]["image"] for one in executors} == {image}


@pytest.mark.parametrize("file", sorted(COMPILED.iterdir()), ids=lambda file: file.stem)
def test_every_input_is_explained(file: Path) -> None:
    spec = next(yaml.safe_load_all(file.read_text()))
    inputs = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    assert [name for name, one in inputs.items() if not one.get("description")] == []
    # and only what a run is about has to be given
    required = {name for name, one in inputs.items() if "defaultValue" not in one}
    assert required == {"deployment": {"model_version"}, "recalibration": {"labelled_batches"}}.get(file.stem, set())


@pytest.mark.parametrize("file", sorted(COMPILED.iterdir()), ids=lambda file: file.stem)
def test_who_is_told_comes_from_a_secret_alone(file: Path) -> None:
    _, platform = yaml.safe_load_all(file.read_text())
    tasks = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    assert tasks
    for task in tasks:
        # given where a task's environment comes from
        found = {
            kind: {item["envVar"]: one for one in task[kind] for item in one["keyToEnv"]}
            for kind in ("configMapAsEnv", "secretAsEnv")
        }
        # then addresses do so from a Secret that may be absent, and all other settings from the ConfigMap
        assert "HEALTH_PREDICT_NOTIFY" not in found["configMapAsEnv"]
        assert "HEALTH_PREDICT_TRIALS" in found["configMapAsEnv"]
        secret = found["secretAsEnv"]["HEALTH_PREDICT_NOTIFY"]
        assert (secret["secretNameParameter"]["runtimeValue"]["constant"], secret["optional"]) == (
            "health-predict-notify",
            True,
        )


@dataclass(frozen=True)
class Trained:
    """A home in which the compiled `training` has run on a table with its own contract, with a single parameter."""

    shell: Shell
    table: Table
    contract: Contract


def _run(shell: Shell, name: str, folder: Path, **settings: object) -> None:
    """Run a compiled pipeline in a shell, with a single parameter."""
    with shell.inside(**settings), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
        local.init(
            runner=local.SubprocessRunner(use_venv=False),
            pipeline_root=str(folder / "artifacts"),
            workspace_root=str(folder / "workspace"),
            raise_on_error=True,
        )
        components.load_component_from_file(str(COMPILED / f"{name}.yaml"))(salt="its own")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("compiled")
    table = health_registry(folder)
    shell = Shell(folder, **table.settings, **CHOSEN)
    contract = contract_for(shell, table)
    try:
        _run(shell, "training", folder, CONTRACT="mine.yaml", DATA_SOURCE=table.file, GIT_COMMIT="c" * 40)
        yield Trained(shell, table, contract)
    finally:
        shell.end()


def test_the_settings_decide_what_no_parameter_does(trained: Trained) -> None:
    # then the search is the settings'
    settings = Settings(home=trained.shell.home)
    (search,) = Tracking(settings).runs("tags.role = 'search'")
    assert [search.params[name] for name in ("trials", "seed", "families")] == ["2", "5", "LogisticRegression"]
    # and the dataset is cut as they say, but for the salt
    manifest = json.loads(
        open_storage(settings.storage).read(f"datasets/{search.tags['dataset_digest']}/manifest.json")
    )
    found = [manifest["parameters"][name] for name in ("initial_share", "future_batches", "salt")]
    assert found == [0.6, 4, "its own"]


@pytest.mark.no_cover  # its stages have tests of their own, and coverage doubles what they take
def test_a_table_without_dates_goes_the_whole_way(trained: Trained) -> None:
    # given the trained version, deployed by a shell that names neither contract nor data
    with trained.shell.inside():
        settings = load_settings()
        (version,) = Tracking(settings).versions()
        deploy(settings, version.version, trained.shell.folder)
    # then
    goes_on(trained.shell, trained.table, trained.contract)
