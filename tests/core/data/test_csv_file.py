"""Files as people have them: each is read, or refused with the reason and a remedy."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from health_predict.core.data import csv_file
from health_predict.core.data.csv_file import read_table
from health_predict.errors import DataError

TABLE = pd.DataFrame({"name": ["Ann", "Bob", "Zoë"], "level": ["None", "", "?"], "count": ["1", "02", "x,y"]})
CSV = TABLE.to_csv(index=False, lineterminator="\n").encode()
Change = Callable[[bytes], bytes]


def zipped(data: bytes, *names: str, method: int = zipfile.ZIP_DEFLATED, flags: int = 0) -> bytes:
    """An archive with the same bytes under each name, as if of another method or with other flags."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names or ("table.csv",):
            archive.writestr(name, data)
    content = bytearray(buffer.getvalue())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(signature)
        while at >= 0:
            content[at + offset] |= flags
            content[at + offset + 2] = method
            at = content.find(signature, at + 1)
    return bytes(content)


READ: dict[str, Change] = {
    "as it is": lambda data: data,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zip": zipped,
    "zip with what macOS adds": lambda data: zipped(data, "my/table.CSV", "__MACOSX/my/._table.csv"),
    "zip with the data set among others": lambda data: zipped(data, "a.csv", "b/diabetic_data.csv"),
    "byte-order mark": lambda data: codecs.BOM_UTF8 + data,
    "Windows": lambda data: data.replace(b"\n", b"\r\n"),
    "old Mac": lambda data: data.replace(b"\n", b"\r"),
    "blank lines at the end": lambda data: data + b"\r\n\r\n",
    "no end of the last line": lambda data: data.rstrip(),
    "quotes": lambda data: data.replace(b"Ann", b'"Ann"'),
}


