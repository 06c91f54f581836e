"""One rule for a value, wherever it arrives: in a file, in a request, before the registered model."""

from __future__ import annotations

import io
import json

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from health_predict.core.data.cohort import validate
from health_predict.core.data.contract import MISSING, Column, Kind
from health_predict.core.data.csv_file import refuse_no_csv
from health_predict.core.data.encounters import as_text, complete, refused
from health_predict.core.data.raw_encounters import read_encounters
from health_predict.errors import DataError
from health_predict.serving.schemas import encounter_model, violations
from tests import modern
from tests.contracts import DIABETES

FEATURES, IDENTIFIERS, BY_NAME = DIABETES.features, DIABETES.identifiers, DIABETES.by_name
EXAMPLE, Encounter = DIABETES.request, encounter_model(DIABETES)
TEXTS = [column for column in FEATURES if column.kind is not Kind.COUNT]
CODES = [
    "E11.9",
    "E10",
    "E119",
    "E1",
    "V1",
    "V92",
    "V00.1",
    "E799",
    "E9999",
    "E999.99",
    "E800.9",
    "V91.99",
    "V57",
    "250.834",
    "1000",
    "1234",
    "01",
    "999",
    "0",
    "٢",
]
WORDS = ["nan", "NULL", "None", "n/a", " Asian", "Asian ", "a\nb", "a\x00", "\u3000a", "\x85", "a\u2028", MISSING, ""]
ODD = (*CODES, *WORDS, "x" * 100, "x" * 101)
values = st.sampled_from(ODD) | st.text(max_size=8) | st.from_regex(r"[EV]?[0-9]{0,4}(\.[0-9]{0,3})?", fullmatch=True)


def asked(column: Column, value: object) -> bool:
    """Whether the service takes the value."""
    return not violations(Encounter, json.dumps({**EXAMPLE, column.name: value}).encode())


def in_a_file(column: Column, text: str) -> bool:
    """Whether a cell of a file may be the text."""
    written = pd.DataFrame({column.name: [text, "x"]}).to_csv(index=False)
    try:
        refuse_no_csv(written.encode(), "a file")
    except DataError:
        return False
    frame = pd.read_csv(io.StringIO(written), dtype=str, keep_default_na=False)
    return not any(one.row == 2 and one.column == column.name for one in validate(frame, DIABETES, labelled=False))


def before_the_model(column: Column, text: str) -> bool:
    """Whether the registered model takes the text."""
    try:
        read_encounters(pd.DataFrame([{**EXAMPLE, column.name: text}]), DIABETES)
    except DataError:
        return False
    return True


@given(st.sampled_from(TEXTS), values.filter(lambda text: ("\r" not in text and text.isprintable()) or text in ODD))
@example(BY_NAME["race"], " \n")
@example(BY_NAME["diag_1"], "E11.9")
@example(BY_NAME["race"], "a\x00")
def test_a_text_is_read_alike_everywhere(column: Column, text: str) -> None:
    assert asked(column, text) == in_a_file(column, text) == before_the_model(column, text) == column.holds(text)


@given(st.sampled_from([column for column in FEATURES if column.kind is Kind.COUNT or column.is_code]), st.integers())
@example(BY_NAME["admission_source_id"], 1234)
def test_a_number_is_read_alike_everywhere(column: Column, number: int) -> None:
    assert asked(column, number) == in_a_file(column, str(number)) == before_the_model(column, str(number))


@pytest.mark.parametrize("code", ["E11.9", "E11.65", "E10", "E1", "V1", "E9999.99", "E119", "V92", "I10", "250.001"])
def test_what_is_no_code_of_icd_9_is_refused(code: str) -> None:
    (found,) = violations(Encounter, json.dumps({**EXAMPLE, "diag_1": code}).encode())
    assert "ICD-9" in found.msg and "ICD-10 is not read" in found.msg and code not in found.msg


@pytest.mark.parametrize("code", ["E800", "E999.9", "V01", "V91.99", "V57.8", "250.83", "38", "008.6"])
def test_a_code_of_icd_9_is_read(code: str) -> None:
    assert BY_NAME["diag_1"].holds(code)


DAYS = ["2026-02-28", "2026-02-30", "2026-2-3", "20260203", "2026-02-03T00:00:00", "0999-01-01", "3000-01-01"]
NUMBERS = ["1", "0", "01", "9" * 18, "9" * 19, "-1", "1.0", "1e3", " 1", "A1"]


