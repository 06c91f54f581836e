"""A remote image registry: the service's image is laid there layer by layer, without a daemon.

Three parts: a Python base, the libraries of the service on it, and the Bento. The first two make the `runtime`
image, which is pushed once for each base and lock file under a tag that names its content; a model then costs its
own layer, a config and a manifest. Sources: OCI distribution specification 1.1, OCI image specification 1.1.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import re
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from oras.auth.ecr import EcrAuth
from oras.container import Container
from oras.provider import Registry

from health_predict.adapters.runtime_layer import SITE, Layer, pack_layer, runtime_key, runtime_layer
from health_predict.adapters.storage import disk_error, unpack_archive
from health_predict.core.content import content_digest
from health_predict.core.errors import SettingsError, StateError, UnreachableError

log = logging.getLogger(__name__)

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
LAYER_TYPES = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_TYPE,
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
}
ACCEPTED = (MANIFEST_TYPE, INDEX_TYPE, DOCKER_MANIFEST, DOCKER_INDEX)
ANNOTATIONS = "health-predict."
# The same for every image, so that the same Bento gives the same digest.
CREATED = "1980-01-01T00:00:00Z"
BENTO_PATH = "home/bentoml/bento"
REQUIREMENTS = "src/requirements.txt"
# BentoML's own images use this one.
USER = "1034:1034"
SERVICE_PORT = 3000
LOOPBACK = ("localhost", "127.0.0.1", "::1")
ECR_HOST = re.compile(r"\d{12}\.dkr\.ecr\.(?P<region>[^.]+)\.amazonaws\.com")
# Seconds before each repetition of a request.
PAUSES = (0.5, 1.0, 2.0, 4.0)
CONNECT_SECONDS, READ_SECONDS = 5.0, 60.0
# Larger blobs go in pieces, so that they need not lie in memory whole.
CHUNKED_FROM = 16 * 1024 * 1024


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
        name = host if host.startswith("[") else host.partition(":")[0]
        return cls(host, host, name.strip("[]") in LOOPBACK)


class _Auth(EcrAuth):  # type: ignore[misc]
    """Basic and token authentication by Docker's own config file; for ECR a token by boto3."""

    def authenticate_request(self, original: Any, headers: Any, refresh: bool = False) -> Any:
        challenge = original.headers.get("Www-Authenticate", "")
        basic = getattr(self, "_basic_auth", None)
        if challenge.lower().startswith("basic") and "ecr.amazonaws.com" not in challenge:
            return {**(headers or {}), **({"Authorization": f"Basic {basic}"} if basic else {})}, basic is not None
        return super().authenticate_request(original, headers, refresh)


class _Client(Registry):  # type: ignore[misc]
    """oras with deadlines, few retries, and our errors."""

    def __init__(self, place: Place) -> None:
        super().__init__(hostname=place.address, insecure=place.plain)
        self.auth = _Auth()
        self.auth.session, self.auth._tls_verify = self.session, True
        self.auth.prefix = self.prefix
        self.auth.load_configs(Container("any", registry=place.address))
        self._place = place
        send = self.session.send
        self.session.send = lambda *args, **kwargs: send(
            *args, **{**kwargs, "timeout": (CONNECT_SECONDS, READ_SECONDS)}
        )

    def do_request(self, url: str, method: str = "GET", **arguments: Any) -> requests.Response:
        problem = ""
        for pause in (*PAUSES, None):
            try:
                response: requests.Response = Registry.do_request.__wrapped__(self, url, method, **arguments)
            except requests.RequestException as error:
                problem = str(error)
            except ValueError:
                raise UnreachableError(
                    f"registry {self._place.host} wants credentials", f"`docker login {self._place.host}`"
                ) from None
            else:
                if response.status_code in (401, 403):
                    raise UnreachableError(
                        f"registry {self._place.host} refuses the credentials: {response.status_code}",
                        f"`docker login {self._place.host}`, and check that they may push there",
                    )
                if response.status_code != 429 and response.status_code < 500:
                    return response
                problem = f"{response.status_code} {response.text[:200]}"
            if pause is not None:
                log.warning("registry %s: %s; trying again", self._place.host, problem)
                time.sleep(pause)
        raise UnreachableError(
            f"registry {self._place.host} does not answer at {self._place.address}: {problem}",
            "check that it runs, HEALTH_PREDICT_IMAGE_REGISTRY and HEALTH_PREDICT_REGISTRY_ENDPOINT",
        )


