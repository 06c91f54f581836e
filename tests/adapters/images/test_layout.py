"""Images in a folder: named by digest, whole or refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from health_predict.adapters.archives import archive, content_digest
from health_predict.adapters.images import LayoutRegistry, RemoteRegistry, open_registry
from health_predict.adapters.locks import only_one
from health_predict.errors import SettingsError, StateError, UnreachableError
from health_predict.settings import Settings

IDENTITY = {"model_version": "7", "bento_tag": "readmission:v7", "git_commit": "c" * 40, "dataset_digest": "d"}


@pytest.fixture
def bento(tmp_path: Path) -> Path:
    return make_bento(tmp_path, "the model")


def make_bento(folder: Path, text: str) -> Path:
    source = folder / "source"
    (source / "src").mkdir(parents=True, exist_ok=True)
    (source / "bento.yaml").write_text("name: readmission")
    (source / "src" / "model.onnx").write_text(text)
    with (folder / "bento.tar").open("wb") as sink:
        archive(source, sink)
    return folder / "bento.tar"


@pytest.fixture
def registry(tmp_path: Path) -> LayoutRegistry:
    return LayoutRegistry(tmp_path / "images")


def blob(registry: LayoutRegistry, digest: str) -> Path:
    return registry.root / "blobs" / "sha256" / digest.removeprefix("sha256:")


def manifest(registry: LayoutRegistry, uri: str) -> dict[str, object]:
    return dict(json.loads(blob(registry, uri.rpartition("@")[2]).read_text()))


def test_the_same_bento_gives_the_same_image(registry: LayoutRegistry, bento: Path, tmp_path: Path) -> None:
    other = LayoutRegistry(tmp_path / "elsewhere")
    first, again, elsewhere = (
        registry.push(bento, IDENTITY),
        registry.push(bento, IDENTITY),
        other.push(bento, IDENTITY),
    )
    assert first == again
    assert first.rpartition("@")[2] == elsewhere.rpartition("@")[2]


def test_the_folder_is_an_oci_layout(registry: LayoutRegistry, bento: Path) -> None:
    # when an image is pushed
    uri = registry.push(bento, IDENTITY)
    # then the folder is what the specification asks for
    assert json.loads((registry.root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((registry.root / "index.json").read_text())
    (entry,) = index["manifests"]
    assert entry["digest"] == uri.rpartition("@")[2]
    assert entry["size"] == blob(registry, entry["digest"]).stat().st_size
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "readmission-v7"
    content = json.loads(blob(registry, entry["digest"]).read_text())
    config = json.loads(blob(registry, content["config"]["digest"]).read_text())
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in content["layers"]]
    assert content["annotations"]["org.opencontainers.image.revision"] == "c" * 40


def test_what_is_there_is_not_written_again(registry: LayoutRegistry, bento: Path) -> None:
    registry.push(bento, IDENTITY)
    before = {path: path.stat().st_mtime_ns for path in registry.root.rglob("*") if path.name != ".lock"}
    registry.push(bento, IDENTITY)
    assert {path: path.stat().st_mtime_ns for path in registry.root.rglob("*") if path.name != ".lock"} == before


def test_the_identity_comes_back(registry: LayoutRegistry, bento: Path) -> None:
    assert registry.identity(registry.push(bento, IDENTITY)) == IDENTITY


def test_unpacking_gives_the_bento(registry: LayoutRegistry, bento: Path, tmp_path: Path) -> None:
    uri = registry.push(bento, IDENTITY)
    folder = tmp_path / "serving" / "v7"
    registry.unpack(uri, folder)
    assert (folder / "src" / "model.onnx").read_text() == "the model"
    assert content_digest(folder) == content_digest(tmp_path / "source")
    assert list(folder.parent.iterdir()) == [folder]


def test_unpacking_again_keeps_what_is_whole(registry: LayoutRegistry, bento: Path, tmp_path: Path) -> None:
    uri, folder = registry.push(bento, IDENTITY), tmp_path / "v7"
    registry.unpack(uri, folder)
    # given caches that running it left, and no way to read the layer again
    (folder / "src" / "__pycache__").mkdir()
    (folder / "src" / "__pycache__" / "service.pyc").write_bytes(b"cache")
    blob(registry, content_digest(folder)).unlink()
    # when it is unpacked again, then nothing needs to be read
    registry.unpack(uri, folder)


def test_unpacking_replaces_what_was_changed(registry: LayoutRegistry, bento: Path, tmp_path: Path) -> None:
    uri, folder = registry.push(bento, IDENTITY), tmp_path / "v7"
    registry.unpack(uri, folder)
    (folder / "src" / "model.onnx").write_text("another model")
    registry.unpack(uri, folder)
    assert (folder / "src" / "model.onnx").read_text() == "the model"


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_harm_is_named_by_digest_and_healed_by_a_push(
    registry: LayoutRegistry, bento: Path, tmp_path: Path, part: str, harm: str
) -> None:
    # given an image of which one blob is harmed
    uri = registry.push(bento, IDENTITY)
    content = json.loads(blob(registry, uri.rpartition("@")[2]).read_text())
    digests = {
        "manifest": uri.rpartition("@")[2],
        "config": content["config"]["digest"],
        "layer": content["layers"][0]["digest"],
    }
    if harm == "damaged":
        blob(registry, digests[part]).write_bytes(b"x")
    else:
        blob(registry, digests[part]).unlink()
    # then it is found
    with pytest.raises(StateError, match=f"{digests[part]}.*{harm}"):
        registry.verify(uri)
    # and nothing is unpacked from a harmed layer
    if part != "config":
        with pytest.raises(StateError, match=digests[part]):
            registry.unpack(uri, tmp_path / "v7")
        assert not (tmp_path / "v7").exists()
    # and pushing again heals it
    assert registry.push(bento, IDENTITY) == uri
    registry.verify(uri)


def test_a_name_belongs_to_the_last_image(registry: LayoutRegistry, tmp_path: Path) -> None:
    registry.push(make_bento(tmp_path, "one"), IDENTITY)
    second = registry.push(make_bento(tmp_path, "two"), IDENTITY)
    index = json.loads((registry.root / "index.json").read_text())
    assert [entry["digest"] for entry in index["manifests"]] == [second.rpartition("@")[2]]


def test_pushes_at_the_same_time_are_all_listed(registry: LayoutRegistry, tmp_path: Path) -> None:
    archives = [make_bento(tmp_path / str(number), str(number)) for number in range(6)]
    threads = [
        threading.Thread(target=registry.push, args=(file, {"bento_tag": f"readmission:v{number}"}))
        for number, file in enumerate(archives)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads((registry.root / "index.json").read_text())["manifests"]) == 6


def test_a_missing_archive_is_refused(registry: LayoutRegistry, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="does not exist"):
        registry.push(tmp_path / "no.tar", IDENTITY)


def test_an_archive_that_is_none_is_refused(registry: LayoutRegistry, tmp_path: Path) -> None:
    (tmp_path / "bento.tar").write_bytes(b"no archive")
    uri = registry.push(tmp_path / "bento.tar", IDENTITY)
    with pytest.raises(StateError, match="holds no Bento"):
        registry.unpack(uri, tmp_path / "v7")


@pytest.mark.parametrize("uri", ["oci:/elsewhere@sha256:" + "0" * 64, "registry.host/x@sha256:" + "0" * 64])
def test_an_image_of_another_registry_is_refused(registry: LayoutRegistry, uri: str) -> None:
    with pytest.raises(StateError, match="is not in the registry"):
        registry.verify(uri)


def test_a_name_that_is_no_digest_is_refused(registry: LayoutRegistry) -> None:
    with pytest.raises(StateError, match="no digest"):
        registry.verify(f"oci:{registry.root}@sha256:../../etc/passwd")


def test_a_damaged_index_is_named(registry: LayoutRegistry, bento: Path) -> None:
    registry.push(bento, IDENTITY)
    (registry.root / "index.json").write_text("{")
    with pytest.raises(StateError, match=r"index\.json is damaged"):
        registry.push(bento, IDENTITY)


def test_a_folder_that_cannot_be_written(bento: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(Exception, match="file"):
        LayoutRegistry(tmp_path / "file" / "images").push(bento, IDENTITY)


def test_open_registry(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    assert isinstance(open_registry(make_settings(image_registry=f"oci:{tmp_path}")), LayoutRegistry)
    assert isinstance(open_registry(make_settings()), LayoutRegistry)
    assert isinstance(open_registry(make_settings(image_registry="registry.host/repository")), RemoteRegistry)
    with pytest.raises(SettingsError, match="not supported"):
        open_registry(make_settings(image_registry="oci:relative"))


def test_the_lock_has_a_deadline(tmp_path: Path) -> None:
    with only_one(tmp_path, 1), pytest.raises(UnreachableError, match="another process"), only_one(tmp_path, 0):
        pass
