"""hpo: search over the model families, and one `Best_<Family>_Model` run for each."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import health_predict.core
from health_predict.adapters import ray
from health_predict.adapters.mlflow import RunRecord, Tracking
from health_predict.adapters.storage import whole_file
from health_predict.core import families
from health_predict.core.errors import StateError
from health_predict.core.families import BASELINE, FAMILIES, Family
from health_predict.settings import Settings

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from health_predict.core.features import EncounterFeatures

log = logging.getLogger(__name__)

# A search is the same when these are: another version of any fits other models.
_LIBRARIES = ("scikit-learn", "xgboost", "lightgbm", "numpy", "pandas", "scipy")
_SOURCES = ("columns", "row_encoder", "features", "families", "evaluation")
LEADERBOARD = "leaderboard.html"


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

    The same search (data, families, trials, seed, code, libraries) is done once: a repeat gives the same parent
    run. A search that was killed leaves its runs marked KILLED and is done anew. Trials are ranked by AUC on the
    validation rows, the least noisy of the metrics; families are compared by F1 in `register`.
    """
    chosen = families.choose(settings.families)
    digest = search_digest(settings, dataset_digest, chosen)
    tracking = Tracking(settings)
    existing = tracking.finished_search(digest)
    if existing is not None:
        log.info("the same search is there already: run %s", existing.run_id)
        parent = existing.run_id
        page = tracking.read_text(parent, LEADERBOARD)
    else:
        tags = {
            "search_digest": digest,
            "dataset_digest": dataset_digest,
            "dataset_source": dataset_source,
            "git_commit": settings.git_commit or "unknown",
            "stage": "hpo",
        }
        parent, page = _new_search(settings, chosen, tracking, tags, train, validation)
    with whole_file(leaderboard) as temporary:
        temporary.write_text(page)
    return HpoResult(parent, _best_metrics(tracking, parent), existing is not None)


