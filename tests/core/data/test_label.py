"""Outcomes that follow from the patient's next row."""

from __future__ import annotations

import pandas as pd
import pytest

from health_predict.core.data.cohort import label
from health_predict.core.data.contract import Contract
from health_predict.core.data.contract_file import read_contract
from health_predict.errors import DataError

TEXT = """
name: stays
title: Back within 30 days
encounter: [stay]
patient: patient
order: left
date: left
outcome: {{next: {next}}}
single_predictor: days
columns:
  stay: {{kind: identifier}}
  patient: {{kind: identifier}}
  left: {{kind: date}}
  days: {{kind: count, maximum: 60, nullable: true}}
"""
FRAME = pd.DataFrame(
    {
        "stay": ["1", "2", "3", "4", "5", "6"],
        "patient": ["a", "a", "a", "b", "b", "c"],
        "left": ["2026-01-01", "2026-01-20", "2026-04-01", "2026-01-05", "2026-02-20", "2026-04-20"],
        "days": ["1", "0", "3", "2", "?", "5"],
    }
)


def contract(text: str) -> Contract:
    return read_contract(TEXT.format(next=text), "stays.yaml")


def labels(text: str) -> dict[str, str]:
    frame = label(FRAME, contract(text))
    return dict(zip(frame["stay"], frame["outcome"], strict=True))


def test_that_there_is_a_next_row_in_time_is_an_outcome() -> None:
    # then stays without one are negative once the table goes on for 30 days, and unknown at its end
    assert labels("{within: 30, without: negative}") == {"1": "1", "2": "0", "4": "0", "5": "0"}


def test_a_column_of_the_next_row_is_an_outcome_of_those_who_have_one() -> None:
    assert labels("{column: days, above: 0, within: 100}") == {"1": "0", "2": "1"}
    # whose next row does not say it is unknown all the same
    assert labels("{column: days, above: 0, within: 30, without: negative}") == {"1": "0", "2": "0", "4": "0", "5": "0"}


def test_a_rule_by_which_everybody_is_positive_is_refused() -> None:
    with pytest.raises(DataError, match="say `without: negative`"):
        contract("{within: 30}")
