"""Layers, and the config and manifest of an image: the same bytes for the same content.

Source: OCI image specification 1.1.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from health_predict.adapters.files import MOST_UNPACKED, disk_error, unpack_archive, whole_file
from health_predict.adapters.images.wheels import SITE
from health_predict.errors import StateError

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
PLAIN_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
LAYER_TYPES = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_TYPE,
    "application/vnd.docker.image.rootfs.diff.tar": PLAIN_LAYER_TYPE,
}
ANNOTATIONS = "health-predict."
# The same for every image, so that the same Bento gives the same digest.
CREATED = "1980-01-01T00:00:00Z"
BENTO_PATH = "home/bentoml/bento"
REQUIREMENTS = "src/requirements.txt"
REQUIREMENTS_BYTES = 1 << 20  # at most
# BentoML's own images use this one.
USER = "1034:1034"
SERVICE_PORT = 3000
EMPTY = b"{}"
# Fast enough, and within a few per cent of the best.
COMPRESSION = 6


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: its file, the digest of that file, and of the archive in it."""

    file: Path
    digest: str
    diff_id: str
    size: int

    @property
    def descriptor(self) -> dict[str, Any]:
        """How a manifest names it."""
        return {"mediaType": LAYER_TYPE, "digest": self.digest, "size": self.size}


def pack_layer(files: Iterable[tuple[str, Path]], target: Path) -> Layer:
    """Write files, given with their names in the image, as a compressed layer."""
    with tempfile.TemporaryFile(dir=target.parent) as plain:
        with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
            _write(tar, files)
        plain.seek(0)
        diff_id = hashlib.file_digest(plain, "sha256").hexdigest()
        plain.seek(0)
        with (
            whole_file(target) as temporary,
            temporary.open("wb") as sink,
            # No name and no time in the header.
            gzip.GzipFile("", "wb", COMPRESSION, sink, mtime=0) as packed,
        ):
            shutil.copyfileobj(plain, packed)
    with target.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    return Layer(target, f"sha256:{digest}", f"sha256:{diff_id}", target.stat().st_size)


def _write(tar: tarfile.TarFile, files: Iterable[tuple[str, Path]]) -> None:
    made: set[PurePosixPath] = set()
    for name, path in sorted(files):
        for folder in reversed(PurePosixPath(name).parents[:-1]):
            if folder not in made:
                made.add(folder)
                entry = tarfile.TarInfo(str(folder))
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = path.stat().st_size, 0o644
        with path.open("rb") as content:
            tar.addfile(entry, content)


def requirements_of(bento: Path) -> str:
    """The requirements file in a Bento's archive. Raises StateError when there is none."""
    try:
        with tarfile.open(bento) as tar:
            entry = tar.getmember(REQUIREMENTS)
            file = tar.extractfile(entry)
            assert file is not None and not entry.issparse() and entry.size <= REQUIREMENTS_BYTES
            return file.read().decode()
    except FileNotFoundError:
        raise StateError(f"{bento} does not exist", "run bento_build again") from None
    except (tarfile.TarError, KeyError, AssertionError):
        raise StateError(f"{bento} is no archive of a Bento", "run bento_build again") from None


def bento_layer(bento: Path, workshop: Path) -> Layer:
    """A Bento's archive as a layer: the Bento, and beside the other libraries the one whose wheel it carries."""
    root, library = workshop / "bento", workshop / "library"
    try:
        unpack_archive(bento, root)
        for wheel in (root / "src" / "wheels").glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MOST_UNPACKED:
                    raise StateError(f"{wheel.name} in {bento} unpacks to too much", "run bento_build again")
                archive.extractall(library)  # noqa: S202 (a wheel of our own)
        files = [
            (f"{place}/{path.relative_to(folder).as_posix()}", path)
            for folder, place in ((root, BENTO_PATH), (library, SITE))
            for path in folder.rglob("*")
            if path.is_file()
        ]
        return pack_layer(files, workshop / "layer.tar.gz")
    except OSError as error:
        raise disk_error(error, workshop) from error


