"""bento_build: a registered version becomes a Bento that is proven to score the same."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from health_predict.adapters.serving.bentoml import Bento, BentoStore
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import ModelVersion, Tracking
from health_predict.core.model.families import Family
from health_predict.errors import GateError, StateError
from health_predict.settings import Settings
from health_predict.stages import bento_build as stage
from health_predict.stages.bento_build import PARITY, bento_build
from tests.conftest import Parts
from tests.contracts import DIABETES

DATASET = "d" * 64


@dataclass(frozen=True)
class Home:
    """A home with a registered version and its dataset in storage."""

    settings: Settings
    version: ModelVersion


@pytest.fixture(scope="module")
def make_home(parts: Parts, log_search: Callable[..., str], mlflow_database: Path) -> Callable[[Path], Home]:
    def make(folder: Path) -> Home:
        settings = Settings(home=folder)
        shutil.copy(mlflow_database, folder / "mlflow.db")
        parent, tracking, storage = log_search(settings, "XGBoost"), Tracking(settings), open_storage(settings.storage)
        (best,) = [run for run in tracking.children(parent) if run.tags.get("role") == "best"]
        storage.upload(parts.validation, f"datasets/{DATASET}/validation.parquet")
        tags = {name: best.tags[name] for name in ("dataset_digest", "dataset_source", "git_commit", "family")}
        return Home(settings, tracking.register(best.run_id, {**tags, "threshold": best.params["threshold"]}, ""))

    return make


@pytest.fixture
def home(make_home: Callable[[Path], Home], tmp_path: Path) -> Home:
    """Of this test alone."""
    return make_home(tmp_path)


@dataclass(frozen=True)
class Built:
    """A home whose version was built, not to be changed."""

    home: Home
    archive: Path
    result: Bento


@pytest.fixture(scope="module")
def built(make_home: Callable[[Path], Home], tmp_path_factory: pytest.TempPathFactory) -> Built:
    home, archive = make_home(tmp_path_factory.mktemp("home")), tmp_path_factory.mktemp("built") / "bento.tar"
    return Built(home, archive, bento_build(home.settings, model_version=home.version.version, bento=archive))


def test_a_version_becomes_a_bento(built: Built) -> None:
    # given a registered version that was built
    settings, version, result = built.home.settings, built.home.version, built.result
    # then the archive has its digest, and the version says which Bento it has
    assert f"sha256:{hashlib.sha256(built.archive.read_bytes()).hexdigest()}" == result.digest
    tracking = Tracking(settings)
    tags = tracking.version(version.version).tags
    assert (tags["bento_tag"], tags["bento_digest"]) == (result.tag, result.digest)
    # and the Bento holds the identity chain, with a threshold that rounding cannot cross
    source = BentoStore(settings.home / "bentoml").folder(result.tag) / "src"
    identity = json.loads((source / "identity.json").read_text())
    assert identity["run_id"] == version.run_id
    assert identity["dataset_digest"] == DATASET
    assert 0 < identity["training_prevalence"] < 1
    assert identity["risk_cutoffs"][0] == identity["training_prevalence"]
    assert identity["metrics"]
    parity = tracking.read_json(version.run_id, PARITY)
    assert parity["largest_difference"] <= 1e-6
    # which is that of the version, and so of its registered model
    assert parity["threshold"] == identity["threshold"] == float(tags["threshold"])
    assert len(json.loads((source / "golden.json").read_text())) == stage.GOLDEN_REQUESTS


def test_a_repeat_builds_nothing(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **names: Any) -> Any:
        raise AssertionError("built again")

    monkeypatch.setattr(BentoStore, "build", never)
    home = built.home
    again = bento_build(home.settings, model_version=home.version.version, bento=tmp_path / "again.tar")
    assert again == built.result
    assert (tmp_path / "again.tar").read_bytes() == built.archive.read_bytes()


def test_a_damaged_bento_is_built_again_with_the_same_digest(built: Built, tmp_path: Path) -> None:
    # given another home beside the same MLflow and storage, with a Bento that is damaged there
    there = built.home.settings
    settings = Settings(home=tmp_path / "home", mlflow_tracking_uri=there.tracking_uri, storage_uri=there.storage)
    shutil.copytree(there.home / "bentoml", settings.home / "bentoml")
    model = BentoStore(settings.home / "bentoml").folder(built.result.tag) / "src" / "model.onnx"
    model.write_bytes(b"damaged")
    # then
    again = bento_build(settings, model_version=built.home.version.version, bento=tmp_path / "bento.tar")
    assert (again.tag, again.digest) == (built.result.tag, built.result.digest)
    assert model.read_bytes() != b"damaged" and (tmp_path / "bento.tar").read_bytes() == built.archive.read_bytes()


def test_a_model_that_cannot_be_compiled_faithfully_is_refused(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, version = home.settings, home.version

    # given a graph of another model
    def another(pipeline: Any, family: Family, threshold: float) -> Any:
        other = pickle.loads(pickle.dumps(pipeline))
        other.named_steps["estimator"].fit(other.named_steps["features"].transform(frame), labels)
        return real(other, family, threshold)

    from health_predict.core.data.cohort import load_part, target

    storage = open_storage(settings.storage)
    storage.download(f"datasets/{DATASET}/validation.parquet", tmp_path / "validation.parquet")
    frame = load_part(tmp_path / "validation.parquet")
    labels = target(frame, DIABETES)
    real = stage.compile_pipeline
    monkeypatch.setattr(stage, "compile_pipeline", another)
    # when it is built, then the rows are named and nothing is left
    with pytest.raises(GateError, match="validation row"):
        bento_build(settings, model_version=version.version, bento=tmp_path / "bento.tar")
    assert not (tmp_path / "bento.tar").exists()
    assert "bento_digest" not in Tracking(settings).version(version.version).tags
    assert not (settings.home / "bentoml" / "bentos").exists()


def test_what_is_missing_is_named(home: Home, tmp_path: Path) -> None:
    settings, version = home.settings, home.version
    with pytest.raises(StateError):
        bento_build(settings, model_version="99", bento=tmp_path / "bento.tar")
    (settings.home / "storage" / "datasets" / DATASET / "validation.parquet").unlink()
    with pytest.raises(StateError, match=r"validation\.parquet does not exist"):
        bento_build(settings, model_version=version.version, bento=tmp_path / "bento.tar")
    Tracking(settings).tag_version(version.version, {"dataset_source": ""})
    with pytest.raises(StateError, match="has no tag dataset_source"):
        bento_build(settings, model_version=version.version, bento=tmp_path / "bento.tar")
