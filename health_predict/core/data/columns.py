"""The built-in contract's columns as constants, for what does not take a `Contract` yet."""

from __future__ import annotations

from importlib import resources

from health_predict.core.data.codes import System, category
from health_predict.core.data.contract import (
    MAXIMUM_CODE,
    MAXIMUM_NUMBER,
    MAXIMUM_TEXT,
    MISSING,
    WORDS_FOR_MISSING,
    Column,
    Kind,
    read_contract,
)

__all__ = ["MAXIMUM_CODE", "MAXIMUM_NUMBER", "MAXIMUM_TEXT", "MISSING", "WORDS_FOR_MISSING", "Column", "Kind"]

_NAME = "diabetes-130.yaml"
CONTRACT = read_contract((resources.files("health_predict.contracts") / _NAME).read_text(encoding="utf-8"), _NAME)

TARGET = CONTRACT.outcome.column
POSITIVE = CONTRACT.outcome.positive[0]
NEGATIVE = CONTRACT.outcome.negative
PATIENT = CONTRACT.patient
ENCOUNTER = CONTRACT.encounter[0]
DATE = CONTRACT.date
DISCHARGE = CONTRACT.exclude[0].column
NOT_READMITTABLE = CONTRACT.exclude[0].levels
DRUGS = CONTRACT.groups[0].columns
AGES = CONTRACT.by_name["age"].levels
DIAGNOSES = CONTRACT.names(Kind.CODE)
COLUMNS = CONTRACT.table
BY_NAME = {column.name: column for column in COLUMNS}
FEATURES = CONTRACT.features
IDENTIFIERS = CONTRACT.identifiers
EXAMPLE: dict[str, str | int | None] = {
    column.name: int(text) if text is not None and column.kind is Kind.COUNT else text
    for column in FEATURES
    for text in (CONTRACT.example.get(column.name),)
}
_CHAPTERS = BY_NAME[DIAGNOSES[0]].chapters
ICD9_CHAPTERS = _CHAPTERS.names
icd9_chapter = _CHAPTERS.of


def icd9_category(code: str) -> str:
    """The code without its decimals: `250.83` is `250`."""
    return category(code, System.ICD9CM)
