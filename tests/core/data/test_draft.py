"""A contract drafted from a table."""

from __future__ import annotations

import pandas as pd
import pytest

from health_predict.core.data.cohort import check, target, validate, with_missing
from health_predict.core.data.contract import Contract, Kind
from health_predict.core.data.contract_file import read_contract
from health_predict.core.data.draft import DECIDE, draft, undecided
from health_predict.errors import DataError
from tests import modern


def drafted(frame: pd.DataFrame) -> tuple[str, Contract]:
    text = draft(frame, "a table")
    return text, read_contract(text, "draft")


def test_a_modern_extract_is_recognised() -> None:
    # given a table with dates, measurements, flags and ICD-10
    frame = modern.extract(1500, seed=1)
    # when a contract is drafted
    text, contract = drafted(frame)
    # then it has the roles and nearly all kinds of the one that a person wrote
    assert contract.encounter == ("visit",) and contract.patient == "person"
    assert (contract.order, contract.date) == ("discharged", "discharged")
    assert (contract.outcome.column, contract.outcome.positive) == ("returned", ("1",))
    assert set(contract.missing) == {"NULL", ""}
    kinds = {column.name: column.kind for column in contract.columns}
    written = {modern.NAMES.get(column.name, column.name): column.kind for column in modern.CONTRACT.columns}
    assert {name for name in written if kinds.get(name) is not written[name]} == {"triage", "went", "ward"}
    assert (
        kinds["triage"] is Kind.COUNT
        and kinds["went"] is kinds["ward"] is Kind.LEVEL
        and written.keys() == kinds.keys()
    )
    assert {column.system for column in contract.columns if column.kind is Kind.CODE} == {"icd10cm"}
    # and the table keeps it, once what is missing is known
    known = with_missing(frame, contract)[[column.name for column in contract.table]]
    assert validate(known, contract) == []
    check(known, contract)
    assert 0 < target(known, contract).mean() < 0.5 and text.count(DECIDE) > 4


def test_every_line_says_why_and_the_example_is_nobodys() -> None:
    frame = modern.extract(1500, seed=1)
    text, contract = drafted(frame)
    columns = text[text.index("columns:") : text.index("example:")].splitlines()
    assert all("#" in line for line in columns if line.startswith("  ") and not line.startswith("   "))
    known = with_missing(frame, contract)
    example = pd.Series(contract.example)
    assert not (known[[*example.index]] == example).all(axis=1).any()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["0", "1", "1", "0"], Kind.FLAG),
        (["No", "Yes", "No", "No"], Kind.FLAG),
        (["1.5", "2", "-3.25", "2e1"], Kind.NUMBER),
        (["0", "3", "7", "3"], Kind.COUNT),
        (["90000", "3", "7", "3"], Kind.NUMBER),
        (["2026-01-01", "2026-01-02", "2026-01-01", "2026-01-01"], Kind.DATE),
        (["a", "b", "a", "b"], Kind.LEVEL),
    ],
)
def test_the_kind_follows_from_the_values(values: list[str], kind: Kind) -> None:
    frame = pd.DataFrame(
        {"row_id": ["11", "12", "13", "14"], "pid": ["1", "1", "2", "2"], "x": values, "n": list("5657")}
    )
    assert drafted(frame)[1].by_name["x"].kind is kind


def test_what_is_no_column_for_a_model_is_left_out_with_the_reason() -> None:
    frame = pd.DataFrame(
        {
            "row_id": [str(n) for n in range(10, 30)],
            "": [str(n) for n in range(20)],
            "empty": ["NA"] * 20,
            "note": [f"patient {n} was seen and sent home with a letter" for n in range(20)],
            "n": [str(n % 7) for n in range(20)],
        }
    )
    text, contract = drafted(frame)
    assert set(contract.ignore) == {"", "empty", "note"} and "free text" in text and "empty in all rows" in text


def test_nothing_is_refused() -> None:
    # given a table without anything that identifies, counts or happens
    text = draft(pd.DataFrame({"a": ["x", "y", "x"], "b": ["u", "u", "v"]}), "Äußerst/klein")
    assert DECIDE in text and "name: u-erst-klein" in text


def test_who_is_who_is_told_by_name_whatever_the_numbers_look_like() -> None:
    # given numbers with leading zeros and with letters, and encounters that look like codes
    rows = 200
    frame = pd.DataFrame(
        {
            "Enc": [f"E{number}" for number in range(rows)],
            "MRN": [f"{number % 70:08d}" for number in range(rows)],
            "Age": [str(40 + number % 50) for number in range(rows)],
            "left": [f"2026-01-{1 + number % 28:02d}" for number in range(rows)],
            "Returned": ["Y" if number % 7 == 0 else "N" for number in range(rows)],
        }
    )
    frame = frame.rename(columns={"Enc": "Encounter"})
    text, contract = drafted(frame)
    assert (contract.encounter, contract.patient) == (("Encounter",), "MRN")
    assert contract.by_name["MRN"].kind is Kind.IDENTIFIER and "MRN" not in contract.example
    assert {*contract.example} == {"Age"} and undecided(text)


def test_numbers_and_days_that_are_written_otherwise_are_marked() -> None:
    rows = 300
    frame = pd.DataFrame(
        {
            "patient": [str(100 + number % 90) for number in range(rows)],
            "lab": [f"{number / 7:.2f}" if number % 20 else "<0.5" for number in range(rows)],
            "day": [f"{1 + number % 28:02d}/01/2026" for number in range(rows)],
            "n": [str(number % 7) for number in range(rows)],
        }
    )
    text, contract = drafted(frame)
    assert contract.by_name["lab"].kind is Kind.NUMBER and contract.by_name["day"].kind is Kind.DATE
    marked = [text.splitlines()[number - 1] for number in undecided(text)]
    assert any("<0.5" in line for line in marked) and any("YYYY-MM-DD" in line for line in marked)


@pytest.mark.parametrize("frame", [pd.DataFrame({"a": [], "b": []}, dtype="str"), pd.DataFrame({"a": ["1", "2"]})])
def test_what_is_no_table_is_told_so(frame: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="holds no table"):
        draft(frame, "header")
