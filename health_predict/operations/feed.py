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
from health_predict.core.data.cohort import FIRST_LINE
from health_predict.core.data.columns import BY_NAME, ENCOUNTER, MISSING, POSITIVE, TARGET
from health_predict.core.data.csv_file import read_table
from health_predict.core.data.encounters import as_text
from health_predict.core.data.outcomes import read_outcomes, write_outcomes
from health_predict.errors import DataError
from health_predict.settings import Settings

PARQUET = b"PAR1"
# What `readmitted` may say, in the contract's words or as in a file of outcomes.
_MEANING = {**{level: int(level == POSITIVE) for level in BY_NAME[TARGET].levels}, "1": 1, "0": 0}


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
    frame = read_encounters(file)
    found = _outcomes(frame, file) if TARGET in frame else pd.Series(dtype="int64")
    frame = frame.drop(columns=TARGET, errors="ignore")

    def score(text: pd.DataFrame) -> tuple[npt.NDArray[np.float64], str]:
        pipeline = tracking.load_pipeline(champion.version)
        return np.asarray(pipeline.predict_proba(text)[:, 1], dtype=np.float64), champion.version

    added = arrivals.add(frame, str(file), score)
    data = write_outcomes(ENCOUNTER, found.index, found)
    marker = keys.added(settings.stream, hashlib.sha256(data).hexdigest())
    if found.empty or arrivals.storage.exists(marker):
        return added, 0
    arrivals.storage.write(_key(settings, file, data), data)
    arrivals.storage.write(marker, json.dumps({"outcomes": len(found)}).encode())
    return added, len(found)


def _outcomes(frame: pd.DataFrame, file: Path) -> pd.Series[int]:
    """1 or 0 by the number of the encounter (n,); without those that are not known, or of whom no number is."""
    if ENCOUNTER not in frame:
        raise DataError(
            f"{file} has outcomes but no {ENCOUNTER}, by which they are found",
            f"add the numbers, or leave {TARGET} out and deliver the outcomes with `health-predict data outcomes`",
        )
    text = as_text(frame[[ENCOUNTER, TARGET]])
    wrong = np.flatnonzero(~text[TARGET].isin([*_MEANING, MISSING]))
    if len(wrong):
        raise DataError(
            f"{file}, line {wrong[0] + FIRST_LINE} is no outcome: {TARGET} is one of {', '.join(_MEANING)}",
            "correct it, or leave the cell empty while the outcome is not known",
        )
    known = text[(text != MISSING).all(axis=1)]
    return known.set_index(ENCOUNTER)[TARGET].map(_MEANING)


def read_encounters(file: Path) -> pd.DataFrame:
    """A CSV or Parquet file of encounters, of any types (n, columns). Raises DataError when it cannot be read."""
    try:
        with file.open("rb") as opened:
            start = opened.read(len(PARQUET))
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror}", "give the path of a file that may be read"
        ) from None
    if start != PARQUET:
        return read_table(file).replace("", MISSING)  # as a CSV file says null
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file} is not a readable Parquet file: {error}", "write it again") from None
    if len(set(table.column_names)) < table.num_columns:
        raise DataError(f"{file} names a column more than once", "keep one of them")
    frame: pd.DataFrame = table.to_pandas()
    return frame


def add_outcomes(settings: Settings, file: Path) -> Outcomes:
    """Leave a CSV file of outcomes at the door. Raises DataError that names the first wrong line."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror}", "give the path of a file that may be read"
        ) from None
    found = read_outcomes(data, str(file))
    Arrivals(settings).storage.write(_key(settings, file, data), data)
    [(key, outcomes)] = found.items()
    return Outcomes(len(outcomes), ", ".join(key))


def _key(settings: Settings, file: Path, data: bytes) -> str:
    """By the moment, so that the later file comes later, and by content, so that one left twice is one."""
    moment = settings.now.strftime("%Y%m%dT%H%M%S")
    return keys.outcomes(settings.stream, f"{moment}-{hashlib.sha256(data).hexdigest()[:16]}-{file.stem}")
