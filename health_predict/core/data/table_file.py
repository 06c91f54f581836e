"""A file of a table as text, CSV or Parquet."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from health_predict.core.data import csv_file
from health_predict.core.data.csv_file import read_table, too_large
from health_predict.core.data.encounters import as_text
from health_predict.errors import DataError

PARQUET = b"PAR1"
LEAST_VALUE_BYTES = 8  # that a value takes in memory, as text


def is_parquet(path: Path) -> bool:
    """Whether a file begins as Parquet does; one that cannot be read does not."""
    try:
        with path.open("rb") as opened:
            return opened.read(len(PARQUET)) == PARQUET
    except OSError:
        return False


def read_table_file(path: Path, wanted: str = "") -> pd.DataFrame:
    """A CSV file, plain or packed, or a Parquet file as text (n, columns); a null of Parquet is `?`.

    `wanted` as for `read_table`. Raises DataError when it cannot be read.
    """
    if not is_parquet(path):
        return read_table(path, wanted)
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            # Before it fills the memory: a value of a dictionary takes next to nothing in the file.
            if file.metadata.num_rows * file.metadata.num_columns * LEAST_VALUE_BYTES > csv_file.MOST_BYTES:
                raise too_large(path)
            table = file.read()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}", "write it again") from None
    if table.nbytes > csv_file.MOST_BYTES:
        raise too_large(path)
    if len(set(table.column_names)) < table.num_columns:
        raise DataError(f"{path} names a column more than once", "keep one of them")
    return as_text(table.to_pandas())
