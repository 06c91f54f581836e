"""What a request may hold: one encounter as a flat JSON object under the dataset's own column names.

Two readings of one contract. `DECODER` decides in microseconds whether a body is valid, by a type generated from
the columns; how a code is written it leaves to `well_formed`, which only values have to pass that the model does not
know. When either says no, `violations` looks again, slowly, to name everything that is wrong at once.
No message repeats a value of the request: it may be a patient's.
"""

from __future__ import annotations

import json
import math
import re
from enum import Enum
from typing import Annotated, Any, Self

import msgspec

from health_predict.core.columns import (
    CODE_PATTERN,
    FEATURES,
    ICD9_PATTERN,
    MAXIMUM_CODE,
    MAXIMUM_TEXT,
    MISSING,
    Column,
    Kind,
)

# `\d` would take the digits of every script.
DIAGNOSIS = ICD9_PATTERN.replace(r"\d", "[0-9]")
# How many violations one answer lists: a hostile batch must not become a bigger answer.
LONGEST_LIST = 1000
# A wrong name is repeated to show the typing mistake, cut to this length.
LONGEST_NAME = 64


class Violation(msgspec.Struct, frozen=True):
    """One thing that is wrong with a request."""

    loc: tuple[str | int, ...]
    msg: str
    type: str


class Level(bytes, Enum):
    """A level of a column: the value is its text, the one byte its number among the column's levels.

    So a list of them is an array of numbers once it is joined, and a decoder need not make a text for each.
    """

    def __new__(cls, text: str, number: int) -> Self:
        """The member of this text."""
        member = bytes.__new__(cls, bytes([number]))
        member._value_ = text
        return member

    def __repr__(self) -> str:
        """That of its text."""
        return repr(self.value)


def text_of(value: Any) -> Any:
    """A decoded value as the client wrote it."""
    return value.value if isinstance(value, Level) else value


def _levels_of(column: Column) -> Any:
    texts = (*column.levels, *((MISSING,) if column.nullable else ()))
    return Level(column.name, [(f"level_{number}", (text, number)) for number, text in enumerate(texts)])


LEVELS = {column.name: _levels_of(column) for column in FEATURES if column.kind is Kind.LEVEL}
"""The types of columns of levels, by the column's name."""


def _type_of(column: Column) -> Any:
    if column.kind is Kind.COUNT:
        kind: Any = Annotated[int, msgspec.Meta(ge=column.minimum, le=column.maximum)]
    elif column.kind is Kind.LEVEL:
        kind = LEVELS[column.name]
    elif column.kind is Kind.ICD9:
        kind = str
    elif column.is_code:
        kind = Annotated[int, msgspec.Meta(ge=1, le=MAXIMUM_CODE)] | str
    else:
        kind = Annotated[str, msgspec.Meta(min_length=1, max_length=MAXIMUM_TEXT)]
    return kind | None if column.nullable else kind


def _attribute(column: Column) -> str:
    return column.name.replace("-", "_")


Encounter = msgspec.defstruct(
    "Encounter",
    [
        (_attribute(column), _type_of(column), None) if column.nullable else (_attribute(column), _type_of(column))
        for column in FEATURES
    ],
    rename={_attribute(column): column.name for column in FEATURES},
    forbid_unknown_fields=True,
    frozen=True,
    gc=False,
    kw_only=True,
)
"""One encounter, valid but for the writing of its codes; its fields are in the order of `columns.FEATURES`."""

DECODER = msgspec.json.Decoder(Encounter)
# Finds where each encounter begins and ends, and whether the whole is JSON, without reading the values.
ROWS_DECODER = msgspec.json.Decoder(list[msgspec.Raw])


def _writing_of(column: Column) -> re.Pattern[str] | None:
    if column.kind is not Kind.ICD9 and not column.is_code:
        return None
    pattern = DIAGNOSIS if column.kind is Kind.ICD9 else CODE_PATTERN
    return re.compile(f"{pattern}|[{MISSING}]" if column.nullable else pattern)


