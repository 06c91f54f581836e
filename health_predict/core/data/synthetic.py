"""A synthetic cohort that looks like the real one.

No row is copied: values are drawn from the tables of the contract's data file, histories and labels from a small
simulation of patients who come, leave and come back. Encounters and patients have numbers above `FIRST_NUMBER`, which
no real one has, so that generated rows are recognised wherever they turn up.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.data.contract import MISSING, Column, Contract
from health_predict.core.data.synthetic_file import Amounts, Effect, Synthetic
from health_predict.errors import DataError

VERSION = 1  # of the generator: changes when the same seed and the same file give other rows
FIRST_NUMBER = 9_000_000_000

_DAYS_PER_YEAR = 365.25

Columns = dict[str, npt.NDArray[Any]]


def is_synthetic(encounter_id: str) -> bool:
    """Whether an encounter has a number of a synthetic cohort."""
    return encounter_id.isdigit() and int(encounter_id) >= FIRST_NUMBER


def synthesize(contract: Contract, synthetic: Synthetic, rows: int, seed: int) -> pd.DataFrame:
    """A cohort frame of shape (rows, columns) in order of time; the same for the same arguments.

    Like the real cohort: its marginals, its share of positive outcomes, rows that are later stays of patients seen
    before (in a large cohort), nobody back from where nobody comes back. A label agrees with the patient's next stay:
    it lies within the follow-up after a positive one, later after one that says so, and there is none else. The
    distributions do not change over time. Raises DataError when rows < 1.
    """
    if rows < 1:
        raise DataError(f"a cohort of {rows} rows cannot be made", "ask for at least one row")
    rng = np.random.default_rng(seed)
    span = max(rows / synthetic.patients.rows_per_day, synthetic.patients.shortest_days)
    before = round(rows * synthetic.patients.burn_in_days / span)
    total = before + rows
    columns = _stays(rng, contract, synthetic, total)
    days = np.sort(rng.random(total)) * span * total / rows
    patients = _histories(rng, contract, synthetic, columns, days)
    # Shuffled, so that a patient's number says nothing about time.
    columns[contract.patient] = FIRST_NUMBER + 37 * (1 + rng.permutation(total))[patients]
    columns[contract.order] = FIRST_NUMBER + np.cumsum(rng.integers(1, 9_000, total))
    kept = slice(before, None)
    return pd.DataFrame({column.name: pd.Series(columns[column.name][kept]).astype(str) for column in contract.table})


def _stays(rng: np.random.Generator, contract: Contract, synthetic: Synthetic, size: int) -> Columns:
    """All columns that do not depend on who the patient is, and first drafts of those that do."""
    columns: Columns = {}
    loadings = {name: (factor, some[name]) for factor, some in synthetic.factors.items() for name in some}
    factors: dict[str, npt.NDArray[np.float64]] = {}

    def draw(names: Iterable[str]) -> None:
        for name in names:
            if name in loadings and not factors:
                factors.update(zip(synthetic.factors, rng.standard_normal((len(synthetic.factors), size)), strict=True))
            factor, loading = loadings.get(name, ("", 0.0))
            uniform = _correlated(rng, factors[factor], loading) if factor else rng.random(size)
            columns[name] = _at(uniform, synthetic.columns[name])

    grouped = {name for group in contract.groups for name in group.columns}
    draw(name for name in synthetic.columns if name not in grouped)
    for name, share in synthetic.missing.items():
        columns[name][rng.random(size) < share] = MISSING
    for name, below in synthetic.missing_below.items():
        for count, bound in below.items():
            columns[name][numbers(columns[count]) < bound] = MISSING
    draw(name for name in synthetic.columns if name in grouped)
    return columns | summaries(contract, synthetic, columns)


def _at(uniform: npt.NDArray[np.float64], amounts: Amounts) -> npt.NDArray[Any]:
    bounds = np.cumsum(np.array(list(amounts.values()), dtype=np.float64))
    places = np.searchsorted(bounds, uniform * bounds[-1], side="right")
    values: npt.NDArray[Any] = np.array(list(amounts), dtype=object)[np.minimum(places, len(amounts) - 1)]
    return values


def _correlated(rng: np.random.Generator, factor: npt.NDArray[np.float64], loading: float) -> npt.NDArray[np.float64]:
    # One-factor Gaussian copula.
    from scipy.special import ndtr

    noise = rng.standard_normal(len(factor))
    uniform: npt.NDArray[np.float64] = ndtr(loading * factor + np.sqrt(1 - loading**2) * noise)
    return uniform


def numbers(values: Any) -> npt.NDArray[np.float64]:
    """Values of a count or a number; NaN where it is missing."""
    found: npt.NDArray[np.float64] = pd.to_numeric(pd.Series(values), errors="coerce").to_numpy(np.float64)
    return found


def summaries(contract: Contract, synthetic: Synthetic, columns: Mapping[str, npt.NDArray[Any]]) -> Columns:
    """The columns that say what the columns of a group come to."""
    counted = {
        count: np.sum([np.isin(columns[name], levels) for name in group.columns], axis=0)
        for group in contract.groups
        for count, levels in group.counts.items()
    }
    found: Columns = {}
    for name, bounds in synthetic.summaries.items():
        no, yes = contract.by_name[name].levels
        reached = np.any([counted[count] >= bound for count, bound in bounds.items()], axis=0)
        found[name] = np.where(reached, yes, no).astype(object)
    return found


def _log_odds(effect: Effect, column: Column) -> Callable[[str], float]:
    """What a value of the column adds to the log-odds of the outcome."""

    def of(value: str) -> float:
        if effect.levels:
            return effect.levels.get(value, 0.0)
        if effect.chapters:
            return effect.chapters.get(column.chapters.of(value), 0.0)
        if value == MISSING:
            return 0.0
        if effect.steps:
            return effect.steps[min(int(value), len(effect.steps) - 1)]
        return (effect.each or 0.0) * (min(float(value), effect.up_to) - effect.centre)

    return cache(of)


@dataclass(slots=True)
class _Patient:
    number: int
    values: dict[str, str]  # of the columns that are of the patient
    stays: list[float]  # days of admission in this cohort
    deadline: float = np.inf  # the next stay must come by this day


def _histories(
    rng: np.random.Generator,
    contract: Contract,
    synthetic: Synthetic,
    columns: Columns,
    days: npt.NDArray[np.float64],
) -> npt.NDArray[np.int64]:
    """Who comes on which day, in place: what is of the patient, the history and the label; gives patient indexes.

    Row by row in order of time, since a label decides when the patient returns, and a return what the next label is.
    """
    ageing, history = synthetic.patients.ageing, synthetic.patients.history
    theirs = (*synthetic.patients.fixed, *([ageing.column] if ageing else ()))
    levels = contract.by_name[ageing.column].levels if ageing else ()
    older = dict(zip(levels, (*levels[1:], *levels[-1:]), strict=True))
    values = {name: columns[name].tolist() for name in (*theirs, *([history.column] if history else ()))}
    counts = values[history.column] if history else []
    most = int(contract.by_name[history.column].maximum or 0) if history else 0
    effects = {name: _log_odds(effect, contract.by_name[name]) for name, effect in synthetic.effects.items()}
    risks = _added_up({name: of for name, of in effects.items() if name not in values}, columns, len(days)).tolist()
    varying = [(values[name], of) for name, of in effects.items() if name in values]
    draws = rng.random((6, len(days))).T.tolist()
    gaps = rng.exponential(synthetic.later.mean_days if synthetic.later else 1.0, len(days)).tolist()
    gone = excluded(contract, columns, len(days)).tolist()
    labels: list[str] = []
    patients: list[int] = []
    expected: list[tuple[float, int, _Patient]] = []
    for row, day in enumerate(days.tolist()):
        patient, luck, risk = _due(expected, day), draws[row], risks[row]
        if patient is None:
            patient = _Patient(row, {name: values[name][row] for name in theirs}, [])
        elif ageing and luck[1] < (day - patient.stays[-1]) / _DAYS_PER_YEAR / ageing.years:
            patient.values[ageing.column] = older.get(patient.values[ageing.column], MISSING)
        patient.stays = [stay for stay in patient.stays if stay > day - _DAYS_PER_YEAR]
        for name, value in patient.values.items():
            values[name][row] = value
        if history:
            outside = int(counts[row]) if luck[0] < history.outside else 0
            counts[row] = str(min(outside + len(patient.stays), most))
        patients.append(patient.number)
        patient.stays.append(day)
        for column, of in varying:
            risk += of(column[row])
        label, back, patient.deadline = _fate(contract, synthetic, risk, day, luck, gaps[row])
        labels.append(contract.outcome.negative if gone[row] else label)
        if not gone[row] and back < np.inf and luck[5] < synthetic.patients.seen_again:
            heapq.heappush(expected, (back, row, patient))
    for name, found in (*values.items(), (contract.outcome.column, labels)):
        columns[name] = np.array(found, dtype=object)
    return np.array(patients, dtype=np.int64)


def _due(expected: list[tuple[float, int, _Patient]], day: float) -> _Patient | None:
    """The patient who was to come back by this day; who is too late went to another hospital."""
    while expected and expected[0][0] <= day:
        patient = heapq.heappop(expected)[2]
        if day <= patient.deadline:
            return patient
    return None


def _added_up(effects: Mapping[str, Callable[[str], float]], columns: Columns, size: int) -> npt.NDArray[np.float64]:
    total = np.zeros(size)
    for name, of in effects.items():
        codes, distinct = pd.factorize(columns[name])
        total += np.array([of(value) for value in distinct])[codes]
    return total


def excluded(contract: Contract, columns: Mapping[str, Any] | pd.DataFrame, size: int) -> npt.NDArray[np.bool_]:
    """Rows that are not to be scored, so that there is no outcome: nobody of them comes back."""
    gone = np.zeros(size, dtype=bool)
    for one in contract.exclude:
        gone |= np.isin(np.asarray(columns[one.column], dtype=object), one.levels)
    return gone


def _fate(
    contract: Contract, synthetic: Synthetic, effects: float, day: float, luck: Sequence[float], gap: float
) -> tuple[str, float, float]:
    """The label, the day when the patient comes back (infinite: never), and the day by which it must have been."""
    soon, later, outcome = synthetic.soon, synthetic.later, contract.outcome
    risk = soon.strength * effects
    first, last = soon.days
    if luck[2] < _probability(soon.intercept + risk):
        return outcome.positive[0], day + first + (last - first) * luck[3], day + contract.follow_up_days
    if later and luck[4] < _probability(later.intercept + later.strength * risk):
        return later.level, day + (contract.follow_up_days + 1) + gap, np.inf
    return outcome.negative, np.inf, np.inf


def _probability(log_odds: float) -> float:
    return float(1 / (1 + np.exp(-log_odds)))