class _Repository:
    """One repository of a registry."""

    def __init__(self, place: Place, path: str) -> None:
        self.client = _Client(place)
        self.place = place
        self.path = path
        self.container = Container(f"{place.address}/{path}", registry=place.address)
        # One segment without a dot or port would be taken for a name of Docker Hub.
        self.container.registry = place.address
        self.root = f"{self.client.prefix}://{place.address}/v2/{path}"

    def manifest(self, reference: str) -> tuple[bytes, str] | None:
        """A manifest's bytes and media type, None when there is none."""
        response = self.client.do_request(f"{self.root}/manifests/{reference}", headers={"Accept": ", ".join(ACCEPTED)})
        if response.status_code == 404:
            return None
        self._expect(response, 200)
        return response.content, response.headers.get("Content-Type", "").partition(";")[0]

    def has_manifest(self, reference: str) -> str:
        """Digest of the manifest, empty when there is none."""
        response = self.client.do_request(
            f"{self.root}/manifests/{reference}", "HEAD", headers={"Accept": ", ".join(ACCEPTED)}
        )
        return response.headers.get("Docker-Content-Digest", "") if response.status_code == 200 else ""

    def put_manifest(self, manifest: Mapping[str, Any], tag: str) -> str:
        """Store a manifest; its digest, which the registry must name too."""
        data = _canonical(manifest)
        digest = _sha256(data)
        response = self.client.do_request(
            f"{self.root}/manifests/{tag}", "PUT", data=data, headers={"Content-Type": MANIFEST_TYPE}
        )
        self._expect(response, 201)
        found = response.headers.get("Docker-Content-Digest", digest)
        if found != digest:
            raise StateError(f"registry {self.place.host} stored {found} in place of {digest}", "check the registry")
        return digest

    def size(self, digest: str) -> int:
        """Bytes of a blob, -1 when there is none."""
        response = self.client.do_request(f"{self.root}/blobs/{digest}", "HEAD")
        return int(response.headers.get("Content-Length", 0)) if response.status_code == 200 else -1

    def blob(self, digest: str) -> bytes:
        """A small blob, checked. Raises StateError when it is missing or damaged."""
        response = self.client.do_request(f"{self.root}/blobs/{digest}")
        if response.status_code == 404:
            raise _missing(digest, self.place.host)
        self._expect(response, 200)
        if _sha256(response.content) != digest:
            raise _damaged(digest, self.place.host)
        content: bytes = response.content
        return content

    def fetch(self, digest: str, file: Path) -> None:
        """Write a blob to a file, checked."""
        if self.size(digest) < 0:
            raise _missing(digest, self.place.host)
        try:
            self.client.download_blob(self.container, digest, str(file))
        except requests.RequestException as error:
            raise UnreachableError(f"registry {self.place.host}: {error}", "try again") from None
        with file.open("rb") as stream:
            if f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}" != digest:
                raise _damaged(digest, self.place.host)

    def add(self, file: Path, digest: str, size: int) -> None:
        """Upload a blob unless it is there."""
        if self.size(digest) == size:
            return
        log.info("pushing %s, %.1f MB", digest, size / 1e6)
        layer = {"digest": digest, "size": size, "mediaType": LAYER_TYPE}
        response = self.client.upload_blob(str(file), self.container, layer, do_chunked=size >= CHUNKED_FROM)
        if response.status_code not in (200, 201):
            self._expect(response, 201)

    def add_bytes(self, data: bytes) -> dict[str, Any]:
        """Upload a config."""
        digest = _sha256(data)
        if self.size(digest) != len(data):
            with tempfile.NamedTemporaryFile() as file:
                file.write(data)
                file.flush()
                self.add(Path(file.name), digest, len(data))
        return {"mediaType": CONFIG_TYPE, "digest": digest, "size": len(data)}

    def mount(self, digest: str, source: str) -> bool:
        """Have the registry link a blob of another of its repositories; False when it does not."""
        if source == self.path:
            return self.size(digest) >= 0
        response = self.client.do_request(f"{self.root}/blobs/uploads/?mount={digest}&from={source}", "POST")
        if response.status_code == 202:  # it began an upload in place of the link
            location = self.client._get_location(response, self.container)
            if location:
                self.client.do_request(location, "DELETE")
        return bool(response.status_code == 201)

    def _expect(self, response: requests.Response, status: int) -> None:
        if response.status_code != status:
            raise UnreachableError(
                f"registry {self.place.host} answers {response.status_code} to {response.request.method}: "
                f"{response.text[:300]}",
                "check the repository's name and that the credentials may push to it",
            )


