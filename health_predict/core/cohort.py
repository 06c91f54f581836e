"""The data contract: reading a file of encounters, checking every cell of it, and who belongs to the cohort.

A cohort frame is a DataFrame with the columns of `columns.COLUMNS`, all text: `?` stays `?`, the level `None`
stays `None`, and the index counts from 0.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.columns import (
    BY_NAME,
    CODE_PATTERN,
    COLUMNS,
    ENCOUNTER,
    FEATURES,
    ICD9_PATTERN,
    MISSING,
    NOT_READMITTABLE,
    POSITIVE,
    TARGET,
    Column,
    Kind,
)
from health_predict.core.errors import DataError

if TYPE_CHECKING:
    from pandera.pandas import DataFrameSchema

FIRST_LINE = 2  # of the encounters in a file: line 1 is the header
_HEADER_LINE = 1
_SHOWN = 3  # violations that an error message names

_IDENTIFIER = re.compile(r"[1-9]\d{0,17}")  # fits 64 bits
_WHOLE_NUMBER = re.compile(r"0|[1-9]\d{0,8}")
_ICD9 = re.compile(ICD9_PATTERN)
_CODE = re.compile(CODE_PATTERN)
_TEXT = re.compile(r"(?!\s)[^\x00-\x1f\x7f]{1,100}(?<!\s)")


@dataclass(frozen=True, slots=True)
class Violation:
    """One cell that breaks the contract. `row` is the line in the file, where the header is line 1."""

    row: int
    column: str
    value: str
    problem: str
    remedy: str


def read_cohort(path: Path, *, labelled: bool = True) -> pd.DataFrame:
    """A CSV file, plain or gzipped, as a cohort frame in the order of the file.

    With `labelled=False` the column `readmitted` may be absent, as it is in encounters that are yet to be scored.
    Columns may stand in any order. The cells are not checked: that is `validate`.

    Raises DataError when the file is missing, empty, truncated, damaged, no CSV, or has other columns.
    """
    data = _without_trailing_blank_lines(_bytes(path))
    names = _header(data, path, labelled)
    frame = _parse(data, names, path)
    if frame.empty:
        raise DataError(f"{path} holds a header and no encounter", "give a file with at least one encounter")
    return frame[[column.name for column in COLUMNS if column.name in names]]


def load_part(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A part of a dataset written by `save_part`, as a cohort frame, or some of its columns.

    Raises DataError when it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=columns)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", "run the split stage again") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}", "run the split stage again") from None
    return _as_text(table)


def save_part(frame: pd.DataFrame, file: Path | IO[bytes]) -> None:
    """Write a cohort frame as Parquet (zstd, every column a string), without the atomicity of `whole_file`."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, pyarrow.string()) for name in frame.columns])
    table = pyarrow.Table.from_pandas(frame, schema=schema, preserve_index=False).replace_schema_metadata(None)
    pyarrow.parquet.write_table(table, file, compression="zstd")


