"""Images in a registry: a real one on loopback, with and without a password."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from health_predict.adapters.archives import archive, content_digest
from health_predict.adapters.images import RemoteRegistry, client, open_registry
from health_predict.adapters.images import wheels as libraries
from health_predict.adapters.images.client import Repository, address_of, credentials
from health_predict.adapters.images.layers import INDEX_TYPE, LAYER_TYPE, MANIFEST_TYPE, canonical
from health_predict.adapters.images.wheels import install, pinned
from health_predict.errors import SettingsError, StateError, UnreachableError
from health_predict.settings import Settings
from tests.registries import Served, needs_registry

IDENTITY = {"model_version": "7", "bento_tag": "readmission:v7-abc", "git_commit": "c" * 40, "dataset_digest": "d"}
REQUIREMENTS = "tiny==1.0\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("registry") / "open")
    yield server
    server.stop()


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a folder, and a lock file that knows its hash: no package index is asked."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("tiny/__init__.py", "ANSWER = 42\n")
        packed.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        packed.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr("tiny-1.0.dist-info/entry_points.txt", "[console_scripts]\ntiny = tiny:main\n")
        packed.writestr("tiny-1.0.dist-info/RECORD", "")
    write_lock(tmp_path / "uv.lock", wheel)
    monkeypatch.setattr(libraries, "LOCK_FILE", tmp_path / "uv.lock")
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("HOME", str(tmp_path))  # where Docker's config would be
    return wheel


def write_lock(lock: Path, wheel: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock.write_text(
        'version = 1\n[[package]]\nname = "tiny"\nversion = "1.0"\n'
        f'wheels = [{{ url = "https://index/{wheel.name}", hash = "sha256:{digest}" }}]\n'
    )


def make_bento(folder: Path, text: str = "the model") -> Path:
    source = folder / "source"
    (source / "src").mkdir(parents=True, exist_ok=True)
    (source / "bento.yaml").write_text("name: readmission")
    (source / "src" / "model.onnx").write_text(text)
    (source / "src" / "requirements.txt").write_text(REQUIREMENTS)
    with (folder / "bento.tar").open("wb") as sink:
        archive(source, sink)
    return folder / "bento.tar"


def repository_at(host: str, path: str) -> Repository:
    return Repository(host, path, address_of(host))


def push_base(host: str, path: str = "library/python", *, index: bool = False) -> str:
    """A base image of one layer; the name by its digest."""
    repository = repository_at(host, path)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        entry = tarfile.TarInfo("usr/local/bin/python")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"#!/ok"))
    layer = gzip.compress(plain.getvalue(), mtime=0)
    digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain.getvalue()).hexdigest()}"]},
    }
    repository.add(layer, digest, len(layer))
    repository.add_config(config)
    described = canonical(config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"digest": f"sha256:{hashlib.sha256(described).hexdigest()}", "size": len(described)},
        "layers": [{"mediaType": LAYER_TYPE, "digest": digest, "size": len(layer)}],
    }
    tag = repository.put_manifest(manifest, "3.11")
    if index:
        entry = {"mediaType": MANIFEST_TYPE, "digest": tag, "size": 1}
        platforms = [{"os": "linux", "architecture": name} for name in ("arm64", "amd64")]
        content = {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [{**entry, "platform": platform} for platform in platforms],
        }
        tag = repository.put_manifest(content, "multi")
    return f"{host}/{path}:3.11@{tag}"


@pytest.fixture
def make_registry(served: Served, wheels: Path, tmp_path: Path) -> Callable[..., RemoteRegistry]:
    def make(**changes: Any) -> RemoteRegistry:
        # A repository of this test alone, in the registry of the module.
        values = {
            "name": f"{served.host}/{tmp_path.name.lower().replace('_', '-')}/readmission",
            "base_image": push_base(served.host),
        }
        values |= changes
        return RemoteRegistry(values.pop("name"), **values)

    return make


def names_in(layer: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        return tar.getnames()


@needs_registry
def test_an_image_holds_base_libraries_and_bento(make_registry: Callable[..., RemoteRegistry], tmp_path: Path) -> None:
    # given a Bento
    bento = make_bento(tmp_path)
    digest = f"sha256:{hashlib.sha256(bento.read_bytes()).hexdigest()}"
    registry = make_registry()
    # when it is pushed
    uri = registry.push(bento, {**IDENTITY, "bento_digest": digest})
    # then its image has three layers, each what its config says
    registry.verify(uri)
    repository = registry._repository

    def read(kind: str, digest: str) -> bytes:
        found = repository.read(kind, digest)
        assert found is not None
        return found

    manifest = json.loads(read("manifests", uri.partition("@")[2]))
    config = json.loads(read("blobs", manifest["config"]["digest"]))
    layers = [gzip.decompress(read("blobs", layer["digest"])) for layer in manifest["layers"]]
    assert [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers] == config["rootfs"]["diff_ids"]
    names = [names_in(layer) for layer in layers]
    assert "usr/local/bin/python" in names[0]
    assert "app/lib/tiny/__init__.py" in names[1] and not any("bin/tiny" in name for name in names[1])
    assert "home/bentoml/bento/bento.yaml" in names[2]
    # and it runs as somebody, from a file system it need not write to
    assert config["config"]["User"] == "1034:1034" and config["config"]["StopSignal"] == "SIGTERM"
    assert "BENTOML_HOME=/tmp/bentoml" in config["config"]["Env"] and "PATH=/usr/local/bin" in config["config"]["Env"]
    # and it says what it is
    assert registry.identity(uri)["model_version"] == "7"
    assert manifest["annotations"]["org.opencontainers.image.base.digest"] in registry._base_image
    # and gives the Bento back, as it was
    registry.unpack(uri, tmp_path / "unpacked")
    assert content_digest(tmp_path / "unpacked") == digest
    model = tmp_path / "unpacked" / "src" / "model.onnx"
    inode = model.stat().st_ino
    registry.unpack(uri, tmp_path / "unpacked")
    assert model.stat().st_ino == inode
    model.write_text("changed")
    registry.unpack(uri, tmp_path / "unpacked")
    assert model.read_text() == "the model"


@needs_registry
def test_the_same_inputs_give_the_same_image_anywhere(
    make_registry: Callable[..., RemoteRegistry], tmp_path: Path, wheels: Path
) -> None:
    # given two repositories
    bento = make_bento(tmp_path)
    first, second = make_registry(), make_registry(name=f"{make_registry().name}-2")
    # when
    uris = [registry.push(bento, IDENTITY) for registry in (first, second)]
    # then
    assert uris[0].partition("@")[2] == uris[1].partition("@")[2]


@needs_registry
def test_only_what_is_missing_is_pushed(
    served: Served, make_registry: Callable[..., RemoteRegistry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a pushed image
    registry = make_registry()
    uri = registry.push(make_bento(tmp_path), IDENTITY)
    sent: list[int] = []
    add = Repository.add

    def count(self: Repository, content: Any, digest: str, size: int) -> None:
        sent.extend([size] if self.size(digest) != size else [])
        add(self, content, digest, size)

    monkeypatch.setattr(Repository, "add", count)
    # when it is pushed again from another machine, which has no package index
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "none"))
    again = make_registry()
    assert again.push(tmp_path / "bento.tar", IDENTITY) == uri and sent == []
    # then the next model costs its layer and its config
    other = again.push(make_bento(tmp_path, "another model"), {**IDENTITY, "model_version": "8"})
    assert other != uri and len(sent) == 2 and sum(sent) < 10_000
    # and the first is still whole
    again.verify(uri)


@needs_registry
def test_a_base_of_several_platforms_and_by_tag(
    served: Served, make_registry: Callable[..., RemoteRegistry], tmp_path: Path
) -> None:
    bento = make_bento(tmp_path)
    base = push_base(served.host, "multi/python", index=True)
    assert make_registry(base_image=base).push(bento, IDENTITY)
    tagged = make_registry(base_image=f"{served.host}/library/python:3.11")
    assert tagged.push(bento, IDENTITY) == make_registry().push(bento, IDENTITY)
    with pytest.raises(StateError, match="does not exist"):
        make_registry(base_image=f"{served.host}/library/python:none").push(bento, IDENTITY)
    with pytest.raises(SettingsError, match="no base image"):
        make_registry(base_image="").push(bento, IDENTITY)


@needs_registry
def test_a_damaged_or_missing_blob_is_named(
    served: Served, make_registry: Callable[..., RemoteRegistry], tmp_path: Path
) -> None:
    registry = make_registry()
    bento = make_bento(tmp_path, "damaged")
    uri = registry.push(bento, IDENTITY)
    layer = registry._manifest(uri)["layers"][-1]["digest"]
    blob = served.blob(layer)
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StateError, match=f"{layer} in registry .* is damaged"):
        registry.verify(uri)
    with pytest.raises(StateError, match="is damaged"):
        registry.unpack(uri, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()
    blob.write_bytes(whole)
    registry.verify(uri)
    for wrong in (f"{registry.name}@sha256:{'0' * 64}", f"other/name@sha256:{'0' * 64}", registry.name):
        with pytest.raises(StateError, match=r"ecr_push again|is no digest"):
            registry.verify(wrong)


@needs_registry
def test_a_password_is_asked_for(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Served(tmp_path / "closed", password="secret")
    try:
        # given no password, then the remedy is to log in
        closed = RemoteRegistry(f"{server.host}/x", base_image=f"{server.host}/p:1")
        with pytest.raises(UnreachableError, match="docker login"):
            closed.push(make_bento(tmp_path), IDENTITY)
        # given the right one in Docker's config, then it goes through
        auth = base64.b64encode(b"someone:secret").decode()
        (tmp_path / ".docker").mkdir()
        (tmp_path / ".docker" / "config.json").write_text(json.dumps({"auths": {server.host: {"auth": auth}}}))
        known = RemoteRegistry(f"{server.host}/x", base_image=push_base(server.host))
        known.verify(known.push(make_bento(tmp_path), IDENTITY))
    finally:
        server.stop()


@needs_registry
def test_a_registry_that_goes_away_and_comes_back(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a registry that is down
    server = Served(tmp_path / "gone")
    base = push_base(server.host)
    server.stop()
    with monkeypatch.context() as patch:
        patch.setattr(client, "RETRY", 0)
        registry = RemoteRegistry(f"{server.host}/readmission", base_image=base)
        with pytest.raises(UnreachableError, match="does not answer"):
            registry.push(make_bento(tmp_path), IDENTITY)
    # when it comes back while it is asked
    returning = threading.Timer(0.5, server.start)
    returning.start()
    try:
        # then the push goes through
        registry = RemoteRegistry(f"{server.host}/readmission", base_image=base)
        registry.verify(registry.push(make_bento(tmp_path), IDENTITY))
    finally:
        returning.join()
        server.stop()


def test_a_wheel_must_be_the_locked_one(wheels: Path, tmp_path: Path) -> None:
    # given a wheel that somebody changed
    with zipfile.ZipFile(wheels, "a") as packed:
        packed.writestr("tiny/more.py", "")
    with pytest.raises(StateError, match="not the locked one"):
        install(REQUIREMENTS, tmp_path)
    # and a version that is not locked is refused
    with pytest.raises(StateError, match="is not a wheel of"):
        pinned("tiny==2.0")


def test_an_index_that_is_away_is_named(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "none"))
    with pytest.raises(UnreachableError, match="cannot be had"):
        install(REQUIREMENTS, tmp_path)


def test_the_real_lock_file_knows_the_service() -> None:
    from health_predict.adapters.serving.bentoml import requirements

    lines = pinned("\n".join(requirements()))
    assert len(lines) > 20 and all("--hash=sha256:" in line for line in lines)


@pytest.mark.parametrize(
    ("host", "endpoint", "address"),
    [
        ("localhost:5000", "", "http://localhost:5000"),
        ("[::1]:5000", "", "http://[::1]:5000"),
        ("registry.host", "", "https://registry.host"),
        ("localhost:5001", "http://kind-registry:5000", "http://kind-registry:5000"),
        ("registry.host", "https://other:1", "https://other:1"),
    ],
)
def test_plain_http_is_for_loopback_or_asked_for(host: str, endpoint: str, address: str) -> None:
    assert address_of(host, endpoint) == address


def test_wrong_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is no URL"):
        address_of("x", "kind-registry:5000")
    with pytest.raises(SettingsError, match="names no repository"):
        open_registry(Settings(home=tmp_path, image_registry="registry.host"))


def test_amazons_password_is_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    # given Amazon's API, by moto
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    try:
        found = credentials("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "")
    finally:
        server.stop()
    assert (found or ("",))[0] == "AWS"


def test_what_docker_login_keeps_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a config of Docker's with a password, and a helper that keeps others
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    helper = tmp_path / "docker-credential-kept"
    helper.write_text('#!/bin/sh\nread host\necho "{\\"Username\\": \\"u-$host\\", \\"Secret\\": \\"s:\\"}"\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    known = base64.b64encode(b"someone:a:b").decode()
    config = {"auths": {"one.host": {"auth": known}, "two.host": {}}, "credHelpers": {"two.host": "kept"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    # then
    assert credentials("one.host", "one.host") == ("someone", "a:b")
    assert credentials("two.host", "two.host") == ("u-two.host", "s:")
    assert credentials("three.host", "three.host") is None


def test_a_token_is_had_where_the_registry_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a registry that wants a token for its manifests, and gives one to everybody
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/token"):
                self.answer(200, json.dumps({"token": f"for {parse_qs(urlsplit(self.path).query)['scope'][0]}"}))
            elif self.headers.get("Authorization") == "Bearer for repository:x:pull":
                self.answer(200, "the manifest")
            else:
                self.ask_for_a_token()

        def do_PUT(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Authorization"):
                self.answer(201 if sent == b'{"mediaType":"x"}' else 400, "")
            else:
                self.ask_for_a_token()

        def ask_for_a_token(self) -> None:
            realm = f"http://127.0.0.1:{self.server.server_port}/token"  # type: ignore[attr-defined]
            self.answer(401, "", f'Bearer realm="{realm}",service="s",scope="repository:x:pull"')

        def answer(self, status: int, body: str, challenge: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if challenge:
                self.send_header("WWW-Authenticate", challenge)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            """Silence."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            # then it is asked for once, and sent with each request
            repository = repository_at(f"127.0.0.1:{server.server_port}", "x")
            assert [repository.read("manifests", "1") for _ in range(2)] == [b"the manifest"] * 2
            # and what was sent before there was one is sent again, whole
            new = repository_at(f"127.0.0.1:{server.server_port}", "x")
            assert new.put_manifest({"mediaType": "x"}, "1").startswith("sha256:")
        finally:
            server.shutdown()
            thread.join()
