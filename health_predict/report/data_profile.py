"""The data profile: who is in the cohort, what is missing, what the columns hold, and how that changes over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from health_predict.core.data.cohort import encounter_of, target
from health_predict.core.data.contract import MISSING, Contract, Group, Kind
from health_predict.core.data.partition import Parameters, Partition
from health_predict.core.data.sources import provenance
from health_predict.report import plots
from health_predict.report.page import capital, percent, render

_LEVELS_SHOWN = 12
_CHANGES_NAMED = 5
_LEAST_CHANGE = 0.05  # of a share, to be named at the top


def data_profile_page(  # the table, how it was cut, and where it comes from
    frame: pd.DataFrame,
    contract: Contract,
    cut: Partition,
    *,
    parameters: Parameters,
    raw_sha256: str,
    source: str,
    dataset_digest: str = "",
    unlabelled: int = 0,
) -> str:
    """HTML page of a valid, labelled cohort frame of a contract and its partition.

    `Initial` is the first share of the encounters in order of time, `later` are the future batches; both without
    encounters that the contract excludes. `unlabelled`: how many more encounters the file has.
    """
    # The splits without the labelled batches that joined them.
    together = pd.concat([cut.train, cut.validation, cut.test], ignore_index=True)
    joined = encounter_of(cut.joined, contract)
    initial = together[~encounter_of(together, contract).isin(joined)]
    later = pd.concat(cut.batches, ignore_index=True)
    kept = pd.concat([initial, later], ignore_index=True)
    profile = _Profile(contract, initial, later, kept)
    grouped = {name for group in contract.groups for name in group.columns}
    return render(
        "data_profile.html",
        contract=contract,
        synthetic=source == "synthetic",
        source=source,
        provenance=provenance(contract, source),
        findings=profile.findings(),
        raw_sha256=raw_sha256,
        dataset_digest=dataset_digest,
        parameters=parameters,
        cut=cut,
        unlabelled=unlabelled,
        left_out=list(cut.excluded.items()),
        file=profile.people(frame),
        cohort=profile.people(kept),
        initial=profile.people(initial),
        later=profile.people(later),
        repeats=kept[contract.patient].duplicated().mean(),
        splits={name: profile.people(part) for name, part in cut.splits.items()},
        prevalence=profile.prevalence_plot(cut),
        missing=profile.missing_plot(),
        amounts=[
            (column.name, 0 if column.kind is Kind.COUNT else 2, profile.amounts(column.name))
            for column in contract.features
            if column.kind in (Kind.COUNT, Kind.NUMBER)
        ],
        levels=[
            (column, profile.levels(column.name))
            for column in (*contract.features, contract.target)
            if column.kind in (Kind.LEVEL, Kind.OPEN_LEVEL, Kind.FLAG) and column.name not in grouped
        ],
        codes=[(column, profile.levels(column.name)) for column in contract.features if column.kind is Kind.CODE],
        groups=[profile.group(group) for group in contract.groups],
        constant=[column.name for column in contract.features if kept[column.name].nunique() == 1],
    )


@dataclass(frozen=True, slots=True)
class _Profile:
    """The initial encounters, the later ones, and both."""

    contract: Contract
    initial: pd.DataFrame
    later: pd.DataFrame
    kept: pd.DataFrame

    def prevalence(self, frame: pd.DataFrame) -> float:
        return float(target(frame, self.contract).mean()) if len(frame) else np.nan

    def people(self, frame: pd.DataFrame) -> dict[str, Any]:
        positives, patients = int(target(frame, self.contract).sum()), frame[self.contract.patient].nunique()
        return {"rows": len(frame), "patients": patients, "positives": positives, "prevalence": self.prevalence(frame)}

    def prevalence_plot(self, cut: Partition) -> plots.Plot:
        frames, outcome = [self.initial, *cut.batches], self.contract.outcome
        shares = np.array([self.prevalence(part) for part in frames])
        sizes = np.array([max(1, len(part)) for part in frames])
        half = 1.96 * np.sqrt(shares * (1 - shares) / sizes)
        return plots.line(
            ["initial", *(str(index) for index in range(len(cut.batches)))],
            {outcome.happened: shares},
            title=f"{capital(outcome.event)} over time",
            description=f"Share of encounters {outcome.happened}, in the initial data and each future batch",
            x_label="batch",
            y_label=f"share {outcome.happened}",
            share=True,
            bands={outcome.happened: (np.maximum(shares - half, 0), np.minimum(shares + half, 1))},
        )

    def findings(self) -> list[str]:
        """What changes most from the initial encounters to the later ones, the largest change first, as sentences."""
        missing = [
            (
                abs(before - after),
                f"{name} is missing in {_share(before)} of the initial encounters, then in {_share(after)}.",
            )
            for name, before, after in self.missing_shares().itertuples(name=None)
        ]
        moved = [
            (
                abs(before - after),
                f"{column.name}: {column.in_words(level)} goes from {_share(before)} to {_share(after)}.",
            )
            for column in self.contract.features
            if column.kind in (Kind.LEVEL, Kind.OPEN_LEVEL, Kind.FLAG)
            for level, before, after in self.recorded_shares(column.name).itertuples(name=None)
        ]
        one_each: dict[str, tuple[float, str]] = {}
        for size, sentence in sorted([*missing, *moved], key=lambda found: -found[0]):
            one_each.setdefault(sentence.split()[0].rstrip(":"), (size, sentence))
        large = [sentence for size, sentence in one_each.values() if size >= _LEAST_CHANGE]
        return large[:_CHANGES_NAMED]

    def missing_shares(self) -> pd.DataFrame:
        """Share of encounters without a value by column, initially and later."""
        names = [column.name for column in self.contract.features if column.nullable]
        return pd.DataFrame(
            {"initial": (self.initial[names] == MISSING).mean(), "later": (self.later[names] == MISSING).mean()}
        )

    def recorded_shares(self, name: str) -> pd.DataFrame:
        """Share of each level among the recorded values of a column, initially and later; empty where one has none."""
        parts = [part[name][part[name] != MISSING] for part in (self.initial, self.later)]
        if not all(len(part) for part in parts):
            return pd.DataFrame(columns=["initial", "later"])
        before, after = (part.value_counts(normalize=True) for part in parts)
        return pd.DataFrame({"initial": before, "later": after}).fillna(0)

    def missing_plot(self) -> plots.Plot | None:
        shares = self.missing_shares()
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

    def amounts(self, name: str) -> list[pd.Series[float]]:
        """Mean, median and maximum of what is there, initially and later."""
        return [
            pd.to_numeric(part[name].where(part[name] != MISSING)).astype(float).agg(["mean", "median", "max"])
            for part in (self.initial, self.later)
        ]

    def levels(self, name: str) -> list[tuple[Any, ...]]:
        """The most frequent levels and a row for the rest: level, encounters, share initially and later, outcome."""
        kept = self.kept
        table = pd.DataFrame(
            {
                "rows": kept[name].value_counts(),
                "initial": self.initial[name].value_counts(normalize=True),
                "later": self.later[name].value_counts(normalize=True),
                "positives": pd.Series(target(kept, self.contract), kept.index).groupby(kept[name]).sum(),
            }
        ).fillna(0)
        table = table.sort_index().sort_values("rows", ascending=False, kind="stable")
        rest = table.iloc[_LEVELS_SHOWN:]
        table = table.iloc[:_LEVELS_SHOWN]
        if len(rest):
            table.loc[f"{len(rest)} others"] = rest.sum()
        positive = table.pop("positives") / table["rows"]
        return list(table.assign(positive=positive).rename(self.contract.by_name[name].in_words).itertuples(name=None))

    def group(self, group: Group) -> tuple[str, list[str], list[tuple[str, list[float]]]]:
        """Heading, columns and rows of what is counted together: the first count, and the others and the outcome of
        those that it counts."""
        (first, counted), *others = group.counts.items()
        outcomes = f"{capital(self.contract.outcome.events)}, of those"
        columns = ["Column", f"{capital(first)}, initial", f"{capital(first)}, later"]
        rows = []
        for name in group.columns:
            those = self.kept[self.kept[name].isin(counted)]
            before, after = (float(part[name].isin(counted).mean()) for part in (self.initial, self.later))
            among = [float(those[name].isin(levels).mean()) for _, levels in others]
            rows.append((name, [before, after, *among, self.prevalence(those)]))
        heading = capital(", ".join(group.counts))
        return heading, [*columns, *(f"{capital(name)}, of those" for name, _ in others), outcomes], rows


def _share(value: float) -> str:
    """A share in a sentence: all and none by their names."""
    return {0.0: "none", 1.0: "all"}.get(value) or percent(value)
