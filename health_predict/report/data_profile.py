"""The data profile: who is in the cohort, what is missing, what the columns hold, and how that changes over time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from health_predict.core.data.columns import (
    COLUMNS,
    DRUGS,
    ENCOUNTER,
    FEATURES,
    MISSING,
    PATIENT,
    POSITIVE,
    TARGET,
    Kind,
)
from health_predict.core.data.partition import Parameters, Partition
from health_predict.report import plots
from health_predict.report.page import render

_LEVELS_SHOWN = 12


def data_profile_page(
    frame: pd.DataFrame,
    cut: Partition,
    *,
    parameters: Parameters,
    raw_sha256: str,
    source: str,
    dataset_digest: str = "",
) -> str:
    """HTML page of a valid, labelled cohort frame and its partition.

    `Initial` is the first share of the encounters in order of time, `later` are the future batches; both without
    encounters that cannot be readmitted.
    """
    # The splits without the labelled batches that joined them.
    together = pd.concat([cut.train, cut.validation, cut.test], ignore_index=True)
    initial = together[~together[ENCOUNTER].isin(cut.joined[ENCOUNTER])]
    later = pd.concat(cut.batches, ignore_index=True)
    kept = pd.concat([initial, later], ignore_index=True)
    count_names = [column.name for column in COLUMNS if column.kind is Kind.COUNT]
    return render(
        "data_profile.html",
        synthetic=source == "synthetic",
        source=source,
        raw_sha256=raw_sha256,
        dataset_digest=dataset_digest,
        parameters=parameters,
        cut=cut,
        file=_people(frame),
        cohort=_people(kept),
        initial=_people(initial),
        later=_people(later),
        repeats=kept[PATIENT].duplicated().mean(),
        splits={name: _people(part) for name, part in cut.splits.items()},
        prevalence=_prevalence_plot(initial, cut),
        missing=_missing_plot(initial, later),
        counts=[
            (name, [part[name].astype(np.int64).agg(["mean", "median", "max"]) for part in (initial, later)])
            for name in count_names
        ],
        levels=[
            (column, _levels(column.name, initial, later, kept))
            for column in COLUMNS
            if column.kind in (Kind.LEVEL, Kind.OPEN_LEVEL) and column.name not in DRUGS
        ],
        diagnoses=[
            (column, _levels(column.name, initial, later, kept)) for column in COLUMNS if column.kind is Kind.CODE
        ],
        drugs=[_drug(name, initial, later, kept) for name in DRUGS],
        constant=[column.name for column in FEATURES if kept[column.name].nunique() == 1],
    )


def _prevalence(frame: pd.DataFrame) -> float:
    return float((frame[TARGET] == POSITIVE).mean())


def _people(frame: pd.DataFrame) -> dict[str, Any]:
    positives = int((frame[TARGET] == POSITIVE).sum())
    patients = frame[PATIENT].nunique()
    return {"rows": len(frame), "patients": patients, "positives": positives, "prevalence": _prevalence(frame)}


def _prevalence_plot(initial: pd.DataFrame, cut: Partition) -> plots.Plot:
    frames = [initial, *cut.batches]
    shares = np.array([_prevalence(part) for part in frames])
    sizes = np.array([max(1, len(part)) for part in frames])
    half = 1.96 * np.sqrt(shares * (1 - shares) / sizes)
    return plots.line(
        ["initial", *(str(index) for index in range(len(cut.batches)))],
        {"readmitted within 30 days": shares},
        title="Readmission over time",
        description="Share of encounters readmitted within 30 days, in the initial data and each future batch",
        x_label="batch",
        y_label="share of encounters",
        bands={"readmitted within 30 days": (np.maximum(shares - half, 0), np.minimum(shares + half, 1))},
    )


def _missing_plot(initial: pd.DataFrame, later: pd.DataFrame) -> plots.Plot | None:
    names = [column.name for column in COLUMNS if column.nullable]
    shares = pd.DataFrame({"initial": (initial[names] == MISSING).mean(), "later": (later[names] == MISSING).mean()})
    most = shares.max(axis=1)
    shares = shares.loc[most[most > 0].sort_values(ascending=False, kind="stable").index]
    if shares.empty:
        return None
    return plots.bars(
        list(shares.index),
        {part: shares[part].to_numpy() for part in ("initial", "later")},
        title="Missing values",
        description="Share of encounters without a value, for the columns that have any such encounter",
        value_label="share missing",
        share=True,
        label_heading="Column",
    )


def _levels(name: str, initial: pd.DataFrame, later: pd.DataFrame, kept: pd.DataFrame) -> list[tuple[Any, ...]]:
    """The most frequent levels and one row for the rest: level, encounters, share initially and later, readmitted."""
    table = pd.DataFrame(
        {
            "rows": kept[name].value_counts(),
            "initial": initial[name].value_counts(normalize=True),
            "later": later[name].value_counts(normalize=True),
            "positives": (kept[TARGET] == POSITIVE).groupby(kept[name]).sum(),
        }
    ).fillna(0)
    table = table.sort_index().sort_values("rows", ascending=False, kind="stable")
    rest = table.iloc[_LEVELS_SHOWN:]
    table = table.iloc[:_LEVELS_SHOWN]
    if len(rest):
        table.loc[f"{len(rest)} others"] = rest.sum()
    readmitted = table.pop("positives") / table["rows"]
    return list(table.assign(readmitted=readmitted).rename({MISSING: "missing"}).itertuples(name=None))


def _drug(name: str, initial: pd.DataFrame, later: pd.DataFrame, kept: pd.DataFrame) -> tuple[str, list[float]]:
    """Shares: given initially and later; of those given it, with a changed dose, and readmitted."""
    given = kept[kept[name] != "No"]
    before, after = ((part[name] != "No").mean() for part in (initial, later))
    return name, [before, after, given[name].isin(("Up", "Down")).mean(), _prevalence(given)]
