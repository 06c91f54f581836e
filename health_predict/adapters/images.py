"""Image registries: where a Bento becomes an image that is named by its digest.

Two of them: a registry that is reached over the network (`adapters/registry.py`), and a folder in the OCI image
layout: `oci-layout`, `index.json` and `blobs/sha256/...`, so `oras`, `skopeo` and `crane` read it. In the folder an
image has one layer, the Bento's own archive; there is no base, since a process runs it on the installed Python.
Source: OCI image specification 1.1, image-layout.md and manifest.md.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from health_predict.adapters.locks import only_one
from health_predict.adapters.storage import disk_error, unpack_archive, whole_file
from health_predict.core.content import content_digest
from health_predict.core.errors import SettingsError, StateError
from health_predict.settings import Settings

log = logging.getLogger(__name__)

SCHEME = "oci:"
LAYOUT = {"imageLayoutVersion": "1.0.0"}
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
ANNOTATIONS = "health-predict."
# The same for every image, so that the same Bento gives the same digest.
CREATED = "1980-01-01T00:00:00Z"
LOCK_SECONDS = 60.0
BLOCK = 1024 * 1024


class ImageRegistry(Protocol):
    """What stages need of a registry. An image is named by a URI that ends in its digest."""

    def push(self, bento: Path, identity: Mapping[str, str]) -> str:
        """Store a Bento's archive as an image and give its URI. What is there already is not written again."""

    def verify(self, uri: str) -> None:
        """Raises StateError that names the digest of whatever is missing or damaged."""

    def identity(self, uri: str) -> dict[str, str]:
        """The identity that the image was pushed with. Raises StateError like `verify`."""

    def unpack(self, uri: str, folder: Path) -> None:
        """Put the image's Bento into `folder`, whole or not at all; one that is there undamaged is left alone."""


def open_registry(settings: Settings) -> ImageRegistry:
    """The registry that the settings name: `oci:/folder`, or `host/repository`. Raises SettingsError for another."""
    uri = settings.registry
    if not uri.startswith(SCHEME):
        from health_predict.adapters.registry import RemoteRegistry

        return RemoteRegistry(
            uri,
            endpoint=settings.registry_endpoint,
            base_image=settings.base_image,
            cache=settings.home / "cache" / "runtime",
        )
    folder = Path(uri.removeprefix(SCHEME))
    if not folder.is_absolute():
        raise SettingsError(
            f"image registry {uri!r} is not supported",
            "set HEALTH_PREDICT_IMAGE_REGISTRY to oci:/folder or registry.host/repository",
        )
    return LayoutRegistry(folder)


