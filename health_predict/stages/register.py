"""register: the best model of a search becomes a version of the registered model, and is promoted or rejected."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import confusion_matrix, roc_curve

from health_predict.adapters.data.batches import trained_through
from health_predict.adapters.data.parts import stored_part
from health_predict.adapters.data.raw_data import origin_of
from health_predict.adapters.files import write_file
from health_predict.adapters.notifications import Event, tell
from health_predict.adapters.scores import clinical_scores
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import (
    CARD,
    CHAMPION,
    EVALUATION,
    ModelVersion,
    RunRecord,
    Tag,
    Tracking,
    VersionStage,
)
from health_predict.core.data.cohort import load_part, target
from health_predict.core.data.contract import Contract
from health_predict.core.data.sources import warning
from health_predict.core.model import evaluation, risk_groups
from health_predict.core.model.calibration import uncalibrated
from health_predict.core.model.evaluation import Scored
from health_predict.core.model.families import BASELINE
from health_predict.core.promotion import Decision, JudgedRows, decide_promotion
from health_predict.core.statistics import Estimate, auc_estimate
from health_predict.errors import StateError
from health_predict.settings import Settings
from health_predict.stages.approval import offer, write_card
from health_predict.stages.compare import Comparison, write_page
from health_predict.stages.hpo import best_runs, chosen_run

log = logging.getLogger(__name__)

# What a version takes over from its run; the last four `recalibrate` writes, and no search.
TAGS = (
    Tag.FAMILY,
    Tag.DATASET_DIGEST,
    Tag.DATASET_SOURCE,
    Tag.GIT_COMMIT,
    Tag.SEARCH_DIGEST,
    Tag.RECALIBRATES,
    Tag.LABELLED_BATCHES,
    Tag.CALIBRATED_ON,
    Tag.ESTIMATOR_BATCHES,
)
NEWEST = 3000  # validation encounters that the gates look at: the newest say most about the next


@dataclass(frozen=True, slots=True)
class RegisterResult:
    """The model version, what was decided about it and why, and its evaluation on the test set.

    `decision` is `wait` when the gates promote it and a person has to approve it.

    `roc`: false positive rates, true positive rates, thresholds. `confusion`: [[true negatives, false positives],
    [false negatives, true positives]].
    """

    model_version: str
    decision: Decision
    reasons: tuple[str, ...]
    family: str
    test_metrics: Mapping[str, Estimate]
    roc: list[list[float]]
    confusion: list[list[int]]


def register(settings: Settings, *, parent_run_id: str, validation: Path, test: Path, card: Path) -> RegisterResult:
    """Register and judge the model that a search ended with.

    Gates look at validation rows. The test set decides nothing: it gives the figures of the card, where a version
    stands beside the champion on the same rows. A version that passes gets the alias `challenger`, unless it is the
    champion already, and waits for approval where a person is asked (`approval`). Refuses a run without its
    preprocessor (StateError). A repeat gives the same version and decision.
    """
    tracking = Tracking(settings)
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    best = chosen_run(tracking, parent_run_id)
    pipeline = tracking.load_run_pipeline(best.run_id)
    contract: Contract = pipeline.named_steps["features"].contract
    if not any(version.run_id == best.run_id for version in tracking.versions()):
        if not tracking.preprocessor_matches(best.run_id, pipeline):
            raise StateError(
                f"run {best.run_id} ({best.name}) does not hold the preprocessor that its model was fitted with",
                "run the search again; a model without its preprocessor is not registered",
            )
        labels = stored_part(storage, best.tags[Tag.DATASET_DIGEST], "train", [contract.outcome.column])
        cutoffs = risk_groups.cutoffs(float(np.mean(target(labels, contract))))
        threshold = float(best.params["threshold"])
        tracking.log_registered(best.run_id, best.tags[Tag.FAMILY], contract, threshold, cutoffs)
    identity: dict[str, str] = {
        Tag.RUN_ID: best.run_id,
        Tag.PARENT_RUN_ID: parent_run_id,
        Tag.THRESHOLD: best.params["threshold"],
        Tag.CONTRACT_DIGEST: contract.digest,
        **{tag: best.tags[tag] for tag in TAGS if tag in best.tags},
    }
    version = tracking.register(best.run_id, identity, f"{best.tags[Tag.FAMILY]} of search {parent_run_id}")
    champion = _comparable(tracking, tracking.by_alias(CHAMPION))
    comparison = Comparison(tracking, version, champion, pipeline) if champion else None
    content = _Judge(tracking, version, best, pipeline).judgement(comparison, validation, test)
    decision = Decision(content["decision"])
    reasons = list(content["reasons"])
    if decision is Decision.PROMOTE and (champion is None or champion.version != version.version):
        decision, why = offer(settings, tracking, version)
        reasons += [why] if why else []
    if comparison is not None and comparison.against.version != version.version:
        write_page(comparison, content["comparisons"])
    write_file(card, write_card(tracking, storage, tracking.version(version.version), contract))
    for reason in reasons:
        log.info("%s", reason)
    log.info("version %s (%s): %s", version.version, best.tags[Tag.FAMILY], decision.value)
    if content["decision"] == Decision.REJECT:
        refused = f"The gates refuse version {version.version}: {' '.join(content['reasons'])}"
        key = f"{version.version} against {content['decided_against']}"
        tell(settings, Event.REFUSED, key, refused, f"`health-predict report open {version.version}`")
    tested = content["on_test"]
    return RegisterResult(
        model_version=version.version,
        decision=decision,
        reasons=tuple(reasons),
        family=best.tags[Tag.FAMILY],
        test_metrics={name: Estimate(**item) for name, item in tested["metrics"].items()},
        roc=tested["roc"],
        confusion=tested["confusion"],
    )


@dataclass(frozen=True, slots=True)
class _Judge:
    """Judges one version, by its run and the pipeline in it."""

    tracking: Tracking
    version: ModelVersion
    best: RunRecord
    pipeline: Any

    @property
    def contract(self) -> Contract:
        found: Contract = self.pipeline.named_steps["features"].contract
        return found

    def scored(self, frame: pd.DataFrame) -> Scored:
        return _scored(self.pipeline, frame, self.best.params["threshold"])

    def judgement(self, comparison: Comparison | None, validation: Path, test: Path) -> dict[str, Any]:
        """The stored evaluation of the version; made anew when there is none, or for the gates of another champion.

        `comparison`: the version beside the champion; None without one.
        """
        tracking, best, version = self.tracking, self.best, self.version
        against, now = version.tags.get(Tag.DECIDED_AGAINST), comparison.against.version if comparison else "none"
        stored: dict[str, Any] | None = tracking.read_json(best.run_id, EVALUATION) if against is not None else None
        if stored is not None and now in (against, version.version):
            return stored
        # In order of time. After a first training the newest are nearly all of them.
        judged = load_part(validation).tail(NEWEST).reset_index(drop=True)
        tested = load_part(test)
        content = {
            **self._gates(comparison, judged),
            "chosen_because": tracking.run(version.tags[Tag.PARENT_RUN_ID]).tags[Tag.REASON],
            "decided_against": now,
            "threshold": float(best.params["threshold"]),
            # A later judgement takes what was found then.
            "on_test": stored["on_test"] if stored else self._on_test(tested),
            "comparisons": comparison.on_test(tested) if comparison else [],
        }
        tracking.log_json(best.run_id, EVALUATION, content)
        figures = content["on_test"]["metrics"]
        tracking.log_metrics(best.run_id, {f"test_{name}": item["value"] for name, item in figures.items()})
        tracking.describe_version(version.version, self._description(content))
        stage = version.tags.get(Tag.STAGE, VersionStage.STAGING)
        tracking.tag_version(version.version, {Tag.DECISION: content["decision"], Tag.STAGE: stage})
        # Last: it says that the evaluation is there.
        tracking.tag_version(version.version, {Tag.DECIDED_AGAINST: now})
        return content

    def _gates(self, comparison: Comparison | None, frame: pd.DataFrame) -> dict[str, Any]:
        rows = JudgedRows(self.contract, frame, target(frame, self.contract), frame[self.contract.patient])
        candidate, champion = comparison.scored(frame) if comparison else (self.scored(frame), None)
        log.info("asking the gates on the %d newest validation encounters", len(frame))
        promotion = decide_promotion(
            rows,
            candidate,
            self._baseline(frame),
            champion,
            same_estimator=Tag.RECALIBRATES in self.best.tags,
            learned_less=comparison is not None and self._learned_less(comparison.against),
        )
        return {
            "decision": promotion.decision.value,
            "reasons": promotion.reasons,
            "gates": [asdict(gate) for gate in promotion.gates],
            "validation": evaluation.metrics(rows.labels, candidate.scores, candidate.threshold),
            "validation_prevalence": float(np.mean(rows.labels)),
        }

    def _learned_less(self, champion: ModelVersion) -> bool:
        """Whether the champion goes on from the same data as the version, with outcomes that came later."""
        storage = open_storage(self.tracking.settings.storage, self.tracking.settings.s3_endpoint_url)
        ours, theirs = (origin_of(storage, one).raw_sha256 for one in (self.version, champion))
        return ours == theirs and trained_through(storage, self.version) < trained_through(storage, champion)

    def _baseline(self, frame: pd.DataFrame) -> Scored | None:
        """The baseline of the same search; None where the version is it, or was recalibrated."""
        if self.best.tags[Tag.FAMILY] == BASELINE or Tag.RECALIBRATES in self.best.tags:
            return None
        parent = self.version.tags[Tag.PARENT_RUN_ID]
        for run in best_runs(self.tracking, parent):
            if run.tags[Tag.FAMILY] == BASELINE:
                return _scored(self.tracking.load_run_pipeline(run.run_id), frame, run.params["threshold"])
        raise StateError(
            f"search {parent} has no {BASELINE}, the baseline that a promotion is measured against",
            f"search with {BASELINE} among HEALTH_PREDICT_FAMILIES",
        )

    def _on_test(self, frame: pd.DataFrame) -> dict[str, Any]:
        """The figures of the card."""
        log.info("evaluating on %d test encounters", len(frame))
        labels, scored = target(frame, self.contract), self.scored(frame)
        patients, groups = frame[self.contract.patient], evaluation.subgroup_levels(frame, self.contract)
        scores, threshold = scored.scores, scored.threshold
        known = labels.astype(np.float64)
        return {
            "rows": len(frame),
            "positives": int(labels.sum()),
            "metrics": evaluation.as_plain(evaluation.evaluate(labels, scores, threshold, patients)),
            "subgroups": [
                {**asdict(group), "metrics": evaluation.as_plain(group.metrics)}
                for group in evaluation.subgroups(groups, labels, scores, threshold, patients)
            ],
            # What clinicians use today, on the same rows.
            "clinical_scores": {
                name: list(astuple(auc_estimate(known, points)))
                for name, points in clinical_scores(self.contract, frame).items()
            },
            "roc": _roc(labels, scores),
            "confusion": confusion_matrix(labels, scores >= threshold, labels=[0, 1]).tolist(),
            "outcomes": labels.tolist(),
            "scores": scores.tolist(),
            "importances": self._importances(),
        }

    def _importances(self, top: int = 15) -> list[dict[str, Any]]:
        """The positions that weigh most, as the estimator itself states it, if it does; shares of the whole."""
        estimator = uncalibrated(self.pipeline.named_steps["estimator"])
        names = self.pipeline.named_steps["features"].get_feature_names_out()
        stated = estimator.coef_[0] if hasattr(estimator, "coef_") else getattr(estimator, "feature_importances_", ())
        weights = np.abs(np.asarray(stated, dtype=float))
        shares = weights / max(weights.sum(), 1e-12)
        return [{"name": str(names[at]), "share": float(shares[at])} for at in np.argsort(-shares)[:top]]

    def _description(self, content: dict[str, Any]) -> str:
        """The decision, its reasons and how to use it, for the page of the version."""
        tested, model, version = content["on_test"], self.version.name, self.version.version
        said = warning(self.best.tags[Tag.DATASET_SOURCE])
        lines = [
            *([f"**{said}**", ""] if said else []),
            f"**{self.best.tags[Tag.FAMILY]}: {content['decision']}** against {content['decided_against']}; "
            f"AUC {Estimate(**tested['metrics']['auc'])} on its {tested['rows']} test encounters",
            "",
            content["chosen_because"],
            "",
            *(f"- {reason}" for reason in content["reasons"]),
            "",
            f"`mlflow.pyfunc.load_model('models:/{model}/{version}').predict(frame)` takes encounters as they are in "
            "the data, text or numbers, with `?`, None or NaN for what is missing, and gives `probability_score`, "
            f"`prediction` (1 from a probability of {content['threshold']:.4f}) and `risk_group`.",
            "",
            f"More: `{CARD}` and `{EVALUATION}` among its run's artifacts; `health-predict report open {version}`.",
        ]
        return "\n".join(lines)


def _scored(pipeline: Any, frame: pd.DataFrame, threshold: str) -> Scored:
    return Scored(pipeline.predict_proba(frame)[:, 1].astype(np.float64), float(threshold))


def _comparable(tracking: Tracking, champion: ModelVersion | None) -> ModelVersion | None:
    """The champion, unless its model was deleted: nothing can stand beside it then."""
    if champion is None or tracking.has_model(champion.run_id):
        return champion
    log.warning("the model of the champion, version %s, was deleted: nothing is compared with it", champion.version)
    return None


def _roc(labels: npt.NDArray[np.int8], scores: npt.NDArray[np.floating[Any]], points: int = 200) -> list[list[float]]:
    """False positive rates, true positive rates, thresholds; two hundred points draw the curve of three thousand."""
    curves = roc_curve(labels, scores)
    kept = np.unique(np.linspace(0, len(curves[0]) - 1, min(points, len(curves[0]))).astype(int))
    # The first threshold is infinite, which JSON cannot hold.
    return [np.minimum(curve[kept], 1.0).tolist() for curve in curves]
