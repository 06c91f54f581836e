"""What a request may hold and what an answer holds, as pydantic models.

The columns of a data contract make the model of an encounter, and it alone says what is valid: BentoML validates with
it, its schema stands in the OpenAPI document, and its errors are worded here. No message repeats a value of a request:
it may be a patient's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    RootModel,
    ValidationError,
    WithJsonSchema,
    create_model,
)
from pydantic_core import from_json

from health_predict.core.data.contract import (
    MAXIMUM_CODE,
    MAXIMUM_NUMBER,
    MAXIMUM_TEXT,
    MISSING,
    WORDS_FOR_MISSING,
    Column,
    Contract,
    Kind,
)
from health_predict.core.data.values import Value, number_text, takes_numbers
from health_predict.core.model.contributions import LOG_ODDS, PROBABILITY
from health_predict.core.model.risk_groups import GROUPS

# How many violations one answer lists: a hostile batch must not become a bigger answer.
LONGEST_LIST = 1000
# A wrong name is repeated to show the typing mistake, cut to this length.
LONGEST_NAME = 64


# Words for missing in a schema's pattern, in which no case is ignored.
NO_VALUE = "|".join(re.sub("[a-z]", lambda at: f"[{at[0]}{at[0].upper()}]", word) for word in sorted(WORDS_FOR_MISSING))


def _type_of(column: Column) -> Any:
    kind = _present_type(column)
    return kind | None if column.nullable else kind


def _present_type(column: Column) -> Any:
    """What a request may say, null apart."""
    missing = [MISSING] if column.nullable else []
    pattern = "|".join([column.pattern, *(f"[{text}]" for text in missing)])
    is_flag = column.kind is Kind.FLAG
    match column.kind:
        case Kind.COUNT:
            count = _whole(column.counts[0], column.counts[-1])
            return count | Literal[MISSING] if missing else count
        case Kind.NUMBER:
            bounds = Field(ge=column.minimum, le=column.maximum, allow_inf_nan=False)
            text = Annotated[str, Field(pattern=f"^({pattern})$"), AfterValidator(partial(_held, column))]
            return Annotated[float, bounds, AfterValidator(partial(_written, column))] | text
        case Kind.LEVEL | Kind.FLAG:
            levels: Any = Literal[(*column.levels, *missing)]
            if takes_numbers(column):
                numbers = [int(level) for level in column.levels]
                number = _whole(min(numbers), max(numbers), enum=[one for one in numbers if str(one) in column.levels])
                levels |= Annotated[number, AfterValidator(partial(_named, column))]
            return Annotated[bool, AfterValidator(partial(_flagged, column))] | levels if is_flag else levels
        case Kind.CODE:
            return Annotated[str, Field(pattern=f"^({pattern})$")]
        case Kind.IDENTIFIER if column.numeric:
            digits = Annotated[str, Field(pattern=f"^({pattern})$")]
            return _whole(1, MAXIMUM_NUMBER) | digits
        case Kind.DATE:
            # Not every text of the pattern is a day of the calendar: `format` says so.
            day = Field(pattern=f"^({column.pattern})$", json_schema_extra={"format": "date"})
            return Annotated[str, day, AfterValidator(partial(_held, column))] | Literal[MISSING]
    if column.is_code:
        return _whole(1, MAXIMUM_CODE) | Annotated[str, Field(pattern=f"^({pattern})$")]
    length = Field(min_length=1, max_length=MAXIMUM_TEXT)
    held: Any = partial(_held, column)
    if column.kind is Kind.OPEN_LEVEL:
        held = lru_cache(1000)(held)  # the same few levels come again and again
    never = [] if column.nullable else [f"[{MISSING}]"]
    schema: Any = {"pattern": f"^{column.pattern}$", "not": {"pattern": f"^({'|'.join([NO_VALUE, *never])})$"}}
    return Annotated[str, length, AfterValidator(held), Field(json_schema_extra=schema)]


def _whole(low: int, high: int, **schema: Any) -> Any:
    """A whole number between bounds, also written as 9.0: to JSON Schema, and to JavaScript, that is the same one."""
    number = Annotated[int, Field(ge=low, le=high)]
    told = {"type": "integer", "minimum": low, "maximum": high, **schema}
    # The usual way to write it comes first and costs no call.
    return Annotated[number | Annotated[number, BeforeValidator(_without_point)], WithJsonSchema(told)]


def _without_point(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _held(column: Column, text: str) -> str:
    if not column.holds(text):
        raise ValueError(column.allowed)
    return text


def _named(column: Column, number: int) -> int:
    """A level by its number."""
    _held(column, str(number))
    return number


def _flagged(column: Column, yes: bool | str) -> str:
    """No or yes as its text. BentoML's class of a model applies a validator twice, so one is let through."""
    no_and_yes = column.levels
    return yes if isinstance(yes, str) else no_and_yes[yes]


