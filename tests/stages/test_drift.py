"""The drift stage against a real MLflow store and folder storage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from health_predict.adapters.mlflow import CHAMPION, Tracking
from health_predict.adapters.storage import open_storage
from health_predict.core.cohort import exclude_not_readmittable, save_part, target
from health_predict.core.drift import Verdict
from health_predict.core.errors import DataError, StateError
from health_predict.core.features import EncounterFeatures
from health_predict.core.synthetic import synthesize
from health_predict.settings import Settings
from health_predict.stages.drift import DriftResult, drift

DATASET = "d" * 64


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A store with a champion, its dataset and three batches: alike, alike, and one that breaks the contract."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home)
    storage = open_storage(settings.storage)
    cohort = exclude_not_readmittable(synthesize(7000, seed=2))
    parts = {"train": cohort[:3000], "validation": cohort[3000:4000]}
    parts |= {"batches/01": cohort[4000:5200], "batches/02": cohort[5200:6400]}
    parts["batches/03"] = cohort[6400:].assign(age="[200-210)")
    for name, frame in parts.items():
        file = home / "part.parquet"
        save_part(frame.reset_index(drop=True), file)
        storage.upload(file, f"datasets/{DATASET}/{name}.parquet")
    train: pd.DataFrame = parts["train"].reset_index(drop=True)
    pipeline = Pipeline([("features", EncounterFeatures()), ("estimator", LogisticRegression(C=0.01, max_iter=1000))])
    pipeline.fit(train, target(train))
    tracking = Tracking(settings)
    tags = {"dataset_digest": DATASET, "dataset_source": "synthetic", "git_commit": "abc"}
    parent = tracking.start_search("search", tags, {})
    run = tracking.log_best(parent, "LogisticRegression", pipeline, tags, {}, {}, {})
    version = tracking.register(run, tags, "for the test")
    tracking.set_alias(CHAMPION, version.version)
    return settings


def run_stage(settings: Settings, batch: int, folder: Path) -> DriftResult:
    return drift(
        settings,
        batch=batch,
        report=folder / "report.html",
        evidently=folder / "evidently.html",
        metrics=folder / "metrics.json",
    )


def test_a_batch_is_judged_once(settings: Settings, tmp_path: Path) -> None:
    # when a batch is handled for the first time
    first = run_stage(settings, 1, tmp_path / "one")
    # then there is a verdict with reasons and figures, and three whole files
    assert first.verdict in Verdict
    assert first.reasons
    assert np.isfinite(list(first.metrics.values())).all()
    assert not first.already_handled
    html = (tmp_path / "one" / "report.html").read_text()
    assert "Synthetic data" in html
    assert "Drift report, batch 1" in html
    record = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert record["verdict"] == first.verdict
    assert record["batch_digest"] == first.batch_digest
    assert len(record["evidently"]) > 40
    storage = open_storage(settings.storage)
    assert storage.keys(f"drift/1/{first.batch_digest[:12]}/") == [
        f"drift/1/{first.batch_digest[:12]}/{name}" for name in ("evidently.html", "metrics.json", "report.html")
    ]
    # when it is handled again
    again = run_stage(settings, 1, tmp_path / "two")
    # then the result is the stored one
    assert again.already_handled
    assert (again.verdict, again.reasons, again.metrics) == (first.verdict, first.reasons, first.metrics)
    for name in ("report.html", "evidently.html", "metrics.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    # when the process dies before its last write, the watermark
    watermark = storage.keys("watermarks/monitoring/1/")
    (settings.home / "storage" / watermark[0]).unlink()
    recovered = run_stage(settings, 1, tmp_path / "three")
    # then the next run ends in the same state
    assert not recovered.already_handled
    assert (recovered.verdict, recovered.reasons) == (first.verdict, first.reasons)
    assert storage.keys("watermarks/monitoring/1/") == watermark
    assert (tmp_path / "three" / "report.html").read_text() == html

    # when the next batch comes, it knows its predecessor
    second = run_stage(settings, 2, tmp_path / "four")
    findings = json.loads((tmp_path / "four" / "metrics.json").read_text())["findings"]
    assert findings["rolling"] is not None
    assert findings["discrimination"]["windows"] == 2
    assert second.metrics["rows"] == 1200


def test_a_batch_that_breaks_the_contract_is_refused_without_traces(settings: Settings, tmp_path: Path) -> None:
    before = open_storage(settings.storage).keys("")
    with pytest.raises(DataError, match=r"batch 3.*age"):
        run_stage(settings, 3, tmp_path)
    assert open_storage(settings.storage).keys("") == before
    assert not list(tmp_path.iterdir())


def test_a_batch_that_does_not_exist_is_named_with_the_range(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(StateError) as caught:
        run_stage(settings, 9, tmp_path)
    assert "no batch 9" in caught.value.problem
    assert "1 to 3" in caught.value.remedy


def test_without_a_champion_the_remedy_is_to_deploy(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="champion"):
        run_stage(Settings(home=tmp_path / "home"), 1, tmp_path / "out")
