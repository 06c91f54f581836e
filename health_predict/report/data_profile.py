"""The data profile: who is in the cohort, what is missing, what the columns hold, and how that changes over time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from health_predict.core.cohort import target
from health_predict.core.columns import COLUMNS, DRUGS, MISSING, PATIENT, Column, Kind
from health_predict.core.partition import Parameters, Partition
from health_predict.report import plots
from health_predict.report.page import number, percent, render, signed

_LEVELS_SHOWN = 12
_LEFT = {
    "11": "died in hospital",
    "13": "to hospice at home",
    "14": "to hospice in a facility",
    "19": "died at home, hospice",
    "20": "died in a facility, hospice",
    "21": "died at an unknown place, hospice",
}


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
    parts = cut.parts()
    later = pd.concat(cut.batches, ignore_index=True)
    initial = _initial(cut)
    kept = pd.concat([initial, later], ignore_index=True)
    return render(
        "data_profile.html",
        title="Data profile",
        subtitle=f"{number(len(frame), 0)} encounters of {number(frame[PATIENT].nunique(), 0)} patients",
        facts=[
            ("Source", source),
            ("File (SHA-256)", raw_sha256[:12]),
            ("Dataset", dataset_digest[:12]),
            ("Salt", parameters.salt),
            ("Labelled batches", str(parameters.labelled_batches)),
        ],
        synthetic=source == "synthetic",
        figures=[
            ("Encounters in the cohort", number(len(kept), 0), f"of {number(len(frame), 0)} in the file"),
            (
                "Patients",
                number(kept[PATIENT].nunique(), 0),
                f"{percent(_repeats(kept))} of the encounters are repeats",
            ),
            ("Readmitted within 30 days", percent(_prevalence(kept)), "always predicting no is right for the rest"),
            (
                "Future batches",
                number(len(cut.batches), 0),
                f"{number(len(later) / len(cut.batches), 0)} encounters each",
            ),
        ],
        flow=_flow(frame, cut, parameters, kept),
        splits=[_split_row(name, part) for name, part in parts.items() if not name.startswith("batches/")],
        prevalence=_prevalence_plot(initial, cut),
        missing=_missing_plot(initial, later),
        counts=[_count_row(column.name, initial, later) for column in COLUMNS if column.kind is Kind.COUNT],
        levels=[
            (column, _level_rows(column.name, initial, later))
            for column in COLUMNS
            if _has_levels(column) and column.name not in DRUGS
        ],
        diagnoses=[
            (column, _level_rows(column.name, initial, later)) for column in COLUMNS if column.kind is Kind.ICD9
        ],
        drugs=[_drug_row(name, initial, later) for name in DRUGS],
        constant=[column.name for column in COLUMNS if column.is_feature and kept[column.name].nunique() == 1],
    )


def _initial(cut: Partition) -> pd.DataFrame:
    """The scoreable encounters before the first batch: the splits without the labelled batches that joined them."""
    together = pd.concat([cut.train, cut.validation, cut.test], ignore_index=True)
    return together[~together["encounter_id"].isin(cut.joined["encounter_id"])].reset_index(drop=True)


def _prevalence(frame: pd.DataFrame) -> float:
    return float(target(frame).mean()) if len(frame) else float("nan")


def _repeats(frame: pd.DataFrame) -> float:
    return float(frame[PATIENT].duplicated().mean())


def _flow(frame: pd.DataFrame, cut: Partition, parameters: Parameters, kept: pd.DataFrame) -> list[list[str]]:
    lost = [
        [f"left out: {_LEFT.get(code, 'cannot be readmitted')} (discharge {code})", signed(-rows, 0), ""]
        for code, rows in cut.excluded.items()
    ]
    later = sum(len(batch) for batch in cut.batches)
    return [
        ["in the file", number(len(frame), 0), number(frame[PATIENT].nunique(), 0)],
        *lost,
        ["in the cohort", number(len(kept), 0), number(kept[PATIENT].nunique(), 0)],
        [
            f"initial: the first {percent(parameters.initial_share, 0)} of the file ({number(cut.initial_rows, 0)})",
            number(len(kept) - later, 0),
            number(kept[PATIENT].iloc[: len(kept) - later].nunique(), 0),
        ],
        [
            f"later, in {len(cut.batches)} batches",
            number(later, 0),
            number(kept[PATIENT].iloc[len(kept) - later :].nunique(), 0),
        ],
    ]


def _split_row(name: str, part: pd.DataFrame) -> list[str]:
    positive = int(target(part).sum())
    return [
        name,
        number(len(part), 0),
        number(part[PATIENT].nunique(), 0),
        number(positive, 0),
        percent(_prevalence(part)),
    ]


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
    shares = {name: (_share(initial, name, MISSING), _share(later, name, MISSING)) for name in names}
    found = sorted((name for name in names if max(shares[name]) > 0), key=lambda name: -max(shares[name]))
    if not found:
        return None
    return plots.bars(
        found,
        {"initial": [shares[name][0] for name in found], "later": [shares[name][1] for name in found]},
        title="Missing values",
        description="Share of encounters without a value, for the columns that have any such encounter",
        value_label="share missing",
        share=True,
        label_heading="Column",
    )


def _share(frame: pd.DataFrame, name: str, value: str) -> float:
    return float((frame[name] == value).mean()) if len(frame) else float("nan")


def _count_row(name: str, initial: pd.DataFrame, later: pd.DataFrame) -> list[str]:
    cells = [name]
    for frame in (initial, later):
        values = frame[name].astype(np.int64)
        cells += [number(float(values.mean()), 2), number(float(values.median()), 0), number(float(values.max()), 0)]
    return cells


def _has_levels(column: Column) -> bool:
    return column.kind in (Kind.LEVEL, Kind.OPEN_LEVEL)


def _level_rows(name: str, initial: pd.DataFrame, later: pd.DataFrame) -> list[list[str]]:
    both = pd.concat([initial, later], ignore_index=True)
    outcome = pd.Series(target(both))
    known = both[name].value_counts()
    order = sorted(known.index, key=lambda level: (-int(known[level]), str(level)))
    before, after = (_shares(frame, name) for frame in (initial, later))
    readmitted = outcome.groupby(both[name].to_numpy()).mean()
    rows = [
        [
            "missing" if level == MISSING else str(level),
            number(int(known[level]), 0),
            percent(before.get(level, 0.0)),
            percent(after.get(level, 0.0)),
            percent(float(readmitted[level])),
        ]
        for level in order[:_LEVELS_SHOWN]
    ]
    rest = order[_LEVELS_SHOWN:]
    if rest:
        inside = both[name].isin(rest).to_numpy()
        rows.append(
            [
                f"{len(rest)} others",
                number(int(inside.sum()), 0),
                percent(sum(before.get(level, 0.0) for level in rest)),
                percent(sum(after.get(level, 0.0) for level in rest)),
                percent(float(outcome[inside].mean())),
            ]
        )
    return rows


def _shares(frame: pd.DataFrame, name: str) -> Mapping[str, float]:
    return {str(level): float(share) for level, share in frame[name].value_counts(normalize=True).items()}


def _drug_row(name: str, initial: pd.DataFrame, later: pd.DataFrame) -> list[str]:
    both = pd.concat([initial[[name, "readmitted"]], later[[name, "readmitted"]]], ignore_index=True)
    given = both[both[name] != "No"]
    return [
        name,
        percent(1 - _share(initial, name, "No"), 2),
        percent(1 - _share(later, name, "No"), 2),
        percent(float(given[name].isin(("Up", "Down")).mean()) if len(given) else None),
        percent(_prevalence(given)) if len(given) else number(None),
    ]
