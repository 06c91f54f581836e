"""`health-predict pipeline`: which parameters a run is begun with."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from health_predict.adapters.data.dataset import fetch
from health_predict.adapters.pipelines.local import LocalRun
from health_predict.commands import pipeline
from health_predict.commands.pipeline import _arguments
from health_predict.errors import SettingsError
from health_predict.settings import PREFIX, Profile, Settings, settings_on


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell in which some settings were exported."""
    for name, value in {"SEED": "5", "FAMILIES": '["XGBoost"]', "POLICY": "every"}.items():
        monkeypatch.setenv(PREFIX + name, value)


def test_on_this_machine_only_what_was_given_is_passed() -> None:
    # the tasks inherit the environment
    assert _arguments(settings_on(None), "training", {"trials": "3"}) == {"trials": "3"}
    assert _arguments(settings_on(None), "monitoring", {}) == {}


@pytest.mark.parametrize("place", [Profile.KIND, Profile.AWS])
def test_a_cluster_gets_what_is_set_here_and_nothing_else(place: Profile) -> None:
    # then the defaults of this machine do not cover the settings of the cluster
    settings = settings_on(place)
    assert _arguments(settings, "training", {"trials": "3"}) == {"trials": "3", "seed": "5", "families": ["XGBoost"]}
    assert _arguments(settings, "training", {"seed": "6"})["seed"] == "6"
    assert _arguments(settings, "monitoring", {})["policy"] == "every"
    assert _arguments(settings, "deployment", {"model_version": "1"}) == {"model_version": "1"}


def test_data_that_a_cluster_cannot_read_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}DATA_SOURCE", "my.csv")
    with pytest.raises(SettingsError, match="path on this machine"):
        _arguments(settings_on(Profile.KIND), "training", {})
    for given in ({"data_source": "s3://bucket/my.csv", "data_sha256": "a" * 64}, {"data_source": "synthetic"}):
        assert _arguments(settings_on(Profile.KIND), "training", given).items() >= given.items()


@pytest.mark.parametrize(("source", "reason"), [
    ("s3://bucket/my.csv", "has no checksum"),
    ("https://ward.example/my.csv", "has no checksum"),
    ("http://ward.example/my.csv", "neither an s3 nor an https"),
])  # fmt: skip
def test_data_that_somebody_could_change_are_refused(source: str, reason: str, tmp_path: Path) -> None:
    # when they are asked for in a cluster, by the command or where the dashboard names them, then nothing is read
    with pytest.raises(SettingsError, match=reason):
        _arguments(settings_on(Profile.KIND), "training", {"data_source": source})
    with pytest.raises(SettingsError, match=reason):
        fetch(Settings(profile=Profile.KIND, home=tmp_path, storage_uri=tmp_path.as_uri(), data_source=source))


def test_a_path_means_the_same_to_a_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"data_source": "my.csv", "replace_data": "true"}
    expected = {"data_source": str(tmp_path / "my.csv"), "replace_data": True}
    assert _arguments(settings_on(None), "training", given) == expected


def test_what_stands_on_synthetic_data_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # given a run that ended with a model of nobody
    ended = LocalRun("r", "training", tmp_path, {"model_version": "1", "dataset_source": "synthetic"})
    monkeypatch.setattr(pipeline, "run_pipeline", lambda *arguments: ended)
    # then the command says among its outputs and in its last line that nobody real stands behind it
    done = CliRunner().invoke(pipeline.app, ["run", "training"])
    lines = done.output.strip().splitlines()
    assert done.exit_code == 0 and "dataset_source: synthetic" in lines
    assert lines[-1].startswith("SYNTHETIC DATA")
