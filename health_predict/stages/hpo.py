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

import pandas as pd
from sklearn.pipeline import Pipeline

import health_predict.core
from health_predict.adapters.archives import content_digest
from health_predict.adapters.contracts import contract_of
from health_predict.adapters.files import write_file
from health_predict.adapters.tracking import Role, RunRecord, Tag, Tracking, trial_name
from health_predict.core.data.cohort import load_part, target
from health_predict.core.data.contract import Contract
from health_predict.core.model import families
from health_predict.core.model.calibration import CalibratedClassifier, Fold, fit_map, out_of_fold_scores, patient_folds
from health_predict.core.model.evaluation import Scored, f1_threshold, metrics
from health_predict.core.model.families import BASELINE, FAMILIES, Family
from health_predict.core.model.families.family import Labels, Rows
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.model.search import (
    METRICS,
    RUNGS,
    FamilySearch,
    Prepared,
    Trial,
    fit_winner,
    libraries,
    winner,
)
from health_predict.core.model.selection import select
from health_predict.core.serving.compiled_model import clear_threshold, edge_rows
from health_predict.errors import GateError, HealthPredictError, StateError
from health_predict.report.leaderboard import leaderboard_page
from health_predict.settings import Settings

if TYPE_CHECKING:
    from health_predict.adapters.ray import Progress

log = logging.getLogger(__name__)

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
    chosen, contract = families.choose(settings.families), contract_of(settings)
    tags: dict[str, str] = {
        Tag.SEARCH_DIGEST: search_digest(settings, contract, dataset_digest, chosen),
        Tag.CONTRACT_DIGEST: contract.digest,
        Tag.DATASET_DIGEST: dataset_digest,
        Tag.DATASET_SOURCE: dataset_source,
        Tag.GIT_COMMIT: settings.git_commit or "unknown",
        Tag.STAGE: "hpo",
    }
    tracking = Tracking(settings, patience=settings.mlflow_patience)
    existing = tracking.finished_search(tags[Tag.SEARCH_DIGEST], LEADERBOARD)
    if existing:
        log.info("the same search is there already: run %s", existing.run_id)
        parent, page = existing.run_id, tracking.read_text(existing.run_id, LEADERBOARD)
    else:
        search = _Search(tracking, contract, tags, load_part(train), load_part(validation))
        parent = search.open(chosen)
        try:
            page = search.choose(search.winners(search.trials(chosen)))
        except BaseException:
            tracking.patience = 0
            with suppress(HealthPredictError):
                tracking.end_search(parent, {}, "FAILED")
            raise
    write_file(leaderboard, page)
    best = {run.tags[Tag.FAMILY]: _validation_metrics(run) for run in best_runs(tracking, parent)}
    return HpoResult(parent, best, existing is not None)


