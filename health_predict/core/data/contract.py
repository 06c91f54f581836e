"""The data contract: everything that is special about a hospital's table, read from a file.

A contract names the table's columns and what each may hold, which of them identify an encounter and a patient, what
orders encounters, what the outcome is, and which words people use for it. The library knows nothing else of the table.
`contracts/` holds the built-in one. The prediction service imports this module: no pandas.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import date
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from health_predict.core.data import codes
from health_predict.core.data.codes import Chapters, System

MISSING = "?"  # a missing value in a cohort frame
MAXIMUM_NUMBER = 10**18 - 1  # of an identifier: fits 64 bits
MAXIMUM_CODE = 999  # of a level that is written as a number
MAXIMUM_TEXT = 100  # characters of a level that is free
MAXIMUM_COUNT = 10_000  # a count has a table of its values
# What is written for a missing value by mistake, in any case: `str(None)`, pandas, R, SQL.
WORDS_FOR_MISSING = frozenset({"nan", "none", "null", "na", "n/a", "<na>", "nat", "missing"})


class Kind(StrEnum):
    """How a column's values are read."""

    IDENTIFIER = "identifier"  # names an encounter or a patient; never a feature
    DATE = "date"  # a day, which orders encounters; never a feature
    COUNT = "count"  # an integer between `minimum` and `maximum`
    NUMBER = "number"  # a measurement between `minimum` and `maximum`, in `unit`
    LEVEL = "level"  # one of `levels` and nothing else
    OPEN_LEVEL = "open level"  # usually one of `levels`; a new one is scored and counted
    FLAG = "flag"  # no or yes, written as the two `levels`
    CODE = "code"  # a diagnosis code of `system`
    OUTCOME = "outcome"  # the label


# What a whole text of a kind looks like, in words that Python, Rust (pydantic) and JSON Schema read alike.
# A file, the service and the registered model all read by these.
PATTERNS = {
    Kind.COUNT: "0|[1-9][0-9]{0,8}",
    Kind.NUMBER: r"-?[0-9]{1,12}(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?",
    Kind.DATE: "[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
}
NUMERIC = "[1-9][0-9]{0,17}"  # fits 64 bits
_CODE = "[1-9][0-9]{0,2}"
# Without outer blanks and control characters, each by its number: what a blank is differs from one language to another.
_CONTROL = r"\x00-\x1f\x7f-\x9f"
_BLANK = r"\x20\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_TEXT = rf"[^{_CONTROL}{_BLANK}]([^{_CONTROL}]*[^{_CONTROL}{_BLANK}])?"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Part):
    """One column: its name in the file and in a request, and what it may hold."""

    name: str = Field(min_length=1, max_length=100, pattern="^[^<>]*$")  # Evidently puts it into its page as it is
    kind: Kind = Field(description="How values are read")
    description: str = Field("", description="What the column says, for people")
    levels: tuple[str, ...] = Field((), description="Of a level or an open level; of a flag: no, then yes")
    words: Mapping[str, str] = Field({}, description="What levels mean, where they are codes: 1: emergency")
    minimum: int | float | None = Field(None, description="Smallest count (0 if absent) or number")
    maximum: int | float | None = Field(None, description="Largest count or number")
    unit: str = Field("", description="Unit of a number or a count")
    nullable: bool = Field(False, description="Whether a value may be missing")
    optional: bool = Field(False, description="Of an identifier or a date: files may lack the column")
    numeric: bool = Field(False, description="Of an identifier: a whole number, as what orders encounters must be")
    system: System | None = Field(None, description="Of a code: the system that it is of")
    apart: Mapping[str, tuple[str, ...]] = Field({}, description="Of a code: categories counted beside their chapter")
    ordered: bool = Field(False, description="Of a level: the levels stand in an order that means something")
    logarithm: bool = Field(False, description="Of a count: a tenth says less than a first")
    steps: tuple[int, ...] = Field((), description="Of a count: bounds that a linear model should see")

    @property
    def is_feature(self) -> bool:
        """Whether a prediction may use it."""
        return self.kind not in (Kind.IDENTIFIER, Kind.DATE, Kind.OUTCOME)

    @property
    def is_code(self) -> bool:
        """Whether the open levels are numbers, which a client may write with or without quotes."""
        return self.kind is Kind.OPEN_LEVEL and bool(self.levels) and self.levels[0].isdigit()

    @property
    def first(self) -> str:
        """The first value that the column may hold: missing, where it may be."""
        if self.nullable:
            return MISSING
        if self.kind in (Kind.COUNT, Kind.NUMBER):
            return str(self.minimum or 0)
        return codes.EXAMPLES[self.system] if self.system else (*self.levels, "any")[0]

    @property
    def counts(self) -> range:
        """Every value of a count."""
        return range(int(self.minimum or 0), int(self.maximum or 0) + 1)

    @cached_property
    def chapters(self) -> Chapters:
        """Chapters of a code column. Raises ValueError for another."""
        if self.system is None:
            raise ValueError(f"{self.name} holds no codes")
        return Chapters(self.system, self.apart)

    @property
    def described(self) -> str:
        """What a cell may hold unless it is missing, in words."""
        match self.kind:
            case Kind.IDENTIFIER if self.numeric:
                return "a positive whole number of at most 18 digits"
            case Kind.DATE:
                return "a day as YYYY-MM-DD"
            case Kind.COUNT:
                return f"a whole number from {self.minimum or 0} to {self.maximum}{self._of_unit}"
            case Kind.NUMBER:
                return f"a number from {self.minimum} to {self.maximum}{self._of_unit}"
            case Kind.LEVEL | Kind.FLAG | Kind.OUTCOME:
                return f"one of {', '.join(self.levels)}"
            case Kind.CODE if self.system:
                return codes.described(self.system)
        if self.is_code:
            return f"a code from 1 to {MAXIMUM_CODE}, as a whole number or as its digits"
        return f"text of 1 to {MAXIMUM_TEXT} characters without outer blanks"

    @property
    def _of_unit(self) -> str:
        return f" ({self.unit})" if self.unit else ""

    def in_words(self, level: str) -> str:
        """A level as people read it: `emergency (1)` where the contract has a word for it, `missing` for none."""
        if level == MISSING:
            return "missing"
        return f"{self.words[level]} ({level})" if level in self.words else level

    @property
    def allowed(self) -> str:
        """What a request may hold, in words."""
        return f"{self.described}; null, {MISSING} or absent when unknown" if self.nullable else self.described

    @cached_property
    def pattern(self) -> str:
        """Regular expression of a whole text that is not missing; empty where levels alone say what is allowed."""
        if self.kind is Kind.IDENTIFIER:
            return NUMERIC if self.numeric else _TEXT
        if self.kind is Kind.OPEN_LEVEL:
            return _CODE if self.is_code else _TEXT
        if self.system is not None:
            return codes.pattern(self.system)
        return PATTERNS.get(self.kind, "")

    @cached_property
    def _no_values(self) -> frozenset[str]:
        """Words for missing, but for those that the column has as levels."""
        return WORDS_FOR_MISSING - {level.lower() for level in self.levels}

    def holds(self, text: str) -> bool:
        """Whether a value may be this text, wherever it stands: in a file, in a request, before a registered model."""
        if text == MISSING:
            return self.nullable
        if not self.pattern:
            return text in self.levels
        if not re.fullmatch(self.pattern, text):
            return False
        if self.kind is Kind.COUNT:
            return int(text) in self.counts
        if self.kind is Kind.NUMBER:
            return (self.minimum or 0) <= float(text) <= (self.maximum or 0)
        if self.kind is Kind.DATE:
            return _is_day(text)
        if self.kind in (Kind.OPEN_LEVEL, Kind.IDENTIFIER) and self.pattern == _TEXT:
            return len(text) <= MAXIMUM_TEXT and text.lower() not in self._no_values
        return True

    def value(self, text: str) -> str | int | float | None:
        """A text that the column holds as a request has it: counts and numbers as such, None for what is missing."""
        if text == MISSING:
            return None
        if self.kind is Kind.COUNT:
            return int(text)
        return float(text) if self.kind is Kind.NUMBER else text


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


