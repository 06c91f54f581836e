"""What both registries do with an image."""

from __future__ import annotations

import json
import re
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from health_predict.adapters.archives import content_digest
from health_predict.adapters.files import disk_error, unpack_archive
from health_predict.adapters.images.layers import ANNOTATIONS, canonical, referrer, sha256
from health_predict.errors import StateError


class ImageRegistry(ABC):
    """What stages need of a registry. An image is named by a URI that ends in its digest."""

    name: str
    where: str
    """For messages."""
    bento_path: str
    """Where an image's last layer has the Bento."""

    @abstractmethod
    def push(self, bento: Path, identity: Mapping[str, str]) -> str:
        """Store a Bento's archive as an image and give its URI. What is there already is not written again."""

    @abstractmethod
    def _attach(self, manifest: Mapping[str, Any], data: bytes) -> None:
        """Store a document about an image, whose digest its manifest names as the subject."""

    @abstractmethod
    def _referrers(self, digest: str) -> list[dict[str, Any]]:
        """Descriptors of the documents about an image, with their `artifactType`."""

    @abstractmethod
    def _read(self, kind: str, digest: str) -> bytes | None:
        """One of the `blobs` or of the `manifests`; None when there is none."""

    @abstractmethod
    def _size(self, digest: str) -> int:
        """Bytes of a blob, -1 when there is none."""

    def verify(self, uri: str) -> None:
        """Raises StateError that names the digest of whatever is missing or damaged."""
        manifest = self._manifest(uri)
        for layer in manifest["layers"][:-1]:
            if self._size(layer["digest"]) != layer["size"]:
                raise StateError(f"blob {layer['digest']} is not whole in {self.where}", "run ecr_push again")
        for part in (manifest["config"], manifest["layers"][-1]):
            self._whole("blobs", part["digest"])

    def attach(self, uri: str, kind: str, data: bytes) -> None:
        """Store a document about an image beside it. What is there already is not written again."""
        digest = uri.rpartition("@")[2]
        content = self._whole("manifests", digest)
        subject = {"mediaType": json.loads(content)["mediaType"], "digest": digest, "size": len(content)}
        manifest = referrer(subject, kind, data)
        if sha256(canonical(manifest)) not in {one["digest"] for one in self._referrers(digest)}:
            self._attach(manifest, data)

    def attached(self, uri: str, kind: str) -> list[bytes]:
        """The documents of a media type about an image. Raises StateError when one is damaged."""
        found = []
        for one in self._referrers(uri.rpartition("@")[2]):
            if one.get("artifactType") == kind:
                (layer,) = json.loads(self._whole("manifests", one["digest"]))["layers"]
                found.append(self._whole("blobs", layer["digest"]))
        return found

    def identity(self, uri: str) -> dict[str, str]:
        """The identity that the image was pushed with. Raises StateError like `verify`."""
        annotations: dict[str, str] = self._manifest(uri)["annotations"]
        return {
            name.removeprefix(ANNOTATIONS): value for name, value in annotations.items() if name.startswith(ANNOTATIONS)
        }

    def unpack(self, uri: str, folder: Path) -> None:
        """Put the image's Bento into `folder`, whole or not at all; one that is there undamaged is left alone."""
        manifest = self._manifest(uri)
        layer = manifest["layers"][-1]["digest"]
        # The Bento's archive can be made again from the folder: so its digest proves the folder.
        expected = manifest["annotations"].get(f"{ANNOTATIONS}bento_digest", layer)
        if (folder / "bento.yaml").is_file() and content_digest(folder) == expected:
            return
        content = self._whole("blobs", layer)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f"{folder.name}.unpacking-", dir=folder.parent) as name:
                workshop = Path(name)
                (workshop / "layer").write_bytes(content)
                unpack_archive(workshop / "layer", workshop / "root")
                new = workshop / "root" / self.bento_path
                if not (new / "bento.yaml").is_file():
                    raise tarfile.TarError("no bento.yaml")
                if folder.exists():
                    folder.rename(workshop / "old")
                new.rename(folder)
        except tarfile.TarError as error:
            raise StateError(f"image {uri} holds no Bento: {error}", "run bento_build and ecr_push again") from None
        except OSError as error:
            raise disk_error(error, folder) from error

    def _manifest(self, uri: str) -> dict[str, Any]:
        name, _, digest = uri.rpartition("@")
        if name != self.name:
            raise StateError(f"image {uri} is not in the registry {self.name}", "run ecr_push again")
        if not re.fullmatch("sha256:[0-9a-f]{64}", digest):
            raise StateError(f"{digest!r} is no digest", "name an image by its URI, which ends in @sha256:...")
        manifest: dict[str, Any] = json.loads(self._whole("manifests", digest))
        return manifest

    def _whole(self, kind: str, digest: str) -> bytes:
        return whole(self._read(kind, digest), digest, self.where)


def whole(found: bytes | None, digest: str, where: str) -> bytes:
    """What was found under a digest. Raises StateError when nothing was, or something else."""
    if found is None:
        raise StateError(f"blob {digest} is missing from {where}", "run ecr_push again")
    if sha256(found) != digest:
        raise StateError(f"blob {digest} in {where} is damaged", "run ecr_push again, or check the disk")
    return found
