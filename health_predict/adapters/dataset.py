"""The raw data as a CSV file on this machine, wherever it comes from.

In this order: the source named in the settings; the copy of UCI's file that they know of; that of an earlier
download; a download from UCI. A source that is named is never replaced by another. Which data a run reads once there
is a champion is decided in `raw_data`.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import logging
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from rich.console import Console

from health_predict.adapters.download import NoAnswer, download
from health_predict.adapters.storage import open_storage, whole_file
from health_predict.core.columns import ENCOUNTER
from health_predict.core.errors import DataError, StateError, UnreachableError
from health_predict.core.sources import SYNTHETIC_WARNING, Source
from health_predict.settings import SYNTHETIC_SOURCE, Settings

log = logging.getLogger(__name__)

FILE_NAME = "diabetic_data.csv"
UCI_URL = "https://archive.ics.uci.edu/static/public/296/diabetes+130-us+hospitals+for+years+1999-2008.zip"
UCI_SHA256 = "0689e7ec031237dc63031b938805c48377748761a3b26acab621567afa24df97"  # of diabetic_data.csv in it
SYNTHETIC_SEED = 130


@dataclass(frozen=True, slots=True)
class RawData:
    """An uncompressed CSV file on this machine and the SHA-256 of its bytes."""

    path: Path
    sha256: str
    source: Source


def raw_key(sha256: str) -> str:
    """Key in storage of the raw file with this SHA-256."""
    return f"raw/{sha256}/{FILE_NAME}"


def fetch(
    settings: Settings,
    console: Console | None = None,
    *,
    stand_in: bool = False,
    url: str = "",
    sha256: str = "",
) -> RawData:
    """The raw data of the settings; `console` shows the progress of a download, else the log does.

    With `stand_in` the synthetic cohort takes the place of a UCI that does not answer, said loudly. `url` names a ZIP
    archive that holds diabetic_data.csv with the given SHA-256, by default UCI's. Raises DataError when a named source
    does not exist or a checksum is wrong (nothing of a download is kept then), UnreachableError when a source does not
    answer, a download breaks off or the disk refuses.
    """
    folder = settings.home / "data"
    url, sha256 = url or UCI_URL, sha256 or UCI_SHA256
    pinned = settings.data_sha256.lower()
    if settings.data_source == SYNTHETIC_SOURCE:
        path = _synthetic(folder, console, "it was asked for")
    elif settings.data_source:
        path = _named(settings.data_source, _SOURCE, settings, pinned, console)
    elif settings.data_copy:
        path = _named(settings.data_copy, _COPY, settings, sha256, console)
    else:
        try:
            path = _from_uci(folder, console, url, sha256)
        except NoAnswer as error:
            why = f"{urlsplit(url).netloc} does not answer ({error})"
            if not stand_in:
                raise UnreachableError(
                    why,
                    "name a file with HEALTH_PREDICT_DATA_SOURCE (in a cluster -p data_source=s3://...), or ask for "
                    f"patients who do not exist: HEALTH_PREDICT_DATA_SOURCE={SYNTHETIC_SOURCE}",
                ) from None
            path = _synthetic(folder, console, why)
    found = file_sha256(path)
    _compare(found, pinned, _SOURCE)
    source = Source.UCI if found == UCI_SHA256 else Source.SYNTHETIC if _is_synthetic(path) else Source.CUSTOM
    return RawData(path, found, source)


_SOURCE, _COPY = "HEALTH_PREDICT_DATA_SOURCE", "HEALTH_PREDICT_DATA_COPY"


def _compare(found: str, pinned: str, variable: str) -> None:
    if not pinned or found == pinned:
        return
    if variable == _COPY:
        raise DataError(f"the copy of UCI's file has SHA-256 {found}, not {pinned}", f"correct or unset {_COPY}")
    raise DataError(
        f"the raw data have SHA-256 {found}, not {pinned} as set", "correct or unset HEALTH_PREDICT_DATA_SHA256"
    )


def _named(where: str, variable: str, settings: Settings, pinned: str, console: Console | None) -> Path:
    """The file that `variable` names, unpacked; `pinned` is the SHA-256 that it must have, if any."""
    folder = settings.home / "data"
    parts = urlsplit(where)
    if parts.scheme in ("", "file"):
        path = Path(unquote(parts.path) if parts.scheme else where).expanduser().absolute()
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise DataError(f"{path} {problem}", f"correct or unset {variable}")
        path = _unpacked(path, folder, f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.csv")
        _compare(file_sha256(path), pinned, variable)
        return path
    if parts.scheme not in ("s3", "http", "https"):
        raise DataError(f"data source {where!r} is not supported", "give a path, or a file, s3 or https address")
    name = hashlib.sha256(where.encode()).hexdigest()[:16]
    cached = folder / f"{name}.csv"
    if pinned and cached.is_file() and file_sha256(cached) == pinned:
        return cached
    fetched = folder / f"{name}.download"
    try:
        if parts.scheme == "s3":
            _from_s3(where, fetched, settings.s3_endpoint_url, variable)
        else:
            try:
                download(where, fetched, console)
            except NoAnswer as error:
                raise UnreachableError(
                    f"{where} does not answer: {error}", "check the address and the network"
                ) from None
        if _unpacked(fetched, folder, cached.name) == fetched:
            fetched.replace(cached)
        _compare(file_sha256(cached), pinned, variable)
    except DataError:
        if folder.is_dir():
            cached.unlink(missing_ok=True)
        raise
    finally:
        if folder.is_dir():
            fetched.unlink(missing_ok=True)
    return cached


def _from_s3(where: str, file: Path, endpoint_url: str, variable: str) -> None:
    parts = urlsplit(where)
    try:
        open_storage(f"s3://{parts.netloc}", endpoint_url).download(parts.path.lstrip("/"), file)
    except StateError as error:
        raise DataError(error.problem, f"correct or unset {variable}") from None


def _unpacked(path: Path, folder: Path, name: str) -> Path:
    """The file itself, or what a gzip file or a ZIP archive holds, written to `folder/name`."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start.startswith(b"\x1f\x8b"):
            with gzip.open(path) as content:
                return _written(content, folder / name)
        if start == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive, archive.open(_member(archive, path)) as content:
                return _written(content, folder / name)
    except (EOFError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or damaged: {error}", "copy or download it again") from None
    except PermissionError:
        raise DataError(f"{path} cannot be read", "check the file's permissions") from None
    return path


def _member(archive: zipfile.ZipFile, path: Path) -> str:
    for name in archive.namelist():
        if Path(name).name == FILE_NAME:
            return name
    raise DataError(f"{path} holds no {FILE_NAME}", "unpack it and give the CSV file in it")


def _written(content: IO[bytes] | gzip.GzipFile, path: Path) -> Path:
    with whole_file(path) as temporary, temporary.open("wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
    return path


def _from_uci(folder: Path, console: Console | None, url: str, sha256: str) -> Path:
    path = folder / FILE_NAME
    if path.is_file():
        if file_sha256(path) == sha256:
            return path
        log.warning("%s is damaged and is downloaded again", path)
        path.unlink()
    archive = folder / "uci.zip"
    try:
        download(url, archive, console)
        _extract(archive, path, sha256)
    finally:
        if folder.is_dir():
            archive.unlink(missing_ok=True)
    return path


def _extract(archive: Path, path: Path, sha256: str) -> None:
    try:
        with zipfile.ZipFile(archive) as opened, whole_file(path) as temporary:
            with opened.open(_member(opened, archive)) as content, temporary.open("wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
            found = file_sha256(temporary)
            if found != sha256:
                raise DataError(
                    f"the downloaded {FILE_NAME} has SHA-256 {found}, not {sha256}; it was removed",
                    "try again, or name a copy with HEALTH_PREDICT_DATA_SOURCE",
                )
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"the download is no whole ZIP archive ({error}); it was removed",
            "try again, or name a copy with HEALTH_PREDICT_DATA_SOURCE",
        ) from None


def _synthetic(folder: Path, console: Console | None, why: str) -> Path:
    from health_predict.core.cohort import save_csv
    from health_predict.core.synthetic import REAL_SIZE, VERSION, synthesize

    message = f"{SYNTHETIC_WARNING} ({why})"
    if console is None:
        log.warning("%s", message)
    else:
        console.print(message, style="bold red", markup=False, soft_wrap=True, highlight=False)
    path = folder / f"synthetic-{VERSION}-{REAL_SIZE}-{SYNTHETIC_SEED}.csv"
    if not path.is_file():
        with whole_file(path) as temporary:
            save_csv(synthesize(REAL_SIZE, SYNTHETIC_SEED), temporary)
    return path


def _is_synthetic(path: Path) -> bool:
    """Whether the first encounter has a number of the synthetic cohort. Any file passes through here."""
    from health_predict.core.synthetic import is_synthetic

    with path.open("rb") as file:
        lines = io.StringIO(file.read(16_384).decode(errors="replace"))
    first = next(csv.DictReader(lines), {})
    return is_synthetic(first.get(ENCOUNTER) or "")


def file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError:
        raise DataError(f"{path} cannot be read", "check the file's permissions") from None