class _Search:
    """A search that is under way, as the steps that it takes: open, trials, winners, choose."""

    def __init__(
        self,
        tracking: Tracking,
        contract: Contract,
        tags: Mapping[str, str],
        train: pd.DataFrame,
        validation: pd.DataFrame,
    ) -> None:
        self.settings, self.tracking, self.tags, self.contract = tracking.settings, tracking, tags, contract
        self.parent = ""  # its run in MLflow
        self.train, self.validation = train, validation
        log.info("encoding %d training and %d validation encounters", len(train), len(validation))
        self.features = EncounterFeatures(contract).fit(train)
        self.rows = Prepared(
            self.features.transform(train),
            target(train, contract),
            self.features.transform(validation),
            target(validation, contract),
        )

    def open(self, chosen: tuple[Family, ...]) -> str:
        """The parent run: the one that was left unfinished, or a new one."""
        digest = self.tags[Tag.SEARCH_DIGEST]
        parameters = {
            "families": ",".join(family.name for family in chosen),
            "trials": self.settings.trials,
            "seed": self.settings.seed,
            "train_rows": len(self.train),
            "validation_rows": len(self.validation),
            "positions": self.rows.train_rows.shape[1],
        }
        self.parent = self.tracking.resume_search(digest) or self.tracking.start_search(
            f"Search of {len(chosen)} families, {self.settings.trials} trials each", self.tags, parameters
        )
        return self.parent

    def trials(self, chosen: tuple[Family, ...]) -> list[Trial]:
        """All trials: those that MLflow has already as they are, and the others on Ray, each logged as it ends."""
        from health_predict.adapters import ray  # `register` reads the runs of a search, and needs no Ray
        from health_predict.adapters.ray_session import Resources

        settings = self.settings
        recorded = [_recorded(trial) for trial in self._finished(Role.TRIAL)]
        log.info("searching %d trials of %d families", settings.trials * len(chosen), len(chosen))
        if recorded:
            log.info("continuing search %s: %d trials are done", self.parent, len(recorded))
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
        resources = Resources(
            at_once=settings.search_concurrency * len(chosen),
            cpus=settings.search_cpus,
            address=settings.ray_address,
            trial_cpus=settings.trial_cpus,
            trial_memory_mb=settings.trial_memory_mb,
        )
        return ray.search(
            searches,
            self.rows,
            resources=resources,
            seed=settings.seed,
            seconds=settings.search_seconds,
            done=self._log_trial,
        )

    def _finished(self, role: Role) -> list[RunRecord]:
        children = self.tracking.children(self.parent)
        return [run for run in children if run.status == "FINISHED" and run.tags[Tag.ROLE] == role]

    def _log_trial(self, trial: Trial, progress: Progress) -> None:
        tags: dict[str, str] = {
            **self.tags,
            Tag.FAMILY: trial.family,
            Tag.TRIAL: str(trial.index),
            Tag.STOPPED_EARLY: str(trial.stopped).lower(),
        }
        name = trial_name(trial.family, trial.index)
        rungs = {_RUNG.format(rung): auc for rung, auc in enumerate(trial.rungs)}
        self.tracking.log_trial(
            self.parent,
            name,
            {**tags, Tag.ERROR: trial.error} if trial.error else tags,
            trial.parameters,
            {**trial.metrics, **rungs, "seconds": trial.seconds},
            failed=bool(trial.error),
        )
        best = max(progress.best, key=lambda name: progress.best[name], default=None)
        result = "stopped early at" if trial.stopped else ""
        log.info(
            "trial %d of %d: %s %s; best %s",
            progress.done,
            progress.total,
            name,
            trial.error or f"{result} AUC {trial.metrics['auc']:.4f} in {trial.seconds:.1f} s".strip(),
            f"{best} {progress.best[best]:.4f}" if best else "none yet",
            extra={"progress": asdict(progress)},
        )

    def winners(self, trials: Sequence[Trial]) -> dict[str, Scored]:
        """Fit, calibrate and log each family's winner; what it says of the validation rows, by family.

        What an attempt before this one logged is taken as it is.
        """
        winners: list[Trial] = []
        for family in dict.fromkeys(trial.family for trial in trials):
            if best := winner(trial for trial in trials if trial.family == family):
                winners.append(best)
            else:
                log.warning("%s has no successful trial and so no best model", family)
        edges = self.features.transform(edge_rows(self.validation, self.contract)[0])
        # The same for all families: to find them takes longer than some fits.
        folds = patient_folds(self.rows.train_labels, self.train[self.contract.patient])
        logged = {(run.tags[Tag.FAMILY], run.params["trial"]): run for run in self._finished(Role.BEST)}

        def scored(best: Trial) -> Scored:
            if run := logged.get((best.family, str(best.index))):
                with suppress(StateError):  # its files are gone
                    pipeline = self.tracking.load_run_pipeline(run.run_id)
                    return Scored(pipeline.predict_proba(self.validation)[:, 1], float(run.params["threshold"]))
            return self._log_winner(best, edges, folds)

        cores = self.settings.search_cpus or os.cpu_count() or 1
        with ThreadPoolExecutor(max(1, cores // self.settings.trial_cpus)) as threads:
            return dict(zip([best.family for best in winners], threads.map(scored, winners), strict=True))

    def _log_winner(self, best: Trial, edges: Rows, folds: Sequence[Fold]) -> Scored:
        family, labels = FAMILIES[best.family], self.rows.validation_labels
        fitted = fit_winner(best, self.rows, self.settings.seed, self.settings.trial_cpus)
        estimator = self._calibrated(best, fitted.estimator, folds)
        scores = estimator.predict_proba(self.rows.validation_rows)[:, 1]
        # Of the rows that the compiled model will be proven on, none may lie where rounding flips it.
        threshold = clear_threshold(f1_threshold(labels, scores), scores, estimator.predict_proba(edges)[:, 1])
        values = metrics(labels, scores, threshold)
        run_id = self.tracking.log_best(
            self.parent,
            family.name,
            Pipeline([("features", self.features), ("estimator", estimator)]),
            {**self.tags, Tag.FAMILY: family.name, Tag.BASELINE: str(family.name == BASELINE).lower()},
            {**family.fixed, **best.parameters, "threshold": repr(threshold), "trial": best.index},
            {f"validation_{name}": value for name, value in values.items()},
            {"threshold.json": {"threshold": threshold, "chosen_by": "F1 on validation"}},
            {name: [(step[0], step[column]) for step in fitted.curve] for column, name in enumerate(_CURVES, start=1)},
        )
        auc, f1 = values["auc"], values["f1"]
        log.info("Best_%s_Model: validation AUC %.4f, F1 %.4f (run %s)", family.name, auc, f1, run_id)
        return Scored(scores, threshold)

    def _calibrated(self, best: Trial, estimator: Any, folds: Sequence[Fold]) -> Any:
        """The winner with a map from its scores to risks, fitted on training rows as models without them score them."""

        def fit(rows: Rows, labels: Labels) -> Any:
            seed, threads = self.settings.seed, self.settings.trial_cpus
            return FAMILIES[best.family].fit(best.parameters, rows, labels, seed=seed, threads=threads)

        rows, labels = self.rows.train_rows, self.rows.train_labels
        try:
            intercept, slope = fit_map(out_of_fold_scores(fit, rows, labels, folds), labels)
        except GateError as error:
            # The gates will say the same of it, and which others there are.
            log.warning("%s stays as it is: %s", best.family, error.problem)
            return estimator
        log.info("%s: logit(risk) = %.3f + %.3f logit(score), out of fold", best.family, intercept, slope)
        return CalibratedClassifier(estimator, intercept, slope)

    def choose(self, scored: Mapping[str, Scored]) -> str:
        """Choose between the families, log the page and close the parent run; the page."""
        tracking = self.tracking
        winners = {run.tags[Tag.FAMILY]: run for run in best_runs(tracking, self.parent)}
        patients = self.validation[self.contract.patient]
        selection = select(self.rows.validation_labels, scored, patients, seed=self.settings.seed)
        log.info("%s", selection.reason)
        best = winners[selection.family]
        tracking.tag_run(self.parent, {Tag.CHOSEN: best.run_id, Tag.REASON: selection.reason})
        curves = {run.run_id: [tracking.curve(run.run_id, name) for name in _CURVES] for run in winners.values()}
        page = leaderboard_page(tracking.run(self.parent), tracking.children(self.parent), curves)
        tracking.log_text(self.parent, LEADERBOARD, page)
        values = _validation_metrics(best)
        # Last: only a whole search counts as finished.
        tracking.end_search(self.parent, {"best_f1": values["f1"], "best_auc": values["auc"]})
        return page


def _recorded(run: RunRecord) -> Trial:
    """A trial as its finished run holds it."""
    return Trial(
        run.tags[Tag.FAMILY],
        int(run.tags[Tag.TRIAL]),
        FAMILIES[run.tags[Tag.FAMILY]].parsed(run.params),
        {name: run.metrics[name] for name in METRICS},
        run.metrics["seconds"],
        tuple(run.metrics[name] for rung in range(len(RUNGS)) if (name := _RUNG.format(rung)) in run.metrics),
        run.tags[Tag.STOPPED_EARLY] == "true",
    )


def search_digest(settings: Settings, contract: Contract, dataset_digest: str, chosen: tuple[Family, ...]) -> str:
    """SHA-256 over all that the search's result depends on."""
    identity = {
        "dataset": dataset_digest,
        "contract": contract.digest,
        "families": [family.name for family in chosen],
        "trials": settings.trials,
        "seconds": settings.search_seconds,
        "concurrency": settings.search_concurrency,
        "threads": settings.trial_cpus,
        "seed": settings.seed,
        "libraries": libraries(),
        "code": content_digest(Path(health_predict.core.__path__[0])),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def best_runs(tracking: Tracking, parent: str) -> list[RunRecord]:
    """The finished `Best_` runs of a search, at most one a family. Raises StateError when there is none."""
    finished = [run for run in tracking.children(parent) if run.status == "FINISHED"]
    winners = [run for run in finished if run.tags.get(Tag.ROLE) == Role.BEST]
    if not winners:
        raise StateError(f"search {parent} has no finished Best_ run", "run the search again")
    return winners


def chosen_run(tracking: Tracking, parent: str) -> RunRecord:
    """The run of the model that a search ends with. Raises StateError for a search that did not end."""
    runs = {run.run_id: run for run in best_runs(tracking, parent)}
    chosen = tracking.run(parent).tags.get(Tag.CHOSEN, "")
    if chosen not in runs:
        raise StateError(f"search {parent} names no model that it ended with", "run the search again")
    return runs[chosen]


def _validation_metrics(best: RunRecord) -> dict[str, float]:
    prefix = "validation_"
    return {name.removeprefix(prefix): value for name, value in best.metrics.items() if name.startswith(prefix)}