_WRITINGS = tuple(_writing_of(column) for column in FEATURES)


def well_formed(position: int, value: Any) -> bool:
    """Whether a decoded value is written as the codes of its column are; `position` is that in `columns.FEATURES`."""
    writing = _WRITINGS[position]
    return writing is None or not isinstance(value, str) or writing.fullmatch(value) is not None


def violations(body: bytes | msgspec.Raw, *, loc: tuple[str | int, ...] = ("body",)) -> list[Violation]:
    """Everything that is wrong with the JSON of one encounter; empty only for a valid one."""
    try:
        value = _any_json(bytes(body))
    except RecursionError:
        return [Violation(loc, "is nested too deeply; one flat object is expected", "json_invalid")]
    except ValueError:
        return [not_json(loc)]
    if not isinstance(value, dict):
        return [Violation(loc, "must be an object with one field for each column", "model_type")]
    found = [violation for column in FEATURES for violation in _of_field(column, value, loc)]
    known = {column.name for column in FEATURES}
    found += [
        Violation((*loc, _shown(name)), "is not a column of the contract; remove it", "extra_forbidden")
        for name in value
        if name not in known
    ]
    # Both readings agree, as a property test shows; should they ever not, the answer is still an answer.
    return found or [not_json(loc)]


def not_json(loc: tuple[str | int, ...]) -> Violation:
    """The violation of a body that is no JSON at all."""
    return Violation(loc, "is not valid JSON in UTF-8", "json_invalid")


def limited(found: list[Violation]) -> list[Violation]:
    """At most `LONGEST_LIST` violations, and a word about the rest."""
    if len(found) <= LONGEST_LIST:
        return found
    return [*found[:LONGEST_LIST], Violation(("body",), "there are more violations than are listed", "truncated")]


def _any_json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # The standard library also reads NaN, Infinity and 1e999, so that their field can be named.
        return json.loads(body.decode("utf-8"))


def _shown(name: str) -> str:
    return name[:LONGEST_NAME].encode("utf-8", "replace").decode("utf-8")


def _of_field(column: Column, encounter: dict[str, Any], loc: tuple[str | int, ...]) -> list[Violation]:
    if column.name not in encounter:
        if column.nullable:
            return []
        return [Violation((*loc, column.name), f"is required: {column.allowed}", "missing")]
    kind = _wrong(column, encounter[column.name])
    return [Violation((*loc, column.name), f"must be {column.allowed}", kind)] if kind else []


def _wrong(column: Column, value: Any) -> str:
    """The type of a field's violation; empty when there is none."""
    if value is None:
        return "" if column.nullable else "null_forbidden"
    if isinstance(value, float) and not math.isfinite(value):
        return "finite_number"
    if column.kind is Kind.COUNT:
        return _wrong_number(value, column.minimum, column.maximum)
    if column.is_code and isinstance(value, int | float):
        return _wrong_number(value, 1, MAXIMUM_CODE)
    if not isinstance(value, str):
        return "string_type"
    if not _is_unicode(value):
        return "string_unicode"
    if column.nullable and value == MISSING:
        return ""
    if column.kind is Kind.LEVEL:
        return "" if value in column.levels else "literal_error"
    if column.kind is Kind.ICD9:
        return "" if re.fullmatch(DIAGNOSIS, value) else "string_pattern_mismatch"
    if column.is_code:
        return "" if re.fullmatch(CODE_PATTERN, value) else "string_pattern_mismatch"
    if not value:
        return "string_too_short"
    return "string_too_long" if len(value) > MAXIMUM_TEXT else ""


def _wrong_number(value: Any, minimum: int, maximum: int) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        return "int_type"
    if value < minimum:
        return "greater_than_equal"
    return "less_than_equal" if value > maximum else ""


def _is_unicode(text: str) -> bool:
    # JSON can spell half of a surrogate pair, which no encoding can write.
    return not any("\ud800" <= character <= "\udfff" for character in text)
