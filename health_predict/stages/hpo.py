"""hpo: search over the model families, and one `Best_<Family>_Model` run for each."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import health_predict.core
from health_predict.adapters import ray
from health_predict.adapters.mlflow import RunRecord, Tracking, import_for_models
from health_predict.adapters.storage import whole_file
from health_predict.core import families
from health_predict.core.errors import HealthPredictError, StateError
from health_predict.core.families import BASELINE, Family
from health_predict.core.search import (
    METRICS,
    RUNGS,
    FamilySearch,
    Fitted,
    Point,
    Prepared,
    Trial,
    run_trial,
)
from health_predict.settings import Settings

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from health_predict.core.features import EncounterFeatures

log = logging.getLogger(__name__)

# A search is the same when this code is.
_SOURCES = ("columns", "row_encoder", "features", "families", "sparse_xgboost", "evaluation", "search")
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
    on the validation rows, the least noisy of the metrics; families are compared by F1 in `register`.
    """
    chosen = families.choose(settings.families)
    digest = search_digest(settings, dataset_digest, chosen)
    # First, because it starts while this process imports MLflow and prepares the data.
    with ray.Cluster(
        cpus=settings.search_cpus,
        address=settings.ray_address,
        trial_cpus=settings.trial_cpus,
        trial_memory_mb=settings.trial_memory_mb,
    ) as cluster:
        tracking = Tracking(settings, patience=settings.mlflow_patience)
        existing = tracking.finished_search(digest)
        if existing is not None:
            log.info("the same search is there already: run %s", existing.run_id)
            parent = existing.run_id
            page = tracking.read_text(parent, LEADERBOARD)
            best = _best_metrics(best_runs(tracking, parent))
        else:
            tags = {
                "search_digest": digest,
                "dataset_digest": dataset_digest,
                "dataset_source": dataset_source,
                "git_commit": settings.git_commit or "unknown",
                "stage": "hpo",
            }
            parent, page, best = _new_search(settings, chosen, cluster, tracking, tags, train, validation)
    with whole_file(leaderboard) as temporary:
        temporary.write_text(page)
    return HpoResult(parent, best, existing is not None)


def _new_search(
    settings: Settings,
    chosen: tuple[Family, ...],
    cluster: ray.Cluster,
    tracking: Tracking,
    tags: Mapping[str, str],
    train: Path,
    validation: Path,
) -> tuple[str, str, dict[str, dict[str, float]]]:
    """Do the search; its parent run, its leaderboard, and the metrics of each family's best model."""
    # Here and not at the top: a repeat of a search needs none of these, and they take seconds to import.
    from health_predict.core.cohort import load_part, target
    from health_predict.core.features import EncounterFeatures
    from health_predict.report.leaderboard import leaderboard_page

    log.info("searching %d trials of %d families", settings.trials * len(chosen), len(chosen))
    train_frame, validation_frame = load_part(train), load_part(validation)
    log.info("encoding %d training and %d validation encounters", len(train_frame), len(validation_frame))
    preprocessor = EncounterFeatures().fit(train_frame)
    data = Prepared(
        preprocessor.transform(train_frame),
        target(train_frame),
        preprocessor.transform(validation_frame),
        target(validation_frame),
    )
    parent = tracking.resume_search(tags["search_digest"]) or tracking.start_search(
        f"search-{tags['search_digest'][:8]}",
        tags,
        {
            "families": ",".join(family.name for family in chosen),
            "trials": settings.trials,
            "seed": settings.seed,
            "train_rows": len(train_frame),
            "validation_rows": len(validation_frame),
            "positions": data.train_rows.shape[1],
        },
    )
    try:
        _search(settings, chosen, cluster, data, preprocessor, tracking, parent, tags)
        children = tracking.children(parent)
        winners = _best_of(children, parent)
        curves = {run.run_id: [tracking.curve(run.run_id, name) for name in _CURVES] for run in winners}
        page = leaderboard_page(tracking.run(parent), children, curves)
        tracking.log_text(parent, LEADERBOARD, page)
    except BaseException:
        tracking.patience = 0
        with suppress(HealthPredictError):
            tracking.end_search(parent, {}, "FAILED")
        raise
    metrics = _best_metrics(winners)
    best = max(metrics.values(), key=lambda found: found["f1"])
    # Last: only a whole search counts as finished.
    tracking.end_search(parent, {"best_f1": best["f1"], "best_auc": best["auc"]})
    return parent, page, metrics


