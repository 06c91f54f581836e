"""A file of encounters as a cohort frame: read, every cell checked by the contract, labelled, and who is to be scored.

A cohort frame is a DataFrame with the columns of `Contract.table`, all text: a missing value is `?`, the level `None`
stays `None`, and the index counts from 0.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.data.contract import MISSING, WORDS_FOR_MISSING, Column, Contract, Kind
from health_predict.core.data.table_file import read_table_file
from health_predict.core.data.values import Value
from health_predict.errors import DataError

FIRST_LINE = 2  # of the encounters in a file: line 1 is the header
_HEADER_LINE = 1
_AT = "_at"  # a column beside those of a contract, none of which begins with _
_SHOWN = 3  # violations that an error message names


@dataclass(frozen=True, slots=True)
class Violation:
    """One cell that breaks the contract. `row` is the line in the file, where the header is line 1.

    `problem` shows the value to a person who has the file; `rule` says what was broken without it, for logs.
    """

    row: int
    column: str
    value: str
    problem: str
    remedy: str
    rule: str


def read_cohort(path: Path, contract: Contract, *, labelled: bool = True) -> pd.DataFrame:
    """A CSV or Parquet file as a cohort frame in the order of the file; what it writes for missing is `?`.

    With `labelled=False` the label may be absent, as it is in encounters that are yet to be scored; one that is made
    from the next row is absent always: that is `label`. Columns may stand in any order. The cells are not checked: that
    is `validate`.

    Raises DataError when the file has other columns or no encounter, and what `read_table_file` raises.
    """
    frame = read_table_file(path, contract.published.file if contract.published else "")
    target, derived = contract.target.name, contract.outcome.next is not None
    expected = [column.name for column in contract.table if column.name != target or (labelled and not derived)]
    known = [*contract.ignore, *(column.name for column in contract.columns), *([] if derived else [target])]
    missing = [name for name in expected if name not in frame]
    extra = [str(name)[:60] for name in frame if name not in known]
    if missing or extra:
        remedy = f"give all {len(expected)} columns of the contract {contract.name}, by these names"
        if missing == [target]:
            remedy = f"add the labels; a file without them can only be checked with --unlabelled ({target} absent)"
        problems = [
            f"{what} {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
            for what, names in (("lacks", missing), ("has unknown", extra))
            if names
        ]
        raise DataError(f"{path} {' and '.join(problems)}", remedy)
    if frame.empty:
        raise DataError(f"{path} holds no encounter", "give a file with a header and at least one encounter")
    kept = frame[[column.name for column in contract.table if column.name in frame]]
    return with_missing(kept, contract)


def with_missing(frame: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    """A frame of text in which `?` stands for all that the contract's files write for a missing value."""
    others = [word for word in contract.missing if word != MISSING]
    found = frame
    for column in contract.by_name.values() if others else ():
        if column.name in frame:
            written = [word for word in others if word not in column.levels]
            found = found.assign(**{column.name: found[column.name].replace(written, MISSING)})
    return found


