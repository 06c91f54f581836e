"""Images in a registry: the base, the libraries on it, the Bento on both."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from health_predict.adapters.files import disk_error
from health_predict.adapters.images.client import DOCKER_HUB, Repository, address_of
from health_predict.adapters.images.layers import (
    BENTO_PATH,
    EMPTY,
    Layer,
    bento_image,
    bento_layer,
    canonical,
    pack_layer,
    requirements_of,
    runtime_image,
    sha256,
)
from health_predict.adapters.images.registry import ImageRegistry, whole
from health_predict.adapters.images.wheels import install, key_of
from health_predict.errors import SettingsError, StateError

log = logging.getLogger(__name__)

Image = tuple[dict[str, Any], dict[str, Any]]
"""Manifest and config."""


class RemoteRegistry(ImageRegistry):
    """Images of one repository in a registry."""

    bento_path = BENTO_PATH

    def __init__(self, name: str, *, endpoint: str = "", base_image: str = "") -> None:
        """`name` is `host/repository`."""
        host, _, path = name.partition("/")
        if not path or "@" in name or ":" in path:
            raise SettingsError(
                f"image registry {name!r} names no repository", "set HEALTH_PREDICT_IMAGE_REGISTRY to host/repository"
            )
        self.name = name
        self.where = f"registry {host}"
        self._repository = Repository(host, path, address_of(host, endpoint))
        self._base_image = base_image

    def push(self, bento: Path, identity: Mapping[str, str]) -> str:
        requirements = requirements_of(bento)
        runtime, config = self._runtime(requirements)
        with tempfile.TemporaryDirectory(prefix="health-predict-image-") as workshop:
            layer = bento_layer(bento, Path(workshop))
            manifest, config = bento_image(runtime, config, layer.descriptor, layer.diff_id, identity)
            digest = sha256(canonical(manifest))
            tag = f"{identity.get('bento_tag', 'bento').rpartition(':')[2] or 'bento'}-{digest[7:19]}"
            if self._repository.has_manifest(tag) != digest:
                self._add(layer)
                self._repository.add_config(config)
                self._repository.put_manifest(manifest, tag)
        log.info("image %s", digest)
        return f"{self.name}@{digest}"

    def probe(self) -> None:
        """Raises UnreachableError when the registry does not answer or refuses the credentials."""
        self._repository.request("GET", f"{self._repository.root}/tags/list?n=1")

    def _read(self, kind: str, digest: str) -> bytes | None:
        return self._repository.read(kind, digest)

    def _size(self, digest: str) -> int:
        return self._repository.size(digest)

    def _add(self, layer: Layer) -> None:
        with layer.file.open("rb") as file:
            self._repository.add(file, layer.digest, layer.size)

    def _attach(self, manifest: Mapping[str, Any], data: bytes) -> None:
        for content in (data, EMPTY):
            self._repository.add(content, sha256(content), len(content))
        self._repository.put_referrer(manifest)

    def _referrers(self, digest: str) -> list[dict[str, Any]]:
        return self._repository.referrers(digest)

    # The runtime image

    def _runtime(self, requirements: str) -> Image:
        """The base with the libraries on it."""
        base, digest = self._base()
        tag = f"runtime-{sha256(f'{digest} {key_of(requirements)}'.encode())[7:31]}"
        found = self._repository.read("manifests", tag)
        if found is not None:
            manifest = json.loads(found)
            return manifest, json.loads(self._whole("blobs", manifest["config"]["digest"]))
        log.info("making the runtime image %s: base and libraries, once for each lock file", tag)
        manifest, config = self._resolve(base, digest)
        for part in manifest["layers"]:
            if self._repository.size(part["digest"]) != part["size"]:
                self._repository.add(_read(base, "blobs", part["digest"]), part["digest"], part["size"])
        with tempfile.TemporaryDirectory(prefix="health-predict-runtime-") as name:
            workshop = Path(name)
            try:
                layer = pack_layer(install(requirements, workshop), workshop / "layer.tar.gz")
            except OSError as error:
                raise disk_error(error, workshop) from error
            self._add(layer)
        manifest, config = runtime_image(manifest, config, layer, self._base_image.partition("@")[0], digest)
        self._repository.add_config(config)
        self._repository.put_manifest(manifest, tag)
        return manifest, config

    def _base(self) -> tuple[Repository, str]:
        """Where the base image lies, and its digest. One that is named by its digest is not asked for."""
        if not self._base_image:
            raise SettingsError("no base image is set", "set HEALTH_PREDICT_BASE_IMAGE to host/python:tag@sha256:...")
        name, _, digest = self._base_image.partition("@")
        host, _, rest = name.partition("/")
        if not rest or not re.search(r"[.:]|^localhost$", host):
            host, rest = DOCKER_HUB, name if "/" in name else f"library/{name}"
        elif host == "docker.io":
            host = DOCKER_HUB
        path, _, tag = rest.partition(":")
        own = self._repository
        base = Repository(host, path, own.address if host == own.host else address_of(host))
        if not digest:
            found = base.read("manifests", tag or "latest")
            if found is None:
                raise StateError(f"base image {self._base_image} does not exist", "correct HEALTH_PREDICT_BASE_IMAGE")
            digest = sha256(found)
        return base, digest

    def _resolve(self, base: Repository, digest: str) -> Image:
        """An image for linux/amd64."""
        for _ in range(2):
            manifest: dict[str, Any] = json.loads(_read(base, "manifests", digest))
            if "manifests" not in manifest:
                return manifest, json.loads(_read(base, "blobs", manifest["config"]["digest"]))
            fitting = [
                entry["digest"]
                for entry in manifest["manifests"]
                if (entry.get("platform", {}).get("os"), entry.get("platform", {}).get("architecture"))
                == ("linux", "amd64")
            ]
            if not fitting:
                break
            digest = fitting[0]
        raise StateError(f"base image {digest} has nothing for linux/amd64", "choose another HEALTH_PREDICT_BASE_IMAGE")


def _read(base: Repository, kind: str, digest: str) -> bytes:
    return whole(base.read(kind, digest), digest, f"registry {base.host}")
