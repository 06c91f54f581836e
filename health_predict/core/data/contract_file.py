"""A contract file: its text to a `Contract`, with the line of what is wrong, and its JSON Schema for editors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from health_predict.core.data.codes import System
from health_predict.core.data.contract import MAXIMUM_COUNT, MISSING, Column, Contract, Kind
from health_predict.core.data.yaml_file import Place, read_yaml


def file_schema() -> dict[str, Any]:
    """JSON Schema of a contract file, for editors: there the columns are a mapping from their names."""
    schema = Contract.model_json_schema()
    column = schema["$defs"]["Column"]
    column["required"].remove("name")
    del column["properties"]["name"]
    columns = {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#/$defs/Column"}}
    schema["properties"]["columns"] = columns
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def read_contract(text: str, name: object) -> Contract:
    """The contract in a YAML file's text. `name` is what a message calls the file.

    Raises DataError with the line of the first mistakes and what to write there.
    """
    return read_yaml(
        text,
        name,
        Contract,
        _mistakes,
        begin=("is no data contract", "begin one with `health-predict contract draft FILE`"),
        mend="mend these lines; docs/reference/contract.md says what each word means",
    )


def _mistakes(contract: Contract) -> Iterator[tuple[Place, str]]:
    """What does not fit together, with its place."""
    for column in contract.columns:
        for what in _mistakes_of(column):
            yield ("columns", column.name), what
    yield from _mistakes_of_names(contract)
    yield from _mistakes_of_outcome(contract)
    yield from _mistakes_of_groups(contract)
    for name, text in contract.example.items():
        known = contract.by_name.get(name)
        if known is None or not known.is_feature:
            yield ("example", name), "is no column that a prediction uses"
        elif not known.holds(text):
            yield ("example", name), f"must be {known.allowed}"
        elif any(one.column == name and text in one.levels for one in contract.exclude):
            yield ("example", name), "is excluded: give an encounter that would be judged"


def _mistakes_of(column: Column) -> Iterator[str]:
    kind = column.kind
    if column.name.startswith("_") or column.name.strip() != column.name:
        yield "a name begins with no _ and has no outer blanks: rename the column, or name it under `ignore`"
    if column.name == "prediction_id":
        yield "this is the name of the service's own id: rename the column, or name it under `ignore`"
    if kind is Kind.OUTCOME:
        yield "the outcome is described under `outcome`, not as a column"
    if kind is Kind.LEVEL and len(column.levels) < 2:
        yield "a level needs `levels`, two at least; an open level may do without"
    if kind is Kind.FLAG and len(column.levels) != 2:
        yield "a flag needs two `levels`: what is written for no, then for yes"
    if len(set(column.levels)) < len(column.levels):
        yield "a level is named twice"
    if unknown := [level for level in column.words if not column.holds(level)]:
        yield f"`words` names {', '.join(unknown)}, which the column cannot hold"
    if kind in (Kind.COUNT, Kind.NUMBER) and column.maximum is None:
        yield f"the kind {kind} needs a `maximum`: the largest value that can be true"
    if kind is Kind.NUMBER and column.minimum is None:
        yield "a number needs a `minimum`: the smallest value that can be true"
    if column.maximum is not None and (column.minimum or 0) > column.maximum:
        yield "`minimum` is above `maximum`"
    if kind is Kind.COUNT and not all(isinstance(n, int) for n in (column.minimum or 0, column.maximum or 0)):
        yield "bounds of a count are whole numbers"
    if kind is Kind.COUNT and (column.maximum or 0) > MAXIMUM_COUNT:
        yield f"a count has at most {MAXIMUM_COUNT:,}; make it a number"
    if kind is Kind.COUNT and (column.minimum or 0) < 0:
        yield "a count is not negative; make it a number"
    if (kind is Kind.CODE) != (column.system is not None):
        yield f"a code needs its `system`, and nothing else has one: {', '.join(System)}"
    if column.optional and column.is_feature:
        yield "only an identifier or a date may be `optional`; a feature may be `nullable`"
    if MISSING in column.levels:
        yield f"{MISSING} cannot be a level: it stands for missing; say `nullable: true`"


def _mistakes_of_names(contract: Contract) -> Iterator[tuple[Place, str]]:
    """Columns that are named and do not exist, or are of a kind that cannot serve."""
    served = {
        ("encounter",): (contract.encounter, None),
        ("patient",): ((contract.patient,), None),
        ("order",): ((contract.order,), (Kind.IDENTIFIER, Kind.COUNT, Kind.DATE)),
        ("date",): ((contract.date,) if contract.date else (), (Kind.DATE,)),
        ("single_predictor",): ((contract.single_predictor,), (Kind.COUNT, Kind.NUMBER)),
    }
    for place, (names, kinds) in served.items():
        for name in names:
            column = contract.by_name.get(name)
            if column is None:
                yield place, f"there is no column {name}"
            elif kinds and column.kind not in kinds:
                yield place, f"{name} is of kind {column.kind}; it must be of kind {' or '.join(kinds)}"
            elif place in (("encounter",), ("patient",)) and column.is_feature:
                yield place, f"{name} identifies, so its kind must be identifier or date: it is never a feature"
    order = contract.by_name.get(contract.order)
    if order is not None and order.kind is Kind.IDENTIFIER and not order.numeric:
        yield ("columns", order.name), "what orders encounters must be `numeric: true`"
    if not contract.features:
        yield ("columns",), "there is no column that a prediction could use"


def _mistakes_of_outcome(contract: Contract) -> Iterator[tuple[Place, str]]:
    outcome = contract.outcome
    if outcome.column in (column.name for column in contract.columns):
        yield ("columns", outcome.column), "the outcome is described under `outcome`, not as a column"
    if not set(outcome.positive) < set(outcome.levels):
        yield (
            ("outcome", "positive"),
            f"{', '.join(outcome.positive)}: must be some of the levels {', '.join(outcome.levels)}, not all",
        )
    if outcome.negative not in set(outcome.levels) - set(outcome.positive):
        yield ("outcome", "negative"), "must be a level that is not positive"
    if outcome.next:
        column = contract.by_name.get(outcome.next.column)
        if outcome.next.column and (column is None or column.kind not in (Kind.COUNT, Kind.NUMBER)):
            yield ("outcome", "next", "column"), "must be a column that is a count or a number, or empty"
        if not outcome.next.column and outcome.next.without != "negative":
            yield ("outcome", "next"), "without a `column` every row that counts is positive: say `without: negative`"


def _mistakes_of_groups(contract: Contract) -> Iterator[tuple[Place, str]]:
    """Levels that are named and do not exist."""
    named: list[tuple[Place, str, tuple[str, ...]]] = [
        (("exclude", at), one.column, one.levels) for at, one in enumerate(contract.exclude)
    ]
    for at, one in enumerate(contract.subgroups):
        named += [(("subgroups", at), one.column, levels) for levels in one.groups.values()] or [
            (("subgroups", at), one.column, ())
        ]
    for at, group in enumerate(contract.groups):
        levels = tuple(level for some in group.counts.values() for level in some)
        named += [(("groups", at), name, levels) for name in group.columns]
    for place, name, levels in named:
        column = contract.by_name.get(name)
        if column is None:
            yield place, f"there is no column {name}"
        elif unknown := [level for level in levels if not column.holds(level)]:
            yield place, f"{name} has no level {', '.join(unknown)}"
    for at, one in enumerate(contract.subgroups):
        column = contract.by_name.get(one.column)
        if column is not None and (column.kind in (Kind.COUNT, Kind.NUMBER)) != bool(one.bounds):
            yield ("subgroups", at), "`bounds` go with a count or a number, and only with it"
        if column is not None and not column.is_feature:
            yield ("subgroups", at), f"{one.column} is of kind {column.kind}, which makes no groups"
        if list(one.bounds) != sorted(set(one.bounds)):
            yield ("subgroups", at, "bounds"), "must grow"