def _written(column: Column, number: float) -> float:
    """A number that a file can hold too."""
    _held(column, number_text(number))
    return number


def _description(column: Column) -> str:
    known = f" Known levels: {', '.join(column.levels)}; others are scored and counted."
    return (
        f"{f'{column.description}.' if column.description else ''}"
        f"{known if column.kind is Kind.OPEN_LEVEL and column.levels else ''}"
        f"{' null, ? or absent when unknown.' if column.nullable else ''}"
        f"{'' if column.is_feature else ' Logged, so that the outcome finds it; never scored.'}"
    )


class _Encounter(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True, protected_namespaces=())
    # No column has such a name.
    __contract__: ClassVar[Contract]


def encounter_model(contract: Contract) -> Any:
    """The model of an encounter, which knows its contract.

    `vars` of an instance gives the values by column: the features in the order of the contract, then the identifiers,
    which are logged and never scored.
    """
    example = contract.request
    fields: dict[str, Any] = {
        column.name: (
            _type_of(column),
            Field(
                None if column.nullable else ...,
                description=_description(column),
                json_schema_extra={"example": example.get(column.name)},
            ),
        )
        for column in (*contract.features, *contract.identifiers)
    }
    doc = "One encounter under the data set's own column names."
    model = create_model("Encounter", __base__=_Encounter, __doc__=doc, **fields)
    model.__contract__ = contract
    return model


def contract_of_model(model: Any) -> Contract | None:
    """The contract of a model of an encounter; None for another model."""
    return getattr(model, "__contract__", None)


class Contribution(BaseModel):
    """What one column of the encounter added to the score."""

    column: str
    value: Value
    contribution: float


class Explanation(BaseModel):
    """`base`, all contributions and `others` add up to `score`.

    For a linear model they are the exact parts relative to the mean of the training rows, for trees the path-dependent
    TreeSHAP values.
    """

    unit: Literal[LOG_ODDS, PROBABILITY]  # type: ignore[valid-type]
    base: float = Field(description="The mean score")
    score: float = Field(description="The score of this encounter, in the unit")
    contributions: list[Contribution] = Field(description="The largest ones, by amount")
    others: float = Field(description="The sum of the remaining contributions")


class Prediction(BaseModel):
    """What the service says about one encounter."""

    prediction: Literal[0, 1] = Field(
        description="1: the outcome is expected, since the score is at least the threshold"
    )
    probability_score: float = Field(ge=0, le=1)
    risk_group: Literal[GROUPS]  # type: ignore[valid-type]
    model_version: str
    prediction_id: str = Field(description="A UUID; keep it: the label is joined by it later")
    explanation: Explanation | None = Field(
        default=None, description="With explain=true", exclude_if=lambda value: value is None
    )


