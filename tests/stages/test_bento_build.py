"""bento_build: a registered version becomes a Bento that is proven to score the same."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from health_predict.adapters.serving.bentoml import BentoStore
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import ModelVersion, Tracking
from health_predict.core.model.families import Family
from health_predict.errors import GateError, StateError
from health_predict.settings import Settings
from health_predict.stages import bento_build as stage
from health_predict.stages.bento_build import PARITY, bento_build
from tests.contracts import DIABETES

DATASET = "d" * 64


@pytest.fixture
def version(settings: Settings, parts: Any, log_search: Callable[..., str]) -> ModelVersion:
    """A registered version with its dataset in storage."""
    parent = log_search(settings, "XGBoost")
    tracking = Tracking(settings)
    (best,) = [run for run in tracking.children(parent) if run.tags.get("role") == "best"]
    storage = open_storage(settings.storage)
    for name in ("train", "validation"):
        storage.upload(getattr(parts, name), f"datasets/{DATASET}/{name}.parquet")
    tags = {name: best.tags[name] for name in ("dataset_digest", "dataset_source", "git_commit", "family")}
    return tracking.register(best.run_id, {**tags, "threshold": best.params["threshold"]}, "")


def test_a_version_becomes_a_bento(settings: Settings, version: ModelVersion, tmp_path: Path) -> None:
    # when a registered version is built
    result = bento_build(settings, model_version=version.version, bento=tmp_path / "bento.tar")
    # then the archive has its digest, and the version says which Bento it has
    assert f"sha256:{hashlib.sha256((tmp_path / 'bento.tar').read_bytes()).hexdigest()}" == result.digest
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


def test_a_repeat_builds_nothing(
    settings: Settings, version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bento_build(settings, model_version=version.version, bento=tmp_path / "first.tar")

    def never(*arguments: Any, **names: Any) -> Any:
        raise AssertionError("built again")

    monkeypatch.setattr(BentoStore, "build", never)
    again = bento_build(settings, model_version=version.version, bento=tmp_path / "again.tar")
    assert again == first
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "first.tar").read_bytes()


def test_a_damaged_or_lost_bento_is_built_again_with_the_same_digest(
    settings: Settings, version: ModelVersion, tmp_path: Path
) -> None:
    first = bento_build(settings, model_version=version.version, bento=tmp_path / "bento.tar")
    folder = BentoStore(settings.home / "bentoml").folder(first.tag)
    (folder / "src" / "model.onnx").write_bytes(b"damaged")
    again = bento_build(settings, model_version=version.version, bento=tmp_path / "bento.tar")
    assert again == first


def test_a_model_that_cannot_be_compiled_faithfully_is_refused(
    settings: Settings, version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_what_is_missing_is_named(settings: Settings, version: ModelVersion, tmp_path: Path) -> None:
    with pytest.raises(StateError):
        bento_build(settings, model_version="99", bento=tmp_path / "bento.tar")
    (settings.home / "storage" / "datasets" / DATASET / "validation.parquet").unlink()
    with pytest.raises(StateError, match=r"validation\.parquet does not exist"):
        bento_build(settings, model_version=version.version, bento=tmp_path / "bento.tar")
    Tracking(settings).tag_version(version.version, {"dataset_source": ""})
    with pytest.raises(StateError, match="has no tag dataset_source"):
        bento_build(settings, model_version=version.version, bento=tmp_path / "bento.tar")
