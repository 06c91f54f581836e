"""Image registries: where a Bento becomes an image that is named by its digest, laid there without a daemon.

Two of them: a repository of a registry, and a folder in the OCI image layout: `oci-layout`, `index.json` and
`blobs/sha256/...`, so `oras`, `skopeo` and `crane` read it. In a registry an image has three parts: a Python base, the
libraries of the service on it, and the Bento. The first two make the `runtime` image, which is pushed once for each
base and lock file under a tag that names its content; a model then costs its own layer, a config and a manifest. In
the folder an image has one layer, the Bento's own archive, since a process runs it on the installed Python.
Sources: OCI image specification 1.1, OCI distribution specification 1.1.
"""

from __future__ import annotations

import base64
import copy
import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urljoin, urlsplit

from health_predict.adapters.locks import only_one
from health_predict.adapters.storage import disk_error, unpack_archive, whole_file
from health_predict.adapters.wheels import INSTALL_SECONDS, SITE, install, key_of
from health_predict.core.content import content_digest
from health_predict.core.errors import SettingsError, StateError, UnreachableError
from health_predict.settings import Settings

log = logging.getLogger(__name__)

SCHEME = "oci:"
LAYOUT = {"imageLayoutVersion": "1.0.0"}
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
PLAIN_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
LAYER_TYPES = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_TYPE,
    "application/vnd.docker.image.rootfs.diff.tar": PLAIN_LAYER_TYPE,
}
ACCEPT = {"Accept": ", ".join((MANIFEST_TYPE, INDEX_TYPE, DOCKER_MANIFEST, DOCKER_INDEX))}
ANNOTATIONS = "health-predict."
# The same for every image, so that the same Bento gives the same digest.
CREATED = "1980-01-01T00:00:00Z"
BENTO_PATH = "home/bentoml/bento"
REQUIREMENTS = "src/requirements.txt"
# BentoML's own images use this one.
USER = "1034:1034"
SERVICE_PORT = 3000
LOOPBACK = ("localhost", "127.0.0.1", "::1")
DOCKER_HUB = "registry-1.docker.io"
ECR_HOST = re.compile(r"\d{12}\.dkr\.ecr\.(?P<region>[^.]+)\.amazonaws\.com")
# Seconds before each repetition of a request.
PAUSES = (0.5, 1.0, 2.0, 4.0)
CONNECT_SECONDS, READ_SECONDS = 5.0, 60.0
LOCK_SECONDS = 60.0
BLOCK = 1024 * 1024
# Fast enough, and within a few per cent of the best.
COMPRESSION = 6


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


class _Images(ABC):
    """What both registries do with an image, given its parts."""

    name: str
    where: str
    """For messages."""
    bento_path: str
    """Where an image's last layer has the Bento."""

    @abstractmethod
    def _read(self, digest: str, kind: str = "blobs") -> bytes:
        """A small blob, or one of the `manifests`, checked."""

    @abstractmethod
    def _look(self, part: Mapping[str, Any]) -> None:
        """See that a blob is there."""

    @abstractmethod
    def _file(self, digest: str, workshop: Path) -> Path:
        """A blob as a file, checked."""

    def verify(self, uri: str) -> None:
        manifest = self._manifest(uri)
        self._read(manifest["config"]["digest"])
        for layer in manifest["layers"][:-1]:
            self._look(layer)
        with tempfile.TemporaryDirectory(prefix="health-predict-image-") as workshop:
            self._file(manifest["layers"][-1]["digest"], Path(workshop))

    def identity(self, uri: str) -> dict[str, str]:
        annotations: dict[str, str] = self._manifest(uri)["annotations"]
        return {
            name.removeprefix(ANNOTATIONS): value for name, value in annotations.items() if name.startswith(ANNOTATIONS)
        }

    def unpack(self, uri: str, folder: Path) -> None:
        manifest = self._manifest(uri)
        layer = manifest["layers"][-1]["digest"]
        # The Bento's archive can be made again from the folder: so its digest proves the folder.
        expected = manifest["annotations"].get(f"{ANNOTATIONS}bento_digest", layer)
        if (folder / "bento.yaml").is_file() and content_digest(folder) == expected:
            return
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f"{folder.name}.unpacking-", dir=folder.parent) as name:
                workshop = Path(name)
                unpack_archive(self._file(layer, workshop), workshop / "root")
                new = workshop / "root" / self.bento_path
                if not (new / "bento.yaml").is_file():
                    raise StateError(f"image {uri} holds no Bento", "run bento_build and ecr_push again")
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
        manifest: dict[str, Any] = json.loads(self._read(digest, "manifests"))
        return manifest

    def _missing(self, digest: str) -> StateError:
        return StateError(f"blob {digest} is missing from {self.where}", "run ecr_push again")

    def _damaged(self, digest: str) -> StateError:
        return StateError(f"blob {digest} in {self.where} is damaged", "run ecr_push again, or check the disk")


