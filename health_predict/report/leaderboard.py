"""The leaderboard of a search: its best models and every trial."""

from __future__ import annotations

from collections.abc import Sequence

from health_predict.adapters.mlflow import RunRecord
from health_predict.report import plots
from health_predict.report.page import number, render


def leaderboard_page(parent: RunRecord, runs: Sequence[RunRecord]) -> str:
    """HTML page of a search from its parent run and the runs below it."""
    best = sorted(
        (run for run in runs if run.tags.get("role") == "best" and run.status == "FINISHED"),
        key=lambda run: -run.metrics["validation_f1"],
    )
    trials = sorted(
        (run for run in runs if run.tags.get("role") == "trial"),
        key=lambda run: (-run.metrics.get("auc", -1.0), run.name),
    )
    ended = [trial for trial in trials if "auc" in trial.metrics]
    families = sorted({trial.tags["family"] for trial in ended})
    plot = None
    if ended:
        plot = plots.interval_dots(
            families,
            [max(_aucs(ended, family)) for family in families],
            [min(_aucs(ended, family)) for family in families],
            [max(_aucs(ended, family)) for family in families],
            title="Validation AUC of the trials",
            description="The best trial of each family and the range of all its trials",
            value_label="validation AUC",
            label_heading="Family",
        )
    return render(
        "leaderboard.html",
        title="Search leaderboard",
        subtitle=f"{len(trials)} trials over {len(families)} model families",
        facts=[
            ("Run", parent.run_id),
            ("Dataset", parent.tags["dataset_digest"][:12]),
            ("Source", parent.tags["dataset_source"]),
            ("Commit", parent.tags["git_commit"][:12]),
            ("Seed", parent.params["seed"]),
        ],
        synthetic=parent.tags["dataset_source"] == "synthetic",
        plot=plot,
        best=[
            [
                run.tags["family"] + (" (baseline)" if run.tags.get("baseline") == "true" else ""),
                *(
                    number(run.metrics[f"validation_{name}"], 4)
                    for name in ("f1", "average_precision", "auc", "brier", "ece")
                ),
                run.params["trial"],
            ]
            for run in best
        ],
        trials=[
            [
                run.name,
                *(number(run.metrics.get(name), 4) for name in ("auc", "average_precision", "f1")),
                number(run.metrics.get("seconds"), 1),
                run.tags.get("error") or ", ".join(f"{name}={value}" for name, value in sorted(run.params.items())),
            ]
            for run in trials
        ],
    )


def _aucs(trials: Sequence[RunRecord], family: str) -> list[float]:
    return [trial.metrics["auc"] for trial in trials if trial.tags["family"] == family]