def save_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a cohort frame as a CSV file that `read_cohort` reads, without the atomicity of `whole_file`."""
    frame.to_csv(path, index=False, lineterminator="\n")


def _as_text(table: Any) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    return frame.astype(str)


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", "check the path") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder", "give the CSV file itself") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "check the file's permissions") from None
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except EOFError:
            raise DataError(f"{path} is a truncated gzip file", "copy or download it again") from None
        except (OSError, zlib.error) as error:
            raise DataError(f"{path} is a damaged gzip file: {error}", "copy or download it again") from None
    data = data.removeprefix(codecs.BOM_UTF8)
    start = data[:512].lstrip()
    if not start:
        raise DataError(f"{path} is empty", "copy or download it again")
    if start.startswith(b"<"):
        raise DataError(f"{path} is an HTML or XML page, not a CSV file", "download the file itself, not its web page")
    if start.startswith(b"PK\x03\x04"):
        raise DataError(f"{path} is a ZIP archive", "unpack it and give the CSV file in it")
    return data


def _without_trailing_blank_lines(data: bytes) -> bytes:
    # Many editors add one; anywhere else a blank line is a broken row.
    return data.rstrip(b"\r\n") + b"\n"


def _header(data: bytes, path: Path, labelled: bool) -> list[str]:
    first = data.split(b"\n", 1)[0].rstrip(b"\r")
    try:
        names = next(csv.reader([first.decode()]))
    except (UnicodeDecodeError, csv.Error, StopIteration):
        raise DataError(f"{path} does not start with a line of column names", "give a UTF-8 CSV file") from None
    expected = [column.name for column in COLUMNS if labelled or column.name != TARGET]
    missing = [name for name in expected if name not in names]
    extra = [name for name in names if name not in BY_NAME]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems = [
        f"{what} {_listed(found)}"
        for what, found in (("lacks the columns", missing), ("has the unknown columns", extra), ("repeats", twice))
        if found
    ]
    if not problems:
        return names
    if len(names) == 1 and re.search(r"[;\t|]", names[0]):
        raise DataError(f"{path} is not separated by commas", "save it as comma-separated values")
    remedy = f"give all {len(expected)} columns of the contract by these names"
    if missing == [TARGET]:
        remedy = f"add the labels; a file without them can only be checked with --unlabelled ({TARGET} absent)"
    raise DataError(f"{path} {' and '.join(problems)}", remedy)


def _listed(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _parse(data: bytes, names: list[str], path: Path) -> pd.DataFrame:
    import pyarrow
    from pyarrow import csv as arrow_csv

    blank = re.search(rb"\n\r?\n", data)
    if blank:
        line = data.count(b"\n", 0, blank.end())
        raise DataError(f"{path} is damaged: line {line} is blank", "copy or download it again")
    broken: list[tuple[int, int]] = []

    def note(row: Any) -> str:
        broken.append((row.number, row.actual_columns))
        return "skip"

    try:
        table = arrow_csv.read_csv(
            io.BytesIO(data),
            # Row numbers are known only to a single thread.
            read_options=arrow_csv.ReadOptions(use_threads=False, column_names=names, skip_rows=1),
            parse_options=arrow_csv.ParseOptions(invalid_row_handler=note, ignore_empty_lines=False),
            convert_options=arrow_csv.ConvertOptions(
                column_types={name: pyarrow.string() for name in names}, strings_can_be_null=False
            ),
        )
    except pyarrow.ArrowException as error:
        what = "is not UTF-8 text" if "UTF8" in str(error) else f"is not a readable CSV file: {error}"
        raise DataError(f"{path} {what}", "save it as comma-separated values in UTF-8") from None
    if broken:
        shown = "; ".join(f"line {number} has {actual} of {len(names)} fields" for number, actual in broken[:_SHOWN])
        more = f"; {len(broken) - _SHOWN} more such lines" if len(broken) > _SHOWN else ""
        raise DataError(f"{path} is truncated or damaged: {shown}{more}", "copy or download it again")
    if table.num_rows != data.count(b"\n") - 1:
        # Line numbers would be wrong from there on, and no value of the contract holds a line end.
        raise DataError(f"{path} is damaged: a quoted value runs over several lines", "copy or download it again")
    return _as_text(table)


def validate(frame: pd.DataFrame, *, labelled: bool = True) -> list[Violation]:
    """Every cell of a cohort frame that breaks the contract, by row and then column; an empty list when none does.

    Columns that are missing or too many count as violations of the header (row 1). With `labelled=False` the
    column `readmitted` may be absent.
    """
    from pandera.errors import SchemaErrors

    try:
        _schema(labelled or TARGET in frame.columns).validate(frame, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases
    else:
        return []
    found = []
    for column, check, value, index in zip(
        cases["column"], cases["check"], cases["failure_case"], cases["index"], strict=True
    ):
        if check == "column_in_dataframe":
            found.append(Violation(_HEADER_LINE, str(value), "", "the column is missing", "add the column"))
        elif check == "column_in_schema":
            found.append(Violation(_HEADER_LINE, str(value), "", "the column is unknown", "remove the column"))
        else:
            text = value if isinstance(value, str) else ""
            problem, remedy = _explain(BY_NAME[column], text, check)
            found.append(Violation(int(index) + FIRST_LINE, column, text, problem, remedy))
    order = {name: position for position, name in enumerate(BY_NAME)}
    # A missing cell that repeats would be named twice.
    return sorted(dict.fromkeys(found), key=lambda violation: (violation.row, order.get(violation.column, len(order))))


def check(frame: pd.DataFrame, *, labelled: bool = True, name: str = "the data") -> None:
    """Refuse a cohort frame that breaks the contract or, when labelled, has no positive label.

    Raises DataError with the number of violations and the first of them; `name` is what the message calls the data.
    """
    violations = validate(frame, labelled=labelled)
    if violations:
        shown = "; ".join(
            f"line {violation.row}, {violation.column}: {violation.problem}" for violation in violations[:_SHOWN]
        )
        count = "1 violation" if len(violations) == 1 else f"{len(violations):,} violations"
        raise DataError(
            f"{count} of the data contract in {name}: {shown}{'; ...' if len(violations) > _SHOWN else ''}",
            "`health-predict data check FILE` lists every one with its remedy",
        )
    if labelled and not (frame[TARGET] == POSITIVE).any():
        raise DataError(
            f"no encounter in {name} has the label {POSITIVE!r}", "give data in which some patients were readmitted"
        )


@cache
def _schema(labelled: bool) -> DataFrameSchema:
    import pandera.pandas as pa

    return pa.DataFrameSchema(
        {
            column.name: pa.Column(
                checks=pa.Check(_checker(column), name="value", ignore_na=False),
                unique=column.name == ENCOUNTER,
                report_duplicates="exclude_first",
                nullable=True,  # `value` judges missing cells too
            )
            for column in COLUMNS
            if labelled or column.name != TARGET
        },
        strict=True,
    )


def _checker(column: Column) -> Callable[[pd.Series[str]], pd.Series[bool]]:
    def valid(values: pd.Series[str]) -> pd.Series[bool]:
        # Each distinct value is judged once.
        codes, distinct = pd.factorize(values, use_na_sentinel=False)
        verdicts = np.fromiter((_is_valid(column, value) for value in distinct), dtype=bool, count=len(distinct))
        return pd.Series(verdicts[codes], index=values.index)

    return valid


def _is_valid(column: Column, value: object) -> bool:
    if not isinstance(value, str):
        return False
    if value == MISSING:
        return column.nullable
    match column.kind:
        case Kind.IDENTIFIER:
            return _IDENTIFIER.fullmatch(value) is not None
        case Kind.COUNT:
            return _WHOLE_NUMBER.fullmatch(value) is not None and column.minimum <= int(value) <= column.maximum
        case Kind.ICD9:
            return _ICD9.fullmatch(value) is not None
        case Kind.OPEN_LEVEL:
            return (_CODE if column.is_code else _TEXT).fullmatch(value) is not None
        case Kind.LEVEL | Kind.OUTCOME:
            return value in column.levels


def _explain(column: Column, value: str, check: str) -> tuple[str, str]:
    if check != "value":
        return f"encounter {value} occurs earlier in the file", "remove the duplicate"
    text = repr(value[:60]) if value else "an empty cell"
    or_missing = f", or {MISSING} when it is missing" if column.nullable else ""
    match column.kind:
        case Kind.IDENTIFIER:
            return f"{text} is no identifier", "give a positive whole number of at most 18 digits"
        case Kind.COUNT:
            bounds = f"from {column.minimum} to {column.maximum}"
            return f"{text} is no whole number {bounds}", f"give a number {bounds} without decimals"
        case Kind.ICD9:
            return f"{text} is no ICD-9 code", f"give a code such as 250.83, V57 or E909{or_missing}"
        case Kind.OPEN_LEVEL if column.is_code:
            return f"{text} is no code", f"give a positive whole number such as {column.levels[0]}{or_missing}"
        case Kind.OPEN_LEVEL:
            return f"{text} is no level", f"give a text of 1 to 100 characters without outer spaces{or_missing}"
        case Kind.LEVEL | Kind.OUTCOME:
            return f"{text} is no level of {column.name}", f"give one of {', '.join(column.levels)}{or_missing}"


def as_requests(frame: pd.DataFrame) -> list[dict[str, str | int | None]]:
    """The encounters of a valid cohort frame as bodies of `POST /predict`: counts as numbers, `?` as None."""
    return [
        {
            column.name: int(value) if column.kind is Kind.COUNT else None if value == MISSING else value
            for column, value in zip(FEATURES, row, strict=True)
        }
        for row in frame[[column.name for column in FEATURES]].itertuples(index=False, name=None)
    ]


def exclude_not_readmittable(frame: pd.DataFrame) -> pd.DataFrame:
    """The encounters whose patient can come back: without those who died or went to hospice. Index from 0."""
    return frame[~frame["discharge_disposition_id"].isin(NOT_READMITTABLE)].reset_index(drop=True)


def exclusions(frame: pd.DataFrame) -> Mapping[str, int]:
    """How many encounters `exclude_not_readmittable` removes, by discharge code, in the order of the codes."""
    counts = frame["discharge_disposition_id"].value_counts()
    return {code: int(counts[code]) for code in NOT_READMITTABLE if code in counts.index}


def target(frame: pd.DataFrame) -> npt.NDArray[np.int8]:
    """1 where the patient came back within 30 days, else 0; shape (n,). Raises KeyError without labels."""
    return np.asarray(frame[TARGET] == POSITIVE, dtype=np.int8)