class LayoutRegistry(_Images):
    """Images in a folder, in the OCI image layout."""

    bento_path = ""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = f"{SCHEME}{root}"
        self.where = str(root)

    def push(self, bento: Path, identity: Mapping[str, str]) -> str:
        try:
            digest = _digest(bento)
            layer = Layer(bento, digest, digest, bento.stat().st_size)
            if not self._is_whole(digest):
                with whole_file(self._blob(digest)) as temporary:
                    shutil.copyfile(bento, temporary)
        except FileNotFoundError:
            raise StateError(f"{bento} does not exist", "run bento_build again") from None
        except OSError as error:
            raise disk_error(error, self.root) from error
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
        manifest, config = _image(nothing, config, layer, identity)
        self._add(_canonical(config))
        data = _canonical(manifest)
        digest = self._add(data)
        entry = {"mediaType": MANIFEST_TYPE, "digest": digest, "size": len(data)}
        self._list(entry, identity.get("bento_tag", ""))
        log.info("image %s", digest)
        return f"{self.name}@{digest}"

    def _blob(self, digest: str) -> Path:
        return self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def _is_whole(self, digest: str) -> bool:
        path = self._blob(digest)
        return path.is_file() and _digest(path) == digest

    def _add(self, data: bytes) -> str:
        digest = _sha256(data)
        if not self._is_whole(digest):
            with whole_file(self._blob(digest)) as temporary:
                temporary.write_bytes(data)
        return digest

    def _look(self, part: Mapping[str, Any]) -> None:
        self._file(part["digest"], self.root)

    def _file(self, digest: str, workshop: Path) -> Path:
        if not self._blob(digest).is_file():
            raise self._missing(digest)
        if not self._is_whole(digest):
            raise self._damaged(digest)
        return self._blob(digest)

    def _read(self, digest: str, kind: str = "blobs") -> bytes:
        return self._file(digest, self.root).read_bytes()

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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a registry answers: the host of image names, and the address under which this machine reaches it."""

    host: str
    address: str
    plain: bool

    @classmethod
    def of(cls, host: str, endpoint: str = "") -> Place:
        """Plain HTTP on loopback, or where the endpoint's URL says so; HTTPS everywhere else."""
        if endpoint:
            parts = urlsplit(endpoint)
            if parts.scheme not in ("http", "https") or not parts.netloc:
                raise SettingsError(
                    f"registry endpoint {endpoint!r} is no URL",
                    "write HEALTH_PREDICT_REGISTRY_ENDPOINT=http://host:port",
                )
            return cls(host, parts.netloc, parts.scheme == "http")
        return cls(host, host, _is_loopback(host))


def _is_loopback(host: str) -> bool:
    name = host.partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.strip("[]") in LOOPBACK


