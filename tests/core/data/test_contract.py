"""A contract file: what it may say, and what is said of a wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from health_predict.adapters.contracts import FOLDER
from health_predict.core.data.contract import MISSING, Column, Contract, Kind
from health_predict.core.data.contract_file import file_schema, read_contract
from health_predict.errors import DataError
from tests import modern
from tests.contracts import DIABETES

BUILT_IN = (FOLDER / "diabetes-130.yaml").read_text(encoding="utf-8")


def column(**values: Any) -> Column:
    return Column(name="x", **values)


def test_a_contract_survives_its_json_and_keeps_its_digest() -> None:
    for contract in (DIABETES, modern.CONTRACT):
        again = Contract.from_json(contract.to_json())
        assert again == contract and again.digest == contract.digest


def test_comments_and_layout_do_not_change_the_digest() -> None:
    # given the same contract, written by another hand
    plain = yaml.dump(yaml.load(BUILT_IN, yaml.BaseLoader), default_style='"', sort_keys=False)
    assert read_contract(plain, "x").digest == DIABETES.digest
    assert read_contract(BUILT_IN.replace("Gender as recorded", "Sex"), "x").digest != DIABETES.digest


def test_the_levels_no_and_yes_stay_text() -> None:
    assert DIABETES.by_name["change"].levels == ("No", "Ch") and DIABETES.by_name["diabetesMed"].levels == ("No", "Yes")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: diabetes-130", "name: Diabetes 130", r"line 3, name: String should match"),
        ("patient: patient_nbr", "patient: nobody", r"line \d+, patient: there is no column nobody"),
        ("order: encounter_id", "order: race", "race is of kind open level; it must be"),
        ("    kind: flag", "    kind: flagg", "Input should be"),
        ('positive: ["<30"]', 'positive: ["<60"]', "outcome.positive: <60: must be some of the levels"),
        ('  negative: "NO"', '  negative: "<30"', "outcome.negative: must be a level that is not positive"),
        ("single_predictor: number_inpatient", "single_predictor: race", "race is of kind open level"),
        ('levels: ["11", "13"', 'levels: ["x", "13"', "exclude.0: discharge_disposition_id has no level x"),
        ('words:\n      {"1": emergency', 'words:\n      {"one": emergency', "`words` names one, which"),
        ("  time_in_hospital: \"6\"", "  time_in_hospital: \"60\"", "example.time_in_hospital: must be a whole number"),
        ("  race: Caucasian", "  color: red", "example.color: is no column that a prediction uses"),
        ("follow_up_days: 30", "follow_up_days: soon", "follow_up_days: Input should be a valid number"),
        ("follow_up_days: 30", "follow_up_days: 30\nfolow_up: 1", "folow_up: the word is unknown here"),
        ("  change:\n", "  gender:\n", "columns.gender: is written twice"),
        ("    system: icd9cm\n", "", "columns.diag_1: a code needs its `system`"),
        ("order: encounter_id", "order: [encounter_id", "line 1[0-9] is not valid YAML"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(old: str, new: str, said: str) -> None:
    text = BUILT_IN.replace("    kind: level\n    levels: [No, Ch]", "    kind: flag\n    levels: [No, Ch]")
    assert old in text
    with pytest.raises(DataError, match=said) as caught:
        read_contract(text.replace(old, new, 1), "mine.yaml")
    assert "mine.yaml" in str(caught.value) and caught.value.remedy


def test_the_line_is_that_of_the_column() -> None:
    text = BUILT_IN.replace("    minimum: 1\n    maximum: 14", "    minimum: x\n    maximum: 14")
    line = text.splitlines().index("    minimum: x") + 1
    with pytest.raises(DataError, match=f"line {line}, columns.time_in_hospital.minimum"):
        read_contract(text, "mine.yaml")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_what_is_no_contract_is_told_so(text: str) -> None:
    with pytest.raises(DataError, match="no data contract") as caught:
        read_contract(text, "mine.yaml")
    assert "contract draft" in caught.value.remedy


@pytest.mark.parametrize(
    ("kind", "holds", "refuses"),
    [
        ({"kind": "identifier"}, ["A-1", "1", "x y"], ["", " x", "x\n", "nan", "NULL", "x" * 101]),
        ({"kind": "identifier", "numeric": True}, ["1", "9" * 18], ["0", "01", "1.0", "-1", "9" * 19, "x"]),
        ({"kind": "date"}, ["2026-02-28"], ["2026-02-30", "28.02.2026", "2026-2-8", "2026-02-28T00:00"]),
        ({"kind": "count", "minimum": 1, "maximum": 14}, ["1", "14"], ["0", "15", "1.0", "01", "1e1", "\u0661"]),
        ({"kind": "number", "minimum": -5, "maximum": 40.5}, ["-5", "40.5", "1e1"], ["-5.1", "41", "36,6", "nan"]),
        ({"kind": "level", "levels": ("a", "b")}, ["a"], ["c", "A", ""]),
        ({"kind": "open level"}, ["anything", "N/A of old"], ["n/a", "None", " a", "a\u0085"]),
        ({"kind": "open level", "levels": ("None", "x")}, ["None", "y"], ["nan"]),
        ({"kind": "flag", "levels": ("N", "Y")}, ["N", "Y"], ["n", "1", "true"]),
        ({"kind": "code", "system": "icd9cm"}, ["428", "250.83", "V57", "E909"], ["E11.9", "I50.9", "1000", "V00"]),
        ({"kind": "code", "system": "icd10cm"}, ["E11.9", "I509", "C7A.1", "S72001A"], ["428", "V57.", "e11"]),
    ],
)  # fmt: skip
def test_a_column_holds_exactly_what_its_kind_says(kind: dict[str, Any], holds: list[str], refuses: list[str]) -> None:
    described = column(**kind)
    assert [text for text in holds if not described.holds(text)] == []
    assert [text for text in refuses if described.holds(text)] == []
    assert not described.holds(MISSING) and column(**kind, nullable=True).holds(MISSING)


def test_what_a_contract_leaves_out_of_its_example_is_filled_with_a_value_that_may_be() -> None:
    for contract in (DIABETES, modern.CONTRACT):
        for without in (contract, contract.model_copy(update={"example": {}})):
            request = without.request
            assert [*request] == [one.name for one in contract.features]
            texts = {name: MISSING if value is None else str(value) for name, value in request.items()}
            assert all(one.holds(texts[one.name]) for one in contract.features)


def test_the_schema_for_editors_takes_the_built_in_contract_and_refuses_a_wrong_word() -> None:
    schema = file_schema()
    content = yaml.safe_load(BUILT_IN.replace("[No, Ch]", '["No", Ch]').replace("[No, Yes]", '["No", "Yes"]'))
    jsonschema.Draft202012Validator.check_schema(schema)
    wrong = {**content, "columns": {**content["columns"], "race": {"kind": "colour"}}}
    found = [list(error.path) for error in jsonschema.Draft202012Validator(schema).iter_errors(wrong)]
    assert ["columns", "race", "kind"] in found


@given(st.sampled_from([one for one in DIABETES.columns if one.kind is Kind.COUNT]), st.integers(-5, 400))
def test_a_count_holds_the_numbers_of_its_range(described: Column, number: int) -> None:
    assert described.holds(str(number)) == (number in described.counts)


def test_the_built_in_file_is_the_published_one(tmp_path: Path) -> None:
    assert DIABETES.published is not None and DIABETES.published.url.startswith("https://archive.ics.uci.edu/")
    assert json.loads(DIABETES.to_json())["name"] == "diabetes-130"