def runtime_image(
    base: dict[str, Any], base_config: dict[str, Any], layer: Layer, base_name: str, base_digest: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and config of a base with the libraries on it."""
    inherited = base_config.get("config", {})
    environment = dict(line.split("=", 1) for line in inherited.get("Env") or ())
    environment |= {
        "LANG": "C.UTF-8",
        "PYTHONPATH": f"/{SITE}",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "BENTO_PATH": f"/{BENTO_PATH}",
        # The root file system is read-only; /tmp is the writable volume.
        "BENTOML_HOME": "/tmp/bentoml",  # noqa: S108
        "HOME": "/tmp",  # noqa: S108
        "BENTOML_CONTAINERIZED": "true",
        # What `Cmd` listens on: without a file of tokens it does not start.
        "HEALTH_PREDICT_SERVING_HOST": "0.0.0.0",  # noqa: S104
        "BENTOML_DO_NOT_TRACK": "true",
        "ORT_DISABLE_TELEMETRY": "1",
    }
    annotations = {
        "org.opencontainers.image.base.name": base_name,
        "org.opencontainers.image.base.digest": base_digest,
        "org.opencontainers.image.created": CREATED,
        "org.opencontainers.image.title": "health-predict readmission runtime",
    }
    config = {
        "created": CREATED,
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "User": USER,
            "ExposedPorts": {f"{SERVICE_PORT}/tcp": {}},
            "Env": [f"{name}={value}" for name, value in sorted(environment.items())],
            "Entrypoint": ["python", "-m", "bentoml", "serve"],
            # BentoML starts one worker: a second pod is the way to have more, and a dead worker ends its pod.
            "Cmd": ["--host", "0.0.0.0", "--port", str(SERVICE_PORT), f"/{BENTO_PATH}"],  # noqa: S104
            "WorkingDir": f"/{BENTO_PATH}",
            "StopSignal": "SIGTERM",
            "Labels": annotations,
        },
        "rootfs": {"type": "layers", "diff_ids": [*base_config["rootfs"]["diff_ids"], layer.diff_id]},
        "history": [*base_config.get("history", ()), {"created": CREATED, "created_by": "health-predict libraries"}],
    }
    layers = [{**part, "mediaType": LAYER_TYPES.get(part["mediaType"], part["mediaType"])} for part in base["layers"]]
    return _manifest_of(config, [*layers, layer.descriptor], annotations), config


def bento_image(
    runtime: dict[str, Any],
    runtime_config: dict[str, Any],
    layer: dict[str, Any],
    diff_id: str,
    identity: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and config of an image with a Bento's layer, a descriptor, on it."""
    annotations = {
        **runtime["annotations"],
        "org.opencontainers.image.title": "health-predict readmission",
        "org.opencontainers.image.version": identity.get("model_version", ""),
        "org.opencontainers.image.revision": identity.get("git_commit", ""),
        **{f"{ANNOTATIONS}{name}": value for name, value in identity.items()},
    }
    config = copy.deepcopy(runtime_config)
    config["config"]["Labels"] = annotations
    config["rootfs"]["diff_ids"].append(diff_id)
    config["history"].append({"created": CREATED, "created_by": "health-predict bento_build"})
    return _manifest_of(config, [*runtime["layers"], layer], annotations), config


def _manifest_of(
    config: Mapping[str, Any], layers: list[dict[str, Any]], annotations: Mapping[str, str]
) -> dict[str, Any]:
    data = canonical(config)
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": sha256(data), "size": len(data)},
        "layers": layers,
        "annotations": dict(annotations),
    }


def referrer(subject: Mapping[str, Any], kind: str, data: bytes) -> dict[str, Any]:
    """Manifest of a document of some media type about an image, which `subject` describes."""
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": kind,
        "config": {"mediaType": EMPTY_TYPE, "digest": sha256(EMPTY), "size": len(EMPTY)},
        "layers": [{"mediaType": kind, "digest": sha256(data), "size": len(data)}],
        "subject": dict(subject),
        "annotations": {"org.opencontainers.image.created": CREATED},
    }


def canonical(content: Mapping[str, Any]) -> bytes:
    """JSON of which there is one form only."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def sha256(data: bytes) -> str:
    """The digest of bytes as OCI writes it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
