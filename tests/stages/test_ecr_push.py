"""ecr_push: the Bento of a version becomes an image named by its digest."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import pytest

from health_predict.adapters.archives import archive
from health_predict.adapters.images import open_registry
from health_predict.adapters.images.attestations import COMPONENTS, ENVELOPE, attested
from health_predict.adapters.tracking import ModelVersion, Tracking
from health_predict.errors import SettingsError, StateError
from health_predict.settings import Settings
from health_predict.stages.ecr_push import ecr_push


@pytest.fixture
def bento(tmp_path: Path) -> Path:
    (tmp_path / "source" / "src").mkdir(parents=True)
    (tmp_path / "source" / "src" / "requirements.txt").write_text(f"bentoml=={version_of('bentoml')}\n")
    (tmp_path / "source" / "bento.yaml").write_text("name: readmission")
    with (tmp_path / "bento.tar").open("wb") as sink:
        archive(tmp_path / "source", sink)
    return tmp_path / "bento.tar"


@pytest.fixture
def version(settings: Settings, bento: Path) -> ModelVersion:
    tracking = Tracking(settings)
    run = tracking.start_search("search", {}, {})
    digest = f"sha256:{hashlib.sha256(bento.read_bytes()).hexdigest()}"
    tags = {"bento_tag": "readmission:v1-x", "bento_digest": digest, "dataset_digest": "d", "git_commit": "c"}
    return tracking.register(run, tags, "")


def test_the_image_is_pushed_and_named(settings: Settings, version: ModelVersion, bento: Path, tmp_path: Path) -> None:
    # when the Bento of a version is pushed
    result = ecr_push(settings, bento=bento, model_version=version.version)
    # then the version names the image, and the image names the version
    assert Tracking(settings).version(version.version).tags["image_uri"] == result
    registry = open_registry(settings)
    identity = registry.identity(result)
    assert identity["model_version"] == version.version
    assert identity["bento_digest"] == version.tags["bento_digest"]
    registry.unpack(result, tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "bento.yaml").is_file()
    # and a repeat gives the same
    assert ecr_push(settings, bento=bento, model_version=version.version) == result


def test_its_components_and_its_origin_lie_beside_it(
    make_settings: Callable[..., Settings], version: ModelVersion, bento: Path, tmp_path: Path
) -> None:
    # given a key that signs
    key = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)], check=True)
    subprocess.run(["openssl", "pkey", "-in", str(key), "-pubout", "-out", str(key.with_suffix(".pub"))], check=True)
    settings = make_settings(signing_key=str(key))
    # when a Bento is pushed
    uri = ecr_push(settings, bento=bento, model_version=version.version)
    # then what the image has installed is listed, and the key vouches for where it came from
    registry = open_registry(settings)
    (document,) = registry.attached(uri, COMPONENTS)
    (component,) = json.loads(document)["components"]
    assert (component["name"], component["version"]) == ("bentoml", version_of("bentoml"))
    found = attested(registry, uri, key.with_suffix(".pub"))
    assert found.signer.startswith("sha256:") and found.document == document
    build = found.statement["predicate"]["buildDefinition"]
    assert build["externalParameters"]["model_version"] == version.version
    made_from = {one["name"] for one in build["resolvedDependencies"]}
    assert {"dataset ", "git commit", "Bento readmission:v1-x"} <= made_from
    # and a repeat adds nothing
    ecr_push(settings, bento=bento, model_version=version.version)
    assert len(registry.attached(uri, ENVELOPE)) == 1


def test_another_bento_is_refused(settings: Settings, version: ModelVersion, tmp_path: Path) -> None:
    (tmp_path / "other.tar").write_bytes(b"another")
    with pytest.raises(StateError, match="but the Bento of model version"):
        ecr_push(settings, bento=tmp_path / "other.tar", model_version=version.version)
    with pytest.raises(StateError, match="does not exist"):
        ecr_push(settings, bento=tmp_path / "no.tar", model_version=version.version)
    assert "image_uri" not in Tracking(settings).version(version.version).tags


def test_another_registry_is_refused(make_settings: Any, version: ModelVersion, bento: Path) -> None:
    settings = make_settings(image_registry="oci:relative")
    with pytest.raises(SettingsError, match="not supported"):
        ecr_push(settings, bento=bento, model_version=version.version)
