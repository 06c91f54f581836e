"""Images in a folder of this machine."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from health_predict.adapters.files import read_json, whole_file, write_json
from health_predict.adapters.images.layers import (
    CREATED,
    EMPTY,
    INDEX_TYPE,
    MANIFEST_TYPE,
    PLAIN_LAYER_TYPE,
    bento_image,
    canonical,
    sha256,
)
from health_predict.adapters.images.registry import ImageRegistry
from health_predict.adapters.locks import only_one
from health_predict.errors import StateError

log = logging.getLogger(__name__)

SCHEME = "oci:"
LAYOUT = {"imageLayoutVersion": "1.0.0"}
LOCK_SECONDS = 60.0
NAME = "org.opencontainers.image.ref.name"


class LayoutRegistry(ImageRegistry):
    """Images in a folder, in the OCI image layout."""

    bento_path = ""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = f"{SCHEME}{root}"
        self.where = str(root)

    def push(self, bento: Path, identity: Mapping[str, str]) -> str:
        try:
            archive = bento.read_bytes()
        except FileNotFoundError:
            raise StateError(f"{bento} does not exist", "run bento_build again") from None
        layer = self._add(archive)
        # What runs it brings Python and the libraries; the Bento itself holds nothing of one architecture.
        nothing = {"layers": [], "annotations": {"org.opencontainers.image.created": CREATED}}
        config = {
            "created": CREATED,
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": []},
            "history": [],
        }
        descriptor = {"mediaType": PLAIN_LAYER_TYPE, "digest": layer, "size": len(archive)}
        manifest, config = bento_image(nothing, config, descriptor, layer, identity)
        self._add(canonical(config))
        data = canonical(manifest)
        digest = self._add(data)
        name = identity.get("bento_tag", "").replace(":", "-")
        self._enter({"mediaType": MANIFEST_TYPE, "digest": digest, "size": len(data), "annotations": {NAME: name}})
        log.info("image %s", digest)
        return f"{self.name}@{digest}"

    def _attach(self, manifest: Mapping[str, Any], data: bytes) -> None:
        for content in (data, EMPTY):
            self._add(content)
        content = canonical(manifest)
        entry = {"mediaType": MANIFEST_TYPE, "digest": self._add(content), "size": len(content)}
        self._enter({**entry, "artifactType": manifest["artifactType"]})

    def _referrers(self, digest: str) -> list[dict[str, Any]]:
        documents = [one for one in self._listed() if "artifactType" in one]
        found = [(one, self._read("manifests", one["digest"])) for one in documents]
        # One that is damaged counts as absent: the next push writes it again.
        whole = [(one, json.loads(data)) for one, data in found if data and sha256(data) == one["digest"]]
        return [one for one, manifest in whole if manifest["subject"]["digest"] == digest]

    def _blob(self, digest: str) -> Path:
        return self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def _read(self, kind: str, digest: str) -> bytes | None:
        path = self._blob(digest)
        return path.read_bytes() if path.is_file() else None

    def _size(self, digest: str) -> int:
        return self._blob(digest).stat().st_size if self._blob(digest).is_file() else -1

    def _add(self, data: bytes) -> str:
        digest = sha256(data)
        if self._read("blobs", digest) != data:
            with whole_file(self._blob(digest)) as temporary:
                temporary.write_bytes(data)
        return digest

    def _listed(self) -> list[dict[str, Any]]:
        path = self.root / "index.json"
        try:
            found: list[dict[str, Any]] = read_json(path).get("manifests", [])
        except ValueError:
            raise StateError(f"{path} is damaged", "remove it; ecr_push writes it anew") from None
        return found

    def _enter(self, entry: Mapping[str, Any]) -> None:
        """Add an entry to the folder's index."""
        layout, path = self.root / "oci-layout", self.root / "index.json"
        with only_one(self.root, LOCK_SECONDS):
            if not layout.is_file():
                write_json(layout, LAYOUT)
            listed = self._listed()
            if entry in listed:
                return
            # A name belongs to one image: the last that was pushed under it.
            others = [
                other
                for other in listed
                if other["digest"] != entry["digest"]
                and ("annotations" not in entry or other.get("annotations") != entry["annotations"])
            ]
            index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [*others, entry]}
            write_json(path, index)
