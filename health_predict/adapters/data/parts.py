"""The parts of a dataset, as `split` left them in storage."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from health_predict.adapters import keys
from health_predict.adapters.storage import Storage

if TYPE_CHECKING:
    import pandas as pd


def stored_part(storage: Storage, dataset_digest: str, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The part `train`, `validation` or `test` of a dataset as a cohort frame, or some of its columns.

    Raises StateError when storage does not have it.
    """
    return read_frame(storage, keys.part(dataset_digest, name), columns)


def read_frame(storage: Storage, key: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The cohort frame of a Parquet file, or some of its columns. Raises StateError or DataError as `load_part`."""
    from health_predict.core.data.cohort import load_part

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Path(key).name
        storage.download(key, file)
        return load_part(file, columns)