class RemoteRegistry:
    """Images of one repository in a registry, by the OCI distribution API."""

    def __init__(self, name: str, *, endpoint: str = "", base_image: str = "", cache: Path) -> None:
        """`name` is `host/repository`; `cache` keeps the layer of libraries between runs."""
        host, _, path = name.partition("/")
        if not path or "@" in name or ":" in path:
            raise SettingsError(
                f"image registry {name!r} names no repository", "set HEALTH_PREDICT_IMAGE_REGISTRY to host/repository"
            )
        self.name = name
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

    def verify(self, uri: str) -> None:
        manifest = self._manifest(uri)
        self._repository.blob(manifest["config"]["digest"])
        for layer in manifest["layers"]:
            found = self._repository.size(layer["digest"])
            if found < 0:
                raise _missing(layer["digest"], self._place.host)
            if found != layer["size"]:
                raise _damaged(layer["digest"], self._place.host)
        with tempfile.TemporaryDirectory(prefix="health-predict-image-") as workshop:
            self._repository.fetch(manifest["layers"][-1]["digest"], Path(workshop) / "layer")

    def identity(self, uri: str) -> dict[str, str]:
        annotations: dict[str, str] = self._manifest(uri)["annotations"]
        return {
            name.removeprefix(ANNOTATIONS): value for name, value in annotations.items() if name.startswith(ANNOTATIONS)
        }

    def unpack(self, uri: str, folder: Path) -> None:
        manifest = self._manifest(uri)
        expected = manifest["annotations"].get(f"{ANNOTATIONS}bento_digest", "")
        if (folder / "bento.yaml").is_file() and content_digest(folder) == expected:
            return
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f"{folder.name}.unpacking-", dir=folder.parent) as name:
                workshop = Path(name)
                self._repository.fetch(manifest["layers"][-1]["digest"], workshop / "layer.tar.gz")
                unpack_archive(workshop / "layer.tar.gz", workshop / "root")
                new = workshop / "root" / BENTO_PATH
                if not (new / "bento.yaml").is_file():
                    raise StateError(f"image {uri} holds no Bento", "run bento_build and ecr_push again")
                if folder.exists():
                    folder.rename(workshop / "old")
                new.rename(folder)
        except tarfile.TarError as error:
            raise StateError(f"image {uri} holds no Bento: {error}", "run bento_build and ecr_push again") from None
        except OSError as error:
            raise disk_error(error, folder) from error

    def prepare(self, requirements: str) -> str:
        """Have the runtime image of these requirements in the registry; its tag. A push does this by itself."""
        self._make_repository()
        self._runtime(requirements)
        return self._runtime_tag(requirements, self._base()[0])

    def probe(self) -> None:
        """Raises UnreachableError when the registry does not answer or refuses the credentials."""
        self._repository.client.do_request(f"{self._repository.root}/tags/list?n=1")

    # The runtime image

    def _runtime(self, requirements: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Manifest and config of the base with the libraries on it."""
        digest, place, path = self._base()
        tag = self._runtime_tag(requirements, digest)
        found = self._repository.manifest(tag)
        if found is not None:
            manifest: dict[str, Any] = json.loads(found[0])
            return manifest, json.loads(self._repository.blob(manifest["config"]["digest"]))
        layer = runtime_layer(requirements, self._cache)
        base = _Repository(place, path)
        manifest, config = _resolve(base, digest)
        log.info("pushing the runtime image %s: base and libraries, once for each lock file", tag)
        for part in manifest["layers"]:
            self._copy(base, part["digest"], int(part["size"]))
        self._repository.add(layer.file, layer.digest, layer.size)
        manifest, config = _runtime_image(manifest, config, layer, f"{self._base_image.partition('@')[0]}@{digest}")
        self._repository.add_bytes(_canonical(config))
        self._repository.put_manifest(manifest, tag)
        return manifest, config

    def _runtime_tag(self, requirements: str, base_digest: str) -> str:
        return f"runtime-{hashlib.sha256(f'{base_digest} {runtime_key(requirements)}'.encode()).hexdigest()[:24]}"

    def _base(self) -> tuple[str, Place, str]:
        """Digest of the base image, and where it lies. One that is named by its digest is not asked for."""
        if not self._base_image:
            raise SettingsError("no base image is set", "set HEALTH_PREDICT_BASE_IMAGE to host/python:tag@sha256:...")
        name, _, digest = self._base_image.partition("@")
        host, _, rest = name.partition("/")
        if not rest or not re.search(r"[.:]|^localhost$", host):
            host, rest = "registry-1.docker.io", name if "/" in name else f"library/{name}"
        elif host == "docker.io":
            host = "registry-1.docker.io"
        path, _, tag = rest.partition(":")
        place = self._place if host == self._place.host else Place.of(host)
        if not digest:
            found = _Repository(place, path).manifest(tag or "latest")
            if found is None:
                raise StateError(f"base image {self._base_image} does not exist", "correct HEALTH_PREDICT_BASE_IMAGE")
            digest = _sha256(found[0])
        return digest, place, path

    def _copy(self, source: _Repository, digest: str, size: int) -> None:
        target = self._repository
        if target.size(digest) == size:
            return
        if source.place == target.place and target.mount(digest, source.path):
            return
        with tempfile.TemporaryDirectory(prefix="health-predict-base-") as workshop:
            file = Path(workshop) / "layer"
            source.fetch(digest, file)
            target.add(file, digest, size)

    def _manifest(self, uri: str) -> dict[str, Any]:
        name, _, digest = uri.partition("@")
        if name != self.name or not digest.startswith("sha256:"):
            raise StateError(f"image {uri} is not in the registry {self.name}", "run ecr_push again")
        found = self._repository.manifest(digest)
        if found is None:
            raise _missing(digest, self._place.host)
        if _sha256(found[0]) != digest:
            raise _damaged(digest, self._place.host)
        manifest: dict[str, Any] = json.loads(found[0])
        return manifest

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


def _resolve(repository: _Repository, digest: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and config of an image for linux/amd64."""
    for _ in range(2):
        found = repository.manifest(digest)
        if found is None:
            raise _missing(digest, repository.place.host)
        if _sha256(found[0]) != digest:
            raise _damaged(digest, repository.place.host)
        manifest: dict[str, Any] = json.loads(found[0])
        if "manifests" not in manifest:
            return manifest, json.loads(repository.blob(manifest["config"]["digest"]))
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
    return {"mediaType": LAYER_TYPE, "digest": layer.digest, "size": layer.size}


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
        return pack_layer(files, workshop / "layer.tar.gz")
    except OSError as error:
        raise disk_error(error, workshop) from error


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _missing(digest: str, host: str) -> StateError:
    return StateError(f"blob {digest} is missing from registry {host}", "run ecr_push again")


def _damaged(digest: str, host: str) -> StateError:
    return StateError(
        f"blob {digest} in registry {host} is damaged", "run ecr_push again, or check the registry's disk"
    )
