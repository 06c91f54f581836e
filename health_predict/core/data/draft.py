"""A first contract for a table that nobody has described: what each column seems to be, and what a person must decide.

Nothing is refused. Every guess says why it was made; what the table cannot tell is marked with `DECIDE`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import yaml

from health_predict.core.data import codes
from health_predict.core.data.codes import System
from health_predict.core.data.contract import (
    MAXIMUM_COUNT,
    MAXIMUM_TEXT,
    MISSING,
    NUMERIC,
    PATTERNS,
    WORDS_FOR_MISSING,
    Kind,
)
from health_predict.core.data.leaks import LEAK
from health_predict.core.statistics import delong
from health_predict.errors import DataError

DECIDE = "DECIDE"
FEW_LEVELS = 30  # more are open: a new one may come any day
_PAIRS = (("0", "1"), ("N", "Y"), ("n", "y"), ("No", "Yes"), ("no", "yes"), ("F", "T"), ("false", "true"),
          ("False", "True"), ("FALSE", "TRUE"))  # fmt: skip
_WHOLE, _DECIMAL = r"0|[1-9][0-9]{0,17}", PATTERNS[Kind.NUMBER]
_OTHER_DAY = r"[0-9]{1,2}[./-][0-9]{1,2}[./-][0-9]{2,4}|[12][0-9]{3}-[01][0-9]-[0-3][0-9][T ].*"
_ID = r"(^|[_ ])(id|nr|no|key|#)( #)?$"
_DAY = r"[12][0-9]{3}-[01][0-9]-[0-3][0-9]"
_NAMES = {
    "patient": r"pat|person|subject|member|mrn|^p?id$",
    "encounter": r"encounter|visit|stay|hadm|admission_id|episode|case|record|row_?id",
    "order": r"discharge|admit|admission|date|time|year|month",
    "outcome": r"readm|outcome|label|target|death|died|mortal|event|return",
    "diagnosis": r"diag|icd|dx",
}


@dataclass(slots=True)
class _Guess:
    """What a column seems to be: the lines of its description, and why."""

    name: str
    why: str
    lines: dict[str, Any] = field(default_factory=dict)
    distinct: int = 0
    unique: bool = False

    @property
    def kind(self) -> str:
        return str(self.lines.get("kind", ""))


def undecided(text: str) -> list[int]:
    """The lines of a contract file that are still marked for a person to decide, from 1."""
    return [number for number, line in enumerate(text.splitlines(), 1) if f"{DECIDE}:" in line]


def draft(frame: pd.DataFrame, name: str) -> str:
    """The text of a contract file for a table as text (n, columns); `name` names it.

    Raises DataError for a table without rows, or with one column.
    """
    if frame.empty or len(frame.columns) < 2:
        raise DataError(f"{name} holds no table", "give a file with a line of names, and rows of several columns")
    words = _words_for_missing(frame)
    cells = frame.replace(list(words), MISSING) if words else frame
    guesses = [_guess(str(column), cells[column]) for column in cells]
    kept = [guess for guess in guesses if guess.lines]
    roles = _roles(cells, kept)
    return "".join(f"{line}\n" for line in _file(cells, name, words, guesses, roles))


def _words_for_missing(frame: pd.DataFrame) -> tuple[str, ...]:
    """What the table writes for missing, the most frequent first: nothing, `?`, or one of the usual words."""
    found: dict[str, int] = {}
    for column in frame:
        counts = frame[column].value_counts()
        for value, count in counts.items():
            if str(value) in ("", MISSING, ".", "-", "--") or str(value).lower() in WORDS_FOR_MISSING:
                found[str(value)] = found.get(str(value), 0) + int(count)
    return tuple(sorted(found, key=lambda word: -found[word]))


def _guess(name: str, cells: pd.Series[str]) -> _Guess:
    values = cells[cells != MISSING]
    distinct = [str(value) for value in values.unique()]
    if not name:
        return _Guess(name, "a number of the row")
    if name.startswith("_") or name.strip() != name or len(name) > MAXIMUM_TEXT:
        return _Guess(name, "its name begins with _, has outer blanks or is too long: rename it to use it")
    if len(distinct) < 2:
        return _Guess(name, "the same in all rows" if distinct else "empty in all rows")
    guess = _Guess(name, "", distinct=len(distinct), unique=len(distinct) == len(cells))
    guess.why, guess.lines = _kind(name, distinct, len(cells))
    if guess.lines and len(values) < len(cells):
        guess.lines["nullable"] = True
        guess.why += f"; {1 - len(values) / len(cells):.1%} missing"
    return guess


def _kind(name: str, distinct: Sequence[str], rows: int) -> tuple[str, dict[str, Any]]:
    """Why, and the lines of a column with these values; no lines for one that is to be left out."""
    every = _Every(distinct)
    if re.search(f"{_NAMES['patient']}|{_NAMES['encounter']}|{_ID}", name, re.I) and len(distinct) > min(
        FEW_LEVELS, rows / 3
    ):
        numeric = every.matches(NUMERIC)
        return f"{len(distinct):,} of them, by its name", {"kind": Kind.IDENTIFIER.value, "numeric": numeric}
    pair = next((pair for pair in _PAIRS if set(distinct) <= set(pair)), None)
    if pair and len(distinct) == 2:
        return f"two values, {' and '.join(pair)}", {"kind": Kind.FLAG.value, "levels": list(pair)}
    if every.matches(_DAY):
        return f"days from {min(distinct)} to {max(distinct)}", {"kind": Kind.DATE.value}
    if every.matches(_OTHER_DAY, of=0.9):
        return f"{DECIDE}: looks like dates, which are written as YYYY-MM-DD in the file", {"kind": Kind.DATE.value}
    if re.search(_NAMES["diagnosis"], name, re.I):
        for system in System:
            if every.matches(codes.pattern(system), of=0.98):
                return f"codes of {system}, by their form", {"kind": Kind.CODE.value, "system": system.value}
    if every.matches(_WHOLE):
        return _of_numbers(name, [int(value) for value in distinct], rows)
    if every.matches(_DECIMAL) or (len(distinct) > FEW_LEVELS and every.matches(_DECIMAL, of=0.8)):
        return _of_decimals(distinct)
    if every.matches(codes.pattern(System.ICD10CM), of=0.98) and len(distinct) > FEW_LEVELS:
        return "codes of icd10cm, by their form", {"kind": Kind.CODE.value, "system": System.ICD10CM.value}
    if len(distinct) > rows / 2 or max(map(len, distinct)) > MAXIMUM_TEXT:
        if max(map(len, distinct)) <= MAXIMUM_TEXT and not every.matches(r".* .*", of=0.2):
            return "nearly every row has its own text", {"kind": Kind.IDENTIFIER.value}
        return "free text, or names: no column of a table for a model", {}
    if len(distinct) > FEW_LEVELS:
        return f"{len(distinct)} texts: new ones may come", {"kind": Kind.OPEN_LEVEL.value}
    return f"{len(distinct)} texts", {"kind": Kind.LEVEL.value, "levels": sorted(distinct)}


@dataclass(frozen=True, slots=True)
class _Every:
    values: Sequence[str]

    def matches(self, pattern: str, of: float = 1.0) -> bool:
        """Whether at least this share of the values has a form."""
        compiled = re.compile(pattern)
        return sum(compiled.fullmatch(value) is not None for value in self.values) >= of * len(self.values)


def _of_numbers(name: str, values: Sequence[int], rows: int) -> tuple[str, dict[str, Any]]:
    low, high, said = min(values), max(values), f"whole numbers from {min(values)} to {max(values)}"
    if (len(values) == rows and rows > 1) or re.fullmatch("year", name, re.I):
        return said, {"kind": Kind.IDENTIFIER.value, "numeric": low > 0}
    if high > MAXIMUM_COUNT:
        return said, {"kind": Kind.NUMBER.value, "minimum": low, "maximum": _rounded(high, np.ceil), "unit": ""}
    return f"{said}; codes of few levels would be a level", {"kind": Kind.COUNT.value, "minimum": low, "maximum": high}


def _of_decimals(distinct: Sequence[str]) -> tuple[str, dict[str, Any]]:
    values = [float(value) for value in distinct if re.fullmatch(_DECIMAL, value)]
    odd = ", ".join(value for value in distinct if not re.fullmatch(_DECIMAL, value))[:60]
    low, high = min(values), max(values)
    bounds = {"minimum": _rounded(low, np.floor), "maximum": _rounded(high, np.ceil)}
    why = f"{DECIDE}: numbers, but for {odd}: mend these in the file, or name them under `missing`"
    return why if odd else f"numbers from {low:g} to {high:g}", {"kind": Kind.NUMBER.value, **bounds, "unit": ""}


def _rounded(value: float, direction: Any) -> float | int:
    """A bound with two digits, outwards: what is still to come may lie a little further out."""
    if value == 0:
        return 0
    step = 10.0 ** (np.floor(np.log10(abs(value))) - 1)
    found = float(direction(value / step) * step)
    return int(found) if found.is_integer() else round(found, 6)


@dataclass(frozen=True, slots=True)
class _Roles:
    """Which columns seem to identify, to order and to be the outcome, each with the reason."""

    encounter: tuple[tuple[str, ...], str]
    patient: tuple[str, str]
    order: tuple[str, str]
    date: str
    outcome: tuple[str, str]
    predictor: tuple[str, str]


def _roles(cells: pd.DataFrame, guesses: Sequence[_Guess]) -> _Roles:
    identifiers = [guess for guess in guesses if guess.kind == Kind.IDENTIFIER.value]
    dates = [guess for guess in guesses if guess.kind == Kind.DATE.value]
    repeating = [one for one in identifiers if not one.unique]
    patients = _named(_NAMES["patient"], repeating) or repeating or identifiers or guesses
    patient = patients[0]
    uniques = [one for one in identifiers if one.unique]
    encounters = _named(_NAMES["encounter"], uniques) or uniques
    ordering = _named(_NAMES["order"], [*dates, *(one for one in identifiers if one.lines.get("numeric"))])
    numeric = [one for one in (*encounters, *identifiers) if one.lines.get("numeric")]
    order = next(iter(ordering or dates or numeric or identifiers), patient)
    encounter: tuple[tuple[str, ...], str]
    if encounters:
        encounter = (encounters[0].name,), "no two rows have the same"
    else:
        together = (patient.name, order.name)
        unique = not cells.duplicated(list(together)).any()
        encounter = (
            together,
            "together no two rows have the same" if unique else "some rows have the same: a further one?",
        )
    flags = [one for one in guesses if one.kind in (Kind.FLAG.value, Kind.LEVEL.value)]
    named = _named(_NAMES["outcome"], flags)
    outcome = (named[0].name, "by its name") if named else ("", "")
    return _Roles(
        encounter=encounter,
        patient=(patient.name, f"{patient.distinct:,} of them in {len(cells):,} rows"),
        order=(order.name, order.why),
        date=order.name if order.kind == Kind.DATE.value else "",
        outcome=outcome,
        predictor=_predictor(cells, guesses, outcome[0]),
    )


def _named(pattern: str, guesses: Sequence[_Guess]) -> list[_Guess]:
    return [guess for guess in guesses if re.search(pattern, guess.name, re.I)]


def _predictor(cells: pd.DataFrame, guesses: Sequence[_Guess], outcome: str) -> tuple[str, str]:
    """The count or number that tells most of the outcome by itself; the first where that cannot be asked."""
    numbers = [one for one in guesses if one.kind in (Kind.COUNT.value, Kind.NUMBER.value)]
    if not numbers:
        return "", "there is no count or number"
    levels: list[str] = next((one.lines.get("levels", []) for one in guesses if one.name == outcome), [])
    if len(levels) != 2:
        return numbers[0].name, "the first number: name the one that people look at today"
    labels = np.asarray(cells[outcome] == levels[1], dtype=np.float64)
    found: dict[str, float] = {}
    if not 0 < labels.sum() < len(labels):
        return numbers[0].name, "the first number"
    for one in numbers:
        values = pd.to_numeric(cells[one.name], errors="coerce")
        auc = delong(labels, values.fillna(values.median()).to_numpy(dtype=np.float64))[0]
        found[one.name] = max(auc, 1 - auc)
    best = max(found, key=lambda name: found[name])
    leak = f". {DECIDE}: it may be known only afterwards" if found[best] >= LEAK else ""
    return best, f"AUC {found[best]:.2f} by itself, the highest of the numbers{leak}"


def _file(
    cells: pd.DataFrame, name: str, words: Sequence[str], guesses: Sequence[_Guess], roles: _Roles
) -> Iterator[str]:
    yield f"# Drafted from {len(cells):,} rows. Read every line; what only a person knows is marked {DECIDE}."
    yield "# Then: health-predict contract check THIS FILE"
    yield from _lines({"format": 1, "name": re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:50] or "mine"})
    yield from _lines({"title": f"Outcomes of {name}"}, f"{DECIDE}: what is predicted, in one line")
    yield from _lines({"missing": list(words) or [MISSING]}, "what the table writes for missing")
    yield from _lines({"encounter": list(roles.encounter[0])}, roles.encounter[1])
    yield from _lines({"patient": roles.patient[0]}, f"{roles.patient[1]}. {DECIDE}: is it the patient?")
    yield from _lines({"order": roles.order[0]}, roles.order[1])
    if roles.date:
        yield from _lines({"date": roles.date}, "the day by which later encounters fall into weeks")
    yield from _outcome(guesses, roles)
    yield from _lines({"follow_up_days": 30}, f"{DECIDE}: days until an outcome is known")
    yield from _lines({"single_predictor": roles.predictor[0]}, roles.predictor[1])
    if ignored := [guess for guess in guesses if not guess.lines]:
        why = "; ".join(f"{guess.name or 'without a name'}: {guess.why}" for guess in ignored)
        yield from _lines({"ignore": [guess.name for guess in ignored]}, why)
    yield "columns:"
    identifying = {*roles.encounter[0], roles.patient[0]}
    for guess in guesses:
        if guess.lines and guess.name != roles.outcome[0]:
            lines = guess.lines
            if guess.name in identifying | {roles.order[0]} and guess.kind not in (
                Kind.IDENTIFIER.value,
                Kind.DATE.value,
            ):
                lines = {"kind": Kind.IDENTIFIER.value, "numeric": guess.kind == Kind.COUNT.value}
            yield f"  {_scalar(guess.name)}: # {guess.why}"
            yield from (f"    {line}" for line in _lines({"description": "", **lines}))
    yield "example: # of each column the most frequent value: nobody's"
    yield from _example(cells, guesses, identifying | {roles.order[0], roles.outcome[0]})


def _example(cells: pd.DataFrame, guesses: Sequence[_Guess], without: set[str]) -> Iterator[str]:
    """Of each column its most frequent value: nobody's encounter."""
    for one in guesses:
        if not one.lines or one.name in without or one.kind in (Kind.IDENTIFIER.value, Kind.DATE.value):
            continue
        values = cells[one.name][cells[one.name] != MISSING]
        if one.kind in (Kind.COUNT.value, Kind.NUMBER.value):
            values = values[values.str.fullmatch(_DECIMAL)]
        yield f"  {_scalar(one.name)}: {_scalar(str(values.mode().iloc[0]))}"