class _Repository:
    """One repository of a registry, by the OCI distribution API."""

    def __init__(self, place: Place, path: str) -> None:
        import requests

        self.place = place
        self.path = path
        self.root = f"{'http' if place.plain else 'https'}://{place.address}/v2/{path}"
        self._session = requests.Session()
        # A proxy cannot reach what is on this machine.
        self._session.trust_env = not _is_loopback(place.address)

    def request(self, method: str, url: str, **options: Any) -> Any:
        """The answer to a request, repeated while the registry is away or busy; see `_patiently`."""
        return self._patiently(lambda: self._send(method, url, **options))

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """What `ask` answers. Raises UnreachableError when it does not in time, or refuses the credentials."""
        import requests

        host = self.place.host
        problem = ""
        for pause in (*PAUSES, None):
            try:
                response = ask()
            except requests.RequestException as error:
                problem = str(error)
            else:
                if response.status_code in (401, 403):
                    raise UnreachableError(
                        f"registry {host} refuses the credentials, or wants some: {response.status_code}",
                        f"`docker login {host}`, and check that they may push there",
                    )
                if response.status_code != 429 and response.status_code < 500:
                    return response
                problem = f"{response.status_code} {response.text[:200]}"
            if pause is not None:
                log.warning("registry %s: %s; trying again", host, problem)
                time.sleep(pause)
        raise UnreachableError(
            f"registry {host} does not answer at {self.place.address}: {problem}",
            "check that it runs, HEALTH_PREDICT_IMAGE_REGISTRY and HEALTH_PREDICT_REGISTRY_ENDPOINT",
        )

    def _send(
        self, method: str, url: str, *, file: Path | None = None, data: bytes | None = None, **options: Any
    ) -> Any:
        """Send a request once, and again with the credentials that it is answered to want."""
        for _ in range(2):
            with file.open("rb") if file else nullcontext(data) as body:
                ask = {**options, "data": body, "timeout": (CONNECT_SECONDS, READ_SECONDS)}
                response = self._session.request(method, url, **ask)
            if response.status_code != 401 or not self._log_in(response.headers.get("WWW-Authenticate", "")):
                break
        return response

    def _log_in(self, challenge: str) -> bool:
        """Take the credentials that a challenge asks for; whether there are some."""
        kind, _, rest = challenge.partition(" ")
        known = credentials(self.place)
        if kind.lower() == "basic":
            self._session.auth = known
            return known is not None
        if kind.lower() != "bearer":
            return False
        fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        answer = self._session.get(
            fields.pop("realm", ""), params=fields, auth=known, timeout=(CONNECT_SECONDS, READ_SECONDS)
        )
        if answer.status_code != 200:
            return False
        found = answer.json()
        self._session.auth = _Bearer(found.get("token") or found["access_token"])
        return True

    def read(self, kind: str, name: str) -> bytes | None:
        """The bytes of one of the `manifests` or of a small one of the `blobs`; None when there is none."""
        response = self.request("GET", f"{self.root}/{kind}/{name}", headers=ACCEPT if kind == "manifests" else None)
        return None if response.status_code == 404 else self._expect(response, 200).content

    def has_manifest(self, reference: str) -> str:
        """Digest of the manifest, empty when there is none."""
        response = self.request("HEAD", f"{self.root}/manifests/{reference}", headers=ACCEPT)
        return response.headers.get("Docker-Content-Digest", "") if response.status_code == 200 else ""

    def put_manifest(self, manifest: Mapping[str, Any], tag: str) -> str:
        """Store a manifest; its digest, which the registry must name too."""
        data = _canonical(manifest)
        digest = _sha256(data)
        headers = {"Content-Type": manifest["mediaType"]}
        response = self._expect(self.request("PUT", f"{self.root}/manifests/{tag}", data=data, headers=headers), 201)
        found = response.headers.get("Docker-Content-Digest", digest)
        if found != digest:
            raise StateError(f"registry {self.place.host} stored {found} in place of {digest}", "check the registry")
        return digest

    def size(self, digest: str) -> int:
        """Bytes of a blob, -1 when there is none."""
        response = self.request("HEAD", f"{self.root}/blobs/{digest}")
        return int(response.headers.get("Content-Length", 0)) if response.status_code == 200 else -1

    def fetch(self, digest: str, file: Path) -> bool:
        """Write a blob to a file; False when there is none."""

        def ask() -> Any:
            response = self._send("GET", f"{self.root}/blobs/{digest}", stream=True)
            if response.status_code == 200:
                with file.open("wb") as sink:
                    for block in response.iter_content(BLOCK):
                        sink.write(block)
            return response

        response = self._patiently(ask)
        return response.status_code != 404 and bool(self._expect(response, 200))

    def add(self, file: Path, digest: str, size: int) -> None:
        """Upload a blob unless it is there."""
        if self.size(digest) == size:
            return
        log.info("pushing %s, %.1f MB", digest, size / 1e6)
        headers = {"Content-Type": "application/octet-stream"}

        def upload() -> Any:  # one that breaks off begins anew
            begun = self._send("POST", f"{self.root}/blobs/uploads/")
            if begun.status_code != 202:
                return begun
            location = urljoin(begun.url, begun.headers["Location"])
            return self._send("PUT", location, params={"digest": digest}, file=file, headers=headers)

        self._expect(self._patiently(upload), 201)

    def add_bytes(self, data: bytes) -> dict[str, Any]:
        """Upload a config."""
        digest = _sha256(data)
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            self.add(Path(file.name), digest, len(data))
        return {"mediaType": CONFIG_TYPE, "digest": digest, "size": len(data)}

    def mount(self, digest: str, source: str) -> bool:
        """Have the registry link a blob of another of its repositories; False when it does not."""
        if source == self.path:
            return self.size(digest) >= 0
        where = {"mount": digest, "from": source}
        response = self.request("POST", f"{self.root}/blobs/uploads/", params=where)
        if response.status_code == 202:  # it began an upload in place of the link
            self.request("DELETE", urljoin(response.url, response.headers["Location"]))
        return bool(response.status_code == 201)

    def _expect(self, response: Any, status: int) -> Any:
        if response.status_code != status:
            raise UnreachableError(
                f"registry {self.place.host} answers {response.status_code} to {response.request.method}: "
                f"{response.text[:300]}",
                "check the repository's name and that the credentials may push to it",
            )
        return response


