"""A folder as one archive that depends on nothing but names and contents, and the digest of that archive.

Standard library only: the Bento carries this module too and states at run time what it really serves.
"""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Protocol


class Sink(Protocol):
    """Where an archive goes."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


class _Hashing:
    def __init__(self, sink: Sink | None) -> None:
        self.digest = hashlib.sha256()
        self._sink = sink

    def write(self, data: bytes, /) -> int:
        self.digest.update(data)
        if self._sink is not None:
            self._sink.write(data)
        return len(data)


def archive(folder: Path, sink: Sink | None = None) -> str:
    """Write the folder's files as a tar archive and give its digest, `sha256:<hex>`.

    Names are relative and sorted; times, owners and modes are the same on every machine. Python's caches are left
    out: running a Bento writes them into it.
    """
    target = _Hashing(sink)
    # Mode `w|`: the archive is a stream that is never sought.
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
        for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
            if path.is_symlink() or not path.is_file() or "__pycache__" in path.parts:
                continue
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.size = path.stat().st_size
            entry.mode = 0o644
            with path.open("rb") as file:
                tar.addfile(entry, file)
    return f"sha256:{target.digest.hexdigest()}"


def content_digest(folder: Path) -> str:
    """Digest of a folder's archive."""
    return archive(folder)
