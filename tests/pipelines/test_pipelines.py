"""Compiled pipelines are the contract with a cluster: they must be what the functions say."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from health_predict.adapters.pipelines.local import compile_pipeline
from health_predict.commands.pipeline import COMPILED
from health_predict.settings import PREFIX, Settings

NAMES = sorted(file.stem for file in COMPILED.iterdir())


@pytest.fixture(scope="module")
def pipelines() -> ModuleType:
    """Building them takes seconds, which every worker would spend that only collects the tests."""
    return import_module("health_predict.pipelines")


def specs(file: Path) -> list[dict[str, Any]]:
    documents = list(yaml.safe_load_all(file.read_text()))
    documents[0].pop("sdkVersion")
    return documents


@pytest.mark.parametrize("name", NAMES)
def test_committed_yaml_is_not_stale(name: str, pipelines: ModuleType, tmp_path: Path) -> None:
    compile_pipeline(pipelines.recorded(pipelines.PIPELINES[name]), tmp_path / f"{name}.yaml")
    assert specs(COMPILED / f"{name}.yaml") == specs(tmp_path / f"{name}.yaml"), "run `make compile` and commit"


def test_nothing_else_is_committed(pipelines: ModuleType) -> None:
    assert {file.name for file in COMPILED.iterdir()} == {f"{name}.yaml" for name in pipelines.PIPELINES}


@pytest.mark.parametrize("name", NAMES)
def test_every_task_is_wired(name: str, pipelines: ModuleType) -> None:
    wiring = pipelines.wiring
    pipeline, platform = specs(COMPILED / f"{name}.yaml")
    executors = pipeline["deploymentSpec"]["executors"]
    wired = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(wired) == set(executors)
    for executor in wired.values():
        [settings] = executor["configMapAsEnv"]
        notify, credentials = executor["secretAsEnv"]
        assert settings["configMapName"] == wiring.SETTINGS
        assert {item["envVar"] for item in settings["keyToEnv"]} == {
            wiring.AWS_VARIABLE,
            *(PREFIX + field.upper() for field in Settings.model_fields if field != "notify"),
        }
        # Addresses of people hold secrets: they come from a Secret alone.
        assert (notify["secretName"], notify["keyToEnv"][0]["envVar"]) == (wiring.NOTIFY, f"{PREFIX}NOTIFY")
        assert credentials["secretName"] == wiring.CREDENTIALS
        assert executor["secretAsVolume"][0]["secretName"] == wiring.AWS and "podMetadata" not in executor
    for executor in executors.values():
        assert "pip install" not in " ".join(executor["container"]["command"])
        assert executor["container"]["resources"]["resourceMemoryRequest"]


@pytest.mark.parametrize("name", NAMES)
def test_no_task_is_cached(name: str) -> None:
    # KFP's cache does not see the image's digest or the environment; the stages know themselves what is done.
    def tasks(dag: dict[str, Any]) -> list[dict[str, Any]]:
        return list(dag["tasks"].values())

    pipeline = specs(COMPILED / f"{name}.yaml")[0]
    dags = [pipeline["root"]["dag"]] + [item["dag"] for item in pipeline["components"].values() if "dag" in item]
    for task in (task for dag in dags for task in tasks(dag)):
        component = pipeline["components"][task["componentRef"]["name"]]
        if "executorLabel" in component:
            assert not task["cachingOptions"], task["taskInfo"]["name"]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_explained(name: str, pipelines: ModuleType) -> None:
    spec = pipelines.PIPELINES[name].component_spec
    assert spec.description
    assert all(item.description for item in [*(spec.inputs or {}).values(), *spec.outputs.values()])


@pytest.mark.parametrize("name", NAMES)
def test_the_dashboard_shows_names_for_people(name: str) -> None:
    # A group of branches without a name would be `condition-branches-1` there, a task its function's name.
    pipeline = specs(COMPILED / f"{name}.yaml")[0]
    dags = [pipeline["root"]["dag"]] + [item["dag"] for item in pipeline["components"].values() if "dag" in item]
    for key, task in (item for dag in dags for item in dag["tasks"].items()):
        shown, component = task["taskInfo"]["name"], pipeline["components"][task["componentRef"]["name"]]
        assert not shown.startswith("condition-"), key
        assert "dag" in component or shown[0].isupper(), key


@pytest.mark.parametrize("name", NAMES)
def test_the_end_of_a_run_is_recorded_whatever_becomes_of_it(name: str, pipelines: ModuleType) -> None:
    # given the tasks at the top of a compiled pipeline
    root = specs(COMPILED / f"{name}.yaml")[0]["root"]
    end = root["dag"]["tasks"]["record-end"]
    # then all others are in the group that the last one waits for, however it ends
    (group,) = set(root["dag"]["tasks"]) - {"record-end"}
    assert end["dependentTasks"] == [group]
    assert end["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    # and the pipeline takes what it takes on this machine
    assert set(root["inputDefinitions"]["parameters"]) == set(pipelines.PIPELINES[name].component_spec.inputs)