class _Bearer:
    """Authentication of a request by a token, as requests asks for it."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def credentials(place: Place) -> tuple[str, str] | None:
    """User and password for a registry: Amazon's token, or what `docker login` keeps, itself or by its helper."""
    amazon = ECR_HOST.fullmatch(place.host)
    if amazon:
        import boto3

        with _translated(place.host):
            found = boto3.client("ecr", region_name=amazon["region"]).get_authorization_token()
        return _decoded(found["authorizationData"][0]["authorizationToken"])
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    for name in (place.host, place.address, *(["https://index.docker.io/v1/"] if place.host == DOCKER_HUB else [])):
        kept = config.get("auths", {}).get(name, {}).get("auth")
        if kept:
            return _decoded(kept)
        helper = config.get("credHelpers", {}).get(name) or config.get("credsStore")
        if helper and (program := shutil.which(f"docker-credential-{helper}")):
            done = subprocess.run([program, "get"], input=name, capture_output=True, text=True, timeout=30, check=False)
            if done.returncode == 0:
                answer = json.loads(done.stdout)
                return answer["Username"], answer["Secret"]
    return None


def _decoded(text: str) -> tuple[str, str]:
    user, _, password = base64.b64decode(text).decode().partition(":")
    return user, password


class RemoteRegistry(_Images):
    """Images of one repository in a registry."""

    bento_path = BENTO_PATH

    def __init__(self, name: str, *, endpoint: str = "", base_image: str = "", cache: Path) -> None:
        """`name` is `host/repository`; `cache` keeps the layer of libraries between runs."""
        host, _, path = name.partition("/")
        if not path or "@" in name or ":" in path:
            raise SettingsError(
                f"image registry {name!r} names no repository", "set HEALTH_PREDICT_IMAGE_REGISTRY to host/repository"
            )
        self.name = name
        self.where = f"registry {host}"
        self._place = Place.of(host, endpoint)
        self._path = path
        self._base_image = base_image
        self._cache = cache

    @cached_property
    def _repository(self) -> _Repository:
        return _Repository(self._place, self._path)

    def push(self, bento: Path, identity: Mapping[str, str]) -> str:
        try:
            requirements = _requirements(bento)
        except FileNotFoundError:
            raise StateError(f"{bento} does not exist", "run bento_build again") from None
        self._make_repository()
        runtime, config = self._runtime(requirements)
        with tempfile.TemporaryDirectory(prefix="health-predict-image-") as workshop:
            layer = _bento_layer(bento, Path(workshop))
            manifest, image_config = _image(runtime, config, layer, identity)
            digest = _sha256(_canonical(manifest))
            tag = f"{identity.get('bento_tag', 'bento').rpartition(':')[2] or 'bento'}-{digest[7:19]}"
            if self._repository.has_manifest(tag) != digest:
                self._repository.add(layer.file, layer.digest, layer.size)
                self._repository.add_bytes(_canonical(image_config))
                self._repository.put_manifest(manifest, tag)
        self._confirm(digest)
        log.info("image %s", digest)
        return f"{self.name}@{digest}"

    def probe(self) -> None:
        """Raises UnreachableError when the registry does not answer or refuses the credentials."""
        self._repository.request("GET", f"{self._repository.root}/tags/list?n=1")

    def _read(self, digest: str, kind: str = "blobs") -> bytes:
        return self._read_from(self._repository, digest, kind)

    def _read_from(self, repository: _Repository, digest: str, kind: str) -> bytes:
        found = repository.read(kind, digest)
        if found is None:
            raise self._missing(digest)
        if _sha256(found) != digest:
            raise self._damaged(digest)
        return found

    def _look(self, part: Mapping[str, Any]) -> None:
        found = self._repository.size(part["digest"])
        if found < 0:
            raise self._missing(part["digest"])
        if found != part["size"]:
            raise self._damaged(part["digest"])

    def _file(self, digest: str, workshop: Path) -> Path:
        return self._fetched(self._repository, digest, workshop)

    def _fetched(self, repository: _Repository, digest: str, workshop: Path) -> Path:
        file = workshop / "layer"
        if not repository.fetch(digest, file):
            raise self._missing(digest)
        if _digest(file) != digest:
            raise self._damaged(digest)
        return file

    # The runtime image

    def _runtime(self, requirements: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Manifest and config of the base with the libraries on it."""
        digest, place, path = self._base()
        tag = self._runtime_tag(requirements, digest)
        found = self._repository.read("manifests", tag)
        if found is not None:
            manifest: dict[str, Any] = json.loads(found)
            return manifest, json.loads(self._read(manifest["config"]["digest"]))
        layer = self._libraries(requirements)
        base = _Repository(place, path)
        manifest, config = self._resolve(base, digest)
        log.info("pushing the runtime image %s: base and libraries, once for each lock file", tag)
        for part in manifest["layers"]:
            self._copy(base, part["digest"], int(part["size"]))
        self._repository.add(layer.file, layer.digest, layer.size)
        manifest, config = _runtime_image(manifest, config, layer, f"{self._base_image.partition('@')[0]}@{digest}")
        self._repository.add_bytes(_canonical(config))
        self._repository.put_manifest(manifest, tag)
        return manifest, config

    def _libraries(self, requirements: str) -> Layer:
        """The layer of these requirements, from the cache or made anew."""
        cache, key = self._cache, key_of(requirements)
        file, record = cache / f"{key}.tar.gz", cache / f"{key}.json"
        with only_one(cache, INSTALL_SECONDS):
            try:
                known = json.loads(record.read_text(encoding="utf-8"))
                if file.stat().st_size == known["size"]:
                    return Layer(file, **known)
            except (OSError, ValueError, KeyError):
                pass
            log.info("assembling the libraries of the service, which a change of the lock file asks for")
            try:
                with tempfile.TemporaryDirectory(prefix=".runtime-", dir=cache) as workshop:
                    layer = pack_layer(install(requirements, Path(workshop)), file)
            except OSError as error:
                raise disk_error(error, cache) from error
            with whole_file(record) as temporary:
                known = {"digest": layer.digest, "diff_id": layer.diff_id, "size": layer.size}
                temporary.write_text(json.dumps(known), encoding="utf-8")
            return layer

    def _runtime_tag(self, requirements: str, base_digest: str) -> str:
        return f"runtime-{hashlib.sha256(f'{base_digest} {key_of(requirements)}'.encode()).hexdigest()[:24]}"

    def _base(self) -> tuple[str, Place, str]:
        """Digest of the base image, and where it lies. One that is named by its digest is not asked for."""
        if not self._base_image:
            raise SettingsError("no base image is set", "set HEALTH_PREDICT_BASE_IMAGE to host/python:tag@sha256:...")
        name, _, digest = self._base_image.partition("@")
        host, _, rest = name.partition("/")
        if not rest or not re.search(r"[.:]|^localhost$", host):
            host, rest = DOCKER_HUB, name if "/" in name else f"library/{name}"
        elif host == "docker.io":
            host = DOCKER_HUB
        path, _, tag = rest.partition(":")
        place = self._place if host == self._place.host else Place.of(host)
        if not digest:
            found = _Repository(place, path).read("manifests", tag or "latest")
            if found is None:
                raise StateError(f"base image {self._base_image} does not exist", "correct HEALTH_PREDICT_BASE_IMAGE")
            digest = _sha256(found)
        return digest, place, path

    def _copy(self, source: _Repository, digest: str, size: int) -> None:
        target = self._repository
        if target.size(digest) == size:
            return
        if source.place == target.place and target.mount(digest, source.path):
            return
        with tempfile.TemporaryDirectory(prefix="health-predict-base-") as workshop:
            target.add(self._fetched(source, digest, Path(workshop)), digest, size)

    def _resolve(self, repository: _Repository, digest: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Manifest and config of an image for linux/amd64."""
        for _ in range(2):
            manifest: dict[str, Any] = json.loads(self._read_from(repository, digest, "manifests"))
            if "manifests" not in manifest:
                return manifest, json.loads(self._read_from(repository, manifest["config"]["digest"], "blobs"))
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

    # Amazon's registry

    def _ecr(self) -> Any:
        match = ECR_HOST.fullmatch(self._place.host)
        if match is None:
            return None
        import boto3

        return boto3.client("ecr", region_name=match["region"])

    def _make_repository(self) -> None:
        ecr = self._ecr()
        if ecr is None:
            return
        with _translated(self.name):
            try:
                ecr.describe_repositories(repositoryNames=[self._path])
            except ecr.exceptions.RepositoryNotFoundException:
                log.info("creating the repository %s", self._path)
                ecr.create_repository(
                    repositoryName=self._path,
                    imageTagMutability="IMMUTABLE",
                    imageScanningConfiguration={"scanOnPush": True},
                )

    def _confirm(self, digest: str) -> None:
        """The registry must hold the image by the digest that was computed here."""
        ecr = self._ecr()
        if ecr is None:
            found = self._repository.has_manifest(digest)
        else:
            with _translated(self.name):
                details = ecr.describe_images(repositoryName=self._path, imageIds=[{"imageDigest": digest}])
                found = details["imageDetails"][0]["imageDigest"]
        if found != digest:
            raise StateError(f"registry {self._place.host} holds {found or 'nothing'}, not {digest}", "push again")


@contextmanager
def _translated(name: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise UnreachableError(
            f"ECR refuses {name}: {error}",
            "create the repository, or allow ecr:CreateRepository and ecr:DescribeImages",
        ) from None
    except BotoCoreError as error:
        raise UnreachableError(f"ECR of {name}: {error}", "check the AWS credentials and region") from None


def _runtime_image(
    base: dict[str, Any], base_config: dict[str, Any], layer: Layer, base_name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
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
        "BENTOML_DO_NOT_TRACK": "true",
        "ORT_DISABLE_TELEMETRY": "1",
    }
    annotations = {
        "org.opencontainers.image.base.name": base_name.partition("@")[0],
        "org.opencontainers.image.base.digest": base_name.partition("@")[2],
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
    return _manifest_of(config, [*layers, _descriptor(layer)], annotations), config


def _image(
    runtime: dict[str, Any], runtime_config: dict[str, Any], layer: Layer, identity: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    annotations = {
        **runtime["annotations"],
        "org.opencontainers.image.title": "health-predict readmission",
        "org.opencontainers.image.version": identity.get("model_version", ""),
        "org.opencontainers.image.revision": identity.get("git_commit", ""),
        **{f"{ANNOTATIONS}{name}": value for name, value in identity.items()},
    }
    config = copy.deepcopy(runtime_config)
    config["config"]["Labels"] = annotations
    config["rootfs"]["diff_ids"].append(layer.diff_id)
    config["history"].append({"created": CREATED, "created_by": "health-predict bento_build"})
    return _manifest_of(config, [*runtime["layers"], _descriptor(layer)], annotations), config


def _manifest_of(
    config: Mapping[str, Any], layers: list[dict[str, Any]], annotations: Mapping[str, str]
) -> dict[str, Any]:
    data = _canonical(config)
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": _sha256(data), "size": len(data)},
        "layers": layers,
        "annotations": dict(annotations),
    }


def _descriptor(layer: Layer) -> dict[str, Any]:
    kind = PLAIN_LAYER_TYPE if layer.digest == layer.diff_id else LAYER_TYPE
    return {"mediaType": kind, "digest": layer.digest, "size": layer.size}


def _requirements(bento: Path) -> str:
    try:
        with tarfile.open(bento) as tar:
            file = tar.extractfile(REQUIREMENTS)
            assert file is not None
            return file.read().decode()
    except (tarfile.TarError, KeyError, AssertionError):
        raise StateError(f"{bento} is no archive of a Bento", "run bento_build again") from None


def _bento_layer(bento: Path, workshop: Path) -> Layer:
    root = workshop / "bento"
    try:
        unpack_archive(bento, root)
        files = [
            (f"{BENTO_PATH}/{path.relative_to(root).as_posix()}", path) for path in root.rglob("*") if path.is_file()
        ]
        # The library stands beside the others, as if its wheel had been installed.
        library = workshop / "library"
        for wheel in (root / "src" / "wheels").glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(library)  # noqa: S202 (a wheel of our own)
        files += [
            (f"{SITE}/{path.relative_to(library).as_posix()}", path) for path in library.rglob("*") if path.is_file()
        ]
        return pack_layer(files, workshop / "layer.tar.gz")
    except OSError as error:
        raise disk_error(error, workshop) from error


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: its file, the digest of that file, and of the archive in it."""

    file: Path
    digest: str
    diff_id: str
    size: int


def pack_layer(files: Iterable[tuple[str, Path]], target: Path) -> Layer:
    """Write files, given with their names in the image, as a compressed layer."""
    compressed, plain = hashlib.sha256(), hashlib.sha256()
    with whole_file(target) as temporary:
        with (
            temporary.open("wb") as sink,
            # No name and no time in the header.
            gzip.GzipFile("", "wb", COMPRESSION, _Tee(sink, compressed.update), mtime=0) as packed,
            tarfile.open(fileobj=_Tee(packed, plain.update), mode="w|", format=tarfile.PAX_FORMAT) as tar,  # type: ignore[call-overload]
        ):
            _write(tar, files)
        size = temporary.stat().st_size
    return Layer(target, f"sha256:{compressed.hexdigest()}", f"sha256:{plain.hexdigest()}", size)


def _write(tar: tarfile.TarFile, files: Iterable[tuple[str, Path]]) -> None:
    made: set[str] = set()
    for name, path in sorted(files):
        for folder in _new_folders(name, made):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = path.stat().st_size, 0o644
        with path.open("rb") as content:
            tar.addfile(entry, content)


def _new_folders(name: str, made: set[str]) -> list[str]:
    parts = name.split("/")[:-1]
    folders = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    new = [folder for folder in folders if folder not in made]
    made.update(new)
    return new


class _Tee:
    """Hashes what it hands on."""

    def __init__(self, sink: IO[bytes] | gzip.GzipFile, update: Callable[[bytes], object]) -> None:
        self._sink = sink
        self._update = update

    def write(self, data: bytes) -> int:
        self._update(data)
        self._sink.write(data)
        return len(data)

    def flush(self) -> None:
        pass


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
