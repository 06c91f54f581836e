"""Outcomes that arrive later: joined to the arrivals that they belong to, and only when they can be known.

That something did not happen is known at the end of the follow-up at the earliest, that it happened sooner. Scoring
whatever is there would count those first to whom it happened; so a prediction counts only once it is older than the
follow-up.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.data.contract import MISSING, Contract
from health_predict.errors import DataError

PREDICTION_ID = "prediction_id"
MATURED_SHARE = 0.9  # of a batch's outcomes; some patients are lost to follow-up for ever


@dataclass(frozen=True, slots=True)
class Joined:
    """Outcomes (n,) of a batch, 1, 0, or NaN where there is none yet, and what the others wait for."""

    outcomes: npt.NDArray[np.float64]
    in_follow_up: int
    without_outcome: int
    """Old enough, but no outcome file names them."""

    @property
    def matured(self) -> bool:
        """Whether the batch can be judged by its outcomes."""
        return bool(len(self.outcomes)) and float(np.isfinite(self.outcomes).mean()) >= MATURED_SHARE

    @property
    def waiting(self) -> str:
        """What is waited for, in words; empty when nothing is."""
        parts = (
            (self.in_follow_up, "within the follow-up window"),
            (self.without_outcome, "without an outcome"),
        )
        return ", ".join(f"{count:,} {what}" for count, what in parts if count)


def keys_of(contract: Contract) -> tuple[tuple[str, ...], ...]:
    """What an outcome may name its encounter by: our id, or the hospital's own, or the patient and the day."""
    dated = ((contract.patient, contract.date),) if contract.date else ()
    return tuple(dict.fromkeys(((PREDICTION_ID,), contract.encounter, *dated)))


Values = tuple[str, ...]  # of one of `keys_of`
Outcomes = Mapping[tuple[str, ...], Mapping[Values, int]]
"""Outcomes, 1 or 0, by key and by its values."""


def merged(outcomes: Outcomes, later: Outcomes) -> Outcomes:
    """Both; the later ones where both have some."""
    return {key: {**outcomes.get(key, {}), **later.get(key, {})} for key in dict.fromkeys((*outcomes, *later))}


def matched(outcomes: Outcomes, identity: pd.DataFrame) -> tuple[dict[str, int], Outcomes]:
    """Those of some arrivals by prediction id, and the others. `identity`: text (n, prediction id and `keys_of`)."""
    found: dict[str, int] = {}
    left: dict[tuple[str, ...], Mapping[Values, int]] = {}
    for key, known in outcomes.items():
        here = dict(zip(zip(*(identity[name] for name in key), strict=True), identity[PREDICTION_ID], strict=True))
        both = {values for values in known.keys() & here.keys() if MISSING not in values}
        found |= {here[values]: known[values] for values in both}
        if others := {values: outcome for values, outcome in known.items() if values not in both}:
            left[key] = others
    return found, left


def read_outcomes(data: bytes, contract: Contract, name: str) -> Outcomes:
    """A CSV file with the label's column (a level, or 1 or 0) and those of one of `keys_of`.

    Raises DataError that names the first wrong line; header is line 1.
    """
    label = contract.outcome.column
    remedy = f"write one of {'; '.join(','.join((*key, label)) for key in keys_of(contract))}"
    try:
        frame = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own are ValueErrors
        raise DataError(f"{name} is no CSV file: {error}", remedy) from None
    key = next((key for key in keys_of(contract) if {*frame.columns} == {*key, label}), None)
    if key is None:
        raise DataError(f"{name} has the columns {', '.join(map(str, frame.columns))[:200]}", remedy)
    meaning = meaning_of(contract)
    wrong = np.flatnonzero(~frame[label].isin([*meaning]) | (frame[list(key)] == "").any(axis=1))
    if len(wrong):
        raise DataError(
            f"{name}, line {wrong[0] + 2} is no outcome",
            f"write {', '.join(key)}, and for {label} one of {', '.join(meaning)}",
        )
    values = zip(*(frame[column] for column in key), strict=True)
    return {key: dict(zip(values, frame[label].map(meaning).tolist(), strict=True))}


def meaning_of(contract: Contract) -> dict[str, int]:
    """What a label may say, in the contract's words or as 1 and 0."""
    words = {level: int(level in contract.outcome.positive) for level in contract.outcome.levels}
    return words | ({"1": 1, "0": 0} if words.keys().isdisjoint(("0", "1")) else {})


def write_outcomes(identity: Mapping[str, Iterable[str]], contract: Contract, outcomes: npt.ArrayLike) -> bytes:
    """The file that `read_outcomes` reads: `identity` has the values (n,) of each column of a key."""
    named = {name: list(values) for name, values in identity.items()}
    frame = pd.DataFrame({**named, contract.outcome.column: np.asarray(outcomes, dtype=np.int64)})
    return frame.to_csv(index=False, lineterminator="\n").encode()


def join(
    times: Sequence[datetime], ids: Sequence[str], known: Mapping[str, int], *, now: datetime, follow_up_days: float
) -> Joined:
    """Outcomes of the arrivals `ids` at `times`, from the outcomes `known` at `now`."""
    youngest = now - timedelta(days=follow_up_days)
    outcomes = np.full(len(ids), np.nan)
    in_follow_up = without = 0
    for at, (time, identifier) in enumerate(zip(times, ids, strict=True)):
        if time > youngest:
            in_follow_up += 1
        elif identifier not in known:
            without += 1
        else:
            outcomes[at] = known[identifier]
    return Joined(outcomes, in_follow_up, without)


def derived(
    identity: pd.DataFrame, arrivals: pd.DataFrame, contract: Contract, follow_up_days: float
) -> dict[str, int]:
    """Outcomes that follow from later arrivals: 1 for a patient who arrives again within the follow-up, else 0.

    `identity`: text (n, prediction id, patient, date) of those asked about; `arrivals`: text (m, patient, date) of all
    days from their first to the end of their follow-up. An arrival is later when its date is: a second one of the same
    day does not count. Who has no patient or date gets no outcome. The contract names a date.
    """
    patients, dated = contract.patient, contract.date
    dates: dict[str, list[date]] = {}
    for patient, day in zip(arrivals[patients], arrivals[dated], strict=True):
        if MISSING not in (patient, day):
            dates.setdefault(patient, []).append(date.fromisoformat(day))
    found = {}
    for one, patient, day in zip(identity[PREDICTION_ID], identity[patients], identity[dated], strict=True):
        if MISSING not in (patient, day):
            begin = date.fromisoformat(day)
            ahead = (other - begin for other in dates.get(patient, ()))
            found[one] = int(any(timedelta(0) < distance <= timedelta(days=follow_up_days) for distance in ahead))
    return found
