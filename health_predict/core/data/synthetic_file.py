"""What a contract's data file says of its synthetic cohort: how often values occur, and what the outcome depends on.

The file lies beside the contract, which names it under `synthetic`. `contracts/` holds the built-in one. No pandas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from health_predict.core.choices import Scenario
from health_predict.core.data.contract import MISSING, Column, Contract, Kind
from health_predict.core.data.yaml_file import Place, read_yaml

Amounts = Mapping[str, Annotated[int, Field(ge=0)]]
_NUMBERS = (Kind.COUNT, Kind.NUMBER)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ageing(_Part):
    """A level that goes up while a patient is away."""

    column: str
    years: float = Field(gt=0, description="That a level lasts")


class History(_Part):
    """A count of the patient's stays in the year before."""

    column: str
    outside: float = Field(ge=0, le=1, description="Share of the drawn counts that are stays outside this cohort")


class Patients(_Part):
    """Who comes, and who comes back."""

    rows_per_day: float = Field(gt=0)
    shortest_days: float = Field(gt=0, description="That a cohort spans, however small")
    burn_in_days: float = Field(ge=0, description="That are simulated before the first row")
    fixed: tuple[str, ...] = Field((), description="Columns that a patient keeps")
    ageing: Ageing | None = None
    history: History | None = None
    seen_again: float = Field(ge=0, le=1, description="Share of returns that are encounters of this cohort")


class Soon(_Part):
    """The positive outcome: log-odds are intercept + strength * effects."""

    intercept: float
    strength: float
    days: tuple[float, float] = Field(description="First and last day of the return")


class Later(_Part):
    """A return after the follow-up, of those whose outcome is not positive: intercept + strength * those log-odds."""

    level: str = Field(description="Of the outcome")
    intercept: float
    strength: float
    mean_days: float = Field(gt=0, description="Beyond the follow-up")


class Effect(_Part):
    """Log-odds that a column adds, said in one of four ways."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    each: float | None = Field(None, description="Times the number, from `from` on and up to `up_to`")
    centre: float = Field(0, alias="from")
    up_to: float = float("inf")
    steps: tuple[float, ...] = Field((), description="By the count from 0 on; the last for more")
    levels: Mapping[str, float] = Field({}, description="By level; 0 for the others")
    chapters: Mapping[str, float] = Field({}, description="By chapter of a code; 0 for the others")

    @model_validator(mode="after")
    def _one_way(self) -> Effect:
        if sum((self.each is not None, bool(self.steps), bool(self.levels), bool(self.chapters))) != 1:
            raise ValueError("say one of each, steps, levels and chapters")
        return self


class Change(_Part):
    """What a scenario does to a cohort: one thing."""

    weights: Mapping[str, Mapping[str, float]] = Field({}, description="Draw rows anew, by level; 1 for the others")
    switched: tuple[str, ...] = Field((), description="Columns where what was recorded is missing, and vice versa")
    recoded: Mapping[str, str] = Field({}, description="Codes by chapter; the others lose what narrows them down")
    caps: Mapping[str, int] = Field({}, description="Largest count that is recorded")
    prevalence: float = Field(0, ge=0, description="Factor of the share of positive outcomes")
    ranked_by: tuple[str, ...] = Field((), description="Columns by whose risk labels change hands")
    withdrawn: Mapping[str, str] = Field({}, description="The level that slowly takes the place of the others")
    instead: Mapping[str, Mapping[str, str]] = Field({}, description="Levels that change where one was withdrawn")

    @model_validator(mode="after")
    def _one_thing(self) -> Change:
        if self.instead and not self.withdrawn:
            raise ValueError("`instead` goes with `withdrawn`")
        if len(self.model_fields_set - {"instead"}) > 1:
            raise ValueError("a scenario changes one thing")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the file names for it."""
        return (*self.weights, *self.switched, *self.caps, *self.ranked_by, *self.withdrawn, *self.instead)


