"""Encounters as people have them, read by the contract: cells are text or numbers, missing is `?`, None or NaN.

The registered model carries this module along (`adapters/tracking/registered_model.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from health_predict.core.data.contract import MISSING, Column, Contract, Kind
from health_predict.core.data.values import number_text, takes_numbers
from health_predict.errors import DataError

SHOWN = 5  # violations that a message names


def read_encounters(frame: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    """The features of encounters (n, columns) as the text that `EncounterFeatures` takes, under the same index.

    Counts, numbers and codes may be numbers (3 or 3.0) or text, a flag also True or False. A column that may be missing
    may be absent; columns that are no features are left out. Raises DataError for cells that break the contract: it
    names the first of them, by the number of their row from 0, and repeats no value, since that may be a patient's.
    """
    found: dict[str, list[str]] = {}
    wrong: list[str] = []
    count, lost = 0, False
    for column in contract.features:
        if column.name in frame:
            cells = frame[column.name]
            found[column.name] = texts = _read(column, cells.tolist(), cells.isna().tolist())
            bad = [row for row, text in enumerate(texts) if not text]
            lost = lost or ("None" in column.levels and bool(cells.iloc[bad].isna().any()))
            count += len(bad)
            wrong += [f"row {row}, {column.name}: must be {column.allowed}" for row in bad[:SHOWN]]
        elif column.nullable:
            found[column.name] = [MISSING] * len(frame)
        else:
            count += 1
            wrong.append(f"column {column.name} is absent: {column.allowed}")
    if wrong:
        places = "1 place" if count == 1 else f"{count} places"
        more = f"; and {count - SHOWN} more" if count > SHOWN else ""
        raise DataError(
            f"the encounters break the contract in {places}: {'; '.join(wrong[:SHOWN])}{more}",
            "mend them and ask again"
            + ("; pandas reads the level None as missing, unless keep_default_na=False" if lost else ""),
        )
    return pd.DataFrame(found, index=frame.index, dtype=str)


def _read(column: Column, cells: Iterable[Any], missing: Iterable[bool]) -> list[str]:
    """The text of each cell; empty for one that the column may not hold."""
    absent = MISSING if column.nullable else ""
    # Each distinct value is judged once. 1, 1.0 and True are equal, but not the same.
    known: dict[tuple[type, Any], str] = {}
    texts = []
    for cell, is_missing in zip(cells, missing, strict=True):
        if is_missing is True:
            texts.append(absent)
            continue
        try:
            key = type(cell), cell
            if key not in known:
                known[key] = _text(column, cell)
            texts.append(known[key])
        except TypeError:  # a list or another thing that is no value at all
            texts.append("")
    return texts


def _text(column: Column, cell: object) -> str:
    if isinstance(cell, bool | np.bool_):
        text = column.levels[int(cell)] if column.kind is Kind.FLAG else ""
    elif column.kind is Kind.NUMBER and isinstance(cell, int | float | np.number):
        text = number_text(float(cell))
    elif isinstance(cell, int | float | np.number) and takes_numbers(column):
        # A column with a missing value holds 3 as 3.0; five digits are the longest code.
        text = f"{float(cell):.9g}"
    elif isinstance(cell, str):
        text = str(cell)
    else:
        return ""
    return text if column.holds(text) else ""
