"""Files and folders of this machine: written whole or not at all, and their errors in plain words."""

from __future__ import annotations

import errno
import glob
import json
import os
import secrets
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from health_predict.errors import StateError, UnreachableError

# The path of a socket may have so many characters (macOS; Linux allows 107), and these are where it can be.
SOCKET_CHARACTERS = 103
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - `mkdtemp` makes the one that is written to

MOST_UNPACKED = 4 * 1024**3  # bytes of an archive of ours; the libraries of an image are the most
OTHERS = 0o077  # the permissions of everybody but the owner


def owner_only() -> None:
    """Let this process, and what it starts, make files and folders that nobody else may read: patients are in them."""
    os.umask(OTHERS)


@contextmanager
def whole_file(path: Path, remedy: str = "") -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block succeeds and removed when it does not.

    Raises UnreachableError when the disk is full or the folder is not writable; `remedy` is for a file that the person
    has named.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error, path, remedy) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write a whole JSON file."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's content; nothing when there is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return content


def write_file(path: Path, content: str | bytes, remedy: str = "") -> None:
    """Write a whole file or none, as `whole_file` does."""
    with whole_file(path, remedy) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _sweep(path: Path) -> None:
    """Remove what processes that were killed while they wrote `path` left beside it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if gone(left.name.removeprefix(f".{path.name}.").partition(".")[0]):
            left.unlink(missing_ok=True)


def gone(process: str) -> bool:
    """Whether this is the number of a process of this machine that has ended."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (ValueError, OverflowError, PermissionError):
        return False
    return False


@contextmanager
def temporary_files(home: Path) -> Iterator[None]:
    """Temporary files of this process, and of what it starts, lie below the home until the block ends.

    Those of processes that were killed are removed. Raises UnreachableError when the home is not writable.
    """
    folder = writable(home / "tmp")
    for left in folder.iterdir():
        if gone(left.name.partition("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    before, named = tempfile.tempdir, os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix=f"{os.getpid()}-", dir=folder, ignore_cleanup_errors=True) as own:
        os.environ["TMPDIR"] = tempfile.tempdir = own
        try:
            yield
        finally:
            tempfile.tempdir = before
            del os.environ["TMPDIR"]
            os.environ.update({} if named is None else {"TMPDIR": named})


def short_folder(prefix: str, longest: str, places: Sequence[str] = ()) -> str:
    """A new folder for sockets, in the first of `places` and the system's where that can be.

    `longest` is the longest path of a socket below these. Raises StateError when there is no such place.
    """
    room = SOCKET_CHARACTERS - len(f"/{prefix}12345678") - len(longest)
    for place in (*places, *SHORT_FOLDERS):
        if place.isascii() and len(place) <= room and os.access(place, os.W_OK | os.X_OK):
            return tempfile.mkdtemp(prefix=prefix, dir=place)
    raise StateError(
        f"there is no writable folder for sockets, with a path of {room} plain characters at most",
        f"make one of {', '.join(SHORT_FOLDERS)} writable, or name another as RAY_TMPDIR",
    )


def writable(folder: Path, remedy: str = "") -> Path:
    """The folder, made where it is missing. Raises UnreachableError when it cannot be written to.

    `remedy` is for a folder that the person has named.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise disk_error(error, folder, remedy) from error
    return folder


def disk_error(error: OSError, path: Path, remedy: str = "") -> Exception:
    """The expected failures of a disk as errors with a remedy; anything else as it was."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = f"free some space, or {remedy or 'set HEALTH_PREDICT_HOME to another disk'}"
        return UnreachableError(f"no space left for {path}", remedy)
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        remedy = remedy or "set HEALTH_PREDICT_HOME to a folder that you may write to"
        return UnreachableError(f"{path} is not writable", remedy)
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        there = (place for place in (path, *path.parents) if os.path.lexists(place) and not place.is_dir())
        found = next(there, path)
        if found.is_symlink():
            problem, usual = f"{found} leads to a folder that is not there", "make that folder, or remove the link"
        else:
            problem, usual = f"{found} is a file, where a folder has to be", "move it away"
        return UnreachableError(problem, remedy or usual)
    if error.errno in (errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP):
        remedy = remedy or "set HEALTH_PREDICT_HOME to another folder"
        return UnreachableError(f"{path} cannot be made: {error.strerror}", remedy)
    if error.errno == errno.EISDIR:
        return UnreachableError(f"{path} is a folder", remedy or "move it away")
    return error


def named_file(path: Path, remedy: str) -> Path:
    """The file that a person has named to be written, looked at before the work whose result it gets.

    Raises UnreachableError with `remedy` when it could not be written.
    """
    writable(path.parent, remedy)
    if path.is_dir():
        raise disk_error(IsADirectoryError(errno.EISDIR, ""), path, remedy)
    return path


def unpack_archive(file: Path, folder: Path) -> None:
    """Unpack a tar archive of plain files.

    Raises tarfile.TarError for one that holds anything else, or more than MOST_UNPACKED bytes.
    """
    with tarfile.open(file) as tar:
        members = tar.getmembers()
        for member in members:
            # Python before 3.11.4 has no filter that refuses these.
            parts = PurePosixPath(member.name)
            # A sparse file takes a few bytes in the archive and any number when it is read.
            plain = (member.isfile() and not member.issparse()) or member.isdir()
            if not plain or parts.is_absolute() or ".." in parts.parts:
                raise tarfile.TarError(f"{member.name!r} is no plain file inside the archive")
        if sum(member.size for member in members) > MOST_UNPACKED:
            raise tarfile.TarError(f"it unpacks to more than {MOST_UNPACKED:,} bytes")
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(folder, members)  # noqa: S202 (each was looked at above)
