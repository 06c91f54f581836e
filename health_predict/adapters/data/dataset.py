"""The raw data as a CSV file on this machine, wherever it comes from.

In this order: the source named in the settings; the copy of the contract's published file that they know of; that of an
earlier download; a download. A source that is named is never replaced by another. Which data a run reads once there
is a champion is decided in `raw_data`.
"""

from __future__ import annotations

import csv
import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rich.console import Console

from health_predict.adapters.contracts import contract_of, synthetic_of
from health_predict.adapters.data.download import NoAnswer, download, say
from health_predict.adapters.files import whole_file, write_file
from health_predict.adapters.keys import RAW_FILE
from health_predict.adapters.storage import open_storage
from health_predict.core.data import csv_file
from health_predict.core.data.contract import Contract
from health_predict.core.data.csv_file import read_unpacked, refuse_no_csv
from health_predict.core.data.sources import SYNTHETIC_WARNING, Source, refuse_changeable
from health_predict.core.data.table_file import is_parquet, read_table_file
from health_predict.errors import DataError, StateError, UnreachableError
from health_predict.settings import SYNTHETIC_SOURCE, Profile, Settings

SYNTHETIC_SEED = 130


@dataclass(frozen=True, slots=True)
class RawData:
    """An uncompressed CSV file on this machine and the SHA-256 of its bytes."""

    path: Path
    sha256: str
    source: str
    """Name of the contract's published data, or one of `Source`."""


def fetch(settings: Settings, console: Console | None = None, *, stand_in: bool = False) -> RawData:
    """The raw data of the settings; `console` shows the progress of a download, else the log does.

    With `stand_in` the synthetic cohort takes the place of a published file whose host does not answer, said loudly.
    Raises DataError when a named source does not exist, cannot be unpacked or is no CSV file, a checksum is wrong
    (nothing of a download is kept then), or the contract publishes no data; UnreachableError when a source does not
    answer, a download breaks off or the disk refuses.
    """
    folder = settings.home / "data"
    contract = contract_of(settings)
    published, pinned = contract.published, settings.data_sha256.lower()
    wanted = published.file if published else ""  # from an archive of several
    if settings.data_source == SYNTHETIC_SOURCE:
        path = _synthetic(contract, settings, console, "it was asked for")
    elif settings.data_source:
        path = _named(settings.data_source, _SOURCE, settings, wanted, pinned, console)
    elif published is None:
        raise DataError(
            f"the contract {contract.name} publishes no data",
            f"name a file with {_SOURCE} (in a cluster -p data_source=s3://...)",
        )
    elif settings.data_copy:
        path = _named(settings.data_copy, _COPY, settings, wanted, published.sha256, console)
    else:
        try:
            path = _remote(published.url, folder / RAW_FILE, _DOWNLOAD, settings, wanted, published.sha256, console)
        except NoAnswer as error:
            why = f"{urlsplit(published.url).netloc} does not answer ({error})"
            if not stand_in:
                raise UnreachableError(
                    why,
                    "name a file with HEALTH_PREDICT_DATA_SOURCE (in a cluster -p data_source=s3://...), or ask for "
                    f"patients who do not exist: HEALTH_PREDICT_DATA_SOURCE={SYNTHETIC_SOURCE}",
                ) from None
            path = _synthetic(contract, settings, console, why)
    found = file_sha256(path)
    _compare(found, pinned, _SOURCE)
    start = _start(path)
    refuse_no_csv(start, settings.data_source or path)
    source = str(Source.SYNTHETIC if _is_synthetic(start, contract) else Source.CUSTOM)
    return RawData(path, found, published.name if published and found == published.sha256 else source)


_SOURCE, _COPY, _DOWNLOAD = "HEALTH_PREDICT_DATA_SOURCE", "HEALTH_PREDICT_DATA_COPY", ""
# By where a file was named: what is said of one with a wrong checksum, and the remedy.
_WRONG = {
    _SOURCE: ("the raw data have SHA-256 {}, not {} as set", "correct or unset HEALTH_PREDICT_DATA_SHA256"),
    _COPY: ("the copy of the published file has SHA-256 {}, not {}", f"correct or unset {_COPY}"),
    _DOWNLOAD: (
        "the downloaded file has SHA-256 {}, not {}; it was removed",
        f"try again, or name a copy with {_SOURCE}",
    ),
}


