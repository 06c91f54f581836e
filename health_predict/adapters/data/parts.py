"""Frames and records as they lie in storage."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import TypeAdapter

from health_predict.adapters import keys
from health_predict.adapters.storage import Storage
from health_predict.errors import StateError

if TYPE_CHECKING:
    import pandas as pd

Record = TypeVar("Record")


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


def read_record(kind: TypeAdapter[Record], storage: Storage, key: str) -> Record:
    """A record of a stream, stored as JSON. Raises StateError when it cannot be read."""
    try:
        return kind.validate_json(storage.read(key))
    except ValueError as error:
        raise StateError(
            f"{storage.uri(key)} cannot be read as a record of a stream: {error}",
            "restore it from a backup, or begin a stream of another name: HEALTH_PREDICT_STREAM",
        ) from None