def search_digest(settings: Settings, dataset_digest: str, chosen: tuple[Family, ...]) -> str:
    """SHA-256 over all that the search's result depends on."""
    identity = {
        "dataset": dataset_digest,
        "families": [family.name for family in chosen],
        "trials": settings.trials,
        "seconds": settings.search_seconds,
        "concurrency": settings.search_concurrency,
        "threads": settings.trial_cpus,
        "seed": settings.seed,
        "libraries": ray.libraries(),
        "code": {
            name: hashlib.sha256((Path(health_predict.core.__path__[0]) / f"{name}.py").read_bytes()).hexdigest()
            for name in _SOURCES
        },
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _search(
    settings: Settings,
    chosen: tuple[Family, ...],
    cluster: ray.Cluster,
    data: Prepared,
    preprocessor: EncounterFeatures,
    tracking: Tracking,
    parent: str,
    tags: Mapping[str, str],
) -> None:
    """Run what is missing of the search and log each trial and each family's winner as it ends."""
    finished = [run for run in tracking.children(parent) if run.status == "FINISHED"]
    recorded = [_recorded(run) for run in finished if run.tags["role"] == "trial"]
    if recorded:
        log.info("continuing search %s: %d trials are done", parent, len(recorded))

    there = {(run.tags["family"], run.params["trial"]) for run in finished if run.tags["role"] == "best"}
    searches = {
        family.name: FamilySearch(
            family,
            trials=settings.trials,
            concurrency=settings.search_concurrency,
            seed=settings.seed,
            recorded={trial.index: trial for trial in recorded if trial.family == family.name},
        )
        for family in chosen
    }
    logged: dict[str, Future[None]] = {}

    def log_best(best: Trial) -> None:
        fitted: Fitted | None
        if best.fitted:
            fitted = pickle.loads(best.fitted)  # noqa: S301 (from our own workers)
        else:  # the winner is of an attempt before this one
            point = Point(best.family, best.index, best.parameters)
            _, _, fitted = run_trial(point, data, settings.seed, settings.trial_cpus)
        assert fitted is not None
        _log_best(tracking, parent, tags, best, fitted, preprocessor)

    def conclude(search: FamilySearch) -> None:
        """Log a family's winner, in a thread beside the trials of the others."""
        best = search.best()
        if best is not None and (best.family, str(best.index)) not in there and best.family not in logged:
            logged[best.family] = threads.submit(log_best, best)

    def done(trial: Trial, progress: ray.Progress) -> None:
        tracking.log_trial(
            parent,
            f"{trial.family}-{trial.index:03d}",
            {
                **tags,
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
        # Under `ray://` these searches are copies: theirs are told at the end.
        if len(searches[trial.family].ended) == settings.trials:
            conclude(searches[trial.family])

    with ThreadPoolExecutor((settings.search_cpus or os.cpu_count() or 1) // settings.trial_cpus or 1) as threads:
        threads.submit(import_for_models)
        for search in cluster.search(
            list(searches.values()),
            data,
            run_trial=run_trial,
            seed=settings.seed,
            seconds=settings.search_seconds,
            done=done,
        ):
            conclude(search)
            if search.best() is None:
                log.warning("%s has no successful trial and so no best model", search.family.name)
        cluster.end()
    for written in logged.values():
        written.result()


def _log_best(
    tracking: Tracking,
    parent: str,
    tags: Mapping[str, str],
    best: Trial,
    fitted: Fitted,
    preprocessor: EncounterFeatures,
) -> None:
    family = families.FAMILIES[best.family]
    run_id = tracking.log_best(
        parent,
        family.name,
        _pipeline(preprocessor, fitted.estimator),
        {**tags, "family": family.name, "baseline": str(family.name == BASELINE).lower()},
        {**family.fixed, **best.parameters, "threshold": repr(fitted.threshold), "trial": best.index},
        {f"validation_{name}": value for name, value in fitted.metrics.items()},
        {"threshold.json": {"threshold": fitted.threshold, "chosen_by": "F1 on validation"}},
        {name: [(step[0], step[column]) for step in fitted.curve] for column, name in enumerate(_CURVES, start=1)},
    )
    auc, f1 = fitted.metrics["auc"], fitted.metrics["f1"]
    log.info("Best_%s_Model: validation AUC %.4f, F1 %.4f (run %s)", family.name, auc, f1, run_id)


def _recorded(run: RunRecord) -> Trial:
    """A trial as its finished run holds it; its parameters are text."""
    return Trial(
        run.tags["family"],
        int(run.tags["trial"]),
        run.params,
        {name: run.metrics[name] for name in METRICS},
        run.metrics["seconds"],
        tuple(run.metrics[name] for rung in range(len(RUNGS)) if (name := _RUNG.format(rung)) in run.metrics),
        run.tags["stopped_early"] == "true",
    )


def _pipeline(preprocessor: EncounterFeatures, estimator: Any) -> Pipeline:
    from sklearn.pipeline import Pipeline

    return Pipeline([("features", preprocessor), ("estimator", estimator)])


def best_runs(tracking: Tracking, parent: str) -> list[RunRecord]:
    """The finished `Best_` runs of a search, at most one a family. Raises StateError when there is none."""
    return _best_of(tracking.children(parent), parent)


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
