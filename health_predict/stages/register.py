"""register: the best model of a search becomes a version of the registered model, and is promoted or rejected."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from health_predict.adapters.mlflow import CHALLENGER, CHAMPION, REASON, ModelVersion, RunRecord, Tracking
from health_predict.adapters.parts import stored_part
from health_predict.adapters.raw_data import origin_of
from health_predict.adapters.storage import Storage, open_storage, whole_file
from health_predict.core import risk_groups
from health_predict.core.columns import PATIENT, TARGET
from health_predict.core.errors import StateError
from health_predict.core.evaluation import Estimate, Scored
from health_predict.core.families import BASELINE
from health_predict.core.promotion import Decision, decide
from health_predict.core.sources import warning
from health_predict.settings import Settings
from health_predict.stages.hpo import best_runs, chosen_run

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.pipeline import Pipeline

log = logging.getLogger(__name__)

EVALUATION = "evaluation.json"
CARD = "model_card.html"
# What `recalibrate` writes, and no search.
RECALIBRATION_TAGS = ("recalibrates", "labelled_batches", "estimator_batches")
NEWEST = 3000  # validation encounters that the gates look at: the newest say most about the next


@dataclass(frozen=True, slots=True)
class RegisterResult:
    """The model version, what was decided about it and why, and its evaluation on the test set."""

    model_version: str
    decision: Decision
    reasons: tuple[str, ...]
    family: str
    test_metrics: Mapping[str, Estimate]
    roc: tuple[list[float], list[float], list[float]]
    """False positive rates, true positive rates, thresholds."""
    confusion: tuple[tuple[int, int], tuple[int, int]]
    """((true negatives, false positives), (false negatives, true positives))."""


def register(settings: Settings, *, parent_run_id: str, validation: Path, test: Path, card: Path) -> RegisterResult:
    """Register and judge the model that a search ended with.

    Gates look at validation rows. The test set decides nothing: it gives the figures of the card, where a version
    stands beside the champion on the same rows. A version that passes gets the alias `challenger`, unless it is the
    champion already. Refuses a run without its preprocessor (StateError). A repeat gives the same version and decision.
    """
    tracking = Tracking(settings)
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    best = chosen_run(tracking, parent_run_id)
    if not _is_registered(tracking, best.run_id):
        _require_preprocessor(tracking, best)
        _log_registered(tracking, storage, best)
    version = tracking.register(
        best.run_id,
        {
            "run_id": best.run_id,
            "parent_run_id": parent_run_id,
            "family": best.tags["family"],
            "threshold": best.params["threshold"],
            **{name: best.tags[name] for name in ("dataset_digest", "dataset_source", "git_commit", "search_digest")},
            **{name: best.tags[name] for name in RECALIBRATION_TAGS if name in best.tags},
        },
        f"{best.tags['family']} of search {parent_run_id}",
    )
    champion = tracking.by_alias(CHAMPION)
    content = _judgement(tracking, storage, version, best, champion, parent_run_id, validation, test)
    decision = Decision(content["decision"])
    page = tracking.read_text(best.run_id, CARD)
    with whole_file(card) as temporary:
        temporary.write_text(page)
    storage.upload(card, f"models/{version.version}/card.html")
    if decision is Decision.PROMOTE and (champion is None or champion.version != version.version):
        tracking.set_alias(CHALLENGER, version.version)
    for reason in content["reasons"]:
        log.info("%s", reason)
    log.info("version %s (%s): %s", version.version, best.tags["family"], decision.value)
    tested = content["on_test"]
    (true_negatives, false_positives), (false_negatives, true_positives) = tested["confusion"]
    false_rates, true_rates, thresholds = tested["roc"]
    return RegisterResult(
        model_version=version.version,
        decision=decision,
        reasons=tuple(content["reasons"]),
        family=best.tags["family"],
        test_metrics={name: Estimate(**item) for name, item in tested["metrics"].items()},
        roc=(false_rates, true_rates, thresholds),
        confusion=((true_negatives, false_positives), (false_negatives, true_positives)),
    )


def _is_registered(tracking: Tracking, run_id: str) -> bool:
    return any(version.run_id == run_id for version in tracking.versions())


def _require_preprocessor(tracking: Tracking, best: RunRecord) -> None:
    if not tracking.preprocessor_matches(best.run_id, tracking.load_run_pipeline(best.run_id)):
        raise StateError(
            f"run {best.run_id} ({best.name}) does not hold the preprocessor that its model was fitted with",
            "run the search again; a model without its preprocessor is not registered",
        )


def _log_registered(tracking: Tracking, storage: Storage, best: RunRecord) -> None:
    from health_predict.core.cohort import target

    train = stored_part(storage, best.tags["dataset_digest"], "train", [TARGET])
    cutoffs = risk_groups.cutoffs(float(np.mean(target(train))))
    tracking.log_registered(best.run_id, best.tags["family"], float(best.params["threshold"]), cutoffs)


def _judgement(
    tracking: Tracking,
    storage: Storage,
    version: ModelVersion,
    best: RunRecord,
    champion: ModelVersion | None,
    parent_run_id: str,
    validation: Path,
    test: Path,
) -> dict[str, Any]:
    """The stored evaluation of the version; made anew when there is none, or for the gates of another champion."""
    stored: dict[str, Any] | None = None
    against, now = version.tags.get("decided_against"), champion.version if champion else "none"
    if against is not None:
        stored = tracking.read_json(best.run_id, EVALUATION)
        if now in (against, version.version):
            return stored
    # Here and not at the top: a repeat needs none of these, and they take seconds to import.
    from health_predict.report.model_card import model_card_page

    pipeline = tracking.load_run_pipeline(best.run_id)
    threshold = float(best.params["threshold"])
    gates = _ask_gates(tracking, best, pipeline, threshold, champion, parent_run_id, validation)
    # A later judgement takes what was found then.
    tested = stored["on_test"] if stored else _read_test_set(pipeline, threshold, test)
    content = {
        **gates,
        "chosen_because": tracking.run(parent_run_id).tags[REASON],
        "decided_against": now,
        "threshold": threshold,
        "on_test": tested,
        "comparisons": []
        if champion is None
        else _comparisons(tracking, storage, version, best, pipeline, champion, test),
    }
    tracking.log_json(best.run_id, EVALUATION, content)
    tracking.log_text(best.run_id, CARD, model_card_page(version.version, best, content))
    tracking.log_metrics(best.run_id, {f"test_{name}": item["value"] for name, item in tested["metrics"].items()})
    tracking.describe_version(version.version, _description(version.name, version.version, best, content))
    tracking.tag_version(
        version.version,
        {
            "decision": content["decision"],
            "stage": version.tags.get("stage", "Staging"),
            # Last: it says that the evaluation is there.
            "decided_against": now,
        },
    )
    return content


def _description(model: str, version: str, best: RunRecord, content: dict[str, Any]) -> str:
    """The decision, its reasons and how to use it, for the page of the version."""
    auc = Estimate(**content["on_test"]["metrics"]["auc"])
    said = warning(best.tags["dataset_source"])
    lines = [
        *([f"**{said}**", ""] if said else []),
        f"**{best.tags['family']}: {content['decision']}** against {content['decided_against']}; "
        f"AUC {auc} on its {content['on_test']['rows']} test encounters",
        "",
        content["chosen_because"],
        "",
        *(f"- {reason}" for reason in content["reasons"]),
        "",
        f"`mlflow.pyfunc.load_model('models:/{model}/{version}').predict(frame)` takes encounters as they are in the "
        "data, text or numbers, with `?`, None or NaN for what is missing, and gives `probability_score`, `prediction` "
        f"(1 from a probability of {content['threshold']:.4f}) and `risk_group`.",
        "",
        f"More: `{CARD}` and `{EVALUATION}` among its run's artifacts; `health-predict report open {version}`.",
    ]
    return "\n".join(lines)


def _ask_gates(
    tracking: Tracking,
    best: RunRecord,
    pipeline: Any,
    threshold: float,
    champion: ModelVersion | None,
    parent_run_id: str,
    file: Path,
) -> dict[str, Any]:
    from health_predict.core.cohort import load_part, target
    from health_predict.core.evaluation import metrics

    # In order of time. After a first training these are nearly all of them.
    frame = load_part(file).tail(NEWEST).reset_index(drop=True)
    labels = target(frame)
    log.info("asking the gates on the %d newest validation encounters", len(frame))
    candidate = Scored(_scores(pipeline, frame), threshold)
    promotion = decide(
        frame,
        labels,
        frame[PATIENT],
        candidate,
        _baseline(tracking, best, parent_run_id, frame),
        _champion(tracking, champion, frame),
        same_estimator="recalibrates" in best.tags,
    )
    return {
        "decision": promotion.decision.value,
        "reasons": promotion.reasons,
        "gates": [asdict(gate) for gate in promotion.gates],
        "validation": metrics(labels, candidate.scores, threshold),
        "validation_prevalence": float(np.mean(labels)),
    }


def _comparisons(
    tracking: Tracking,
    storage: Storage,
    version: ModelVersion,
    best: RunRecord,
    pipeline: Pipeline,
    champion: ModelVersion,
    test: Path,
) -> list[dict[str, Any]]:
    """The version beside the champion on its own test rows; on the champion's, too, when it has data of its own.

    They are shown and decide nothing.
    """
    from health_predict.core.cohort import load_part, target
    from health_predict.core.evaluation import as_plain, compare

    other = tracking.load_pipeline(champion.version)
    ours, theirs = origin_of(storage, version), origin_of(storage, champion)
    known = bool(ours.manifest and theirs.manifest)
    others_data = known and ours.raw_sha256 != theirs.raw_sha256
    frames = {"the test set of this version": load_part(test)}
    if others_data:
        rows = stored_part(storage, champion.tags["dataset_digest"], "test")
        frames[f"the test set of version {champion.version}"] = rows
    found: list[dict[str, Any]] = []
    for name, frame in frames.items():
        labels = target(frame)
        one = Scored(_scores(pipeline, frame), float(best.params["threshold"]))
        two = Scored(_scores(other, frame), float(champion.tags["threshold"]))
        found.append(
            {
                "against": champion.version,
                "on": name,
                "rows": len(frame),
                "positives": int(labels.sum()),
                "metrics": as_plain(compare(labels, one, two, frame[PATIENT])),
            }
        )
    if known and not others_data and ours.parameters.salt != theirs.parameters.salt:
        found[0]["on"] += f", of which version {champion.version} learned from some patients (another salt)"
    return found


def _read_test_set(pipeline: Any, threshold: float, file: Path) -> dict[str, Any]:
    from health_predict.core import evaluation
    from health_predict.core.cohort import load_part, target

    frame = load_part(file)
    labels, patients, scores = target(frame), frame[PATIENT], _scores(pipeline, frame)
    log.info("evaluating on %d test encounters", len(frame))
    flagged = scores >= threshold
    return {
        "rows": len(frame),
        "positives": int(labels.sum()),
        "metrics": evaluation.as_plain(evaluation.evaluate(labels, scores, threshold, patients)),
        "subgroups": [
            {**asdict(group), "metrics": evaluation.as_plain(group.metrics)}
            for group in evaluation.subgroups(frame, labels, scores, threshold, patients)
        ],
        "clinical_scores": _clinical(frame, labels),
        "roc": _roc(labels, scores),
        "confusion": [
            [int((~flagged & (labels == truth)).sum()), int((flagged & (labels == truth)).sum())] for truth in (0, 1)
        ],
        "outcomes": labels.tolist(),
        "scores": [float(score) for score in scores],
        "importances": _importances(pipeline),
    }


def _scores(pipeline: Any, frame: pd.DataFrame) -> npt.NDArray[np.float64]:
    scores: npt.NDArray[np.float64] = pipeline.predict_proba(frame)[:, 1].astype(np.float64)
    return scores


def _baseline(tracking: Tracking, best: RunRecord, parent_run_id: str, validation: pd.DataFrame) -> Scored | None:
    if best.tags["family"] == BASELINE or "recalibrates" in best.tags:
        return None
    for run in best_runs(tracking, parent_run_id):
        if run.tags["family"] == BASELINE:
            scores = _scores(tracking.load_run_pipeline(run.run_id), validation)
            return Scored(scores, float(run.params["threshold"]))
    raise StateError(
        f"search {parent_run_id} has no {BASELINE}, the baseline that a promotion is measured against",
        f"search with {BASELINE} among HEALTH_PREDICT_FAMILIES",
    )


def _champion(tracking: Tracking, champion: ModelVersion | None, validation: pd.DataFrame) -> Scored | None:
    if champion is None:
        return None
    scores = _scores(tracking.load_pipeline(champion.version), validation)
    return Scored(scores, float(champion.tags["threshold"]))


def _clinical(frame: pd.DataFrame, labels: npt.NDArray[np.int8]) -> dict[str, list[float]]:
    """AUC of what clinicians use today, with its 95 % interval, on the same rows."""
    from health_predict.core.clinical_scores import clinical_scores
    from health_predict.core.performance import auc_interval

    known = labels.astype(np.float64)
    return {name: list(auc_interval(known, points)) for name, points in clinical_scores(frame).items()}


def _roc(labels: npt.NDArray[np.int8], scores: npt.NDArray[np.float64], points: int = 200) -> list[list[float]]:
    """False positive rates, true positive rates, thresholds; two hundred points draw the curve of three thousand."""
    from sklearn.metrics import roc_curve

    curves = roc_curve(labels, scores)
    kept = np.unique(np.linspace(0, len(curves[0]) - 1, min(points, len(curves[0]))).astype(int))
    # The first threshold is infinite, which JSON cannot hold.
    return [[float(min(value, 1.0)) for value in curve[kept]] for curve in curves]


def _importances(pipeline: Any, top: int = 15) -> list[dict[str, Any]]:
    """The positions that weigh most, as the estimator itself states it, if it does; shares of the whole."""
    from health_predict.core.calibration import uncalibrated

    estimator = uncalibrated(pipeline.named_steps["estimator"])
    names = pipeline.named_steps["features"].get_feature_names_out()
    if hasattr(estimator, "coef_"):
        weights = np.abs(estimator.coef_[0])
    else:
        weights = np.asarray(getattr(estimator, "feature_importances_", ()), dtype=float)
    shares = weights / max(weights.sum(), 1e-12)
    return [{"name": str(names[position]), "share": float(shares[position])} for position in np.argsort(-shares)[:top]]