def _new_search(
    settings: Settings,
    chosen: tuple[Family, ...],
    tracking: Tracking,
    tags: Mapping[str, str],
    train: Path,
    validation: Path,
) -> tuple[str, str]:
    """Do the search; its parent run and its leaderboard."""
    # Here and not at the top: a repeat of a search needs none of these, and they take seconds to import.
    from health_predict.core.cohort import load_part, target
    from health_predict.core.features import EncounterFeatures
    from health_predict.report.leaderboard import leaderboard_page

    abandoned = tracking.end_abandoned(tags["search_digest"])
    if abandoned:
        log.info("%d runs of an earlier, killed search are marked KILLED", abandoned)
    train_frame, validation_frame = load_part(train), load_part(validation)
    log.info("encoding %d training and %d validation encounters", len(train_frame), len(validation_frame))
    preprocessor = EncounterFeatures().fit(train_frame)
    data = ray.Prepared(
        preprocessor.transform(train_frame),
        target(train_frame),
        preprocessor.transform(validation_frame),
        target(validation_frame),
    )
    parent = tracking.start_search(
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
        trials = _search(settings, chosen, data, tracking, parent, tags)
        _log_best(settings, chosen, trials, data, preprocessor, tracking, parent, tags)
        best = max(_best_metrics(tracking, parent).values(), key=lambda found: found["f1"])
        page = leaderboard_page(tracking.run(parent), tracking.children(parent))
        tracking.log_text(parent, LEADERBOARD, page)
    except BaseException:
        tracking.end_search(parent, {}, "FAILED")
        raise
    # Last: only a whole search counts as finished.
    tracking.end_search(parent, {"best_f1": best["f1"], "best_auc": best["auc"]})
    return parent, page


def search_digest(settings: Settings, dataset_digest: str, chosen: tuple[Family, ...]) -> str:
    """SHA-256 over all that the search's result depends on."""
    identity = {
        "dataset": dataset_digest,
        "families": [family.name for family in chosen],
        "trials": settings.trials,
        "seed": settings.seed,
        "libraries": {name: version(name) for name in _LIBRARIES},
        "code": {
            name: hashlib.sha256((Path(health_predict.core.__path__[0]) / f"{name}.py").read_bytes()).hexdigest()
            for name in _SOURCES
        },
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def objective(family: str, parameters: Mapping[str, Any], data: ray.Prepared, seed: int) -> dict[str, float]:
    """Validation metrics of one point; runs in Ray's actors, on one thread."""
    estimator = FAMILIES[family].fit(parameters, data.train_rows, data.train_labels, seed=seed)
    found, _ = _validated(estimator, data)
    return {name: found[name] for name in ray.METRICS}


def _validated(estimator: Any, data: ray.Prepared) -> tuple[dict[str, float], float]:
    """All metrics on the validation rows at the threshold with the largest F1, and that threshold."""
    from health_predict.core.evaluation import f1_threshold, metrics

    scores = estimator.predict_proba(data.validation_rows)[:, 1].astype(float)
    threshold = f1_threshold(data.validation_labels, scores)
    return metrics(data.validation_labels, scores, threshold), threshold


def _search(
    settings: Settings,
    chosen: tuple[Family, ...],
    data: ray.Prepared,
    tracking: Tracking,
    parent: str,
    tags: Mapping[str, str],
) -> list[ray.Trial]:
    points = {family.name: families.draws(family, settings.trials, settings.seed) for family in chosen}
    # Families in turn, so that every one has a result early.
    order = [(name, index, points[name][index]) for index in range(settings.trials) for name in points]
    ended: list[ray.Trial] = []

    def done(trial: ray.Trial) -> None:
        ended.append(trial)
        tracking.log_trial(
            parent,
            f"{trial.family}-{trial.index:03d}",
            {
                **tags,
                "family": trial.family,
                "trial": str(trial.index),
                **({"error": trial.error} if trial.error else {}),
            },
            trial.parameters,
            {**trial.metrics, "seconds": trial.seconds},
            failed=bool(trial.error),
        )
        best = max((t for t in ended if not t.error), key=lambda t: t.metrics["auc"], default=None)
        log.info(
            "trial %d of %d: %s %s; best %s",
            len(ended),
            len(order),
            trial.family,
            trial.error or f"AUC {trial.metrics['auc']:.4f} in {trial.seconds:.1f} s",
            f"{best.family} {best.metrics['auc']:.4f}" if best else "none yet",
        )

    log.info("searching %d trials of %d families; Ray starts", len(order), len(chosen))
    return ray.search(
        order, objective, data, seed=settings.seed, cpus=settings.search_cpus, address=settings.ray_address, done=done
    )


def _log_best(
    settings: Settings,
    chosen: tuple[Family, ...],
    trials: list[ray.Trial],
    data: ray.Prepared,
    preprocessor: EncounterFeatures,
    tracking: Tracking,
    parent: str,
    tags: Mapping[str, str],
) -> None:
    for family in chosen:
        mine = [trial for trial in trials if trial.family == family.name and not trial.error]
        if not mine:
            log.warning("%s has no successful trial and so no best model", family.name)
            continue
        # Ties go to the earlier trial, so that the winner does not depend on which ended first.
        best = max(mine, key=lambda trial: (trial.metrics["auc"], -trial.index))
        # One thread, as in the trial: the same sums in the same order.
        estimator = family.fit(best.parameters, data.train_rows, data.train_labels, seed=settings.seed)
        found, threshold = _validated(estimator, data)
        run_id = tracking.log_best(
            parent,
            family.name,
            _pipeline(preprocessor, estimator),
            {**tags, "family": family.name, "baseline": str(family.name == BASELINE).lower()},
            {**family.fixed, **best.parameters, "threshold": repr(threshold), "trial": best.index},
            {f"validation_{name}": value for name, value in found.items()},
            {"threshold.json": {"threshold": threshold, "chosen_by": "F1 on validation"}},
        )
        log.info("Best_%s_Model: validation AUC %.4f, F1 %.4f (run %s)", family.name, found["auc"], found["f1"], run_id)


def _pipeline(preprocessor: EncounterFeatures, estimator: Any) -> Pipeline:
    from sklearn.pipeline import Pipeline

    return Pipeline([("features", preprocessor), ("estimator", estimator)])


def best_runs(tracking: Tracking, parent: str) -> list[RunRecord]:
    """The finished `Best_` runs of a search, at most one a family. Raises StateError when there is none."""
    found = [run for run in tracking.children(parent) if run.tags.get("role") == "best" and run.status == "FINISHED"]
    if not found:
        raise StateError(f"search {parent} has no finished Best_ run", "run the search again")
    return found


def _best_metrics(tracking: Tracking, parent: str) -> dict[str, dict[str, float]]:
    return {
        run.tags["family"]: {name.removeprefix("validation_"): value for name, value in run.metrics.items()}
        for run in best_runs(tracking, parent)
    }
