"""The leaderboard of a search: its best models and every trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from health_predict.adapters.tracking import Role, RunRecord, Tag, trial_name
from health_predict.report import plots
from health_predict.report.page import number, render

Curve = Sequence[tuple[int, float]]
SHORTEST_SECONDS = 0.01  # on a log scale


def leaderboard_page(parent: RunRecord, runs: Sequence[RunRecord], curves: Mapping[str, Sequence[Curve]]) -> str:
    """HTML page of a search from its parent run and the runs below it.

    `curves` are training and validation AUC over rounds by the id of a best run; empty for a family without rounds.
    """
    best = sorted(
        (run for run in runs if run.tags.get(Tag.ROLE) == Role.BEST and run.status == "FINISHED"),
        key=lambda run: -run.metrics["validation_f1"],
    )
    trials = sorted(
        (run for run in runs if run.tags.get(Tag.ROLE) == Role.TRIAL),
        key=lambda run: (-run.metrics.get("auc", -1.0), run.name),
    )
    ended = [trial for trial in trials if "auc" in trial.metrics]
    families = sorted({trial.tags[Tag.FAMILY] for trial in ended})
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
            title=f"Learning curve of {run.tags[Tag.FAMILY]}",
            description=f"AUC of the best {run.tags[Tag.FAMILY]} model after so many rounds",
            x_label="rounds",
            y_label="AUC",
        )
        for run in best
        for training, validation in [curves.get(run.run_id, ((), ()))]
        if training
    ]
    chosen = next((run for run in best if run.run_id == parent.tags[Tag.CHOSEN]), None)
    return render(
        "leaderboard.html",
        trial_name=trial_name,
        winner=trial_name(chosen.tags[Tag.FAMILY], chosen.params["trial"]) if chosen else "",
        finding=_finding(ended),
        parent=parent,
        reason=parent.tags[Tag.REASON],
        chosen=parent.tags[Tag.CHOSEN],
        plot=plot,
        learning=learning,
        best=best,
        trials=trials,
        families=len(families),
        stopped=sum(map(len, stopped.values())),
    )


def _finding(ended: Sequence[RunRecord]) -> str:
    """The best trial, and how far below it the others are."""
    whole = [trial for trial in ended if trial.tags.get(Tag.STOPPED_EARLY, "false") == "false"]
    if not whole:
        return ""
    best, worst = whole[0], whole[-1]  # the trials come in this order
    return (
        f"Of those that ran to their end, {best.name} has the largest AUC, {number(best.metrics['auc'])}; "
        f"the smallest is {number(worst.metrics['auc'])}."
    )


def _points(trials: Sequence[RunRecord], family: str, stopped: str) -> list[tuple[float, float]]:
    return [
        (max(trial.metrics["seconds"], SHORTEST_SECONDS), trial.metrics["auc"])
        for trial in trials
        if trial.tags[Tag.FAMILY] == family and trial.tags.get(Tag.STOPPED_EARLY, "false") == stopped
    ]
