"""Encounters of any types: what counts as missing, and which rows break the contract."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest

from health_predict.core.data.contract import MISSING
from health_predict.core.data.encounters import as_text, complete, names_of, refused
from health_predict.errors import DataError
from tests.cohorts import synthesize
from tests.contracts import DATE, DIABETES, ENCOUNTER, PATIENT, TARGET


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, MISSING),
        (float("nan"), MISSING),
        (pd.NA, MISSING),
        (pd.NaT, MISSING),
        (5, "5"),
        (5.0, "5"),
        (np.int8(5), "5"),
        (2.5, "2.5"),
        (float("inf"), "inf"),
        ("[70-80)", "[70-80)"),
        (datetime.date(2026, 1, 5), "2026-01-05"),
        (pd.Timestamp("2026-01-05"), "2026-01-05"),
        (pd.Timestamp("2026-01-05T12:00"), "2026-01-05T12:00:00"),
        (True, "True"),
    ],
)
def test_a_cell_of_any_type_is_text(value: object, text: str) -> None:
    assert as_text(pd.DataFrame({"a": pd.Series([value, "x"], dtype=object)}))["a"].tolist() == [text, "x"]


@pytest.mark.parametrize("dtype", ["Int64", "float64", "category", "string"])
def test_a_column_of_any_type_is_text(dtype: str) -> None:
    column = pd.Series([1, 2, None], dtype="float64").astype(dtype)
    texts = as_text(pd.DataFrame({"a": column}))["a"].tolist()
    assert texts == (["1.0", "2.0", MISSING] if dtype == "string" else ["1", "2", MISSING])


def test_columns_that_may_be_missing_may_be_absent_and_others_not() -> None:
    frame = synthesize(3, seed=1).drop(columns=[TARGET, ENCOUNTER, PATIENT, "race"])
    whole = complete(frame, DIABETES, "a file")
    assert whole.columns.tolist() == names_of(DIABETES)
    assert (whole[[ENCOUNTER, PATIENT, DATE, "race"]] == MISSING).all(axis=None)
    for wrong, message in (
        (frame.drop(columns="age"), "lacks age"),
        (frame.assign(colour="red"), "has unknown colour"),
        (pd.concat([frame, frame[["age"]]], axis=1), "names more than once: age"),
    ):
        with pytest.raises(DataError, match=message):
            complete(wrong, DIABETES, "a file")


def test_what_is_refused_is_named_without_a_value() -> None:
    # given rows that are right, and some with a wrong level, a list, a word for missing, a wrong date
    frame = complete(synthesize(6, seed=1).drop(columns=TARGET), DIABETES, "a file").astype(object)
    frame.loc[1, "age"] = "[200-210)"
    frame.at[2, "diag_1"] = ["250", "401"]
    frame.loc[3, "payer_code"] = "NaN"
    frame.loc[4, DATE] = "2026-02-30"
    # when they are looked at
    wrong, refusals = refused(as_text(frame), DIABETES, range(2, 8))
    # then these rows are refused, each with its column, rule and line, and no value
    assert wrong.tolist() == [False, True, True, True, True, False]
    assert {(one.column, one.lines) for one in refusals} == {
        ("age", (3,)),
        ("diag_1", (4,)),
        ("payer_code", (5,)),
        (DATE, (6,)),
    }
    said = " ".join(one.rule for one in refusals)
    assert "[200-210)" not in said and "2026-02-30" not in said