def _compare(found: str, pinned: str, variable: str) -> None:
    if pinned and found != pinned:
        problem, remedy = _WRONG[variable]
        raise DataError(problem.format(found, pinned), remedy)


def _named(where: str, variable: str, settings: Settings, wanted: str, pinned: str, console: Console | None) -> Path:
    """The file that `variable` names, unpacked; `pinned` is the SHA-256 that it must have, if any."""
    folder = settings.home / "data"
    parts = urlsplit(where)
    if parts.scheme in ("", "file"):
        path = Path(unquote(parts.path) if parts.scheme else where).expanduser().absolute()
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise DataError(f"{path} {problem}", f"correct or unset {variable}")
        path = _unpacked(path, folder / f"{_short_digest(str(path))}.csv", wanted)
        _compare(file_sha256(path), pinned, variable)
        return path
    if parts.scheme not in ("s3", "http", "https"):
        raise DataError(f"data source {where!r} is not supported", "give a path, or a file, s3 or https address")
    if settings.profile is not Profile.LOCAL:
        refuse_changeable(where, pinned)
    try:
        return _remote(where, folder / f"{_short_digest(where)}.csv", variable, settings, wanted, pinned, console)
    except NoAnswer as error:
        raise UnreachableError(f"{where} does not answer: {error}", "check the address and the network") from None
    except StateError as error:
        raise DataError(error.problem, f"correct or unset {variable}") from None


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _remote(  # where from and to, what it is, and who is told
    where: str, cached: Path, variable: str, settings: Settings, wanted: str, pinned: str, console: Console | None
) -> Path:
    """The file at an address, unpacked; one that is `cached` is taken when it has the pinned SHA-256."""
    if pinned and cached.is_file() and file_sha256(cached) == pinned:
        return cached
    parts = urlsplit(where)
    fetched = cached.with_suffix(".download")
    try:
        if parts.scheme == "s3":
            bucket = open_storage(f"s3://{parts.netloc}", settings.s3_endpoint_url)
            if bucket.size(parts.path.lstrip("/")) > csv_file.MOST_BYTES:
                raise csv_file.too_large(where)
            bucket.download(parts.path.lstrip("/"), fetched)
        else:
            download(where, fetched, console)
        if _unpacked(fetched, cached, wanted) == fetched:
            fetched.replace(cached)
        _compare(file_sha256(cached), pinned, variable)
    except DataError:
        cached.unlink(missing_ok=True)
        raise
    finally:
        with suppress(OSError):
            fetched.unlink()
    return cached


def _unpacked(path: Path, target: Path, wanted: str) -> Path:
    """The file itself or, where it is packed or Parquet, what it holds as CSV, written to `target`."""
    if is_parquet(path):
        data = read_table_file(path).to_csv(index=False, lineterminator="\n").encode()
    else:
        data = read_unpacked(path, wanted)
        if data == path.read_bytes():
            return path
    write_file(target, data)
    return target


def _synthetic(contract: Contract, settings: Settings, console: Console | None, why: str) -> Path:
    from health_predict.core.data.cohort import save_csv
    from health_predict.core.data.synthetic import VERSION, synthesize

    synthetic = synthetic_of(contract, settings)
    say(console, f"{SYNTHETIC_WARNING} ({why})", loudly=True)
    drawn = f"{VERSION}-{contract.digest[:8]}-{synthetic.digest[:8]}-{synthetic.rows}-{SYNTHETIC_SEED}"
    path = settings.home / "data" / f"synthetic-{drawn}.csv"
    if not path.is_file():
        with whole_file(path) as temporary:
            save_csv(synthesize(contract, synthetic, synthetic.rows, SYNTHETIC_SEED), temporary)
    return path


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(65_536)


def _is_synthetic(start: bytes, contract: Contract) -> bool:
    """Whether the first encounter of a CSV file has a number of the contract's synthetic cohort."""
    from health_predict.core.data.synthetic import is_synthetic

    lines = io.StringIO(start.decode("utf-8-sig", errors="replace"), newline=None)
    first = next(csv.DictReader(lines), {}).get(contract.order) or ""
    return bool(contract.synthetic) and is_synthetic(first)


def file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError:
        raise DataError(f"{path} cannot be read", "check the file's permissions") from None
