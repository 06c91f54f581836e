"""Drift with a known truth, injected into any cohort, real or synthetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.choices import Scenario
from health_predict.core.data.codes import category
from health_predict.core.data.contract import MISSING, Column, Contract, Kind
from health_predict.core.data.synthetic import excluded, numbers, summaries
from health_predict.core.data.synthetic_file import Change, Synthetic
from health_predict.errors import DataError


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """What `inject` did, to judge a monitor by.

    `kind` is what a statistician calls it: none, covariate, quality, prior, concept or delay. `first_encounter` names
    the encounter at row `from_row` (from 0), where the change begins.
    """

    scenario: Scenario
    kind: str
    from_row: int
    first_encounter: str
    rows: int  # in the changed part
    columns: tuple[str, ...]  # changed directly
    changed_rows: int  # that differ in any column from the row that stood there before
    seed: int


def inject(
    frame: pd.DataFrame,
    contract: Contract,
    synthetic: Synthetic | None,
    scenario: Scenario | str,
    from_row: int,
    seed: int,
) -> tuple[pd.DataFrame, GroundTruth]:
    """A copy of a labelled cohort frame in order of time whose rows from `from_row` on have drifted, and the truth.

    What encounters are called, their order and the number of rows stay. Shifts by weights and of prevalence draw rows
    anew from the changed part, so that what a row says about its label stays as it was; a second copy of a row becomes
    a patient of its own. `concept-flip` gives the labels of the riskiest encounters to the safest and leaves everything
    else, so the labels no longer agree with the patients' next stays. Raises DataError for a scenario that is unknown,
    or described neither by the contract's data file (None: there is none) nor for all contracts, and for a row outside
    the frame.
    """
    try:
        scenario = Scenario(scenario)
    except ValueError:
        raise DataError(f"scenario {scenario!r} is unknown", f"use one of {', '.join(Scenario)}") from None
    described = {**_everywhere(contract), **(synthetic.scenarios if synthetic else {})}
    if scenario not in described:
        raise DataError(
            f"the contract {contract.name} does not say what the scenario {scenario} changes",
            f"use one of {', '.join(name for name in Scenario if name in described)}, or describe it in the file that "
            "the contract names under `synthetic`",
        )
    if not 0 <= from_row < len(frame):
        raise DataError(
            f"drift cannot begin at row {from_row} of {len(frame)}", f"give a row from 0 to {len(frame) - 1}"
        )
    old = frame.iloc[from_row:].reset_index(drop=True)
    kind, columns, new = _drifted(np.random.default_rng(seed), contract, synthetic, frame, old, described[scenario])
    changed = (new.to_numpy(dtype=object) != old.to_numpy(dtype=object)).any(axis=1)
    kind = "delay" if scenario is Scenario.DELAYED_LABELS else kind
    first = "/".join(str(old[name].iloc[0]) for name in contract.encounter)
    truth = GroundTruth(scenario, kind, from_row, first, len(old), columns, int(changed.sum()), seed)
    return pd.concat([frame.iloc[:from_row], new], ignore_index=True), truth


def _everywhere(contract: Contract) -> Mapping[Scenario, Change]:
    """Scenarios that need no description."""
    return {
        Scenario.NONE: Change(),
        Scenario.PREVALENCE_DOWN: Change(prevalence=0.6),
        Scenario.PREVALENCE_UP: Change(prevalence=1.5),
        Scenario.CONCEPT_FLIP: Change(ranked_by=(contract.single_predictor,)),
        Scenario.DELAYED_LABELS: Change(),  # the outcomes come later, as they are
    }


def _drifted(
    rng: np.random.Generator,
    contract: Contract,
    synthetic: Synthetic | None,
    frame: pd.DataFrame,
    old: pd.DataFrame,
    change: Change,
) -> tuple[str, tuple[str, ...], pd.DataFrame]:
    """The kind of a change, the columns that it changes directly, and the changed rows."""
    label = (contract.outcome.column,)
    if change.weights:
        factors = [old[name].map(lambda level, by=by: by.get(level, 1.0)) for name, by in change.weights.items()]
        return "covariate", (*change.weights,), _redrawn(rng, contract, frame, old, np.prod(factors, axis=0))
    if change.prevalence:
        return "prior", label, _redrawn(rng, contract, frame, old, _prior_weights(contract, old, change.prevalence))
    if change.switched:
        return "quality", change.switched, _switched(rng, frame, old, change.switched)
    if change.recoded:
        columns = [contract.by_name[name] for name in contract.names(Kind.CODE)]
        return "quality", contract.names(Kind.CODE), _recoded(old, columns, change.recoded)
    if change.caps:
        capped = {name: old[name].mask(numbers(old[name]) > cap, str(cap)) for name, cap in change.caps.items()}
        return "quality", (*change.caps,), old.assign(**capped)
    if change.ranked_by:
        risk = _risk(contract, synthetic, old, change.ranked_by)
        return "concept", label, _flipped(rng, contract, old, risk)
    if change.withdrawn and synthetic is not None:
        directly = (*change.withdrawn, *change.instead, *synthetic.summaries)
        return "covariate", directly, _withdrawn(rng, contract, synthetic, old, change)
    return "none", (), old.copy()


def _redrawn(
    rng: np.random.Generator,
    contract: Contract,
    frame: pd.DataFrame,
    old: pd.DataFrame,
    weights: npt.NDArray[np.float64],
) -> pd.DataFrame:
    drawn = np.sort(rng.choice(len(old), len(old), p=weights / weights.sum()))
    new = old.iloc[drawn].reset_index(drop=True)
    others = np.append(False, drawn[1:] == drawn[:-1])
    if contract.patient in contract.encounter:  # then a patient cannot take another's place in time
        others |= drawn != np.arange(len(old))
    patients = new[contract.patient].to_numpy(dtype=object, copy=True)
    numeric = contract.by_name[contract.patient].numeric
    first = frame[contract.patient].astype(np.int64).max() + 1 if numeric else 0
    patients[others] = [str(first + at) if numeric else f"drawn {at}" for at in range(others.sum())]
    places = {*contract.encounter, contract.order, contract.date} - {contract.patient}
    kept = {name: old[name] for name in places if name in old}
    return new.assign(**kept, **{contract.patient: pd.Series(patients).astype(str)})


def _prior_weights(contract: Contract, old: pd.DataFrame, factor: float) -> npt.NDArray[np.float64]:
    positive = _positive(contract, old)
    share = float(positive.mean())
    wanted = min(factor * share, 0.95)
    if not 0 < share < 1:
        return np.ones(len(old))
    return np.where(positive, wanted / share, (1 - wanted) / (1 - share)).astype(np.float64)


def _positive(contract: Contract, rows: pd.DataFrame) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = rows[contract.outcome.column].isin(contract.outcome.positive).to_numpy()
    return found


def _switched(rng: np.random.Generator, frame: pd.DataFrame, old: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """What was recorded is missing, and the other way round, with levels as often as they were recorded."""
    new = old.copy()
    for name in names:
        recorded = frame.loc[frame[name] != MISSING, name].to_numpy(dtype=object)
        fill = rng.choice(recorded, len(old)) if recorded.size else np.full(len(old), MISSING, dtype=object)
        new[name] = pd.Series(np.where(old[name] == MISSING, fill, MISSING)).astype(str)
    return new


def _recoded(old: pd.DataFrame, columns: list[Column], by_chapter: Mapping[str, str]) -> pd.DataFrame:
    """Another coding guideline: chapters come under one code each, the other codes lose what narrows them down."""

    def of(column: Column, code: str) -> str:
        if code == MISSING or column.system is None:
            return code
        return by_chapter.get(column.chapters.of(code)) or category(code, column.system)

    return old.assign(**{one.name: old[one.name].map(lambda code, one=one: of(one, code)) for one in columns})


def _risk(
    contract: Contract, synthetic: Synthetic | None, old: pd.DataFrame, names: tuple[str, ...]
) -> npt.NDArray[np.float64]:
    """Observed log-odds of the outcome by each column, added up; shrunk, so that rare levels do not lead."""
    rows = old[~excluded(contract, old, len(old))]
    positive = _positive(contract, rows).astype(np.float64)
    risk = np.zeros(len(rows))
    for name in names:
        codes, _ = pd.factorize(_grouped(contract.by_name[name], synthetic, rows[name]))
        sums, sizes = np.bincount(codes, positive), np.bincount(codes)
        share = (sums + 20 * positive.mean() + 1e-9) / (sizes + 20)
        risk += np.log(share / (1 - share + 1e-9))[codes]
    return risk


def _grouped(column: Column, synthetic: Synthetic | None, values: pd.Series) -> npt.NDArray[np.object_]:
    """Values that stand for many rows each: a count as far as its steps go, else a number by tenths of the rows."""
    if column.kind not in (Kind.COUNT, Kind.NUMBER):
        return values.to_numpy(dtype=object)
    found = numbers(values)
    effect = synthetic.effects.get(column.name) if synthetic else None
    if effect and effect.steps:
        return np.minimum(found, len(effect.steps) - 1).astype(object)
    return np.searchsorted(np.unique(np.nanquantile(found, np.arange(1, 10) / 10)), found, side="right").astype(object)


def _flipped(
    rng: np.random.Generator, contract: Contract, old: pd.DataFrame, risk: npt.NDArray[np.float64]
) -> pd.DataFrame:
    able = np.flatnonzero(~excluded(contract, old, len(old)))
    order = np.lexsort((rng.random(len(able)), risk))
    labels = old[contract.outcome.column].to_numpy(dtype=object, copy=True)
    labels[able[order]] = labels[able][order[::-1]]
    return old.assign(**{contract.outcome.column: pd.Series(labels).astype(str)})


def _withdrawn(
    rng: np.random.Generator, contract: Contract, synthetic: Synthetic, old: pd.DataFrame, change: Change
) -> pd.DataFrame:
    """Levels fall to nothing in a straight line, others take their place, and the summaries follow."""
    gone = rng.random(len(old)) < (np.arange(len(old)) + 1) / len(old)
    taken = gone & np.any([old[name] != level for name, level in change.withdrawn.items()], axis=0)
    new = old.copy()
    for name, level in change.withdrawn.items():
        new[name] = old[name].mask(taken, level)
    for name, levels in change.instead.items():
        new[name] = old[name].mask(taken & old[name].isin(list(levels)), old[name].map(levels))
    for name, values in summaries(contract, synthetic, {str(name): new[name].to_numpy(object) for name in new}).items():
        new[name] = pd.Series(np.where(taken, values, old[name])).astype(str)
    return new
