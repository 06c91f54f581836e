"""Bulk storage: a folder or an S3 bucket behind one small port.

Keys are relative, `/`-separated names, all made in `keys`. Every write is whole or not at all: a temporary
name and a rename in a folder, a single put in S3.
"""

from __future__ import annotations

import fcntl
import hashlib
import http
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from health_predict.adapters.files import whole_file
from health_predict.errors import DataError, SettingsError, StateError, UnreachableError


class Storage(Protocol):
    """What stages need of bulk storage."""

    def uri(self, key: str) -> str:
        """Address of a key for people and records."""

    def exists(self, key: str) -> bool:
        """Whether the key holds an object."""

    def read(self, key: str) -> bytes:
        """The object's bytes. Raises StateError when there is none."""

    def write(self, key: str, data: bytes) -> None:
        """Replace the object atomically."""

    def tagged(self, key: str) -> tuple[bytes, str] | None:
        """The object's bytes and the tag of this state of it, None when there is none."""

    def exchange(self, key: str, data: bytes, tag: str | None) -> bool:
        """Replace the object if it is still in the state of the tag (None: absent); whether it was."""

    def upload(self, file: Path, key: str) -> None:
        """Replace the object by a file's content, atomically."""

    def size(self, key: str) -> int:
        """How many bytes an object has. Raises StateError when it does not exist."""

    def download(self, key: str, file: Path) -> None:
        """Write the object to a file, atomically. Raises StateError when there is none."""

    def delete(self, key: str) -> None:
        """Delete the object, if there is one."""

    def keys(self, prefix: str) -> list[str]:
        """All keys that start with a prefix, sorted."""

    def erase_old(self, prefix: str) -> int:
        """Delete what objects below a prefix held before, where the storage keeps that; how many states there were."""