class Synthetic(_Part):
    """How a synthetic cohort is drawn: all that the generator knows of a contract's values."""

    format: int = Field(1, ge=1, le=1, description="Version of this format")
    rows: int = Field(ge=1, description="Of the cohort that stands in for the real one")
    patients: Patients
    soon: Soon
    later: Later | None = None
    effects: Mapping[str, Effect] = Field({}, description="On the outcome, added up in this order")
    columns: Mapping[str, Amounts] = Field(
        description="How often each value occurs. Drawn in this order, those of the contract's groups last"
    )
    factors: Mapping[str, Mapping[str, float]] = Field(
        {}, description="What moves columns together: loadings by column, whose values ascend"
    )
    missing: Mapping[str, float] = Field({}, description="Share of the rows that lack a column, apart from its values")
    missing_below: Mapping[str, Mapping[str, int]] = Field({}, description="A column is missing below a count")
    summaries: Mapping[str, Mapping[str, int]] = Field(
        {},
        description="The second level where one of the contract's counts of a group reaches a number, else the first",
    )
    scenarios: Mapping[Scenario, Change] = Field({}, description="What the names of drift mean here")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the file says: comments and layout do not count."""
        return hashlib.sha256(self.model_dump_json(exclude_defaults=True).encode()).hexdigest()


def read_synthetic(text: str, name: object, contract: Contract) -> Synthetic:
    """The contract's synthetic cohort as a YAML file's text describes it; `name` is what a message calls the file.

    Raises DataError with the line of the first mistakes and what to write there.
    """
    mend = "mend these lines; contracts/ has an example"
    return read_yaml(
        text, name, Synthetic, partial(_mistakes, contract), begin=("describes no synthetic cohort", mend), mend=mend
    )


def _mistakes(contract: Contract, synthetic: Synthetic) -> Iterator[tuple[Place, str]]:
    """What does not fit the contract, with its place."""
    if contract.encounter != (contract.order,) or not contract.by_name[contract.order].numeric:
        yield (), "only encounters that are ordered by one numeric identifier can be made up"
    if contract.outcome.next:
        yield (), "an outcome of the next row cannot be made up"
    wanted = {column.name for column in contract.table} - {*contract.encounter, contract.patient, contract.target.name}
    for name in sorted(wanted - {*synthetic.columns, *synthetic.summaries}):
        yield ("columns",), f"{name} is neither here nor among the summaries"
    for name in sorted({*synthetic.columns, *synthetic.summaries} - wanted):
        yield ("columns" if name in synthetic.columns else "summaries", name), "is no column that is made up"
    if synthetic.later and synthetic.later.level not in contract.outcome.levels:
        yield ("later", "level"), f"must be one of {', '.join(contract.outcome.levels)}"
    yield from _mistakes_of_names(contract, synthetic)
    yield from _mistakes_of_levels(contract, synthetic)
    known = {count for group in contract.groups for count in group.counts}
    for name, counts in synthetic.summaries.items():
        if name in contract.by_name and len(contract.by_name[name].levels) != 2:
            yield ("summaries", name), "must have two levels"
        for count in sorted(set(counts) - known):
            yield ("summaries", name, count), "is no count of a group of the contract"
    for name, amounts in synthetic.columns.items():
        if not sum(amounts.values()):
            yield ("columns", name), "no value occurs"


def _mistakes_of_names(contract: Contract, synthetic: Synthetic) -> Iterator[tuple[Place, str]]:
    """Columns that are not drawn, or are of a kind that cannot serve."""
    patients, named = synthetic.patients, dict[Place, tuple[Kind, ...]]()
    named |= {("factors", factor, name): () for factor, some in synthetic.factors.items() for name in some}
    named |= {("patients", "fixed", name): () for name in patients.fixed}
    if patients.ageing:
        named["patients", "ageing", patients.ageing.column] = (Kind.LEVEL, Kind.OPEN_LEVEL)
    if patients.history:
        named["patients", "history", patients.history.column] = (Kind.COUNT,)
    for name, effect in synthetic.effects.items():
        number, steps = effect.each is not None, bool(effect.steps)
        named["effects", name] = _NUMBERS if number else (Kind.COUNT,) if steps else ()
    named |= {("missing", name): () for name in synthetic.missing}
    for name, below in synthetic.missing_below.items():
        named |= {("missing_below", name): ()} | {("missing_below", name, count): (Kind.COUNT,) for count in below}
    for scenario, change in synthetic.scenarios.items():
        if scenario in (Scenario.NONE, Scenario.DELAYED_LABELS) or not change.model_fields_set:
            yield ("scenarios", str(scenario)), "changes nothing, so there is nothing to describe"
        named |= {("scenarios", str(scenario), name): () for name in change.columns}
        named |= {("scenarios", str(scenario), "caps", name): (Kind.COUNT,) for name in change.caps}
    for place, kinds in named.items():
        column = contract.by_name.get(str(place[-1]))
        if column is None or column.name not in {*synthetic.columns, *synthetic.summaries}:
            yield place, f"there is no column {place[-1]} that is made up"
        elif kinds and column.kind not in kinds:
            yield place, f"{column.name} is a {column.kind}; it must be a {' or a '.join(kinds)}"


def _mistakes_of_levels(contract: Contract, synthetic: Synthetic) -> Iterator[tuple[Place, str]]:
    """Values and chapters that their columns do not have."""
    named: list[tuple[Place, str, tuple[str, ...]]] = [
        (("columns", name), name, tuple(amounts)) for name, amounts in synthetic.columns.items()
    ]
    named += [(("effects", name, "levels"), name, tuple(one.levels)) for name, one in synthetic.effects.items()]
    named += [(("missing", name), name, (MISSING,)) for name in (*synthetic.missing, *synthetic.missing_below)]
    for scenario, change in synthetic.scenarios.items():
        place: Place = ("scenarios", str(scenario))
        named += [((*place, "weights", name), name, tuple(some)) for name, some in change.weights.items()]
        named += [((*place, "switched"), name, (MISSING,)) for name in change.switched]
        named += [((*place, "withdrawn", name), name, (level,)) for name, level in change.withdrawn.items()]
        named += [((*place, "instead", name), name, (*some, *some.values())) for name, some in change.instead.items()]
        for name in contract.names(Kind.CODE) if change.recoded else ():
            named.append(((*place, "recoded"), name, tuple(change.recoded.values())))
            yield from _unknown_chapters((*place, "recoded"), contract.by_name[name], change.recoded)
    for place, name, levels in named:
        column = contract.by_name.get(name)
        for level in levels:
            if column is not None and not column.holds(level):
                yield (*place, level), f"{name} cannot be {level}: it must be {column.allowed}"
    for name, effect in synthetic.effects.items():
        if name in contract.by_name:
            yield from _unknown_chapters(("effects", name, "chapters"), contract.by_name[name], effect.chapters)


def _unknown_chapters(place: Place, column: Column, named: Mapping[str, object]) -> Iterator[tuple[Place, str]]:
    chapters = column.chapters.names if column.system else ()
    for chapter in sorted(set(named) - set(chapters)):
        yield (*place, chapter), f"{column.name} has no chapter {chapter}"
