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
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import health_predict.core
from health_predict.adapters import ray
from health_predict.adapters.mlflow import CHOSEN, REASON, RunRecord, Tracking, import_for_models
from health_predict.adapters.storage import whole_file
from health_predict.core import families
from health_predict.core.columns import PATIENT
from health_predict.core.errors import GateError, HealthPredictError, StateError
from health_predict.core.families import BASELINE, Family
from health_predict.core.families.family import Rows
from health_predict.core.search import (
    METRICS,
    RUNGS,
    FamilySearch,
    Fitted,
    Point,
    Prepared,
    Trial,
    in_order_of_labels,
    run_trial,
)
from health_predict.settings import Settings

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

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
    search = _Search(settings, chosen, tags, train, validation)
    # Only a hint, which spares a repeat the start of Ray: MLflow knows what is there.
    hint = settings.home / "searches" / digest
    if not (hint.exists() and search.find()):
        # Ray first: it starts while this process imports MLflow and prepares the data.
        with ray.Cluster(
            at_once=settings.search_concurrency * len(chosen),
            cpus=settings.search_cpus,
            address=settings.ray_address,
            trial_cpus=settings.trial_cpus,
            trial_memory_mb=settings.trial_memory_mb,
        ) as cluster:
            # Ahead of MLflow: skops looks for scipy's functions in all modules, in the order of their import.
            import_module("scipy.special")
            search.run(cluster)
        with suppress(OSError):  # as in a container whose disk is read-only
            hint.parent.mkdir(parents=True, exist_ok=True)
            hint.touch()
    with whole_file(leaderboard) as temporary:
        temporary.write_text(search.page)
    return HpoResult(search.parent, search.best, search.reused)


