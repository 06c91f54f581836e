"""A file of a table, whatever it is packed as."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from health_predict.core.data import csv_file
from health_predict.core.data.table_file import read_table_file
from health_predict.errors import DataError


@pytest.mark.parametrize("value", ["", "x" * 1000])
def test_a_small_parquet_file_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    # given a value that is said once for many rows, so that the file is small
    monkeypatch.setattr(csv_file, "MOST_BYTES", 1_000_000)
    file = tmp_path / "small.parquet"
    pd.DataFrame({"a": [value] * (200_000 if not value else 2_000)}).to_parquet(file)
    assert file.stat().st_size < 100_000
    # then it is refused before it fills the memory
    with pytest.raises(DataError, match="more than 1,000,000 bytes"):
        read_table_file(file)
    # and one that is no larger than it may be is read
    pd.DataFrame({"a": ["1", None]}).to_parquet(file)
    assert [*read_table_file(file)["a"]] == ["1", "?"]