@given(st.sampled_from(IDENTIFIERS), st.sampled_from([*DAYS, *NUMBERS, *WORDS]) | st.text(max_size=8))
def test_an_identifier_is_read_by_the_service_as_in_a_file(column: Column, text: str) -> None:
    # given identifiers, which are no part of the published file's contract in this form
    frame = complete(as_text(pd.DataFrame([{**EXAMPLE, column.name: text}])), DIABETES, "a file")
    wrong, _ = refused(frame, DIABETES, [1])
    # then the service takes what may arrive in a file, and nothing else
    assert asked(column, text) == (not wrong[0]) == column.holds(text)


@pytest.mark.parametrize("column", IDENTIFIERS, ids=lambda column: column.name)
def test_an_identifier_that_is_refused_is_not_repeated(column: Column) -> None:
    for value in ("Jane-Doe", "2026-02-30", 10**18, 1.5, True, ["x"]):
        (found,) = violations(Encounter, json.dumps({**EXAMPLE, column.name: value}).encode())
        assert found.loc == ["body", column.name] and found.msg == f"must be {column.allowed}"


def test_a_column_that_is_not_asked_for_is_told_from_one_that_does_not_exist() -> None:
    found = violations(Encounter, json.dumps({**EXAMPLE, "readmitted": "NO", "shoe_size": 41}).encode())
    assert {one.loc[1]: one.msg for one in found} == {
        "readmitted": "is not sent with a request; remove it",
        "shoe_size": "is not a column of the contract; remove it",
    }


class TestOtherKinds:
    """Numbers, flags, levels that are digits, and ICD-10: as the service, a file and the registered model read them."""

    MODEL = encounter_model(modern.CONTRACT)
    TEXTS = [column for column in modern.CONTRACT.features if column.kind is not Kind.COUNT]
    ODD = [
        "1.35",
        "-0",
        "0.0",
        "-450.5",
        "1e3",
        "1.",
        ".5",
        "+1",
        "01",
        "30.0001",
        "Yes",
        "1",
        "6",
        "I50.9",
        "E119",
        "C7A",
    ]
    NUMBERS = st.floats(-100, 100).map(lambda value: round(value, 3)) | st.floats() | st.integers(-5, 50)

    def asked(self, column: Column, value: object) -> bool:
        return not violations(self.MODEL, json.dumps({**modern.CONTRACT.request, column.name: value}).encode())

    def read(self, column: Column, value: object) -> str:
        """The text that the registered model makes of a value; empty where it refuses."""
        row = {**modern.CONTRACT.request, column.name: value}
        try:
            return str(read_encounters(pd.DataFrame([row], dtype=object), modern.CONTRACT)[column.name].iloc[0])
        except DataError:
            return ""

    @given(st.sampled_from(TEXTS), st.sampled_from([*ODD, *CODES, *WORDS]) | st.floats(-100, 100).map(str))
    def test_a_text_is_read_alike_everywhere(self, column: Column, text: str) -> None:
        assert self.asked(column, text) == bool(self.read(column, text)) == column.holds(text)

    @given(st.sampled_from([one for one in modern.CONTRACT.features if one.kind is Kind.NUMBER]), NUMBERS)
    @example(modern.CONTRACT.by_name["balance"], -1e-7)
    @example(modern.CONTRACT.by_name["balance"], 1e-300)
    def test_a_number_is_read_alike_everywhere(self, column: Column, value: float) -> None:
        # given a number as JSON, which has no NaN but Python's own
        if value != value:
            assert not self.asked(column, value)
            return
        text = self.read(column, value)
        assert self.asked(column, value) == bool(text)
        # then its text means it, and arrivals read the very text
        if text:
            assert float(text) == value and column.holds(text)
            assert as_text(pd.DataFrame({"cell": [value]}))["cell"].tolist() == [text]

    @pytest.mark.parametrize(("name", "value", "text"), [("intensive", True, "Yes"), ("smoker", False, "0")])
    def test_a_flag_may_be_true_or_false(self, name: str, value: bool, text: str) -> None:
        column = modern.CONTRACT.by_name[name]
        assert self.read(column, value) == text
        held = self.MODEL.model_validate({**modern.CONTRACT.request, name: value})
        assert getattr(held, name) == text
        assert not self.asked(modern.CONTRACT.by_name["sex"], value)

    @pytest.mark.parametrize(("name", "value"), [("triage", 3), ("smoker", 1), ("triage", 6), ("triage", 0)])
    def test_levels_in_digits_may_be_numbers(self, name: str, value: int) -> None:
        column = modern.CONTRACT.by_name[name]
        assert self.asked(column, value) == bool(self.read(column, value)) == column.holds(str(value))
