"""The leaderboard of a search: its best models and every trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from health_predict.adapters.mlflow import CHOSEN, REASON, RunRecord
from health_predict.report import plots
from health_predict.report.page import number, render

Curve = Sequence[tuple[int, float]]
SHORTEST_SECONDS = 0.01  # on a log scale


def leaderboard_page(parent: RunRecord, runs: Sequence[RunRecord], curves: Mapping[str, Sequence[Curve]]) -> str:
    """HTML page of a search from its parent run and the runs below it.

    `curves` are training and validation AUC over rounds by the id of a best run; empty for a family without rounds.
    """
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
    whole = {family: _points(ended, family, "false") for family in families}
    stopped = {family: _points(ended, family, "true") for family in families}
    plot = None
    if ended:
        plot = plots.scatter(
            whole,
            hollow=stopped,
            title="AUC and time of the trials",
            description="Each trial's validation AUC over the seconds its fit took; rings were stopped early",
            x_label="seconds of the fit",
            y_label="validation AUC",
        )
    learning = [
        plots.line(
            [step for step, _ in training],
            {"training": [value for _, value in training], "validation": [value for _, value in validation]},
            title=f"Learning curve of {run.tags['family']}",
            description=f"AUC of the best {run.tags['family']} model after so many rounds",
            x_label="rounds",
            y_label="AUC",
        )
        for run in best
        for training, validation in [curves.get(run.run_id, ((), ()))]
        if training
    ]
    return render(
        "leaderboard.html",
        title="Search leaderboard",
        subtitle=f"{len(trials)} trials over {len(families)} model families, "
        f"{sum(map(len, stopped.values()))} of them stopped early",
        facts=[
            ("Run", parent.run_id),
            ("Dataset", parent.tags["dataset_digest"][:12]),
            ("Source", parent.tags["dataset_source"]),
            ("Commit", parent.tags["git_commit"][:12]),
            ("Seed", parent.params["seed"]),
        ],
        synthetic=parent.tags["dataset_source"] == "synthetic",
        reason=parent.tags[REASON],
        plot=plot,
        learning=learning,
        best=[
            [
                run.tags["family"]
                + (" (baseline)" if run.tags.get("baseline") == "true" else "")
                + (", chosen" if run.run_id == parent.tags[CHOSEN] else ""),
                *(
                    number(run.metrics[f"validation_{name}"], 4)
                    for name in ("f1", "average_precision", "auc", "brier", "observed_expected")
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
                run.tags.get("error")
                or ("stopped early; " if run.tags.get("stopped_early") == "true" else "")
                + ", ".join(f"{name}={value}" for name, value in sorted(run.params.items())),
            ]
            for run in trials
        ],
    )


def _points(trials: Sequence[RunRecord], family: str, stopped: str) -> list[tuple[float, float]]:
    return [
        (max(trial.metrics["seconds"], SHORTEST_SECONDS), trial.metrics["auc"])
        for trial in trials
        if trial.tags["family"] == family and trial.tags.get("stopped_early", "false") == stopped
    ]
