"""Evidently's drift report, beside our own statistics: a second opinion in a format that many people know.

The verdict does not depend on it. Importing Evidently takes about 8 CPU-s, so that happens here and late. Its
library part opens no connection (its telemetry belongs to its web service, which is not used).
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from health_predict.adapters.storage import whole_file
from health_predict.core.columns import FEATURES, Kind

REFERENCE_ROWS = 5000  # more change the statistics little and cost time


def evidently_report(reference: pd.DataFrame, current: pd.DataFrame, html: Path, *, seed: int = 0) -> dict[str, float]:
    """Write Evidently's data drift preset as an HTML file and return its statistic for each column.

    `reference`, `current`: cohort frames; a reference of more than REFERENCE_ROWS rows is sampled. The statistic
    is Evidently's choice by kind and size of the column (a distance or a p value).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies; nothing the user could act on
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        names = [column.name for column in FEATURES if column.name in reference and column.name in current]
        counts = [column.name for column in FEATURES if column.kind is Kind.COUNT and column.name in names]
        definition = DataDefinition(
            numerical_columns=counts, categorical_columns=[name for name in names if name not in counts]
        )

        def dataset(frame: pd.DataFrame) -> Any:
            typed = frame[names].astype(dict.fromkeys(counts, "int64"))
            return Dataset.from_pandas(typed, data_definition=definition)

        if len(reference) > REFERENCE_ROWS:
            reference = reference.sample(REFERENCE_ROWS, random_state=seed)
        snapshot = Report([DataDriftPreset()], include_tests=True).run(dataset(current), dataset(reference))
        with whole_file(html) as temporary:
            snapshot.save_html(str(temporary))
        metrics = snapshot.dict()["metrics"]
    # By the column's name, never by position: the order is not promised. A column without rows to compare has NaN.
    values = {metric["config"].get("column"): metric["value"] for metric in metrics}
    return {name: float(values[name]) for name in names if name in values and math.isfinite(values[name])}