def label(frame: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    """A valid cohort frame with its label: where the contract makes it from the patient's next row, only of the rows
    of which it can be known. Index from 0."""
    rule, outcome = contract.outcome.next, contract.outcome
    if rule is None:
        return frame
    at = pd.Series(in_order(frame, contract), index=frame.index)
    ordered = frame.assign(**{_AT: at}).sort_values([contract.patient, _AT], kind="stable")
    following = ordered.groupby(contract.patient, sort=False).shift(-1)
    near = following[_AT] - ordered[_AT] <= rule.within
    if rule.column:
        known = near & (following[rule.column] != MISSING)
        happened = known & (following[rule.column].where(known, "nan").astype(float) > rule.above)
    else:
        known = happened = near
    if rule.without == "negative":  # whoever has been watched to the end
        known = known | (~near & (ordered[_AT] + rule.within <= at.max()))
    labels = pd.Series(outcome.negative, index=ordered.index, dtype="str").mask(happened, outcome.positive[0])
    found = frame.assign(**{outcome.column: labels})[known.reindex(frame.index)]
    return found.reset_index(drop=True)


def in_order(frame: pd.DataFrame, contract: Contract) -> npt.NDArray[np.integer[Any]]:
    """What orders the encounters of a valid frame (n,), as numbers: that of a date is its day."""
    values = frame[contract.order]
    if contract.by_name[contract.order].kind is Kind.DATE:
        return pd.to_datetime(values).to_numpy("datetime64[D]").astype(np.int64)
    return values.astype(np.int64).to_numpy()


def encounter_of(frame: pd.DataFrame, contract: Contract) -> pd.Series[str]:
    """What identifies each encounter (n,), as one text: `?` where a part of it is missing."""
    first, *others = contract.encounter
    found = frame[first]
    if not others:
        return found
    missing = (frame[[*contract.encounter]] == MISSING).any(axis=1)
    for name in others:
        found = found + "/" + frame[name]
    return found.mask(missing, MISSING)


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


def validate(frame: pd.DataFrame, contract: Contract, *, labelled: bool = True) -> list[Violation]:
    """Every cell of a cohort frame that breaks the contract, by row and then column; an empty list when none does.

    Columns that are missing or too many count as violations of the header (row 1). With `labelled=False` the label
    may be absent.
    """
    found = [
        Violation(_HEADER_LINE, str(name), "", "the column is unknown", "remove the column", "is unknown")
        for name in frame.columns
        if name not in contract.by_name
    ]
    for column in contract.table:
        if column.name not in frame.columns:
            if labelled or column.name != contract.target.name:
                missing = "the column is missing", "add the column", "is missing"
                found.append(Violation(_HEADER_LINE, column.name, "", *missing))
            continue
        found += _violations(frame[column.name], column)
    if all(name in frame.columns for name in contract.encounter):
        encounters = encounter_of(frame, contract)
        for row in np.flatnonzero(encounters.duplicated() & (encounters != MISSING)).tolist():
            value = str(encounters.iloc[row])
            problem = f"encounter {value} occurs earlier in the file"
            found.append(
                Violation(row + FIRST_LINE, "+".join(contract.encounter), value, problem, _ONCE, "must occur once")
            )
    order = {name: position for position, name in enumerate(contract.by_name)}
    return sorted(found, key=lambda violation: (violation.row, order.get(violation.column, len(order))))


_ONCE = "remove the duplicate, or name all columns that identify an encounter in the contract"


def _violations(values: pd.Series[str], column: Column) -> list[Violation]:
    # Each distinct value is judged once.
    codes, distinct = pd.factorize(values, use_na_sentinel=False)
    valid = np.array([isinstance(value, str) and column.holds(value) for value in distinct], dtype=bool)
    remedy = f"give {column.described}{f', or {MISSING} when it is missing' if column.nullable else ''}"
    if "None" in column.levels:
        remedy += "; pandas reads None as missing unless it is told keep_default_na=False"
    found = []
    for row in np.flatnonzero(~valid[codes]).tolist():
        value = distinct[codes[row]] if isinstance(distinct[codes[row]], str) else ""
        problem = f"{value[:60]!r} is not allowed" if value else "the cell is empty"
        if column.nullable and value.lower() in WORDS_FOR_MISSING:
            problem = f"{value!r} is a word for missing"
        rule = f"must be {column.described}" if value else "must not be empty"
        found.append(Violation(row + FIRST_LINE, column.name, value, problem, remedy, rule))
    return found


def check(frame: pd.DataFrame, contract: Contract, *, labelled: bool = True, name: str = "the data") -> None:
    """Refuse a cohort frame that breaks the contract or, when labelled, has labels of one kind only.

    Raises DataError with the number of violations, and line, column and rule of the first of them, without the values,
    since it ends in logs that others read; `name` is what the message calls the data.
    """
    violations = validate(frame, contract, labelled=labelled)
    if violations:
        shown = "; ".join(
            f"line {violation.row}, {violation.column}: {violation.rule}" for violation in violations[:_SHOWN]
        )
        count = "1 violation" if len(violations) == 1 else f"{len(violations):,} violations"
        raise DataError(
            f"{count} of the data contract in {name}: {shown}{'; ...' if len(violations) > _SHOWN else ''}",
            "`health-predict data check FILE` lists every one with its remedy",
        )
    if labelled:
        _refuse_one_outcome(frame, contract, name)


def _refuse_one_outcome(frame: pd.DataFrame, contract: Contract, name: str) -> None:
    positive, outcome = target(frame, contract), contract.outcome
    if len(frame) and positive.min() < positive.max():
        return
    which = "no encounter" if not positive.any() else "every encounter"
    rule = f"{outcome.column} {' or '.join(outcome.positive)}"
    if outcome.next:
        rule = outcome.next.rule
    raise DataError(
        f"{which} in {name} is {outcome.happened} ({rule})",
        f"give data in which some patients are {outcome.happened} and some are not",
    )


def training_cohort(path: Path, contract: Contract, name: str = "") -> tuple[pd.DataFrame, int]:
    """A file's valid, labelled cohort frame, and how many encounters have no label: no next row that counts.

    Raises DataError as `read_cohort` and `check` do.
    """
    frame = read_cohort(path, contract)
    check(frame, contract, labelled=False, name=name or str(path))
    return with_labels(frame, contract, name or str(path))


def with_labels(frame: pd.DataFrame, contract: Contract, name: str) -> tuple[pd.DataFrame, int]:
    """A valid cohort frame with its label, and how many encounters have none. Raises DataError for one outcome only."""
    labelled = label(frame, contract)
    _refuse_one_outcome(labelled, contract, name)
    return labelled, len(frame) - len(labelled)


def as_requests(frame: pd.DataFrame, columns: Sequence[Column]) -> list[dict[str, Value]]:
    """Some columns of a valid cohort frame as bodies of `POST /predict`: counts and numbers as such, `?` as None."""
    return [
        {column.name: column.value(value) for column, value in zip(columns, row, strict=True)}
        for row in frame[[column.name for column in columns]].itertuples(index=False, name=None)
    ]


def without_excluded(frame: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    """The encounters that are to be scored: without those that the contract excludes. Index from 0."""
    excluded = np.zeros(len(frame), dtype=bool)
    for one in contract.exclude:
        excluded |= frame[one.column].isin(one.levels).to_numpy()
    return frame[~excluded].reset_index(drop=True)


def exclusions(frame: pd.DataFrame, contract: Contract) -> Mapping[str, int]:
    """How many encounters have each excluded level that occurs, by column and level, in the order of the contract."""
    found: dict[str, int] = {}
    for one in contract.exclude:
        counts = frame[one.column].value_counts()
        found |= {f"{one.column} {level}": int(counts[level]) for level in one.levels if level in counts.index}
    return found


def target(frame: pd.DataFrame, contract: Contract) -> npt.NDArray[np.int8]:
    """1 where the outcome is positive, else 0; shape (n,). Raises KeyError without labels."""
    return np.asarray(frame[contract.outcome.column].isin(contract.outcome.positive), dtype=np.int8)