class FolderStorage:
    """Storage in a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, key: str) -> Path:
        path = self.root / key
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise DataError(f"storage key {key!r} leaves the storage folder", "use a relative key without `..`")
        return path

    def uri(self, key: str) -> str:
        return self._path(key).as_uri()

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            raise _absent(self.uri(key)) from None

    def write(self, key: str, data: bytes) -> None:
        with whole_file(self._path(key)) as temporary:
            temporary.write_bytes(data)

    def tagged(self, key: str) -> tuple[bytes, str] | None:
        if not self.exists(key):
            return None
        data = self.read(key)
        return data, hashlib.sha256(data).hexdigest()

    def exchange(self, key: str, data: bytes, tag: str | None) -> bool:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # of the folder itself: a lock's file would be one more object
            found = self.tagged(key)
            if (found and found[1]) != tag:
                return False
            self.write(key, data)
        finally:
            os.close(folder)
        return True

    def upload(self, file: Path, key: str) -> None:
        with whole_file(self._path(key)) as temporary:
            shutil.copyfile(file, temporary)
            with temporary.open("rb") as copy:  # who uploads may delete the file then
                os.fsync(copy.fileno())

    def size(self, key: str) -> int:
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError:
            raise _absent(self.uri(key)) from None

    def download(self, key: str, file: Path) -> None:
        source = self._path(key)
        if not source.is_file():
            raise _absent(self.uri(key))
        with whole_file(file) as temporary:
            shutil.copyfile(source, temporary)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def keys(self, prefix: str) -> list[str]:
        folder = self._path(prefix.rpartition("/")[0])
        if not folder.is_dir():
            return []
        found = (path.relative_to(self.root).as_posix() for path in folder.rglob("*") if path.is_file())
        return sorted(key for key in found if key.startswith(prefix) and not key.endswith(".part"))

    def erase_old(self, prefix: str) -> int:
        return 0  # a folder keeps none


class S3Storage:
    """Storage in a bucket under a prefix."""

    def __init__(self, bucket: str, prefix: str, endpoint_url: str = "") -> None:
        import boto3

        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self._client: Any = boto3.client("s3", endpoint_url=endpoint_url or None)

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._key(key)}"

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in ("404", "NoSuchKey"):
                raise _absent(self.uri(key)) from None
            raise UnreachableError(
                f"{self.uri(key)}: {error}", "check the bucket's name and that the credentials may use it"
            ) from None
        except BotoCoreError as error:
            raise UnreachableError(
                f"{self.uri(key)}: {error}", "check HEALTH_PREDICT_S3_ENDPOINT_URL, the network and the credentials"
            ) from None

    def exists(self, key: str) -> bool:
        try:
            with self._translated(key):
                self._client.head_object(Bucket=self.bucket, Key=self._key(key))
        except StateError:
            return False
        return True

    def read(self, key: str) -> bytes:
        with self._translated(key):
            data: bytes = self._client.get_object(Bucket=self.bucket, Key=self._key(key))["Body"].read()
        return data

    def write(self, key: str, data: bytes) -> None:
        with self._translated(key):
            self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data)

    def tagged(self, key: str) -> tuple[bytes, str] | None:
        try:
            with self._translated(key):
                found = self._client.get_object(Bucket=self.bucket, Key=self._key(key))
                return found["Body"].read(), found["ETag"]
        except StateError:
            return None

    def exchange(self, key: str, data: bytes, tag: str | None) -> bool:
        from botocore.exceptions import ClientError

        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        with self._translated(key):
            try:
                self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, **condition)
            except ClientError as error:
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                if status not in (http.HTTPStatus.CONFLICT, http.HTTPStatus.PRECONDITION_FAILED):
                    raise
                return False
        return True

    def upload(self, file: Path, key: str) -> None:
        with self._translated(key):
            self._client.upload_file(str(file), self.bucket, self._key(key))

    def size(self, key: str) -> int:
        with self._translated(key):
            return int(self._client.head_object(Bucket=self.bucket, Key=self._key(key))["ContentLength"])

    def download(self, key: str, file: Path) -> None:
        with whole_file(file) as temporary, self._translated(key):
            self._client.download_file(self.bucket, self._key(key), str(temporary))

    def delete(self, key: str) -> None:
        with self._translated(key):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(key))

    def keys(self, prefix: str) -> list[str]:
        with self._translated(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(prefix))
            start = len(self._key(""))
            return sorted(item["Key"][start:] for page in pages for item in page.get("Contents", ()))

    def erase_old(self, prefix: str) -> int:
        with self._translated(prefix):
            pages = self._client.get_paginator("list_object_versions").paginate(
                Bucket=self.bucket, Prefix=self._key(prefix)
            )
            erased = 0
            for page in pages:
                old = [
                    {"Key": item["Key"], "VersionId": item["VersionId"]}
                    for item in page.get("Versions", ())
                    if not item["IsLatest"]
                ]
                if old:
                    answer = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": old, "Quiet": True})
                    if refused := answer.get("Errors"):
                        raise UnreachableError(
                            f"an old version of {self.uri(prefix)} is not removed: {refused[0].get('Code')}",
                            "give the command again with credentials that may delete versions: on AWS the operator's "
                            "role, see docs/aws.md",
                        )
                erased += len(old)
            return erased


def _absent(uri: str) -> StateError:
    return StateError(f"{uri} does not exist", "run the stage that writes it, or check HEALTH_PREDICT_STORAGE_URI")


def file_path(where: str) -> Path | None:
    """The file or folder of this machine that a path or a file URI names; None for any other address."""
    if "://" not in where:
        return Path(where).expanduser()
    parts = urlsplit(where)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def open_storage(uri: str, s3_endpoint_url: str = "") -> Storage:
    """Storage for `file:///folder` or `s3://bucket/prefix`. Raises SettingsError for any other scheme."""
    parts = urlsplit(uri)
    if parts.scheme == "file" and (folder := file_path(uri)):
        return FolderStorage(folder)
    if parts.scheme == "s3" and parts.netloc:
        return S3Storage(parts.netloc, parts.path, s3_endpoint_url)
    raise SettingsError(f"storage URI {uri!r} is not supported", "use file:///folder or s3://bucket/prefix")
