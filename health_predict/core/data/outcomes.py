"""Outcomes that arrive later: joined to the predictions by prediction id, and only when they can be known.

Whether a patient came back within 30 days is known 30 days after discharge at the earliest, and for the readmitted
sooner than for the others. Scoring whatever is there would count the readmitted first; so a prediction counts only
once it is older than the follow-up window.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.errors import DataError

PREDICTION_ID, READMITTED = "prediction_id", "readmitted"
MATURED_SHARE = 0.9  # of a batch's outcomes; some patients are lost to follow-up for ever


@dataclass(frozen=True, slots=True)
class Joined:
    """Outcomes (n,) of a batch, 1, 0, or NaN where there is none yet, and what the others wait for."""

    outcomes: npt.NDArray[np.float64]
    not_logged: int
    """Predictions that the shipped log does not hold (yet)."""
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
            (self.not_logged, "not in the shipped prediction log"),
        )
        return ", ".join(f"{count:,} {what}" for count, what in parts if count)


def read_outcomes(data: bytes, name: str) -> dict[str, int]:
    """A CSV file with the columns `prediction_id` and `readmitted` (1 or 0): outcome by id.

    Raises DataError that names the first wrong line; header is line 1.
    """
    try:
        frame = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own are ValueErrors
        raise DataError(f"{name} is no CSV file: {error}", "write prediction_id,readmitted") from None
    if list(frame.columns) != [PREDICTION_ID, READMITTED]:
        raise DataError(f"{name} has the columns {', '.join(frame.columns)}", f"write {PREDICTION_ID},{READMITTED}")
    wrong = np.flatnonzero(~frame[READMITTED].isin(("0", "1")) | (frame[PREDICTION_ID] == ""))
    if len(wrong):
        row = frame.iloc[wrong[0]]
        raise DataError(f"{name}, line {wrong[0] + 2}: {row.to_list()} is no outcome", "write an id and 1 or 0")
    return dict(zip(frame[PREDICTION_ID], frame[READMITTED].astype(int), strict=True))


def write_outcomes(ids: Sequence[str], readmitted: npt.ArrayLike) -> bytes:
    """The file that `read_outcomes` reads."""
    frame = pd.DataFrame({PREDICTION_ID: list(ids), READMITTED: np.asarray(readmitted, dtype=np.int64)})
    return frame.to_csv(index=False, lineterminator="\n").encode()


def join(
    times: Sequence[datetime | None], ids: Sequence[str], known: dict[str, int], *, now: datetime, follow_up_days: float
) -> Joined:
    """Outcomes of predictions `ids`, made at `times` (None: not in the log), from the outcomes `known` at `now`."""
    youngest = now - timedelta(days=follow_up_days)
    outcomes = np.full(len(ids), np.nan)
    not_logged = in_follow_up = without = 0
    for at, (time, identifier) in enumerate(zip(times, ids, strict=True)):
        if time is None:
            not_logged += 1
        elif time > youngest:
            in_follow_up += 1
        elif identifier not in known:
            without += 1
        else:
            outcomes[at] = known[identifier]
    return Joined(outcomes, not_logged, in_follow_up, without)
