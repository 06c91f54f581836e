"""What is said about an image beside it, in a folder and in a real registry without a list of referrers."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from health_predict.adapters.images import ImageRegistry, LayoutRegistry, RemoteRegistry
from health_predict.adapters.images.attestations import (
    COMPONENTS,
    ENVELOPE,
    STATEMENT,
    Origin,
    attest,
    attested,
    components,
    sign,
)
from health_predict.adapters.images.client import Repository, address_of
from health_predict.adapters.images.layers import bento_image, canonical, sha256
from health_predict.errors import GateError, SettingsError
from tests.registries import Served, needs_registry

EMPTY_CONFIG = {"config": {}, "rootfs": {"type": "layers", "diff_ids": []}, "history": []}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("registry") / "open")
    yield server
    server.stop()


def pushed(repository: Repository, version: str) -> str:
    """Digest of an image of one layer in a registry."""
    layer = version.encode()
    descriptor = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": sha256(layer), "size": len(layer)}
    nothing = {"layers": [], "annotations": {}}
    manifest, config = bento_image(nothing, EMPTY_CONFIG, descriptor, sha256(layer), {"model_version": version})
    repository.add(layer, sha256(layer), len(layer))
    repository.add_config(config)
    return repository.put_manifest(manifest, f"v{version}")


@pytest.fixture(params=["folder", pytest.param("registry", marks=needs_registry)])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ImageRegistry, str, str]:
    """A registry with two images, by their URIs."""
    if request.param == "folder":
        registry: ImageRegistry = LayoutRegistry(tmp_path / "images")
        uris = []
        for version in ("1", "2"):
            (tmp_path / version).write_text(version)
            uris.append(registry.push(tmp_path / version, {"model_version": version, "bento_tag": f"b:{version}"}))
        return registry, uris[0], uris[1]
    host, path = request.getfixturevalue("served").host, f"{tmp_path.name.lower().replace('_', '-')}/readmission"
    repository = Repository(host, path, address_of(host))
    name = f"{host}/{path}"
    return RemoteRegistry(name), f"{name}@{pushed(repository, '1')}", f"{name}@{pushed(repository, '2')}"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "key.pem")


def make_key(file: Path) -> Path:
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(file)], check=True)
    return file


def public(key: Path, *others: Path) -> Path:
    """The public keys of some, in one file."""
    file = key.with_suffix(".pub")
    command = ["openssl", "pkey", "-pubout", "-in"]
    file.write_bytes(b"".join(subprocess.run([*command, str(one)], capture_output=True, check=True).stdout
                              for one in (key, *others)))  # fmt: skip
    return file


def lay(registry: ImageRegistry, uri: str, key: Path | None, document: bytes = b'{"components":[]}') -> None:
    origin = Origin(registry.name, uri.rpartition("@")[2], {"model_version": "1"}, {"git commit": {"gitCommit": "c"}})
    attest(registry, uri, document, origin, key)


def test_the_components_are_those_of_the_lock_file() -> None:
    # given what a Bento has installed
    installed = ["bentoml==0", "numpy==0"]
    whole = json.loads(components("readmission", "sha256:1"))
    names = {one["name"]: one["version"] for one in whole["components"]}
    installed = [f"{name}=={names[name]}" for name in ("bentoml", "numpy")]
    # when its components are listed
    found = json.loads(components("readmission", "sha256:1", installed))
    # then they are these, with their hashes, as CycloneDX, and the same each time
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.5")
    assert sorted(f"{one['name']}=={one['version']}" for one in found["components"]) == installed
    assert all(one["externalReferences"][0]["hashes"][0]["alg"] == "SHA-256" for one in found["components"])
    assert {one["ref"] for one in found["dependencies"]} >= {one["bom-ref"] for one in found["components"]}
    assert components("readmission", "sha256:1", installed) == components("readmission", "sha256:1", installed)
    # and each image has its own
    assert {"kfp", "ray"} <= {one["name"] for one in json.loads(components("pipeline", "x"))["components"]}
    assert "bentoml" not in {one["name"] for one in json.loads(components("mlflow", "x"))["components"]}


def test_the_documents_lie_beside_their_image_once(images: tuple[ImageRegistry, str, str]) -> None:
    # given an image with its documents
    registry, one, other = images
    lay(registry, one, None)
    # when they are laid there again, then each is there once, and none beside another image
    lay(registry, one, None)
    (document,) = registry.attached(one, COMPONENTS)
    (statement,) = registry.attached(one, STATEMENT)
    assert registry.attached(other, COMPONENTS) == registry.attached(one, ENVELOPE) == []
    # and the origin names the image and the components
    found = json.loads(statement)
    assert found["subject"] == [{"name": registry.name, "digest": {"sha256": one.rpartition(":")[2]}}]
    assert found["predicate"]["runDetails"]["byproducts"][0]["digest"] == {"sha256": sha256(document)[7:]}
    # and the images are whole
    registry.verify(one)
    registry.verify(other)


def test_a_trusted_key_vouches(images: tuple[ImageRegistry, str, str], key: Path, tmp_path: Path) -> None:
    # given an image that two keys signed, of which one is trusted among others
    registry, one, _ = images
    stranger = make_key(tmp_path / "stranger.pem")
    lay(registry, one, stranger)
    lay(registry, one, key)
    trusted = public(make_key(tmp_path / "other.pem"), key)
    # then that one is named
    assert attested(registry, one, trusted).signer == attested(registry, one, public(key)).signer
    assert attested(registry, one, public(key)).signer != attested(registry, one, public(stranger)).signer
    # and the components are those that it signed, whatever lies there beside them
    registry.attach(one, COMPONENTS, b'{"components":["laid there later"]}')
    assert attested(registry, one, public(key)).document == b'{"components":[]}'
    # and OpenSSL finds the signature right, too
    envelope = json.loads(registry.attached(one, ENVELOPE)[-1])
    payload = base64.b64decode(envelope["payload"])
    signed = tmp_path / "signed"
    signed.write_bytes(b"DSSEv1 28 application/vnd.in-toto+json %d " % len(payload) + payload)
    (tmp_path / "signature").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(public(key)), "-rawin", "-in", str(signed)]
    subprocess.run([*command, "-sigfile", str(tmp_path / "signature")], check=True, capture_output=True)


def _none(registry: ImageRegistry, one: str, other: str, key: Path) -> None:
    """Nobody signed anything."""


def _unsigned(registry: ImageRegistry, one: str, other: str, key: Path) -> None:
    lay(registry, one, None)


def _stranger(registry: ImageRegistry, one: str, other: str, key: Path) -> None:
    lay(registry, one, make_key(key.with_name("stranger.pem")))


def _another_image(registry: ImageRegistry, one: str, other: str, key: Path) -> None:
    """The signed statement about the other image is laid beside this one."""
    lay(registry, other, key)
    registry.attach(one, ENVELOPE, registry.attached(other, ENVELOPE)[0])
    registry.attach(one, COMPONENTS, registry.attached(other, COMPONENTS)[0])


def _changed(registry: ImageRegistry, one: str, other: str, key: Path) -> None:
    """The statement in an envelope is replaced."""
    statement = {"_type": "https://in-toto.io/Statement/v1", "subject": [{"digest": {"sha256": one[-64:]}}]}
    statement["predicateType"] = "https://slsa.dev/provenance/v1"
    envelope = json.loads(sign(b"{}", key))
    registry.attach(one, ENVELOPE, canonical({**envelope, "payload": base64.b64encode(canonical(statement)).decode()}))


def _claimed(registry: ImageRegistry, one: str, other: str, key: Path) -> None:
    """A stranger's envelope names the trusted key."""
    lay(registry, other, make_key(key.with_name("stranger.pem")))
    theirs, ours = json.loads(registry.attached(other, ENVELOPE)[0]), json.loads(sign(b"{}", key))
    theirs["signatures"][0]["keyid"] = ours["signatures"][0]["keyid"]
    registry.attach(one, ENVELOPE, canonical(theirs))


