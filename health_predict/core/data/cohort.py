"""The data contract: reading a file of encounters, checking every cell of it, and who belongs to the cohort.

A cohort frame is a DataFrame with the columns of `columns.COLUMNS`, all text: `?` stays `?`, the level `None`
stays `None`, and the index counts from 0.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.data.columns import (
    BY_NAME,
    COLUMNS,
    DISCHARGE,
    ENCOUNTER,
    FEATURES,
    MISSING,
    NOT_READMITTABLE,
    POSITIVE,
    TARGET,
    WORDS_FOR_MISSING,
    Column,
    Kind,
)
from health_predict.core.data.csv_file import read_table
from health_predict.errors import DataError

FIRST_LINE = 2  # of the encounters in a file: line 1 is the header
_HEADER_LINE = 1
_SHOWN = 3  # violations that an error message names


@dataclass(frozen=True, slots=True)
class Violation:
    """One cell that breaks the contract. `row` is the line in the file, where the header is line 1."""

    row: int
    column: str
    value: str
    problem: str
    remedy: str


def read_cohort(path: Path, *, labelled: bool = True) -> pd.DataFrame:
    """A CSV file, plain or packed, as a cohort frame in the order of the file.

    With `labelled=False` the column `readmitted` may be absent, as it is in encounters that are yet to be scored.
    Columns may stand in any order. The cells are not checked: that is `validate`.

    Raises DataError when the file has other columns or no encounter, and what `read_table` raises.
    """
    frame = read_table(path)
    expected = [column.name for column in COLUMNS if labelled or column.name != TARGET]
    missing = [name for name in expected if name not in frame]
    extra = [str(name)[:60] for name in frame if name not in BY_NAME]
    if missing or extra:
        remedy = f"give all {len(expected)} columns of the contract, separated by commas, by these names"
        if missing == [TARGET]:
            remedy = f"add the labels; a file without them can only be checked with --unlabelled ({TARGET} absent)"
        problems = [
            f"{what} {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
            for what, names in (("lacks", missing), ("has unknown", extra))
            if names
        ]
        raise DataError(f"{path} {' and '.join(problems)}", remedy)
    if frame.empty:
        raise DataError(f"{path} holds no encounter", "give a file with a header and at least one encounter")
    return frame[[column.name for column in COLUMNS if column.name in frame]]


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
    return cast(pd.DataFrame, table.to_pandas()).astype(str)


def save_part(frame: pd.DataFrame, file: Path | IO[bytes]) -> None:
    """Write a cohort frame as Parquet (zstd, every column a string), without the atomicity of `whole_file`."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, pyarrow.string()) for name in frame.columns])
    table = pyarrow.Table.from_pandas(frame, schema=schema, preserve_index=False).replace_schema_metadata(None)
    pyarrow.parquet.write_table(table, file, compression="zstd")


def part_bytes(frame: pd.DataFrame) -> bytes:
    """The file that `save_part` writes."""
    buffer = io.BytesIO()
    save_part(frame, buffer)
    return buffer.getvalue()


def save_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a cohort frame as a CSV file that `read_cohort` reads, without the atomicity of `whole_file`."""
    frame.to_csv(path, index=False, lineterminator="\n")


def validate(frame: pd.DataFrame, *, labelled: bool = True) -> list[Violation]:
    """Every cell of a cohort frame that breaks the contract, by row and then column; an empty list when none does.

    Columns that are missing or too many count as violations of the header (row 1). With `labelled=False` the
    column `readmitted` may be absent.
    """
    found = [
        Violation(_HEADER_LINE, str(name), "", "the column is unknown", "remove the column")
        for name in frame.columns
        if name not in BY_NAME
    ]
    for column in COLUMNS:
        if column.name not in frame.columns:
            if labelled or column.name != TARGET:
                found.append(Violation(_HEADER_LINE, column.name, "", "the column is missing", "add the column"))
            continue
        # Each distinct value is judged once.
        codes, distinct = pd.factorize(frame[column.name], use_na_sentinel=False)
        valid = np.array([isinstance(value, str) and column.holds(value) for value in distinct], dtype=bool)
        remedy = f"give {column.described}{f', or {MISSING} when it is missing' if column.nullable else ''}"
        if "None" in column.levels:
            remedy += "; pandas reads None as missing unless it is told keep_default_na=False"
        for row in np.flatnonzero(~valid[codes]).tolist():
            value = distinct[codes[row]] if isinstance(distinct[codes[row]], str) else ""
            problem = f"{value[:60]!r} is not allowed" if value else "the cell is empty"
            if column.nullable and value.lower() in WORDS_FOR_MISSING:
                problem = f"{value!r} is a word for missing"
            found.append(Violation(row + FIRST_LINE, column.name, value, problem, remedy))
    if ENCOUNTER in frame.columns:
        for row in np.flatnonzero(frame[ENCOUNTER].duplicated()).tolist():
            value = str(frame[ENCOUNTER].iloc[row])
            problem = f"encounter {value} occurs earlier in the file"
            found.append(Violation(row + FIRST_LINE, ENCOUNTER, value, problem, "remove the duplicate"))
    order = {name: position for position, name in enumerate(BY_NAME)}
    return sorted(found, key=lambda violation: (violation.row, order.get(violation.column, len(order))))


def check(frame: pd.DataFrame, *, labelled: bool = True, name: str = "the data") -> None:
    """Refuse a cohort frame that breaks the contract or, when labelled, has labels of one kind only.

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
    if labelled and (positive := frame[TARGET] == POSITIVE).nunique() == 1:
        raise DataError(
            f"{'every' if positive.all() else 'no'} encounter in {name} has the label {POSITIVE!r}",
            "give data in which some patients were readmitted within 30 days and some were not",
        )


def as_requests(frame: pd.DataFrame, columns: Sequence[Column] = FEATURES) -> list[dict[str, str | int | None]]:
    """Some columns of a valid cohort frame as bodies of `POST /predict`: counts as numbers, `?` as None."""
    return [
        {
            column.name: int(value) if column.kind is Kind.COUNT else None if value == MISSING else value
            for column, value in zip(columns, row, strict=True)
        }
        for row in frame[[column.name for column in columns]].itertuples(index=False, name=None)
    ]


def exclude_not_readmittable(frame: pd.DataFrame) -> pd.DataFrame:
    """The encounters whose patient can come back: without those who died or went to hospice. Index from 0."""
    return frame[~frame[DISCHARGE].isin(NOT_READMITTABLE)].reset_index(drop=True)


def exclusions(frame: pd.DataFrame) -> Mapping[str, int]:
    """How many encounters `exclude_not_readmittable` removes, by discharge code, in the order of the codes."""
    counts = frame[DISCHARGE].value_counts()
    return {code: int(counts[code]) for code in NOT_READMITTABLE if code in counts.index}


def target(frame: pd.DataFrame) -> npt.NDArray[np.int8]:
    """1 where the patient came back within 30 days, else 0; shape (n,). Raises KeyError without labels."""
    return np.asarray(frame[TARGET] == POSITIVE, dtype=np.int8)
