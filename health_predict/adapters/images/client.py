"""One repository of a registry, by the OCI distribution API, and the credentials for it."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from health_predict.adapters.images.layers import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEX_TYPE,
    MANIFEST_TYPE,
    canonical,
    sha256,
)
from health_predict.errors import SettingsError, StateError, UnreachableError

log = logging.getLogger(__name__)

ACCEPT = {"Accept": ", ".join((MANIFEST_TYPE, INDEX_TYPE, DOCKER_MANIFEST, DOCKER_INDEX))}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
DOCKER_HUB = "registry-1.docker.io"
ECR_HOST = re.compile(r"\d{12}\.dkr\.ecr\.(?P<region>[^.]+)\.amazonaws\.com")
# While a registry is away or busy a request is repeated, after 0, 1, 2 and 4 seconds.
RETRY = Retry(
    total=4,
    backoff_factor=0.5,
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=None,
    raise_on_status=False,
)
CONNECT_SECONDS, READ_SECONDS = 5.0, 60.0


def address_of(host: str, endpoint: str = "") -> str:
    """URL of a registry: its endpoint, if it has one; else plain HTTP on loopback and HTTPS everywhere else."""
    if not endpoint:
        return f"{'http' if _is_loopback(host) else 'https'}://{host}"
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise SettingsError(
            f"registry endpoint {endpoint!r} is no URL", "write HEALTH_PREDICT_REGISTRY_ENDPOINT=http://host:port"
        )
    return f"{parts.scheme}://{parts.netloc}"


def _is_loopback(netloc: str) -> bool:
    return urlsplit(f"//{netloc}").hostname in LOOPBACK


class Repository:
    """A repository at `address`, of the registry that image names call `host`.

    Every method raises UnreachableError when the registry does not answer, refuses the credentials, or answers
    something else than its API says.
    """

    def __init__(self, host: str, path: str, address: str) -> None:
        self.host = host
        self.path = path
        self.root = f"{address}/v2/{path}"
        self.address = address
        self._session = requests.Session()
        self._session.mount(address, HTTPAdapter(max_retries=RETRY))
        # A proxy cannot reach what is on this machine.
        self._session.trust_env = not _is_loopback(urlsplit(address).netloc)

    def request(self, method: str, url: str, *, data: bytes | IO[bytes] | None = None, **options: Any) -> Any:
        """The answer to a request, sent once more with the credentials that it is answered to want."""
        options |= {"timeout": (CONNECT_SECONDS, READ_SECONDS)}
        try:
            response = self._session.request(method, url, data=data, **options)
            if response.status_code == 401 and self._log_in(response.headers.get("WWW-Authenticate", "")):
                if data is not None and not isinstance(data, bytes):
                    data.seek(0)
                response = self._session.request(method, url, data=data, **options)
        except requests.RequestException as error:
            raise UnreachableError(
                f"registry {self.host} does not answer at {self.address}: {error}",
                "check that it runs, HEALTH_PREDICT_IMAGE_REGISTRY and HEALTH_PREDICT_REGISTRY_ENDPOINT",
            ) from None
        if response.status_code in (401, 403):
            raise UnreachableError(
                f"registry {self.host} refuses the credentials, or wants some: {response.status_code}",
                f"`docker login {self.host}`, and check that they may push there",
            )
        return response

    def _log_in(self, challenge: str) -> bool:
        """Take the credentials that a challenge asks for; whether there are some."""
        kind, _, rest = challenge.partition(" ")
        known = credentials(self.host, urlsplit(self.address).netloc)
        if kind.lower() == "basic":
            self._session.auth = known
            return known is not None
        fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        if kind.lower() != "bearer" or "realm" not in fields:
            return False
        answer = self._session.get(
            fields.pop("realm"), params=fields, auth=known, timeout=(CONNECT_SECONDS, READ_SECONDS)
        )
        if answer.status_code != 200:
            return False
        found = answer.json()
        self._session.auth = _Bearer(found.get("token") or found["access_token"])
        return True

    def read(self, kind: str, name: str) -> bytes | None:
        """The bytes of one of the `manifests` or of the `blobs`; None when there is none."""
        response = self.request("GET", f"{self.root}/{kind}/{name}", headers=ACCEPT if kind == "manifests" else None)
        return None if response.status_code == 404 else self._expect(response, 200).content

    def has_manifest(self, reference: str) -> str:
        """Digest of the manifest, empty when there is none."""
        response = self.request("HEAD", f"{self.root}/manifests/{reference}", headers=ACCEPT)
        return response.headers.get("Docker-Content-Digest", "") if response.status_code == 200 else ""

    def put_manifest(self, manifest: Mapping[str, Any], tag: str) -> str:
        """Store a manifest; its digest. Raises StateError when the registry names another one."""
        return self._put(manifest, tag)[0]

    def _put(self, manifest: Mapping[str, Any], reference: str) -> tuple[str, Mapping[str, str]]:
        """Store a manifest under a tag or its digest; its digest, and the headers of the answer."""
        data = canonical(manifest)
        headers = {"Content-Type": manifest["mediaType"]}
        address = f"{self.root}/manifests/{reference}"
        response = self._expect(self.request("PUT", address, data=data, headers=headers), 201)
        digest = sha256(data)
        found = response.headers.get("Docker-Content-Digest", digest)
        if found != digest:
            raise StateError(f"registry {self.host} stored {found} in place of {digest}", "check the registry")
        return digest, response.headers

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """Descriptors of what refers to a manifest, by the registry's own list or, where it keeps none, by the tag."""
        response = self.request("GET", f"{self.root}/referrers/{digest}", headers=ACCEPT)
        if response.status_code == 404:
            found = self.read("manifests", digest.replace(":", "-"))
            return json.loads(found)["manifests"] if found else []
        listed: list[dict[str, Any]] = self._expect(response, 200).json()["manifests"]
        return listed

    def put_referrer(self, manifest: Mapping[str, Any]) -> None:
        """Store a manifest that names another one as its subject; where the registry keeps no list, add it to the tag.

        Source: OCI distribution specification 1.1, "Pushing Manifests with Subject" and "Referrers Tag Schema".
        """
        data = canonical(manifest)
        digest, headers = self._put(manifest, sha256(data))
        if "OCI-Subject" in headers:
            return
        subject = manifest["subject"]["digest"]
        entry = {"mediaType": manifest["mediaType"], "digest": digest, "size": len(data)}
        entry |= {name: manifest[name] for name in ("artifactType", "annotations") if name in manifest}
        others = [one for one in self.referrers(subject) if one["digest"] != digest]
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [*others, entry]}
        self.put_manifest(index, subject.replace(":", "-"))

    def size(self, digest: str) -> int:
        """Bytes of a blob, -1 when there is none."""
        response = self.request("HEAD", f"{self.root}/blobs/{digest}")
        return int(response.headers.get("Content-Length", 0)) if response.status_code == 200 else -1

    def add(self, content: bytes | IO[bytes], digest: str, size: int) -> None:
        """Upload a blob unless it is there."""
        if self.size(digest) == size:
            return
        log.info("pushing %s, %.1f MB", digest, size / 1e6)
        begun = self._expect(self.request("POST", f"{self.root}/blobs/uploads/"), 202)
        location = urljoin(begun.url, begun.headers["Location"])
        headers = {"Content-Type": "application/octet-stream"}
        self._expect(self.request("PUT", location, params={"digest": digest}, data=content, headers=headers), 201)

    def add_config(self, config: Mapping[str, Any]) -> None:
        """Upload a config."""
        data = canonical(config)
        self.add(data, sha256(data), len(data))

    def _expect(self, response: Any, status: int) -> Any:
        if response.status_code != status:
            raise UnreachableError(
                f"registry {self.host} answers {response.status_code} to {response.request.method}: "
                f"{response.text[:300]}",
                "check the repository's name and that the credentials may push to it",
            )
        return response


class _Bearer(requests.auth.AuthBase):  # type: ignore[misc]
    """Authentication of a request by a token."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def credentials(host: str, address: str) -> tuple[str, str] | None:
    """User and password for a registry: Amazon's token, or what `docker login` keeps, itself or by its helper."""
    if ecr := ECR_HOST.fullmatch(host):
        return _decoded(_ecr_token(ecr["region"]))
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    for name in (host, address, *(["https://index.docker.io/v1/"] if host == DOCKER_HUB else [])):
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


def _ecr_token(region: str) -> str:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        found = boto3.client("ecr", region_name=region).get_authorization_token()
    except (BotoCoreError, ClientError) as error:
        raise UnreachableError(f"ECR gives no token: {error}", "check the AWS credentials and region") from None
    return str(found["authorizationData"][0]["authorizationToken"])


def _decoded(text: str) -> tuple[str, str]:
    user, _, password = base64.b64decode(text).decode().partition(":")
    return user, password