class Next(_Part):
    """The outcome is of the patient's next row: that there is one, or that a column of it is above a value."""

    column: str = Field("", description="Column of the next row; empty: that there is such a row is the outcome")
    above: float = Field(0, description="The outcome is positive when that column is above this")
    within: float = Field(
        description="How much later the next row may come and count: days of a date, else steps of `order`"
    )
    without: Literal["unlabelled", "negative"] = Field(
        "unlabelled",
        description="What a row without a next one that counts is; negative: once the table goes on for `within`",
    )

    @property
    def rule(self) -> str:
        """When the outcome is positive, in words."""
        if not self.column:
            return f"a next row within {self.within:g}"
        return f"{self.column} of the patient's next row above {self.above:g}"


class Outcome(_Part):
    """What is predicted, and the words for it."""

    column: str = Field("outcome", description="Column of the label; where it is made from the next row, its name")
    levels: tuple[str, ...] = Field(("0", "1"), description="What the column may hold")
    positive: tuple[str, ...] = Field(("1",), description="The levels that are the outcome")
    negative: str = Field("0", description="The level of somebody of whom no more is known than that it did not happen")
    next: Next | None = Field(None, description="Make the label from the patient's next row")
    description: str = Field("", description="What the column says, for people")
    event: str = Field("event", description="One of it: readmission")
    events: str = Field("events", description="Several of it: readmissions")
    happened: str = Field("with the outcome", description="Of whom it happened to: readmitted within 30 days")

    @property
    def an_event(self) -> str:
        """One of it, with its article: a readmission."""
        return f"{'an' if self.event[:1] in 'aeiou' else 'a'} {self.event}"


class Exclusion(_Part):
    """Encounters that are left out of training and judging."""

    column: str = Field(description="A column with levels")
    levels: tuple[str, ...] = Field(min_length=1, description="Of those encounters")
    reason: str = Field(min_length=1, description="Why, for people")


