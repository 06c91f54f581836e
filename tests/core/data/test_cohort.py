"""The data contract: files that cannot be read, cells that break it, and who belongs to the cohort."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_predict.core.data.cohort import (
    check,
    exclusions,
    load_part,
    read_cohort,
    save_csv,
    save_part,
    target,
    validate,
    without_excluded,
)
from health_predict.errors import DataError
from tests.contracts import BY_NAME, COLUMNS, DIABETES, NOT_READMITTABLE

NAMES = [column.name for column in COLUMNS]


@pytest.fixture
def small(cohort: pd.DataFrame) -> pd.DataFrame:
    return cohort.iloc[:200].copy()


@pytest.fixture
def file(small: pd.DataFrame, tmp_path: Path) -> Path:
    path = tmp_path / "encounters.csv"
    save_csv(small, path)
    return path


def same(left: pd.DataFrame, right: pd.DataFrame) -> bool:
    return left.columns.tolist() == right.columns.tolist() and bool((left.to_numpy() == right.to_numpy()).all())


def test_a_file_reads_as_text_with_its_question_marks_and_nones(small: pd.DataFrame, file: Path) -> None:
    # when
    frame = read_cohort(file, DIABETES)
    # then
    assert same(frame, small) and frame.index.equals(pd.RangeIndex(200))
    assert (frame["weight"] == "?").any() and (frame["A1Cresult"] == "None").any()
    assert all(isinstance(value, str) for value in frame.iloc[0])


def test_columns_may_stand_in_any_order(small: pd.DataFrame, file: Path) -> None:
    save_csv(small[NAMES[::-1]], file)
    assert same(read_cohort(file, DIABETES), small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda data: b"", "is empty", id="no CSV"),
        pytest.param(lambda data: data.split(b"\n")[0], "no encounter", id="header only"),
        pytest.param(lambda data: data[: len(data) // 2], "line .* has .* cells", id="cut"),
        pytest.param(lambda data: data.replace(b"race", b"rase", 1), "lacks race and has unknown rase", id="header"),
    ],
)
def test_a_file_that_is_no_cohort_is_refused_in_one_line(
    change: Callable[[bytes], bytes], message: str, file: Path
) -> None:
    # given
    file.write_bytes(change(file.read_bytes()))
    # when
    with pytest.raises(DataError, match=message) as error:
        read_cohort(file, DIABETES)
    # then
    assert error.value.remedy and "\n" not in str(error.value) and str(file) in str(error.value)


def test_a_batch_without_labels_reads_and_checks_only_as_unlabelled(small: pd.DataFrame, file: Path) -> None:
    # given
    save_csv(small.drop(columns="readmitted"), file)
    # when
    frame = read_cohort(file, DIABETES, labelled=False)
    # then
    assert frame.shape == (200, 49) and validate(frame, DIABETES, labelled=False) == []
    check(frame, DIABETES, labelled=False)
    assert [violation.column for violation in validate(frame, DIABETES)] == ["readmitted"]
    with pytest.raises(DataError, match="--unlabelled"):
        read_cohort(file, DIABETES)


BAD = [
    ("encounter_id", "12a", "18 digits"),
    ("patient_nbr", "-5", "18 digits"),
    ("race", " Asian", "text of 1"),
    ("race", "", "text of 1"),
    ("gender", "?", "one of Female"),
    ("age", "[200-210)", "one of [0-10)"),
    ("weight", "70", "one of [0-25)"),
    ("admission_type_id", "one", "a code from 1"),
    ("discharge_disposition_id", "01", "a code from 1"),
    ("time_in_hospital", "0", "a whole number from 1 to 14"),
    ("time_in_hospital", "3.0", "a whole number"),
    ("num_medications", "-1", "a whole number"),
    ("number_inpatient", "nan", "a whole number"),
    ("medical_specialty", "x" * 101, "text of 1"),
    ("diag_1", "diabetes", "an ICD-9-CM code"),
    ("A1Cresult", "9", "one of None"),
    ("insulin", "Yes", "one of No"),
    ("readmitted", "<31", "one of <30"),
]


@pytest.mark.parametrize(("column", "value", "remedy"), BAD)
def test_a_bad_cell_is_named_with_its_line_and_a_remedy(
    column: str, value: str, remedy: str, small: pd.DataFrame
) -> None:
    small.loc[7, column] = value
    (violation,) = validate(small, DIABETES)
    assert (violation.row, violation.column, violation.value) == (9, column, value)
    assert remedy in violation.remedy and violation.problem


def test_every_bad_cell_is_listed_by_line_then_column(small: pd.DataFrame) -> None:
    # given one bad cell in each of many columns, spread over the rows, and a cell that is no text at all
    small = small.astype(object)
    bad = {column: value for column, value, _ in BAD}
    for row, (column, value) in enumerate(bad.items()):
        small.loc[199 - row, column] = value
    small.loc[0, "gender"] = None
    # when
    found = validate(small, DIABETES)
    # then
    assert {(violation.row, violation.column) for violation in found} == {
        (2, "gender"),
        *((201 - row, column) for row, column in enumerate(bad)),
    }
    assert [violation.row for violation in found] == sorted(violation.row for violation in found)


def test_a_second_encounter_of_the_same_number_is_a_violation(small: pd.DataFrame) -> None:
    small.loc[9, "encounter_id"] = small.loc[3, "encounter_id"]
    (violation,) = validate(small, DIABETES)
    assert violation.row == 11 and "occurs earlier" in violation.problem


@pytest.mark.parametrize("column", ["patient_nbr", "age", "time_in_hospital", "diag_1", "insulin"])
def test_an_error_of_the_pipeline_shows_no_value(small: pd.DataFrame, column: str) -> None:
    # given what somebody wrote into a wrong cell, and an encounter that is there twice
    small.loc[small.index[3], column] = "Ms. Meyer"
    small.loc[small.index[9], "encounter_id"] = small.loc[small.index[5], "encounter_id"]
    # when the pipeline refuses them
    with pytest.raises(DataError) as caught:
        check(small, DIABETES)
    # then it names line, column and rule, and no value
    said = str(caught.value)
    assert f"line 5, {column}: must be " in said and "line 11, encounter_id: must occur once" in said
    assert "Meyer" not in said and small.loc[small.index[9], "encounter_id"] not in said


def test_columns_that_are_missing_or_unknown_are_violations_of_the_header(small: pd.DataFrame) -> None:
    found = validate(small.drop(columns="age").assign(extra="x"), DIABETES)
    assert {(violation.row, violation.column) for violation in found} == {(1, "age"), (1, "extra")}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("race", "New"),
        ("admission_source_id", "77"),
        ("payer_code", "ZZ"),
        ("medical_specialty", "Télé-médecine"),
        ("diag_1", "E909.1"),
        ("diag_2", "V57"),
        ("diag_3", "?"),
        ("weight", "?"),
    ],
)
def test_new_open_levels_and_missing_values_keep_the_contract(column: str, value: str, small: pd.DataFrame) -> None:
    small.loc[7, column] = value
    assert validate(small, DIABETES) == []


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([name for name in NAMES if name != "encounter_id"]), st.text(max_size=12))
def test_any_text_in_any_cell_is_either_accepted_or_listed(column: str, value: str) -> None:
    frame = TEMPLATE.assign(**{column: value})
    found = validate(frame, DIABETES)
    assert [(violation.row, violation.column) for violation in found] in ([], [(2, column)])
    if value in BY_NAME[column].levels:
        assert found == []


TEMPLATE = pd.DataFrame({column.name: [column.levels[0] if column.levels else "1"] for column in COLUMNS})


def test_check_sums_up_and_names_the_first_violations(small: pd.DataFrame) -> None:
    small.loc[2:9, "age"] = "old"
    with pytest.raises(DataError, match=r"8 violations .* in f\.csv: line 4, age: must be one of") as error:
        check(small, DIABETES, name="f.csv")
    assert error.value.exit_code == 3


@pytest.mark.parametrize(("label", "word"), [("NO", "no"), ("<30", "every")])
def test_labels_of_one_kind_are_refused(label: str, word: str, small: pd.DataFrame) -> None:
    frame = small.assign(readmitted=label)
    assert validate(frame, DIABETES) == []
    with pytest.raises(DataError, match=f"{word} encounter .*readmitted <30"):
        check(frame, DIABETES)


def test_who_cannot_come_back_is_left_out_and_counted(cohort: pd.DataFrame) -> None:
    kept, lost = without_excluded(cohort, DIABETES), exclusions(cohort, DIABETES)
    assert len(kept) + sum(lost.values()) == len(cohort) and lost
    assert not kept["discharge_disposition_id"].isin(NOT_READMITTABLE).any()
    assert kept.index.equals(pd.RangeIndex(len(kept)))


def test_the_target_is_readmission_within_30_days(small: pd.DataFrame) -> None:
    labels = target(small, DIABETES)
    assert labels.dtype == np.int8 and labels.sum() == (small["readmitted"] == "<30").sum() > 0


def test_a_part_survives_parquet(small: pd.DataFrame, tmp_path: Path) -> None:
    save_part(small, tmp_path / "part.parquet")
    assert same(load_part(tmp_path / "part.parquet"), small)


def test_a_part_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_part(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="not a readable Parquet"):
        load_part(tmp_path / "bad.parquet")


def test_the_real_file_keeps_the_contract_in_seconds(real_data: Path) -> None:
    # when
    frame = read_cohort(real_data, DIABETES)
    began = time.process_time()
    violations = validate(frame, DIABETES)
    # then
    assert time.process_time() - began < 6  # usually under 1
    assert frame.shape == (101_766, 50) and violations == []
    assert target(frame, DIABETES).sum() == 11_357 and sum(exclusions(frame, DIABETES).values()) == 2_423
