"""Encounters on their way in, as the service logs them and as files have them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.adapters import keys
from health_predict.adapters.storage import Storage
from health_predict.core.data.cohort import as_requests
from health_predict.core.data.contract import MISSING
from tests.contracts import DATE, DIABETES, ENCOUNTER, PATIENT


def dated(frame: pd.DataFrame, days: Sequence[str]) -> pd.DataFrame:
    """A cohort frame with a date for each encounter."""
    return frame.reset_index(drop=True).assign(**{DATE: list(days)})


def logged(
    storage: Storage,
    name: str,
    frame: pd.DataFrame,
    time: datetime,
    *,
    probability: float | npt.NDArray[np.float64] = 0.1,
    version: str = "1",
) -> list[str]:
    """Write a file of the prediction log; the ids of its predictions. Identifiers that the frame lacks are not sent."""
    scores = np.broadcast_to(np.asarray(probability, dtype=np.float64), len(frame))
    ids, lines = [], []
    for row, (features, score) in enumerate(zip(as_requests(frame, DIABETES.features), scores, strict=True)):
        known = {one: frame[one].iloc[row] for one in (ENCOUNTER, PATIENT, DATE) if one in frame}
        identifiers = {one: value for one, value in known.items() if value != MISSING}
        ids.append(str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name}-{row}")))
        entry = {
            "prediction": int(score >= 0.5),
            "probability_score": float(score),
            "risk_group": "low",
            "model_version": version,
            "prediction_id": ids[-1],
            "time": time.isoformat(),
            "features": {**features, **identifiers},
        }
        lines.append(json.dumps(entry))
    storage.write(keys.prediction_file(time.date().isoformat(), f"{name}.jsonl"), "\n".join([*lines, ""]).encode())
    return ids
