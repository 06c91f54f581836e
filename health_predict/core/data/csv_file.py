"""A CSV file as people have it: packed or not, from any spreadsheet; and what is said of a file that is none."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import pandas as pd

from health_predict.errors import DataError

MOST_BYTES = 2 * 1024**3  # of a file, packed or not: a small packed one may unpack to any size
_BLOCK = 1 << 20
_SHOWN = 3  # lines that an error message names
_UNPACK = "unpack it and give the CSV file in it"
_SAVE = "save it as comma-separated values in UTF-8 (in Excel: CSV UTF-8)"
# How a file begins that is no CSV file, what it is, and what to do. In this order.
_NO_CSV = (
    (rb"\s*\Z", "is empty", "copy or download it again"),
    (rb"\xff\xfe|\xfe\xff", "is text in UTF-16, not in UTF-8", _SAVE),
    (rb"PAR1", "is a Parquet file", "write it with pandas: `read_parquet(file).to_csv(other, index=False)`"),
    (rb"\xd0\xcf\x11\xe0", "is an old Excel workbook", _SAVE),
    (
        rb"PK\x03\x04|\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd",
        "is packed, or holds a packed file",
        _UNPACK,
    ),
    (rb"\s*<", "is a web page (HTML or XML)", "download the file itself, not the page that shows it"),
    (rb"[^\x00]*\x00", "is no text: it holds NUL bytes", _SAVE),
    (rb"[ \t]*[\r\n]", "begins with a blank line", "remove what stands before the line of column names"),
    (rb"#", "begins with a comment", "remove what stands before the line of column names"),
    (rb'"?sep=', "begins with Excel's line sep=", "remove that line, and separate by commas"),
    (rb"[^,;\r\n]*;[^,\r\n]*[\r\n]", "is separated by semicolons, not by commas", _SAVE),
    (rb"[^,\t\r\n]*\t[^,\r\n]*[\r\n]", "is separated by tabs, not by commas", _SAVE),
    (rb"[^,|\r\n]*\|[^,\r\n]*[\r\n]", "is separated by |, not by commas", _SAVE),
    (rb"[^\r\n]*\r\r\n", r"ends its lines with \r\r\n", r"end them with \n or \r\n: it was converted once too often"),
)


def read_unpacked(path: Path, wanted: str = "") -> bytes:
    """The bytes of a file or, where it is packed, of the file in it: of several CSV files the one called `wanted`.

    Raises DataError when it cannot be read or unpacked, or is larger than MOST_BYTES.
    """
    try:
        with path.open("rb") as file:
            data = _limited(file, path)
    except OSError as error:
        what = {FileNotFoundError: "does not exist", IsADirectoryError: "is a folder"}
        problem = what.get(type(error), f"cannot be read: {error.strerror}")
        raise DataError(f"{path} {problem}", "give the path of a file that may be read") from None
    try:
        if data.startswith(b"PK\x03\x04"):
            archive = zipfile.ZipFile(io.BytesIO(data))
            with archive, archive.open(_member(archive, path, wanted)) as member:
                return _limited(member, path)
        for start, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\x00", lzma)):
            if data.startswith(start):
                with module.open(io.BytesIO(data)) as unpacked:
                    return _limited(unpacked, path)
    except RuntimeError as error:  # zipfile's own: a password, or a method that it does not know
        raise DataError(f"{path} cannot be unpacked here: {error}", _UNPACK) from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} is truncated or damaged: {error}", "copy or download it again") from None
    return data


def _limited(file: IO[bytes], path: Path) -> bytes:
    """All that is left of a file. Raises DataError once it is more than MOST_BYTES, before it fills the memory."""
    data = io.BytesIO()
    while part := file.read(_BLOCK):
        data.write(part)
        if data.tell() > MOST_BYTES:
            raise too_large(path)
    return data.getvalue()


def too_large(name: object) -> DataError:
    """That a file is larger than MOST_BYTES."""
    return DataError(f"{name} holds more than {MOST_BYTES:,} bytes", "give a smaller file, as of fewer years")


def _member(archive: zipfile.ZipFile, path: Path, wanted: str) -> str:
    """The CSV file in an archive: the one that is wanted, else the only one."""
    names = archive.namelist()
    if "xl/workbook.xml" in names or "[Content_Types].xml" in names:
        raise DataError(f"{path} is an Excel workbook", _SAVE)
    files = [name for name in names if name.lower().endswith(".csv") and not name.startswith("__MACOSX/")]
    chosen = [name for name in files if PurePosixPath(name).name == wanted] or files
    if len(chosen) != 1:
        named = f"no {wanted}, but " if wanted else ""
        raise DataError(f"{path} holds {named}{len(files)} {'other ' if wanted else ''}CSV files", _UNPACK)
    return chosen[0]


def refuse_no_csv(data: bytes, name: object) -> None:
    """Raise DataError with what a file is that begins with these bytes, when it is no CSV file called `name`."""
    for pattern, problem, remedy in _NO_CSV:
        if re.match(pattern, data.removeprefix(codecs.BOM_UTF8)):
            raise DataError(f"{name} {problem}", remedy)


def read_table(path: Path, wanted: str = "") -> pd.DataFrame:
    """A CSV file with one line of column names, packed or not, as text (n, columns); the index counts from 0.

    Lines may end with \\n, \\r\\n or \\r, and the file with blank lines. Raises DataError when it cannot be read, is no
    CSV file or no UTF-8, when a column has the name of another, and for lines with too few or too many cells: their
    numbers are those of an editor.
    """
    data = read_unpacked(path, wanted)
    refuse_no_csv(data, path)
    try:
        text = data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        line = len((data[: error.start] + b" ").splitlines())
        raise DataError(f"{path} is not in UTF-8: line {line} holds byte 0x{data[error.start]:02x}", _SAVE) from None
    if wrong := list(_wrong_lines(text)):
        shown = "; ".join(f"line {line} {problem}" for line, problem in wrong[:_SHOWN])
        more = f"; and {len(wrong) - _SHOWN:,} more lines" if len(wrong) > _SHOWN else ""
        raise DataError(f"{path} is damaged: {shown}{more}", "mend these lines, or copy or download the file again")
    header = next(csv.reader(io.StringIO(text, newline="")))
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise DataError(f"{path} names a column more than once: {', '.join(twice)[:200]}", "keep one of them")
    frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, index_col=False, skip_blank_lines=False)
    return frame.set_axis(header, axis="columns")  # pandas makes up a name for a column without one


def _wrong_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are no row as long as the first, with their numbers from 1: pandas would fill them up, or misread."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = width = 0
    try:
        for line, row in enumerate(rows, 1):
            width = width or len(row)
            if rows.line_num != line:
                yield line, "begins a quoted value that goes on in the next line (take line breaks out of the column)"
                return  # what follows has other numbers
            if len(row) != width:
                yield line, f"has {len(row)} cells, line 1 has {width}" if row else "is blank"
    except csv.Error as error:
        yield line + 1, f"is no row of a CSV file ({error})"
