"""An ordinary Bento, the same bytes each time, that serves with nothing but itself."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from sklearn.pipeline import Pipeline

from health_predict.adapters.archives import content_digest
from health_predict.adapters.serving import bentoml
from health_predict.adapters.serving.bentoml import (
    Bento,
    BentoStore,
    bento_tag,
    library_files,
    pack,
    requirements,
    service_files,
)
from health_predict.core.data.cohort import target
from health_predict.core.data.contract import Contract
from health_predict.core.model.families import FAMILIES
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.serving.compiled_model import CompiledModel, compile_pipeline
from health_predict.errors import StateError
from health_predict.stages.bento_build import golden_requests
from tests.contracts import DIABETES

IDENTITY: dict[str, Any] = {
    "model_name": "readmission",
    "model_version": "7",
    "run_id": "r",
    "dataset_digest": "d",
    "dataset_source": "synthetic",
    "git_commit": "c",
    "training_prevalence": 0.1,
    "risk_cutoffs": [0.1, 0.15, 0.25],
    "metrics": {"test_auc": 0.66},
}
TAG = bento_tag("7", IDENTITY)


@pytest.fixture(scope="module")
def compiled(cohort: pd.DataFrame) -> CompiledModel:
    features = EncounterFeatures(DIABETES).fit(cohort)
    family = FAMILIES["LogisticRegression"]
    estimator = family.fit(family.first, features.transform(cohort), target(cohort, DIABETES), seed=1)
    return compile_pipeline(Pipeline([("features", features), ("estimator", estimator)]), family, 0.12)


@pytest.fixture(scope="module")
def golden(compiled: CompiledModel, cohort: pd.DataFrame) -> list[dict[str, Any]]:
    return golden_requests(compiled, cohort, IDENTITY["risk_cutoffs"])


@pytest.fixture(scope="module")
def built(
    compiled: CompiledModel, golden: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[BentoStore, Bento]:
    # Below a hidden folder, as the default home is.
    store = BentoStore(tmp_path_factory.mktemp("store") / ".hidden" / "bentoml")
    return store, store.build(TAG, compiled, IDENTITY, golden)


def test_it_is_an_ordinary_bento(built: tuple[BentoStore, Bento]) -> None:
    _, bento = built
    description = yaml.safe_load((bento.folder / "bento.yaml").read_text())
    assert f"{description['name']}:{description['version']}" == bento.tag
    assert description["labels"]["model_version"] == "7"
    assert description["image"]["base_image"] == "python:3.11-slim"
    assert (bento.folder / "env" / "docker" / "Dockerfile").is_file()
    assert (bento.folder.parent / "latest").read_text() == bento.folder.name


def test_everything_is_inside(built: tuple[BentoStore, Bento], compiled: CompiledModel) -> None:
    source = built[1].folder / "src"
    identity = json.loads((source / "identity.json").read_text())
    assert identity["bento_tag"] == TAG
    assert identity["threshold"] == compiled.threshold
    assert (source / "model.onnx").read_bytes() == compiled.graph
    assert json.loads((source / "encoder.json").read_text()) == json.loads(json.dumps(compiled.encoder.to_json()))
    assert Contract.from_json((source / "contract.json").read_bytes()) == compiled.contract
    assert identity["contract_digest"] == compiled.contract.digest
    # and the library's wheel, which BentoML's image installs
    (wheel,) = (source / "wheels").iterdir()
    assert "health_predict/serving/middleware.py" in zipfile.ZipFile(wheel).namelist()
    assert f"./wheels/{wheel.name}" in (built[1].folder / "env" / "python" / "requirements.txt").read_text()
    assert "./src/wheels" in (built[1].folder / "env" / "docker" / "Dockerfile").read_text()


def test_another_build_gives_the_same_bytes(
    built: tuple[BentoStore, Bento], compiled: CompiledModel, golden: list[dict[str, Any]], tmp_path: Path
) -> None:
    again = BentoStore(tmp_path).build(TAG, compiled, IDENTITY, golden)
    assert again.digest == built[1].digest
    # what a killed build left is gone, and so is the workshop of this one
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "bentos"]


def test_a_build_replaces_a_damaged_bento(
    built: tuple[BentoStore, Bento], compiled: CompiledModel, golden: list[dict[str, Any]], tmp_path: Path
) -> None:
    # given a store with a damaged Bento and the rest of a killed build
    store = BentoStore(tmp_path)
    store.folder(TAG).mkdir(parents=True)
    (store.folder(TAG) / "bento.yaml").write_text("half")
    (tmp_path / ".building-killed").mkdir()
    assert store.find(TAG, built[1].digest) is None
    # when it is built, then it is whole
    bento = store.build(TAG, compiled, IDENTITY, golden)
    assert store.find(TAG, built[1].digest) == bento
    assert not (tmp_path / ".building-killed").exists()


def test_the_archive_has_the_digest(built: tuple[BentoStore, Bento], tmp_path: Path) -> None:
    store, bento = built
    pack(bento, tmp_path / "bento.tar")
    assert f"sha256:{hashlib.sha256((tmp_path / 'bento.tar').read_bytes()).hexdigest()}" == bento.digest
    assert store.find(bento.tag, bento.digest) == bento
    assert store.find(bento.tag, "sha256:other") is None
    assert store.find("readmission:none", bento.digest) is None


def test_the_tag_follows_the_model_and_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bento_tag("7", IDENTITY) == TAG
    assert bento_tag("7", {**IDENTITY, "run_id": "other"}) != TAG
    files = service_files()
    monkeypatch.setattr(bentoml, "service_files", lambda: {**files, "service.py": files["service.py"] + b"#"})
    assert bento_tag("7", IDENTITY) != TAG


def test_the_tag_follows_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    files = library_files()
    assert "health_predict/core/data/contract.py" in files
    monkeypatch.setattr(bentoml, "library_files", lambda: {**files, "health_predict/new.py": b""})
    assert bento_tag("7", IDENTITY) != TAG


def test_requirements_are_exact_and_light() -> None:
    names = {line.partition("==")[0] for line in requirements()}
    assert {"bentoml", "onnxruntime", "pydantic-settings", "uvicorn", "starlette"} <= names
    # With it uvicorn loses the body of a request that offers another protocol.
    assert "httptools" not in names
    assert not names & {"pandas", "scikit-learn", "mlflow", "mlflow-skinny", "ray", "kfp", "xgboost", "lightgbm"}
    assert all("==" in line for line in requirements())


def test_libraries_that_are_absent_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bentoml, "EXTRA", "")
    with pytest.raises(StateError, match="bentoml is not installed"):
        requirements()


def test_a_missing_service_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bentoml, "SOURCE", tmp_path)
    with pytest.raises(StateError, match=r"no service\.py"):
        service_files()


def test_what_bentoml_refuses_is_one_line(
    compiled: CompiledModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = service_files()
    monkeypatch.setattr(bentoml, "service_files", lambda: {**files, "service.py": b"raise ValueError('broken')"})
    with pytest.raises(StateError, match="broken"):
        BentoStore(tmp_path).build(TAG, compiled, IDENTITY, [])
    assert not BentoStore(tmp_path).folder(TAG).exists()


def test_it_serves_without_the_libraries_of_training(built: tuple[BentoStore, Bento], tmp_path: Path) -> None:
    # given a process that has the Bento's library from its wheel, and none of the heavy libraries
    program = """
import json, os, sys
heavy = ("pandas", "sklearn", "mlflow", "ray", "kfp", "scipy", "xgboost", "lightgbm", "onnx", "httptools")
sys.modules.update(dict.fromkeys(heavy))
source, (wheel,) = sys.argv[1], os.listdir(sys.argv[1] + "/wheels")
sys.path[:0] = [source + "/wheels/" + wheel, source]
import health_predict, service
from starlette.testclient import TestClient
with TestClient(service.Readmission.to_asgi(), base_url="http://localhost") as client:
    print(json.dumps({"library": health_predict.__file__, "health": client.get("/health").json()}))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(built[1].folder / "src")],
        env={**os.environ, "BENTOML_DO_NOT_TRACK": "true", "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    # then it serves, and says which Bento it is, and that its data are made up
    answer = json.loads(done.stdout.splitlines()[-1])
    assert ".whl" in answer["library"]
    assert answer["health"]["ready"] is True
    assert answer["health"]["bento_digest"] == built[1].digest == content_digest(built[1].folder)
    assert "SYNTHETIC" in answer["health"]["warning"]
    # and no library wrote into the home
    assert not list(tmp_path.iterdir())