def batch_of(encounter: Any, maximum_rows: int) -> Any:
    """The model of a list of at most so many encounters."""
    # The reading ends with the first wrong encounter; `violations` names them all.
    rows = Annotated[list[encounter], FailFast(), Field(max_length=maximum_rows)]

    class Encounters(RootModel[rows]):
        # Not a docstring: the class that BentoML makes of this one has none.
        model_config = ConfigDict(
            hide_input_in_errors=True,
            json_schema_extra={"description": "Encounters, each as for a single prediction."},
        )
        row: ClassVar[Any] = encounter
        maximum: ClassVar[int] = maximum_rows

    return Encounters


class Predictions(RootModel[list[Prediction]]):
    """Answers to a batch."""

    model_config = ConfigDict(json_schema_extra={"description": "One prediction for each encounter, in order."})


class Options(BaseModel):
    """What the query of a request may ask for; names that mean nothing here are left alone."""

    model_config = ConfigDict(hide_input_in_errors=True)

    explain: bool = Field(default=False, description="Adds what each column contributed to the score")
    log: bool = Field(default=True, description="false for probes: the prediction is not written to the prediction log")


class Violation(BaseModel):
    """One thing that is wrong with a request."""

    loc: list[str | int]
    msg: str
    type: str


class Violations(BaseModel):
    """Everything that is wrong with a request."""

    detail: list[Violation]


class Problem(BaseModel):
    """Why a request is not answered."""

    detail: str


OTHER_TYPES = ("int_type", "float_type", "bool_type", "string_type")
MESSAGES = {
    "json_invalid": "is not valid JSON in UTF-8",
    "model_type": "must be an object with one field for each column",
    "list_type": "must be a list of encounters",
    "too_long": "has too many encounters",
    "extra_forbidden": "is not a column of the contract; remove it",
    "bool_parsing": "must be true or false",
}


def violations(model: Any, body: bytes) -> list[Violation]:
    """What `model`, that of an encounter or of a batch, has to say against a body; empty only for a valid one.

    At most `LONGEST_LIST`, and a word about more.
    """
    try:
        model.model_validate_json(body)
    except ValidationError as error:
        # Of a batch it tells of the list, or of the first wrong encounter.
        of_list = len(error.errors(include_url=False)[0]["loc"]) == 0
        if of_list or not issubclass(model, RootModel):
            return list(worded(error, ("body",), contract_of_model(model)))
    else:
        return []
    rows = from_json(body)
    if len(rows) > model.maximum:
        return [Violation(loc=["body"], msg=f"must have at most {model.maximum} encounters", type="too_long")]
    found: list[Violation] = []
    for number, row in enumerate(rows):
        try:
            model.row.model_validate(row)
        except ValidationError as error:
            found += worded(error, ("body", number), contract_of_model(model.row))
        if len(found) > LONGEST_LIST:
            more = Violation(loc=["body"], msg="there are more violations than are listed", type="truncated")
            return [*found[:LONGEST_LIST], more]
    return found


def worded(error: ValidationError, loc: tuple[str | int, ...], contract: Contract | None = None) -> Iterator[Violation]:
    """The violations of one object, one for each field; `loc` is its own place, `contract` that of an encounter."""
    by_field: dict[tuple[str | int, ...], list[str]] = {}
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        # Below a field stands which of its types was tried.
        by_field.setdefault(item["loc"][:1], []).append(item["type"])
    for field, kinds in by_field.items():
        # A code is a number or text: what is wrong with the one that it is says more than that it is not the other.
        kind = next((kind for kind in kinds if kind not in OTHER_TYPES), kinds[0])
        shown = [part[:LONGEST_NAME] if isinstance(part, str) else part for part in field]
        yield Violation(loc=[*loc, *shown], msg=_message(kind, field, contract), type=kind)


def _message(kind: str, field: tuple[str | int, ...], contract: Contract | None) -> str:
    if kind == "extra_forbidden" and contract is not None and field[0] in contract.by_name:
        return "is not sent with a request; remove it"
    if kind in MESSAGES or contract is None:
        return MESSAGES[kind]
    allowed = next(one.allowed for one in (*contract.features, *contract.identifiers) if one.name == field[0])
    return f"is required: {allowed}" if kind == "missing" else f"must be {allowed}"