class Group(_Part):
    """Columns that are also counted together, such as drugs."""

    columns: tuple[str, ...] = Field(min_length=2, description="Names of columns with levels")
    counts: Mapping[str, tuple[str, ...]] = Field(description="For each count the levels that add one to it")


class Subgroups(_Part):
    """Patients for whom figures are shown apart."""

    column: str = Field(description="By which patients are told apart")
    groups: Mapping[str, tuple[str, ...]] = Field(
        {}, description="Levels that are taken together, by a name; else each"
    )
    bounds: tuple[float, ...] = Field((), description="Of a number or a count: where a next group begins")


class Published(_Part):
    """Where the table is published, so that a first try needs no file."""

    name: str = Field(pattern="^[a-z0-9-]+$", description="What records call this source: uci")
    url: str = Field(pattern="^https?://", description="Address of the file, or of a ZIP archive that holds it")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the unpacked file")
    file: str = Field(description="Name of the file in the archive")


class Contract(_Part):
    """A table of encounters. `columns` stand in the order of the file; the outcome is `outcome`, not one of them."""

    format: int = Field(1, ge=1, le=1, description="Version of this format")
    name: str = Field(pattern="^[a-z0-9][a-z0-9-]{0,50}$", description="Names the registered model")
    title: str = Field(min_length=1, description="One line for people")
    description: str = Field("", description="What the table is and where it comes from")
    published: Published | None = Field(None, description="Where the table is published")
    missing: tuple[str, ...] = Field((MISSING,), description='What files write for a missing value; "": an empty cell')
    encounter: tuple[str, ...] = Field(min_length=1, description="Column or columns that identify an encounter")
    patient: str = Field(description="Column that identifies a patient")
    order: str = Field(description="Column that orders encounters in time: a numeric identifier, a count or a date")
    date: str = Field("", description="Column with the day of an encounter, by which arrivals fall into windows")
    outcome: Outcome = Field(description="What is predicted, and its words")
    follow_up_days: float = Field(30, ge=0, description="Days until an outcome is known")
    exclude: tuple[Exclusion, ...] = Field((), description="Encounters that are left out of training and judging")
    ignore: tuple[str, ...] = Field((), description='Columns of files that nobody needs; "" is one without a name')
    columns: tuple[Column, ...] = Field(min_length=1, description="All columns but the label, in the order of the file")
    groups: tuple[Group, ...] = Field((), description="Columns that are also counted together")
    subgroups: tuple[Subgroups, ...] = Field((), description="Patients for whom figures are shown apart")
    single_predictor: str = Field(description="Count or number that a model must beat alone")
    scores: str = Field("", description="Plug-in with the field's own scores (entry point health_predict.scores)")
    synthetic: str = Field("", description="File beside the contract from which a made-up table is drawn")
    example: Mapping[str, str] = Field({}, description="A made-up encounter, for documentation and first tries")

    @model_validator(mode="before")
    @classmethod
    def _columns_by_name(cls, values: Any) -> Any:
        # In a file the columns are a mapping from their names, which reads better.
        if isinstance(values, Mapping) and isinstance(values.get("columns"), Mapping):
            columns = [{"name": name, **item} if isinstance(item, Mapping) else item
                       for name, item in values["columns"].items()]  # fmt: skip
            return {**values, "columns": columns}
        return values

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """A contract as `to_json` wrote it."""
        return cls.model_validate_json(data)

    def to_json(self) -> bytes:
        """The contract without comments and defaults, stable in its order."""
        plain = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps({"format": self.format, **plain}, ensure_ascii=False, separators=(",", ":")).encode()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the contract says: comments and layout of its file do not count."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @cached_property
    def target(self) -> Column:
        """The label as a column."""
        outcome = self.outcome
        return Column(name=outcome.column, kind=Kind.OUTCOME, levels=outcome.levels, description=outcome.description)

    @cached_property
    def by_name(self) -> Mapping[str, Column]:
        """All columns by their names, the label last."""
        return {column.name: column for column in (*self.columns, self.target)}

    @cached_property
    def table(self) -> tuple[Column, ...]:
        """The columns of a cohort frame in their order, the label last."""
        return (*(column for column in self.columns if not column.optional), self.target)

    @cached_property
    def features(self) -> tuple[Column, ...]:
        """The columns that a prediction uses."""
        return tuple(column for column in self.columns if column.is_feature)

    @cached_property
    def identifiers(self) -> tuple[Column, ...]:
        """What an arrival may say of itself beside its features: who it is about, and when."""
        others = (column for column in self.columns if not column.is_feature)
        return tuple(column.model_copy(update={"nullable": True}) for column in others)

    @cached_property
    def request(self) -> Mapping[str, str | int | float | None]:
        """The example as the body of a request; what it leaves out is missing, or the first value that may be."""
        return {column.name: column.value(self.example.get(column.name, column.first)) for column in self.features}

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Names of the columns of a kind."""
        return tuple(column.name for column in self.columns if column.kind is kind)