def _outcome(guesses: Sequence[_Guess], roles: _Roles) -> Iterator[str]:
    column, why = roles.outcome
    yield f"outcome: # {DECIDE}: the words are shown to people"
    if column:
        levels = next(guess.lines["levels"] for guess in guesses if guess.name == column)
        yield from (f"  {line}" for line in _lines({"column": column, "levels": levels}, why))
        yield from (
            f"  {line}" for line in _lines({"positive": levels[-1:]}, f"{DECIDE}: the level or levels that are it")
        )
        yield from (f"  {line}" for line in _lines({"negative": levels[0]}))
    else:
        first = next((one.name for one in guesses if one.kind == Kind.COUNT.value), "")
        yield f"  # No column is an outcome by its name. {DECIDE}: `column`, `levels` and `positive` of one, or of the"
        yield "  # patient's next row, when what orders rows is at most `within` later:"
        yield f"  next: {{column: {_scalar(first)}, above: 0, within: 1}}"
    yield from (f"  {line}" for line in _lines({"event": "event", "events": "events", "happened": "with the outcome"}))


def _lines(content: dict[str, Any], why: str = "") -> Iterator[str]:
    for name, value in content.items():
        text = "[" + ", ".join(map(_scalar, value)) + "]" if isinstance(value, list) else _scalar(value)
        yield f"{name}: {text}" + (f" # {why}" if why else "")


def _scalar(value: Any) -> str:
    """A value as YAML has it on one line; text that YAML would read as something else is quoted."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).split("\n")[0]
    return str(value)
