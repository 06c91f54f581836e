"""What people bring to the door by hand: files of encounters and of outcomes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.adapters import keys
from health_predict.adapters.data.arrivals import Added, Arrivals
from health_predict.adapters.tracking import Tracking
from health_predict.core.data.cohort import FIRST_LINE, with_missing
from health_predict.core.data.contract import MISSING, Contract
from health_predict.core.data.encounters import as_text
from health_predict.core.data.outcomes import meaning_of, read_outcomes, write_outcomes
from health_predict.core.data.table_file import read_table_file
from health_predict.errors import DataError
from health_predict.settings import Settings


@dataclass(frozen=True, slots=True)
class Outcomes:
    """A file of outcomes at the door."""

    outcomes: int
    key: str


def add_encounters(settings: Settings, file: Path) -> tuple[Added, int]:
    """Score the encounters of a CSV or Parquet file by the champion, and leave them at the door; outcomes in it too.

    Gives what came of the file, and how many outcomes it brought: those of encounters with a number, each file's once.
    Raises DataError when it cannot be read, lacks columns or holds other outcomes than those of the contract;
    StateError when there is no champion.
    """
    tracking = Tracking(settings)
    champion = tracking.champion()
    arrivals = Arrivals(settings)
    contract, frame = arrivals.contract, read_table_file(file).replace("", MISSING)
    label = contract.outcome.column
    found = _outcomes(frame, contract, file) if label in frame else frame.iloc[:0]
    frame = frame.drop(columns=label, errors="ignore")

    def score(text: pd.DataFrame) -> tuple[npt.NDArray[np.float64], str]:
        pipeline = tracking.load_pipeline(champion.version)
        return np.asarray(pipeline.predict_proba(text)[:, 1], dtype=np.float64), champion.version

    added = arrivals.add(frame, str(file), score)
    if found.empty:
        return added, 0
    data = write_outcomes({name: found[name] for name in contract.encounter}, contract, found[label])
    marker = keys.added(settings.stream, hashlib.sha256(data).hexdigest())
    if arrivals.storage.exists(marker):
        return added, 0
    arrivals.storage.write(_key(settings, file, data), data)
    arrivals.storage.write(marker, json.dumps({"outcomes": len(found)}).encode())
    return added, len(found)


def _outcomes(frame: pd.DataFrame, contract: Contract, file: Path) -> pd.DataFrame:
    """What identifies the encounters, and 1 or 0 (n, columns); without those that are not known or not identified."""
    label, by = contract.outcome.column, [*contract.encounter]
    if absent := [name for name in by if name not in frame]:
        raise DataError(
            f"{file} has outcomes but no {', '.join(absent)}, by which they are found",
            f"add it, or leave {label} out and deliver the outcomes with `health-predict data outcomes`",
        )
    meaning = meaning_of(contract)
    text = with_missing(as_text(frame[[*by, label]]), contract)
    wrong = np.flatnonzero(~text[label].isin([*meaning, MISSING]))
    if len(wrong):
        raise DataError(
            f"{file}, line {wrong[0] + FIRST_LINE} is no outcome: {label} is one of {', '.join(meaning)}",
            "correct it, or leave the cell empty while the outcome is not known",
        )
    known = text[(text != MISSING).all(axis=1)].drop_duplicates(by, keep="last")
    return known.assign(**{label: known[label].map(meaning)})


def add_outcomes(settings: Settings, file: Path) -> Outcomes:
    """Leave a CSV file of outcomes at the door. Raises DataError that names the first wrong line."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror}", "give the path of a file that may be read"
        ) from None
    arrivals = Arrivals(settings)
    found = read_outcomes(data, arrivals.contract, str(file))
    arrivals.storage.write(_key(settings, file, data), data)
    [(key, outcomes)] = found.items()
    return Outcomes(len(outcomes), ", ".join(key))


def _key(settings: Settings, file: Path, data: bytes) -> str:
    """By the moment, so that the later file comes later, and by content, so that one left twice is one."""
    moment = settings.now.strftime("%Y%m%dT%H%M%S")
    return keys.outcomes(settings.stream, f"{moment}-{hashlib.sha256(data).hexdigest()[:16]}-{file.stem}")