def _other_components(registry: ImageRegistry, one: str, other: str, key: Path) -> None:
    """The components that were signed are not those that lie there."""
    lay(registry, other, None, b"{}")
    origin = Origin(registry.name, one.rpartition("@")[2], {}, {})
    scratch = LayoutRegistry(key.parent / "scratch")
    (key.parent / "bento").write_text("1")
    scratch_uri = scratch.push(key.parent / "bento", {})
    attest(scratch, scratch_uri, b'{"components":["hidden"]}', origin, key)
    registry.attach(one, ENVELOPE, scratch.attached(scratch_uri, ENVELOPE)[0])
    registry.attach(one, COMPONENTS, b'{"components":[]}')


def _garbage(registry: ImageRegistry, one: str, other: str, key: Path) -> None:
    for data in (b"", b"[]", b"{}", b'{"payload": 1, "payloadType": "x", "signatures": [1]}'):
        registry.attach(one, ENVELOPE, data)


ATTACKS = (_none, _unsigned, _stranger, _another_image, _changed, _claimed, _other_components, _garbage)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__.strip("_"))
def test_what_nobody_trusted_signed_is_refused(
    images: tuple[ImageRegistry, str, str], key: Path, attack: object
) -> None:
    registry, one, other = images
    attack(registry, one, other, key)  # type: ignore[operator]
    with pytest.raises(GateError, match=r"vouches|not those that were signed"):
        attested(registry, one, public(key))


@pytest.mark.parametrize("content", ["", "no key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_holds_no_key_is_named(
    images: tuple[ImageRegistry, str, str], tmp_path: Path, content: str
) -> None:
    registry, one, _ = images
    (tmp_path / "key").write_text(content)
    for name in ("key", "absent"):
        with pytest.raises(SettingsError, match="HEALTH_PREDICT_SIGNING_KEY"):
            sign(b"{}", tmp_path / name)
        with pytest.raises(SettingsError, match="HEALTH_PREDICT_TRUSTED_KEYS"):
            attested(registry, one, tmp_path / name)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "genrsa", "-out", str(file), "2048"], check=True, capture_output=True)
    with pytest.raises(SettingsError, match="Ed25519"):
        sign(b"{}", file)