class LayoutRegistry:
    """Images in a folder, in the OCI image layout."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def push(self, bento: Path, identity: Mapping[str, str]) -> str:
        try:
            layer = self._add_file(bento)
        except FileNotFoundError:
            raise StateError(f"{bento} does not exist", "run bento_build again") from None
        except OSError as error:
            raise disk_error(error, self.root) from error
        annotations = {
            "org.opencontainers.image.created": CREATED,
            "org.opencontainers.image.title": "health-predict readmission",
            "org.opencontainers.image.version": identity.get("model_version", ""),
            "org.opencontainers.image.revision": identity.get("git_commit", ""),
            **{f"{ANNOTATIONS}{name}": value for name, value in identity.items()},
        }
        config = {
            "created": CREATED,
            # What runs it brings Python and the libraries; the Bento itself holds nothing of one architecture.
            "architecture": "amd64",
            "os": "linux",
            "config": {"Labels": annotations},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
            "history": [{"created": CREATED, "created_by": "health-predict bento_build"}],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self._add(CONFIG_TYPE, config),
            "layers": [layer],
            "annotations": annotations,
        }
        entry = self._add(MANIFEST_TYPE, manifest)
        self._list(entry, identity.get("bento_tag", ""))
        log.info("image %s", entry["digest"])
        return f"{SCHEME}{self.root}@{entry['digest']}"

    def verify(self, uri: str) -> None:
        manifest = self._manifest(uri)
        for part in (manifest["config"], *manifest["layers"]):
            self._check(part["digest"])

    def identity(self, uri: str) -> dict[str, str]:
        annotations: dict[str, str] = self._manifest(uri)["annotations"]
        return {
            name.removeprefix(ANNOTATIONS): value for name, value in annotations.items() if name.startswith(ANNOTATIONS)
        }

    def unpack(self, uri: str, folder: Path) -> None:
        manifest = self._manifest(uri)
        (layer,) = manifest["layers"]
        # The layer is the Bento's archive, which can be made again from the folder: so its digest proves the folder.
        if (folder / "bento.yaml").is_file() and content_digest(folder) == layer["digest"]:
            return
        self._check(layer["digest"])
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f"{folder.name}.unpacking-", dir=folder.parent) as workshop:
                new, old = Path(workshop) / "new", Path(workshop) / "old"
                unpack_archive(self._blob(layer["digest"]), new)
                if folder.exists():
                    folder.rename(old)
                new.rename(folder)
        except tarfile.TarError as error:
            raise StateError(f"image {uri} holds no Bento: {error}", "run bento_build and ecr_push again") from None
        except OSError as error:
            raise disk_error(error, folder) from error

    # Blobs

    def _blob(self, digest: str) -> Path:
        algorithm, _, value = digest.partition(":")
        if algorithm != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise StateError(f"{digest!r} is no digest", "name an image by its URI, which ends in @sha256:...")
        return self.root / "blobs" / algorithm / value

    def _is_whole(self, digest: str) -> bool:
        path = self._blob(digest)
        return path.is_file() and _digest(path) == digest

    def _add(self, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
        data = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if not self._is_whole(digest):
            with whole_file(self._blob(digest)) as temporary:
                temporary.write_bytes(data)
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def _add_file(self, file: Path) -> dict[str, Any]:
        digest = _digest(file)
        if not self._is_whole(digest):
            with whole_file(self._blob(digest)) as temporary:
                shutil.copyfile(file, temporary)
        return {"mediaType": LAYER_TYPE, "digest": digest, "size": file.stat().st_size}

    def _check(self, digest: str) -> None:
        if not self._blob(digest).is_file():
            raise StateError(f"blob {digest} is missing from {self.root}", "run ecr_push again")
        if not self._is_whole(digest):
            raise StateError(f"blob {digest} in {self.root} is damaged", "run ecr_push again; it replaces the blob")

    def _manifest(self, uri: str) -> dict[str, Any]:
        prefix = f"{SCHEME}{self.root}@"
        if not uri.startswith(prefix):
            raise StateError(f"image {uri} is not in the registry {SCHEME}{self.root}", "run ecr_push again")
        digest = uri.removeprefix(prefix)
        self._check(digest)
        manifest: dict[str, Any] = json.loads(self._blob(digest).read_bytes())
        return manifest

    # The index

    def _list(self, entry: Mapping[str, Any], name: str) -> None:
        with only_one(self.root, LOCK_SECONDS):
            layout, path = self.root / "oci-layout", self.root / "index.json"
            if not layout.is_file():
                with whole_file(layout) as temporary:
                    temporary.write_text(json.dumps(LAYOUT), encoding="utf-8")
            index = self._index(path)
            named = {**entry, "annotations": {"org.opencontainers.image.ref.name": name.replace(":", "-")}}
            # A name belongs to one image: the last that was pushed under it.
            others = [
                other
                for other in index["manifests"]
                if other["digest"] != entry["digest"] and other.get("annotations") != named["annotations"]
            ]
            new = {**index, "manifests": [*others, named]}
            if new != index:
                with whole_file(path) as temporary:
                    temporary.write_text(json.dumps(new, indent=1, sort_keys=True), encoding="utf-8")

    def _index(self, path: Path) -> dict[str, Any]:
        empty = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}
        if not path.is_file():
            return empty
        try:
            index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise StateError(f"{path} is damaged", "remove it; ecr_push writes it anew") from None
        return index


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"
