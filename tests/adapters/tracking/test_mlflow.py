"""A real MLflow on SQLite."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.models import get_model_info
from sklearn.pipeline import Pipeline

from health_predict.adapters.tracking import CHALLENGER, CHAMPION, REGISTERED, Tag, Tracking
from health_predict.core.data.cohort import target
from health_predict.core.model.families import FAMILIES
from health_predict.core.model.features import EncounterFeatures
from health_predict.errors import HealthPredictError, StateError, UnreachableError
from health_predict.settings import PREFIX, Settings
from tests.contracts import DIABETES
from tests.mlflow_server import mlflow_server


@pytest.fixture(scope="module")
def pipelines(cohort: pd.DataFrame) -> dict[str, Pipeline]:
    features = EncounterFeatures(DIABETES).fit(cohort)
    rows, labels = features.transform(cohort), target(cohort, DIABETES)
    small = {"RandomForest": {"n_estimators": 5}, "XGBoost": {"n_estimators": 5}, "LightGBM": {"n_estimators": 5}}
    return {
        name: Pipeline(
            [
                ("features", features),
                ("estimator", family.fit({**family.first, **small.get(name, {})}, rows, labels, seed=1)),
            ]
        )
        for name, family in FAMILIES.items()
    }


@pytest.fixture
def tracking(settings: Settings) -> Tracking:
    return Tracking(settings)


def log_best(tracking: Tracking, pipelines: dict[str, Pipeline], family: str = "LogisticRegression") -> str:
    parent = tracking.start_search("search", {"search_digest": "d1"}, {"trials": 1})
    return tracking.log_best(
        parent,
        family,
        pipelines[family],
        {"search_digest": "d1"},
        {"threshold": 0.5},
        {"validation_f1": 0.3},
        {"a.json": {"b": 1}},
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_saved_and_loaded(
    tracking: Tracking,
    pipelines: dict[str, Pipeline],
    cohort: pd.DataFrame,
    family: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id = log_best(tracking, pipelines, family)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    loaded = tracking.load_run_pipeline(run_id)
    np.testing.assert_allclose(
        loaded.predict_proba(cohort.head(50)), pipelines[family].predict_proba(cohort.head(50)), atol=1e-12
    )
    assert tracking.preprocessor_matches(run_id, loaded)
    assert tracking.read_json(run_id, "a.json") == {"b": 1}
    # and no copy is left behind
    assert not list((tmp_path / "temporary").iterdir())


def test_a_type_that_the_family_does_not_name_is_refused(tracking: Tracking, pipelines: dict[str, Pipeline]) -> None:
    # given a pipeline whose estimator is of another family than it is said to be
    with pytest.raises(StateError, match=r"XGBClassifier.*`trusted_types`"):
        log_best(tracking, {"LightGBM": pipelines["XGBoost"]}, "LightGBM")


def test_pages_name_the_experiment_and_the_dataset_of_a_search(tracking: Tracking, settings: Settings) -> None:
    # when a search of a dataset begins
    run_id = tracking.start_search("search", {"dataset_digest": "d" * 64, "dataset_source": "uci"}, {})
    # then its run has the dataset as input, and the experiment says what the runs are
    run = tracking._client.get_run(run_id)
    [given] = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("diabetes-130", "d" * 36)
    experiment = tracking._client.get_experiment(run.info.experiment_id)
    assert "Not for clinical use" in experiment.tags["mlflow.note.content"]


def test_a_run_without_its_preprocessor_is_noticed(
    tracking: Tracking, settings: Settings, pipelines: dict[str, Pipeline]
) -> None:
    # given a run whose preprocessor was lost
    run_id = log_best(tracking, pipelines, "XGBoost")
    loaded = tracking.load_run_pipeline(run_id)
    for item in tracking._logged_models(run_id):
        if item.name == "preprocessor":
            shutil.rmtree(urlsplit(item.artifact_location).path)
    # then it does not match
    assert not tracking.preprocessor_matches(run_id, loaded)


def test_a_preprocessor_of_another_fit_is_noticed(
    tracking: Tracking, pipelines: dict[str, Pipeline], cohort: pd.DataFrame
) -> None:
    run_id = log_best(tracking, pipelines, "XGBoost")
    other = Pipeline([("features", EncounterFeatures(DIABETES, 400).fit(cohort)), ("estimator", None)])
    assert not tracking.preprocessor_matches(run_id, other)


def test_a_search_is_found_again_only_when_it_ended_and_its_files_are_there(
    tracking: Tracking, pipelines: dict[str, Pipeline], settings: Settings
) -> None:
    # given a search that goes on
    best = log_best(tracking, pipelines)
    [parent] = tracking.runs("tags.role = 'search'")
    assert tracking.finished_search("d1") is None
    # when it ends, then it is found
    tracking.tag_run(parent.run_id, {Tag.CHOSEN: best})
    tracking.log_text(parent.run_id, "page.html", "")
    tracking.end_search(parent.run_id, {"best_f1": 0.2})
    found = tracking.finished_search("d1", "page.html")
    assert found is not None and (found.run_id, found.metrics["best_f1"]) == (parent.run_id, 0.2)
    assert [child.params["threshold"] for child in tracking.children(parent.run_id)] == ["0.5"]
    # and no more once its files were deleted
    shutil.rmtree(settings.home / "mlartifacts")
    assert tracking.finished_search("d1", "page.html") is None


def test_an_experiment_that_was_deleted_is_restored(tracking: Tracking, settings: Settings) -> None:
    run_id = tracking.start_search("search", {"search_digest": "s"}, {})
    tracking.end_search(run_id, {})
    client = MlflowClient(settings.tracking_uri)
    client.delete_experiment(client.get_experiment_by_name("readmission").experiment_id)
    # when it is asked for again
    again = Tracking(settings)
    # then what was in it is there, and it takes more
    assert again.run(run_id).status == "FINISHED"
    again.start_search("search", {}, {})


def test_a_home_that_was_moved_or_copied_says_so(tracking: Tracking, settings: Settings, tmp_path: Path) -> None:
    # given a home that is reached by another path, which is the same to it
    (tmp_path / "link").symlink_to(settings.home)
    Tracking(Settings(home=tmp_path / "link"))
    # and a copy of it, and the home itself after it was moved, with no file of a run in it yet
    copy = Path(shutil.copytree(settings.home, tmp_path / "copy"))
    with pytest.raises(StateError, match=f"{copy} is a copy of {settings.home}"):
        Tracking(Settings(home=copy))
    moved = settings.home.rename(tmp_path / "moved")
    with pytest.raises(StateError, match=f"moved from {settings.home} to {moved}"):
        Tracking(Settings(home=moved))


def _locked(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(database)
    connection.execute("begin exclusive")
    return connection


def _of_another_version(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("update alembic_version set version_num = 'ffffffffffff'")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "of another version of MLflow": _of_another_version,
    "not MLflow's": lambda database: database.write_text("no database at all" * 100),
    "held by another program": _locked,
}


@pytest.mark.parametrize("words", DAMAGES)
def test_what_is_wrong_with_a_database_is_told_in_its_own_words(settings: Settings, words: str) -> None:
    held = DAMAGES[words](settings.database)
    with pytest.raises(HealthPredictError, match=words) as caught:
        Tracking(settings)
    assert "HEALTH_PREDICT_MLFLOW_TRACKING_URI" not in str(caught.value)
    del held


def test_a_killed_search_is_resumed_with_its_finished_trials(tracking: Tracking) -> None:
    # given two unfinished searches, the newer with a finished, a failed and a half-written trial
    older = tracking.start_search("a", {"search_digest": "s"}, {})
    newer = tracking.start_search("b", {"search_digest": "s"}, {})
    kept = tracking.log_trial(newer, "t-0", {}, {"C": 1}, {"auc": 0.6})
    tracking.log_trial(newer, "t-1", {"error": "no luck"}, {}, {}, failed=True)
    tracking._create_child(newer, "t-2", {}, "trial")
    # when the search is resumed
    assert tracking.resume_search("s") == newer
    # then it goes on under the same id, and what is to be done again is gone
    assert tracking.run(newer).status == "RUNNING"
    assert [child.run_id for child in tracking.children(newer)] == [kept]
    assert tracking.run(older).status == "KILLED"
    # and once it ended there is nothing to resume but the search that was given up
    tracking.end_search(newer, {})
    assert tracking.resume_search("t") is None


def test_of_a_trial_that_was_written_twice_one_stays(tracking: Tracking) -> None:
    # given a child whose creation was answered too late, so that it was made again
    parent = tracking.start_search("a", {"search_digest": "s"}, {})
    tracking._create_child(parent, "t-0", {}, "trial")
    kept = tracking.log_trial(parent, "t-0", {}, {}, {"auc": 0.6})
    tracking.end_search(parent, {})
    assert [child.run_id for child in tracking.children(parent)] == [kept]


def test_registering_twice_gives_one_version(tracking: Tracking, pipelines: dict[str, Pipeline]) -> None:
    run_id = log_best(tracking, pipelines)
    first = tracking.register(run_id, {"family": "x"}, "text")
    second = tracking.register(run_id, {"family": "y"}, "text")
    assert first.version == second.version == "1"
    assert second.tags["family"] == "y"
    other = tracking.register(log_best(tracking, pipelines), {}, "text")
    assert [version.version for version in tracking.versions()] == [other.version, "1"]


def test_a_server_registers_what_a_file_does(
    settings: Settings,
    pipelines: dict[str, Pipeline],
    cohort: pd.DataFrame,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # given MLflow's server, which checks more than the store that it keeps
    with mlflow_server(settings.home / "mlflow.db", tmp_path / "artifacts") as server:
        tracking = Tracking(settings.model_copy(update={"mlflow_tracking_uri": server.uri}), patience=200)
        run_id = log_best(tracking, pipelines)
        # then MLflow puts no line between those of the stage
        assert capsys.readouterr().out == ""
        # when its model is registered
        tracking.log_registered(run_id, "LogisticRegression", DIABETES, 0.1, [0.1, 0.2, 0.3])
        assert capsys.readouterr().out == ""
        version = tracking.register(run_id, {"family": "x"}, "text")
        # then it is found there, is the one for everybody, and our own loads
        assert tracking.version(version.version).tags["family"] == "x"
        about = get_model_info(f"models:/{version.name}/{version.version}")
        assert about.name == REGISTERED and about.signature is not None
        loaded = tracking.load_run_pipeline(run_id)
        assert len(loaded.predict_proba(cohort.head(5))) == 5
        # when it is killed in the middle of a search, and comes back
        parent = tracking.start_search("search", {"search_digest": "s"}, {"trials": 4})
        tracking.log_trial(parent, "t-0", {}, {"C": 1}, {"auc": 0.6})
        server.kill()
        restarting = threading.Thread(target=server.start)
        restarting.start()
        for number in range(1, 4):
            tracking.log_trial(parent, f"t-{number}", {}, {"C": 1}, {"auc": 0.6})
        tracking.end_search(parent, {})
        restarting.join()
        # then each trial is there, once and whole
        children = tracking.children(parent)
        assert sorted(child.name for child in children) == ["t-0", "t-1", "t-2", "t-3"]
        assert {(child.status, child.metrics["auc"]) for child in children} == {("FINISHED", 0.6)}


def test_a_server_that_answers_503_may_be_asked_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a proxy whose server is away for two answers, then gone
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracking = Tracking(settings, patience=60)
    asked = 0

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal asked
            asked += 1
            self.send_response(503 if asked < 3 else 404)
            self.end_headers()

        def log_message(self, *message: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{proxy.server_port}"
        tracking._client = tracking._mlflow.MlflowClient(uri, uri)
        # then it is asked until it answers something else
        with pytest.raises(UnreachableError, match="404"):
            tracking.run("0" * 32)
        assert asked == 3
        proxy.shutdown()


def test_aliases_move_and_go(tracking: Tracking, pipelines: dict[str, Pipeline]) -> None:
    assert tracking.by_alias(CHAMPION) is None
    version = tracking.register(log_best(tracking, pipelines), {}, "text").version
    tracking.set_alias(CHAMPION, version)
    tracking.set_alias(CHALLENGER, version)
    champion = tracking.by_alias(CHAMPION)
    assert champion is not None
    assert set(champion.aliases) == {CHAMPION, CHALLENGER}
    tracking.delete_alias(CHALLENGER)
    tracking.delete_alias(CHALLENGER)
    assert tracking.by_alias(CHALLENGER) is None
    assert tracking.by_alias(CHAMPION) is not None


def test_what_is_absent_is_named(tracking: Tracking) -> None:
    with pytest.raises(StateError, match="7"):
        tracking.version("7")
    with pytest.raises(StateError):
        tracking.run("0" * 32)
    with pytest.raises(StateError, match=r"evaluation\.json"):
        tracking.read_json(tracking.start_search("s", {}, {}), "evaluation.json")


def test_a_server_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UnreachableError, match=f"{uri} does not answer") as caught:
        Tracking(Settings(home=tmp_path, mlflow_tracking_uri=uri))
    assert "HEALTH_PREDICT_MLFLOW_TRACKING_URI" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mlflow_works_from_an_environment_in_any_folder(awkward: Path, settings: Settings) -> None:
    # given an environment whose path holds a percent sign, which MLflow's migrations cannot have
    modules = "health_predict.adapters.tracking", "health_predict.settings"
    program = "".join(f"from {name} import *\n" for name in modules) + "print(champion_of(Settings()))"
    environment = {**os.environ, f"{PREFIX}HOME": str(settings.home)}
    # when its interpreter asks the registry, then it is answered
    done = subprocess.run([awkward, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr


def test_the_pages_show_runs_and_whose_they_are(
    tracking: Tracking, settings: Settings, pipelines: dict[str, Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    client = MlflowClient(settings.tracking_uri)
    experiment = client.get_experiment_by_name(settings.mlflow_experiment)
    # given an experiment of before, without its kind
    client.delete_experiment_tag(experiment.experiment_id, "mlflow.experimentKind")
    again = Tracking(settings)
    # when a run and its models are logged
    run_id = log_best(again, pipelines)
    again.log_registered(run_id, "LogisticRegression", DIABETES, 0.1, [0.1, 0.2, 0.3])
    # then MLflow opens it with runs and models
    experiment = client.get_experiment_by_name(settings.mlflow_experiment)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert again.page == f"#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
    # and its columns Source and Created by are filled
    models = client.search_logged_models([experiment.experiment_id], f"source_run_id = '{run_id}'")
    for tags in [client.get_run(run_id).data.tags, *(model.tags for model in models)]:
        assert tags["mlflow.user"] == "ada"
        assert tags["mlflow.source.name"].startswith("health-predict")
    assert len(models) == 3
