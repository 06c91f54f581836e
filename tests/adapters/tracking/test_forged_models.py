"""Somebody can write MLflow's artifacts, but not its database, and wants our stages to run code or another model."""

from __future__ import annotations

import pickle
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
import skops.io
import yaml
from sklearn.dummy import DummyClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from health_predict.adapters.tracking import Tag, Tracking
from health_predict.core.data.cohort import target
from health_predict.core.model.families import FAMILIES
from health_predict.core.model.features import EncounterFeatures
from health_predict.errors import StateError
from health_predict.settings import Settings
from tests.contracts import DIABETES

FAMILY = "LogisticRegression"


class Payload:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def pipeline(cohort: pd.DataFrame) -> Pipeline:
    features = EncounterFeatures(DIABETES).fit(cohort)
    rows, labels = features.transform(cohort), target(cohort, DIABETES)
    estimator = FAMILIES[FAMILY].fit(dict(FAMILIES[FAMILY].first), rows, labels, seed=1)
    return Pipeline([("features", features), ("estimator", estimator)])


@pytest.fixture
def tracking(settings: Settings) -> Tracking:
    return Tracking(settings)


@pytest.fixture
def run_id(tracking: Tracking, pipeline: Pipeline) -> str:
    return tracking.log_best(tracking.start_search("s", {}, {}), FAMILY, pipeline, {}, {}, {}, {})


def files_of(tracking: Tracking, run_id: str, name: str = "model") -> Path:
    """The folder that the attacker writes to."""
    [model] = [item for item in tracking._logged_models(run_id) if item.name == name]
    return Path(urlsplit(model.artifact_location).path)


@pytest.mark.parametrize("name", ["model", "preprocessor"])
@pytest.mark.parametrize("serialization", ["pickle", "cloudpickle"])
def test_what_a_forged_description_names_is_not_unpickled(
    tracking: Tracking,
    run_id: str,
    pipeline: Pipeline,
    cohort: pd.DataFrame,
    tmp_path: Path,
    name: str,
    serialization: str,
) -> None:
    # given a description that names a pickle with a payload
    folder, mark = files_of(tracking, run_id, name), tmp_path / "mark"
    description = yaml.safe_load((folder / "MLmodel").read_text())
    description["flavors"]["sklearn"] |= {"serialization_format": serialization, "pickled_model": "model.pkl"}
    (folder / "MLmodel").write_text(yaml.safe_dump(description))
    (folder / "model.pkl").write_bytes(pickle.dumps(Payload(mark)))
    # when a stage loads both, then it has the model of the run, and the payload did not run
    loaded = tracking.load_run_pipeline(run_id)
    assert tracking.preprocessor_matches(run_id, loaded)
    few = cohort.head(20)
    np.testing.assert_allclose(loaded.predict_proba(few), pipeline.predict_proba(few), atol=1e-12)
    assert not mark.exists()


def test_a_swapped_model_is_refused(tracking: Tracking, run_id: str, pipeline: Pipeline, cohort: pd.DataFrame) -> None:
    # given a model in its place that holds trusted types only
    other = Pipeline([("features", pipeline.named_steps["features"]), ("estimator", DummyClassifier())])
    skops.io.dump(other, files_of(tracking, run_id) / "model.skops")
    # then it is neither loaded nor registered
    with pytest.raises(StateError, match="was changed since the run wrote it"):
        tracking.load_run_pipeline(run_id)
    with pytest.raises(StateError, match="was changed since the run wrote it"):
        tracking.log_registered(run_id, FAMILY, DIABETES, 0.1, [0.1])
    assert tracking._logged_model(run_id, "registered") is None


def test_a_swapped_preprocessor_does_not_match(tracking: Tracking, run_id: str, pipeline: Pipeline) -> None:
    loaded = tracking.load_run_pipeline(run_id)
    skops.io.dump(pipeline.named_steps["features"], files_of(tracking, run_id, "preprocessor") / "model.skops")
    with (files_of(tracking, run_id, "preprocessor") / "model.skops").open("ab") as file:
        file.write(b"more")
    assert not tracking.preprocessor_matches(run_id, loaded)


def test_a_run_of_an_older_version_is_loaded_of_trusted_types_only(
    tracking: Tracking, run_id: str, pipeline: Pipeline, cohort: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    # given a run that recorded no digest
    tracking._client.delete_tag(run_id, Tag.MODEL_SHA256)
    # then its model is loaded, and that nobody can vouch for it is said
    assert tracking.load_run_pipeline(run_id).predict_proba(cohort.head(1)).shape == (1, 2)
    assert "has no SHA-256 of its model" in caplog.text
    # but not one with a function of Python's in it
    harmful = Pipeline([("features", FunctionTransformer(eval)), ("estimator", DummyClassifier())])
    skops.io.dump(harmful, files_of(tracking, run_id) / "model.skops")
    with pytest.raises(StateError, match=r"nobody vouched for.*eval"):
        tracking.load_run_pipeline(run_id)
    # nor one that is no archive at all
    (files_of(tracking, run_id) / "model.skops").write_bytes(b"nothing")
    with pytest.raises(StateError, match="damaged"):
        tracking.load_run_pipeline(run_id)
