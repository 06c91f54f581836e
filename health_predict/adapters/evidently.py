"""Evidently's drift report, beside our own statistics: a second opinion in a format that many people know.

The verdict does not depend on it. Importing Evidently takes about 8 CPU-s, so that happens here and late. Its
library part opens no connection (its telemetry belongs to its web service, which is not used).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from health_predict.adapters.files import whole_file, write_file
from health_predict.core.data.contract import MISSING, Contract, Kind

REFERENCE_ROWS = 5000  # more change the statistics little and cost time


class ColumnStatistics(dict[str, float]):
    """Evidently's statistic of each column (a distance or a p value, its choice), and what it makes of it.

    `drifted` says which columns its own tests call drifted.
    """

    drifted: Mapping[str, bool]


def evidently_report(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    contract: Contract,
    html: Path,
    *,
    json_file: Path | None = None,
    method: str | None = None,
    seed: int = 0,
) -> ColumnStatistics:
    """Write Evidently's data drift preset as HTML, and its snapshot as JSON if asked, and return its statistics.

    Evidently reads the snapshot back: `Snapshot.load(json_file)`, which its workspace takes as a run.

    `reference`, `current`: cohort frames; a reference of more than REFERENCE_ROWS rows is sampled. `method`:
    Evidently's name of a test for the levels of categorical columns; by default its choice by kind and size.
    """
    snapshot = run_preset(reference, current, contract, method=method, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with whole_file(html) as temporary:
            snapshot.save_html(str(temporary))
        found = statistics(snapshot.dict())
        if json_file is not None:
            write_file(json_file, snapshot.dumps())
    return found


def run_preset(
    reference: pd.DataFrame, current: pd.DataFrame, contract: Contract, *, method: str | None = None, seed: int = 0
) -> Any:
    """Evidently's snapshot of its data drift preset with its tests, nothing written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies; nothing the user could act on
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        features = [column for column in contract.features if column.name in reference and column.name in current]
        names = [column.name for column in features]
        # A column of numbers that may be missing has NaN for them.
        types = {
            column.name: "float64" if column.nullable or column.kind is Kind.NUMBER else "int64"
            for column in features
            if column.kind in (Kind.COUNT, Kind.NUMBER)
        }
        definition = DataDefinition(
            numerical_columns=list(types), categorical_columns=[name for name in names if name not in types]
        )

        def dataset(frame: pd.DataFrame) -> Any:
            # Evidently puts the levels into a script of its page as they are: `</script>` would end it.
            values = {
                name: frame[name].where(frame[name] != MISSING)
                if name in types
                else frame[name].str.replace("<", "\u2039", regex=False)
                for name in names
            }
            return Dataset.from_pandas(pd.DataFrame(values).astype(types), data_definition=definition)

        if len(reference) > REFERENCE_ROWS:
            reference = reference.sample(REFERENCE_ROWS, random_state=seed)
        preset = DataDriftPreset() if method is None else DataDriftPreset(cat_method=method)
        return Report([preset], include_tests=True).run(dataset(current), dataset(reference))


def statistics(content: Mapping[str, Any]) -> ColumnStatistics:
    """From a snapshot as a dictionary: by the column's name, never by position, whose order is not promised."""
    values = {metric["config"].get("column"): metric["value"] for metric in content["metrics"]}
    # A column without rows to compare has NaN.
    found = ColumnStatistics(
        {name: float(value) for name, value in values.items() if name is not None and math.isfinite(value)}
    )
    tests = ((test.get("metric_config", {}).get("params", {}), test) for test in content.get("tests", ()))
    found.drifted = {
        parameters["column"]: test["status"] == "FAIL" for parameters, test in tests if parameters.get("column")
    }
    return found
