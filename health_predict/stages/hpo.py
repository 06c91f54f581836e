"""hpo: search over the model families, and one `Best_<Family>_Model` run for each."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import health_predict.core
from health_predict.adapters.mlflow import CHOSEN, REASON, RunRecord, Tracking
from health_predict.adapters.storage import whole_file
from health_predict.core import families
from health_predict.core.columns import PATIENT
from health_predict.core.errors import GateError, HealthPredictError, StateError
from health_predict.core.families import BASELINE, FAMILIES, Family
from health_predict.core.families.family import Labels, Rows
from health_predict.core.search import (
    METRICS,
    RUNGS,
    FamilySearch,
    Prepared,
    Trial,
    fit_winner,
    libraries,
    winner,
)
from health_predict.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

    from health_predict.adapters.ray import Progress
    from health_predict.core.evaluation import Scored
    from health_predict.core.features import EncounterFeatures

log = logging.getLogger(__name__)

# A search is the same when this code is, as patterns below `health_predict/core`.
_SOURCES = (
    "columns.py",
    "row_encoder.py",
    "features.py",
    "families/*.py",
    "evaluation.py",
    "performance.py",
    "calibration.py",
    "compiled_model.py",
    "search.py",
    "selection.py",
)
LEADERBOARD = "leaderboard.html"
_RUNG = "auc_rung_{}"
_CURVES = ("curve_training_auc", "curve_validation_auc")


@dataclass(frozen=True, slots=True)
class HpoResult:
    """The parent run of the search and whether it was there already."""

    parent_run_id: str
    best_metrics: Mapping[str, Mapping[str, float]]  # family -> validation metrics
    reused: bool


def hpo(
    settings: Settings,
    *,
    dataset_digest: str,
    dataset_source: str,
    train: Path,
    validation: Path,
    leaderboard: Path,
) -> HpoResult:
    """Search every family of the settings on `train`, judge on `validation`, and log it all in MLflow.

    The same search (data, families, budget, seed, code, libraries) is done once: a repeat gives the same parent
    run. One that was killed goes on in its parent run with the trials that it had finished. Trials are ranked by AUC
    on the validation rows, the least noisy of the metrics. Each family's winner is calibrated on out-of-fold scores of
    the training rows, so that neither its threshold nor a gate has seen what they are judged on; then `select` chooses.
    """
    chosen = families.choose(settings.families)
    digest = search_digest(settings, dataset_digest, chosen)
    tags = {
        "search_digest": digest,
        "dataset_digest": dataset_digest,
        "dataset_source": dataset_source,
        "git_commit": settings.git_commit or "unknown",
        "stage": "hpo",
    }
    tracking = Tracking(settings, patience=settings.mlflow_patience)
    existing = tracking.finished_search(digest)
    if existing:
        log.info("the same search is there already: run %s", existing.run_id)
        parent, page = existing.run_id, tracking.read_text(existing.run_id, LEADERBOARD)
    else:
        encounters = _encode(train, validation)
        parent = _open(tracking, settings, chosen, tags, encounters)
        run = _Run(settings, tracking, parent, tags, encounters)
        try:
            trials = _search(run, chosen)
            scored = _log_winners(run, trials)
            page = _choose(run, scored)
        except BaseException:
            tracking.patience = 0
            with suppress(HealthPredictError):
                tracking.end_search(parent, {}, "FAILED")
            raise
    with whole_file(leaderboard) as temporary:
        temporary.write_text(page)
    return HpoResult(parent, _best_metrics(best_runs(tracking, parent)), existing is not None)


@dataclass(frozen=True, slots=True)
class _Encounters:
    """Both parts of the data, as they are and as the families take them."""

    train: pd.DataFrame
    validation: pd.DataFrame
    preprocessor: EncounterFeatures
    rows: Prepared


@dataclass(frozen=True, slots=True)
class _Run:
    """A search that is under way: its parent run in MLflow, and what it is about."""

    settings: Settings
    tracking: Tracking
    parent: str
    tags: Mapping[str, str]
    encounters: _Encounters

    def finished(self, role: str) -> list[RunRecord]:
        """The child runs of a role that are whole."""
        children = self.tracking.children(self.parent)
        return [run for run in children if run.status == "FINISHED" and run.tags["role"] == role]


def _encode(train_file: Path, validation_file: Path) -> _Encounters:
    # Here and not at the top: a repeat of a search needs none of these, and they take seconds to import.
    from health_predict.core.cohort import load_part, target
    from health_predict.core.features import EncounterFeatures

    train, validation = load_part(train_file), load_part(validation_file)
    log.info("encoding %d training and %d validation encounters", len(train), len(validation))
    preprocessor = EncounterFeatures().fit(train)
    rows = Prepared(
        preprocessor.transform(train), target(train), preprocessor.transform(validation), target(validation)
    )
    return _Encounters(train, validation, preprocessor, rows)


def _open(
    tracking: Tracking,
    settings: Settings,
    chosen: tuple[Family, ...],
    tags: Mapping[str, str],
    encounters: _Encounters,
) -> str:
    """The parent run: the one that was left unfinished, or a new one."""
    digest = tags["search_digest"]
    parameters = {
        "families": ",".join(family.name for family in chosen),
        "trials": settings.trials,
        "seed": settings.seed,
        "train_rows": len(encounters.train),
        "validation_rows": len(encounters.validation),
        "positions": encounters.rows.train_rows.shape[1],
    }
    return tracking.resume_search(digest) or tracking.start_search(f"search-{digest[:8]}", tags, parameters)


def _search(run: _Run, chosen: tuple[Family, ...]) -> list[Trial]:
    """All trials: those that MLflow has already as they are, and the others on Ray, each logged as it ends."""
    from health_predict.adapters import ray

    settings = run.settings
    recorded = [_recorded(trial) for trial in run.finished("trial")]
    log.info("searching %d trials of %d families", settings.trials * len(chosen), len(chosen))
    if recorded:
        log.info("continuing search %s: %d trials are done", run.parent, len(recorded))
    searches = [
        FamilySearch(
            family,
            trials=settings.trials,
            concurrency=settings.search_concurrency,
            seed=settings.seed,
            recorded={trial.index: trial for trial in recorded if trial.family == family.name},
        )
        for family in chosen
    ]
    resources = ray.Resources(
        at_once=settings.search_concurrency * len(chosen),
        cpus=settings.search_cpus,
        address=settings.ray_address,
        trial_cpus=settings.trial_cpus,
        trial_memory_mb=settings.trial_memory_mb,
    )
    return ray.search(
        searches,
        run.encounters.rows,
        resources=resources,
        seed=settings.seed,
        seconds=settings.search_seconds,
        done=lambda trial, progress: _log_trial(run, trial, progress),
    )


def _log_trial(run: _Run, trial: Trial, progress: Progress) -> None:
    run.tracking.log_trial(
        run.parent,
        f"{trial.family}-{trial.index:03d}",
        {
            **run.tags,
            "family": trial.family,
            "trial": str(trial.index),
            "stopped_early": str(trial.stopped).lower(),
            **({"error": trial.error} if trial.error else {}),
        },
        trial.parameters,
        {
            **trial.metrics,
            **{_RUNG.format(rung): auc for rung, auc in enumerate(trial.rungs)},
            "seconds": trial.seconds,
        },
        failed=bool(trial.error),
    )
    best = max(progress.best, key=lambda name: progress.best[name], default=None)
    result = "stopped early at" if trial.stopped else ""
    log.info(
        "trial %d of %d: %s %s; best %s",
        progress.done,
        progress.total,
        trial.family,
        trial.error or f"{result} AUC {trial.metrics['auc']:.4f} in {trial.seconds:.1f} s".strip(),
        f"{best} {progress.best[best]:.4f}" if best else "none yet",
        extra={"progress": asdict(progress)},
    )


def _recorded(run: RunRecord) -> Trial:
    """A trial as its finished run holds it."""
    return Trial(
        run.tags["family"],
        int(run.tags["trial"]),
        FAMILIES[run.tags["family"]].parsed(run.params),
        {name: run.metrics[name] for name in METRICS},
        run.metrics["seconds"],
        tuple(run.metrics[name] for rung in range(len(RUNGS)) if (name := _RUNG.format(rung)) in run.metrics),
        run.tags["stopped_early"] == "true",
    )


def _log_winners(run: _Run, trials: Sequence[Trial]) -> dict[str, Scored]:
    """Fit, calibrate and log each family's winner; what it says of the validation rows, by family."""
    from health_predict.core.compiled_model import edge_rows

    winners: list[Trial] = []
    for family in dict.fromkeys(trial.family for trial in trials):
        best = winner(trial for trial in trials if trial.family == family)
        if best:
            winners.append(best)
        else:
            log.warning("%s has no successful trial and so no best model", family)
    edges = run.encounters.preprocessor.transform(edge_rows(run.encounters.validation)[0])
    there = {(found.tags["family"], found.params["trial"]): found for found in run.finished("best")}

    def scored(best: Trial) -> Scored:
        found = there.get((best.family, str(best.index)))
        return _scores_of(run, found) if found else _log_winner(run, best, edges)

    cores = run.settings.search_cpus or os.cpu_count() or 1
    with ThreadPoolExecutor(max(1, cores // run.settings.trial_cpus)) as threads:
        return dict(zip([best.family for best in winners], threads.map(scored, winners), strict=True))


def _scores_of(run: _Run, best: RunRecord) -> Scored:
    """What the winner of an attempt before this one says of the validation rows."""
    from health_predict.core.evaluation import Scored

    pipeline = run.tracking.load_run_pipeline(best.run_id)
    return Scored(pipeline.predict_proba(run.encounters.validation)[:, 1], float(best.params["threshold"]))


def _log_winner(run: _Run, best: Trial, edges: Rows) -> Scored:
    from sklearn.pipeline import Pipeline

    from health_predict.core.compiled_model import clear_threshold
    from health_predict.core.evaluation import Scored, f1_threshold, metrics

    family, rows = FAMILIES[best.family], run.encounters.rows
    fitted = fit_winner(best, rows, run.settings.seed, run.settings.trial_cpus)
    estimator = _calibrated(run, best, fitted.estimator)
    scores = estimator.predict_proba(rows.validation_rows)[:, 1]
    threshold = f1_threshold(rows.validation_labels, scores)
    # Of the rows that the compiled model will be proven on, none may lie where rounding flips it.
    scored = Scored(scores, clear_threshold(threshold, scores, estimator.predict_proba(edges)[:, 1]))
    found = metrics(rows.validation_labels, scored.scores, scored.threshold)
    run_id = run.tracking.log_best(
        run.parent,
        family.name,
        Pipeline([("features", run.encounters.preprocessor), ("estimator", estimator)]),
        {**run.tags, "family": family.name, "baseline": str(family.name == BASELINE).lower()},
        {**family.fixed, **best.parameters, "threshold": repr(scored.threshold), "trial": best.index},
        {f"validation_{name}": value for name, value in found.items()},
        {"threshold.json": {"threshold": scored.threshold, "chosen_by": "F1 on validation"}},
        {name: [(step[0], step[column]) for step in fitted.curve] for column, name in enumerate(_CURVES, start=1)},
    )
    auc, f1 = found["auc"], found["f1"]
    log.info("Best_%s_Model: validation AUC %.4f, F1 %.4f (run %s)", family.name, auc, f1, run_id)
    return scored


def _calibrated(run: _Run, best: Trial, estimator: Any) -> Any:
    """The winner with a map from its scores to risks, fitted on training rows as models without them score them."""
    from health_predict.core.calibration import CalibratedClassifier, fit_map, out_of_fold_scores

    def fit(rows: Rows, labels: Labels) -> Any:
        seed, threads = run.settings.seed, run.settings.trial_cpus
        return FAMILIES[best.family].fit(best.parameters, rows, labels, seed=seed, threads=threads)

    rows, labels = run.encounters.rows.train_rows, run.encounters.rows.train_labels
    try:
        intercept, slope = fit_map(out_of_fold_scores(fit, rows, labels, run.encounters.train[PATIENT]), labels)
    except GateError as error:
        # The gates will say the same of it, and which others there are.
        log.warning("%s stays as it is: %s", best.family, error.problem)
        return estimator
    log.info("%s: logit(risk) = %.3f + %.3f logit(score), out of fold", best.family, intercept, slope)
    return CalibratedClassifier(estimator, intercept, slope)


def _choose(run: _Run, scored: Mapping[str, Scored]) -> str:
    """Choose between the families, log the page and close the parent run; the page."""
    from health_predict.core.selection import select
    from health_predict.report.leaderboard import leaderboard_page

    tracking, validation = run.tracking, run.encounters.validation
    children = tracking.children(run.parent)
    winners = {best.tags["family"]: best for best in _best_of(children, run.parent)}
    selection = select(run.encounters.rows.validation_labels, scored, validation[PATIENT], seed=run.settings.seed)
    log.info("%s", selection.reason)
    tracking.tag_run(run.parent, {CHOSEN: winners[selection.family].run_id, REASON: selection.reason})
    curves = {best.run_id: [tracking.curve(best.run_id, name) for name in _CURVES] for best in winners.values()}
    page = leaderboard_page(tracking.run(run.parent), children, curves)
    tracking.log_text(run.parent, LEADERBOARD, page)
    best = _best_metrics([winners[selection.family]])[selection.family]
    # Last: only a whole search counts as finished.
    tracking.end_search(run.parent, {"best_f1": best["f1"], "best_auc": best["auc"]})
    return page


def search_digest(settings: Settings, dataset_digest: str, chosen: tuple[Family, ...]) -> str:
    """SHA-256 over all that the search's result depends on."""
    core = Path(health_predict.core.__path__[0])
    identity = {
        "dataset": dataset_digest,
        "families": [family.name for family in chosen],
        "trials": settings.trials,
        "seconds": settings.search_seconds,
        "concurrency": settings.search_concurrency,
        "threads": settings.trial_cpus,
        "seed": settings.seed,
        "libraries": libraries(),
        "code": {
            str(file.relative_to(core)): hashlib.sha256(file.read_bytes()).hexdigest()
            for pattern in _SOURCES
            for file in sorted(core.glob(pattern))
        },
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def best_runs(tracking: Tracking, parent: str) -> list[RunRecord]:
    """The finished `Best_` runs of a search, at most one a family. Raises StateError when there is none."""
    return _best_of(tracking.children(parent), parent)


def chosen_run(tracking: Tracking, parent: str) -> RunRecord:
    """The run of the model that a search ends with. Raises StateError for a search that did not end."""
    runs = {run.run_id: run for run in best_runs(tracking, parent)}
    chosen = tracking.run(parent).tags.get(CHOSEN, "")
    if chosen not in runs:
        raise StateError(f"search {parent} names no model that it ended with", "run the search again")
    return runs[chosen]


def _best_of(children: list[RunRecord], parent: str) -> list[RunRecord]:
    found = [run for run in children if run.tags.get("role") == "best" and run.status == "FINISHED"]
    if not found:
        raise StateError(f"search {parent} has no finished Best_ run", "run the search again")
    return found


def _best_metrics(winners: list[RunRecord]) -> dict[str, dict[str, float]]:
    return {
        run.tags["family"]: {
            name.removeprefix("validation_"): value
            for name, value in run.metrics.items()
            if name.startswith("validation_")
        }
        for run in winners
    }