@pytest.mark.parametrize("change", READ.values(), ids=READ)
def test_what_holds_the_same_table_is_read_alike(change: Change, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(change(CSV))
    pd.testing.assert_frame_equal(read_table(tmp_path / "file", "diabetic_data.csv"), TABLE, check_dtype=False)


REFUSED: dict[str, tuple[Change, str, str]] = {
    "empty": (lambda data: b"", "is empty", "copy"),
    "blank": (lambda data: b"\n \n", "is empty", "copy"),
    "a blank line first": (lambda data: b"\r\n" + data, "begins with a blank line", "column names"),
    "a comment first": (lambda data: b"# of May\n" + data, "begins with a comment", "column names"),
    "a title first": (lambda data: b"Report of May\n" + data, "line 2 has 3 cells, line 1 has 1", "mend"),
    "sep=": (lambda data: b"sep=,\r\n" + data, "Excel's line sep=", "remove that line"),
    "semicolons": (lambda data: data.replace(b",", b";"), "by semicolons", "CSV UTF-8"),
    "tabs": (lambda data: data.replace(b",", b"\t"), "by tabs", "CSV UTF-8"),
    "bars": (lambda data: data.replace(b",", b"|"), r"by \|", "CSV UTF-8"),
    "UTF-16": (lambda data: data.decode().encode("utf-16"), "UTF-16", "CSV UTF-8"),
    "UTF-16 without a mark": (lambda data: data.decode().encode("utf-16-le"), "no text", "CSV UTF-8"),
    "Latin-1": (lambda data: data.decode().encode("latin-1"), "line 4 holds byte 0xeb", "CSV UTF-8"),
    "Latin-1 of an old Mac": (
        lambda data: data.replace(b"\n", b"\r").decode().encode("latin-1"),
        "line 4 holds byte 0xeb",
        "CSV UTF-8",
    ),
    "HTML": (lambda data: b"\n<!doctype html><html>", "web page", "download the file itself"),
    "xlsx": (lambda data: zipped(b"", "[Content_Types].xml", "xl/workbook.xml"), "Excel workbook", "CSV UTF-8"),
    "xls": (lambda data: b"\xd0\xcf\x11\xe0\xa1\xb1", "old Excel workbook", "CSV UTF-8"),
    "Parquet": (lambda data: b"PAR1\x15\x00", "Parquet", "read_parquet"),
    "7z": (lambda data: b"7z\xbc\xaf\x27\x1c\x00", "packed", "unpack"),
    "packed twice": (lambda data: gzip.compress(bz2.compress(data)), "holds a packed file", "unpack"),
    "encrypted": (lambda data: zipped(data, flags=1), "is encrypted", "unpack"),
    "deflate64": (lambda data: zipped(data, method=9), "compression method", "unpack"),
    "archive of two": (lambda data: zipped(data, "a.csv", "b.csv"), "2 CSV files", "unpack"),
    "archive of others": (lambda data: zipped(data, "a.txt"), "0 CSV files", "unpack"),
    "cut gz": (lambda data: gzip.compress(data)[:-12], "truncated or damaged", "again"),
    "cut bz2": (lambda data: bz2.compress(data)[:-12], "truncated or damaged", "again"),
    "cut xz": (lambda data: lzma.compress(data)[:-12], "truncated or damaged", "again"),
    "cut zip": (lambda data: zipped(data)[:-12], "truncated or damaged", "again"),
    "bad gz": (lambda data: b"\x1f\x8b\x08\x00" + b"?" * 40, "truncated or damaged", "again"),
    "bad bz2": (lambda data: b"BZh9" + b"?" * 40, "truncated or damaged", "again"),
    "other bytes in zip": (
        lambda data: zipped(data, method=0).replace(b"PK\x05\x06", b"PK\x05\x07"),
        "truncated or damaged",
        "again",
    ),
    "line ends twice": (lambda data: data.replace(b"\n", b"\r\r\n"), "ends its lines with", "converted"),
    "a blank line between": (lambda data: data.replace(b"Bob", b"\nBob"), "line 3 is blank", "mend"),
    "a cell too many": (lambda data: data.replace(b"Bob", b"B,ob"), "line 3 has 4 cells, line 1 has 3", "mend"),
    "a cell too many at once": (lambda data: data.replace(b"Ann", b"A,nn"), "line 2 has 4 cells", "mend"),
    "a cell too few": (lambda data: data.replace(b"Bob,", b"Bob"), "line 3 has 2 cells, line 1 has 3", "mend"),
    "cut": (lambda data: data[:-8], "line 4 has 2 cells", "mend"),
    "many": (lambda data: data + b"x\n" * 2000, "line 7 has 1 cells, .*; and 1,997 more lines", "mend"),
    "an open quote": (lambda data: data.replace(b'x,y"', b"x"), "line 4 is no row .*unexpected end", "mend"),
    "a value of two lines": (lambda data: data.replace(b"Bob", b'"B\nob"'), "line 3 begins a quoted value", "mend"),
    "words after a quote": (lambda data: data.replace(b"Bob", b'"B"ob'), "line 3 is no row", "mend"),
    "a NUL byte": (lambda data: data.replace(b"Bob", b"B\x00b"), "NUL", "CSV UTF-8"),
    "a name twice": (lambda data: data.replace(b"level", b"name"), "more than once: name", "keep one"),
}


@pytest.mark.parametrize(("change", "problem", "remedy"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_table_is_told_from_the_others(change: Change, problem: str, remedy: str, tmp_path: Path) -> None:
    # given
    file = tmp_path / "my file"
    file.write_bytes(change(CSV))
    # when
    with pytest.raises(DataError, match=problem) as error:
        read_table(file)
    # then in one line, with the file's name
    assert remedy in error.value.remedy and str(file) in error.value.problem and "\n" not in str(error.value)


def test_a_path_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(DataError, match="is a folder"):
        read_table(tmp_path)


@pytest.mark.parametrize("name", ["as it is", "gz", "bz2", "xz", "zip"])
def test_a_file_that_would_fill_the_memory_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a file of some kilobytes at most when it is packed, that holds megabytes
    monkeypatch.setattr(csv_file, "MOST_BYTES", 1 << 20)
    (tmp_path / "file").write_bytes(READ[name](b"a,b\n" + b"1,2\n" * (1 << 20)))
    assert name == "as it is" or (tmp_path / "file").stat().st_size < 100_000
    # then it is refused before it is read whole
    with pytest.raises(DataError, match="holds more than 1,048,576 bytes"):
        read_table(tmp_path / "file")
