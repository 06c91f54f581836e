"""Columns that give the outcome away: known only afterwards, or a copy of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.data.cohort import target
from health_predict.core.data.contract import MISSING, Column, Contract, Kind
from health_predict.core.data.partition import patient_share
from health_predict.core.statistics import delong
from health_predict.errors import DataError

LEAK = 0.95  # AUC of a column by itself from which on it is not believed: before discharge nothing tells so much
_BINS = 20  # of a number


def refuse_leaks(frame: pd.DataFrame, contract: Contract) -> None:
    """Refuse a labelled cohort frame in which one feature predicts the outcome almost alone.

    The risk of each value is learned from half of the patients and judged on the others. Raises DataError that names
    the columns.
    """
    labels = target(frame, contract)
    codes, patients = pd.factorize(frame[contract.patient])
    half = np.array([patient_share("leaks", str(patient)) < 0.5 for patient in patients])[codes]
    if any(len(np.unique(labels[part])) < 2 for part in (half, ~half)):
        return
    found = {column.name: _auc(_values(frame[column.name], column), labels, half) for column in contract.features}
    if leaks := {name: auc for name, auc in found.items() if auc >= LEAK}:
        said = ", ".join(f"{name} (AUC {auc:.3f} by itself)" for name, auc in leaks.items())
        raise DataError(
            f"the outcome {contract.outcome.column} is given away by {said}: that is likely known only afterwards",
            "take the column out of the table and the contract, or make it an identifier, which no prediction uses",
        )


def _values(cells: pd.Series[str], column: Column) -> npt.NDArray[Any]:
    """A column as few values (n,): of a number the bin."""
    if column.kind is not Kind.NUMBER:
        return cells.to_numpy(dtype=object)
    numbers = pd.to_numeric(cells.mask(cells == MISSING)).to_numpy(dtype=np.float64)
    if np.isnan(numbers).all():
        return np.zeros(len(numbers))
    bounds = np.unique(np.nanquantile(numbers, np.linspace(0, 1, _BINS + 1)[1:-1]))
    return np.where(np.isnan(numbers), -1, np.searchsorted(bounds, numbers, side="right"))


def _auc(values: npt.NDArray[Any], labels: npt.NDArray[np.int8], half: npt.NDArray[np.bool_]) -> float:
    codes, distinct = pd.factorize(values)
    rows = np.bincount(codes[half], minlength=len(distinct))
    positives = np.bincount(codes[half], weights=labels[half], minlength=len(distinct))
    # A value with few rows is drawn to the mean, one that half of the patients never had has it.
    risks = (positives + labels[half].mean()) / (rows + 1)
    return delong(labels[~half].astype(np.float64), risks[codes[~half]])[0]