class _Search:
    """One search and its runs in MLflow, which are written as its trials end.

    Once it was found or run, `page` is its leaderboard and `best` has the metrics of each family's best model.
    """

    def __init__(
        self, settings: Settings, chosen: tuple[Family, ...], tags: Mapping[str, str], train: Path, validation: Path
    ) -> None:
        self.parent = ""
        self.reused = False
        self.page = ""
        self.best: dict[str, dict[str, float]] = {}
        self._settings = settings
        self._chosen = chosen
        self._tags = tags
        self._train_file = train
        self._validation_file = validation
        self._logged: dict[str, Future[None]] = {}  # by family, what writes its winner
        self._scored: dict[str, Scored] = {}  # by family, what its winner says of the validation rows

    @cached_property
    def _tracking(self) -> Tracking:
        return Tracking(self._settings, patience=self._settings.mlflow_patience)

    def find(self) -> bool:
        """Whether the search was done before; if so, it is read."""
        existing = self._tracking.finished_search(self._tags["search_digest"])
        if existing is None:
            return False
        log.info("the same search is there already: run %s", existing.run_id)
        self.parent, self.reused = existing.run_id, True
        self.page = self._tracking.read_text(self.parent, LEADERBOARD)
        self.best = _best_metrics(best_runs(self._tracking, self.parent))
        return True

    def run(self, cluster: ray.Cluster) -> None:
        """Do what is missing of the search, unless nothing is."""
        settings = self._settings
        cores = settings.search_cpus or os.cpu_count() or 1
        try:
            with ThreadPoolExecutor(cores // settings.trial_cpus or 1) as self._threads:
                for search in cluster.search(
                    self._plan,
                    run_trial=run_trial,
                    seed=settings.seed,
                    seconds=settings.search_seconds,
                    done=self._done,
                ):
                    self._conclude(search)
                    if search.best() is None:
                        log.warning("%s has no successful trial and so no best model", search.family.name)
                cluster.end()
            for written in self._logged.values():
                written.result()
            if not self.reused:
                self._end()
        except BaseException:
            if self.parent and not self.reused:
                self._tracking.patience = 0
                with suppress(HealthPredictError):
                    self._tracking.end_search(self.parent, {}, "FAILED")
            raise

    def _end(self) -> None:
        """Choose between the families, draw the page and close the parent run."""
        from health_predict.core.selection import select
        from health_predict.report.leaderboard import leaderboard_page

        tracking = self._tracking
        children = tracking.children(self.parent)
        winners = _best_of(children, self.parent)
        selection = select(
            self._data.validation_labels,
            {run.tags["family"]: self._scores_of(run) for run in winners},
            self._validation[PATIENT],
            seed=self._settings.seed,
        )
        log.info("%s", selection.reason)
        chosen = next(run.run_id for run in winners if run.tags["family"] == selection.family)
        tracking.tag_run(self.parent, {CHOSEN: chosen, REASON: selection.reason})
        curves = {run.run_id: [tracking.curve(run.run_id, name) for name in _CURVES] for run in winners}
        self.page = leaderboard_page(tracking.run(self.parent), children, curves)
        tracking.log_text(self.parent, LEADERBOARD, self.page)
        self.best = _best_metrics(winners)
        best = self.best[selection.family]
        # Last: only a whole search counts as finished.
        tracking.end_search(self.parent, {"best_f1": best["f1"], "best_auc": best["auc"]})

    def _plan(self) -> tuple[list[FamilySearch], Prepared] | None:
        """Open the parent run, or the one that was left, with the trials that it has; and encode the encounters."""
        if self.find():
            return None
        # Here and not at the top: a repeat of a search needs none of these, and they take seconds to import.
        from health_predict.core.cohort import load_part, target
        from health_predict.core.features import EncounterFeatures

        settings, tracking = self._settings, self._tracking
        log.info("searching %d trials of %d families", settings.trials * len(self._chosen), len(self._chosen))
        train, validation = load_part(self._train_file), load_part(self._validation_file)
        self._validation = validation
        log.info("encoding %d training and %d validation encounters", len(train), len(validation))
        self._preprocessor = EncounterFeatures().fit(train)
        data = Prepared(
            self._preprocessor.transform(train),
            target(train),
            self._preprocessor.transform(validation),
            target(validation),
        )
        self._patients = train[PATIENT]
        self._unordered, self._data = data, in_order_of_labels(data)
        digest = self._tags["search_digest"]
        self.parent = tracking.resume_search(digest) or tracking.start_search(
            f"search-{digest[:8]}",
            self._tags,
            {
                "families": ",".join(family.name for family in self._chosen),
                "trials": settings.trials,
                "seed": settings.seed,
                "train_rows": len(train),
                "validation_rows": len(validation),
                "positions": data.train_rows.shape[1],
            },
        )
        finished = [run for run in tracking.children(self.parent) if run.status == "FINISHED"]
        recorded = [_recorded(run) for run in finished if run.tags["role"] == "trial"]
        if recorded:
            log.info("continuing search %s: %d trials are done", self.parent, len(recorded))
        self._there = {(run.tags["family"], run.params["trial"]) for run in finished if run.tags["role"] == "best"}
        self._searches = {
            family.name: FamilySearch(
                family,
                trials=settings.trials,
                concurrency=settings.search_concurrency,
                seed=settings.seed,
                recorded={trial.index: trial for trial in recorded if trial.family == family.name},
            )
            for family in self._chosen
        }
        # Beside the trials, what their winners and the page will need.
        self._edge_rows = self._threads.submit(self._encode_edge_rows)
        self._threads.submit(import_for_models)
        self._threads.submit(import_module, "matplotlib.figure")
        self._threads.submit(import_module, "matplotlib.backends.backend_svg")
        return list(self._searches.values()), self._data

    def _encode_edge_rows(self) -> Rows:
        from health_predict.core.compiled_model import edge_rows

        return self._preprocessor.transform(edge_rows(self._validation)[0])

    def _done(self, trial: Trial, progress: ray.Progress) -> None:
        """Log a trial."""
        self._tracking.log_trial(
            self.parent,
            f"{trial.family}-{trial.index:03d}",
            {
                **self._tags,
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
        if len(self._searches[trial.family].ended) == self._settings.trials:
            self._conclude(self._searches[trial.family])

    def _conclude(self, search: FamilySearch) -> None:
        """Log a family's winner, in a thread beside the trials of the others."""
        best = search.best()
        if best is None or (best.family, str(best.index)) in self._there or best.family in self._logged:
            return
        self._logged[best.family] = self._threads.submit(self._log_best, best)

    def _log_best(self, best: Trial) -> None:
        from health_predict.core.compiled_model import clear_threshold
        from health_predict.core.evaluation import Scored, f1_threshold, metrics

        fitted: Fitted | None
        if best.fitted:
            fitted = pickle.loads(best.fitted)  # noqa: S301 (from our own workers)
        else:  # the winner is of an attempt before this one
            point = Point(best.family, best.index, best.parameters)
            _, _, fitted = run_trial(point, self._data, self._settings.seed, self._settings.trial_cpus)
        assert fitted is not None
        family = families.FAMILIES[best.family]
        estimator = self._calibrated(family, best, fitted.estimator)
        scores = estimator.predict_proba(self._data.validation_rows)[:, 1]
        threshold = f1_threshold(self._data.validation_labels, scores)
        # Of the rows that the compiled model will be proven on, none may lie where rounding flips it.
        made_up = estimator.predict_proba(self._edge_rows.result())[:, 1]
        scored = Scored(scores, clear_threshold(threshold, scores, made_up))
        found = metrics(self._data.validation_labels, scored.scores, scored.threshold)
        run_id = self._tracking.log_best(
            self.parent,
            family.name,
            _pipeline(self._preprocessor, estimator),
            {**self._tags, "family": family.name, "baseline": str(family.name == BASELINE).lower()},
            {**family.fixed, **best.parameters, "threshold": repr(scored.threshold), "trial": best.index},
            {f"validation_{name}": value for name, value in found.items()},
            {"threshold.json": {"threshold": scored.threshold, "chosen_by": "F1 on validation"}},
            {name: [(step[0], step[column]) for step in fitted.curve] for column, name in enumerate(_CURVES, start=1)},
        )
        self._scored[family.name] = scored
        auc, f1 = found["auc"], found["f1"]
        log.info("Best_%s_Model: validation AUC %.4f, F1 %.4f (run %s)", family.name, auc, f1, run_id)

    def _calibrated(self, family: Family, best: Trial, estimator: Any) -> Any:
        """The winner with a map from its scores to risks, fitted on training rows as models without them score them."""
        from health_predict.core.calibration import CalibratedClassifier, fit_map, out_of_fold_scores

        def fit(rows: Any, labels: Any) -> Any:
            seed, threads = self._settings.seed, self._settings.trial_cpus
            return family.fit(best.parameters, rows, labels, seed=seed, threads=threads)

        rows, labels = self._unordered.train_rows, self._unordered.train_labels
        try:
            intercept, slope = fit_map(out_of_fold_scores(fit, rows, labels, self._patients), labels)
        except GateError as error:
            # The gates will say the same of it, and which others there are.
            log.warning("%s stays as it is: %s", family.name, error.problem)
            return estimator
        log.info("%s: logit(risk) = %.3f + %.3f logit(score), out of fold", family.name, intercept, slope)
        return CalibratedClassifier(estimator, intercept, slope)

    def _scores_of(self, run: RunRecord) -> Scored:
        """What a family's winner says of the validation rows; one of an attempt before this one is loaded."""
        from health_predict.core.evaluation import Scored

        known = self._scored.get(run.tags["family"])
        if known is None:
            pipeline = self._tracking.load_run_pipeline(run.run_id)
            scores = pipeline.predict_proba(self._validation)[:, 1]
            known = Scored(scores, float(run.params["threshold"]))
        return known


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
        "libraries": ray.libraries(),
        "code": {
            str(file.relative_to(core)): hashlib.sha256(file.read_bytes()).hexdigest()
            for pattern in _SOURCES
            for file in sorted(core.glob(pattern))
        },
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


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
