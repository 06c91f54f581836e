"""Encounters as people have them: numbers and text, and every way to say that something is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from health_predict.core.data.contract import MISSING, Kind
from health_predict.core.data.raw_encounters import read_encounters as read
from health_predict.errors import DataError
from tests.contracts import DIABETES

FEATURES, EXAMPLE, BY_NAME = DIABETES.features, DIABETES.request, DIABETES.by_name
NAMES = [column.name for column in FEATURES]
NUMBERS = [column.name for column in FEATURES if column.kind is Kind.COUNT or column.is_code]
NULLABLE = [column.name for column in FEATURES if column.nullable]


def read_encounters(frame: pd.DataFrame) -> pd.DataFrame:
    return read(frame, DIABETES)


def with_cell(column: str, value: Any) -> pd.DataFrame:
    """Two encounters, of which the second has this value."""
    frame = pd.DataFrame([EXAMPLE, EXAMPLE], dtype=object)
    frame.loc[:, column] = pd.Series([EXAMPLE[column], value], dtype=object)
    return frame


def test_text_stays_as_it_is(cohort: pd.DataFrame) -> None:
    # given encounters as the library itself has them, with columns that are no features
    assert set(cohort.columns) > set(NAMES)
    # then they are read as they are
    pd.testing.assert_frame_equal(read_encounters(cohort), cohort[NAMES])


TYPES: dict[str, Callable[[pd.Series], pd.Series]] = {
    "whole numbers": lambda column: column.astype(int),
    "fractions": lambda column: column.astype(float),
    "small numbers": lambda column: column.astype(np.int16),
    "nullable numbers": lambda column: column.astype("Int64"),
    "categories": lambda column: column.astype(int).astype("category"),
    "Python's own": lambda column: pd.Series(column.astype(int).tolist(), dtype=object, index=column.index),
    "each its own": lambda column: pd.Series(
        [(str, int, float, np.int64)[row % 4](value) for row, value in enumerate(column)], dtype=object
    ),
}


@pytest.mark.parametrize("convert", TYPES.values(), ids=TYPES)
def test_counts_and_codes_may_be_numbers(cohort: pd.DataFrame, convert: Callable[[pd.Series], pd.Series]) -> None:
    frame = cohort.assign(**{name: convert(cohort[name]) for name in NUMBERS})
    pd.testing.assert_frame_equal(read_encounters(frame), cohort[NAMES])


@pytest.mark.parametrize(
    ("value", "text"), [(250.83, "250.83"), (428, "428"), (428.0, "428"), (8, "8"), ("V57", "V57")]
)
def test_a_diagnosis_may_be_a_number(value: Any, text: str) -> None:
    assert read_encounters(with_cell("diag_2", value))["diag_2"].tolist() == [EXAMPLE["diag_2"], text]


@pytest.mark.parametrize("value", [None, np.nan, pd.NA, pd.NaT, MISSING], ids=repr)
def test_missing_has_many_names(value: Any) -> None:
    for name in NULLABLE:
        assert read_encounters(with_cell(name, value))[name].tolist()[1] == MISSING
    for name in set(NAMES) - set(NULLABLE):
        with pytest.raises(DataError, match=f"in 1 place: row 1, {name}: must be"):
            read_encounters(with_cell(name, value))


def test_a_column_that_may_be_missing_may_be_absent() -> None:
    found = read_encounters(pd.DataFrame([EXAMPLE]).drop(columns=NULLABLE))
    assert list(found) == NAMES and set(found[NULLABLE].iloc[0]) == {MISSING}
    with pytest.raises(DataError, match="column age is absent"):
        read_encounters(pd.DataFrame([EXAMPLE]).drop(columns="age"))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("number_inpatient", 101),
        ("number_inpatient", -1),
        ("number_inpatient", 2.5),
        ("number_inpatient", np.inf),
        ("number_inpatient", True),
        ("number_inpatient", np.True_),
        ("number_inpatient", "2.0"),
        ("number_inpatient", "two"),
        ("number_inpatient", "٢"),
        ("number_inpatient", [2]),
        ("number_inpatient", pd.Timestamp(2)),
        ("time_in_hospital", 0),
        ("admission_type_id", 0),
        ("admission_type_id", 1000),
        ("admission_type_id", "01"),
        ("age", "[70-90)"),
        ("age", 70),
        ("gender", ""),
        ("race", ""),
        ("race", 5),
        ("medical_specialty", "x" * 101),
        ("diag_1", "25O"),
        ("diag_1", 1250),
        ("diag_1", 250.834),
    ],
)
def test_what_breaks_the_contract_is_named(column: str, value: Any) -> None:
    with pytest.raises(DataError, match=f"in 1 place: row 1, {column}: must be") as caught:
        read_encounters(with_cell(column, value))
    # and what is allowed is told, but not what was given: it may be a patient's
    assert BY_NAME[column].allowed in str(caught.value)
    assert len(str(value)) < 3 or str(value) not in str(caught.value)


def test_equal_values_of_other_types_are_told_apart() -> None:
    frame = pd.concat([pd.DataFrame([EXAMPLE])] * 3, ignore_index=True)
    frame["number_inpatient"] = pd.Series([1, 1.0, True], dtype=object)
    with pytest.raises(DataError, match="in 1 place: row 2, number_inpatient"):
        read_encounters(frame)


def test_a_level_that_pandas_lost_is_told(tmp_path: Path, cohort: pd.DataFrame) -> None:
    # given a file that is read without a thought
    cohort.to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(DataError, match=r"max_glu_serum: must be one of None.*keep_default_na=False"):
        read_encounters(pd.read_csv(tmp_path / "cohort.csv"))
    # then what the message says is what helps
    found = read_encounters(pd.read_csv(tmp_path / "cohort.csv", keep_default_na=False))
    pd.testing.assert_frame_equal(found, cohort[NAMES])


def test_many_violations_are_counted(cohort: pd.DataFrame) -> None:
    frame = cohort.head(50).assign(gender="unknown")
    with pytest.raises(DataError, match=r"in 50 places: row 0, gender: .* row 4, gender: .*; and 45 more"):
        read_encounters(frame)


def test_the_index_is_kept_and_nothing_may_be_asked() -> None:
    frame = pd.DataFrame([EXAMPLE, EXAMPLE], index=["first", "second"])
    assert read_encounters(frame).index.tolist() == ["first", "second"]
    assert read_encounters(frame.head(0)).shape == (0, len(NAMES))
