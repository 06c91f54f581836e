"""recalibrate: the champion's estimator with its map from score to risk fitted anew on the newest outcomes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from sklearn.pipeline import Pipeline

from health_predict.adapters.data.batches import Batches, trained_through
from health_predict.adapters.data.parts import stored_part
from health_predict.adapters.data.raw_data import origin_of, refuse_other_data
from health_predict.adapters.files import whole_file
from health_predict.adapters.tracking import ModelVersion, Tag, Tracking
from health_predict.core.data.cohort import save_part, target
from health_predict.core.data.partition import places, rows_digest
from health_predict.core.model.calibration import CalibratedClassifier, uncalibrated
from health_predict.core.model.evaluation import f1_threshold, metrics
from health_predict.core.serving.compiled_model import cleared
from health_predict.errors import StateError
from health_predict.settings import Settings

log = logging.getLogger(__name__)

LEAST_EVENTS = 1000  # outcomes that a map is fitted and judged on: the level then has a standard error of 4 %


@dataclass(frozen=True, slots=True)
class RecalibrateResult:
    """The run that `register` takes, the new map, how many encounters it stands on, and what data the champion."""

    parent_run_id: str
    intercept: float
    slope: float
    rows: int
    dataset_source: str
    reused: bool


def recalibrate(settings: Settings, *, labelled_batches: int, validation: Path, test: Path) -> RecalibrateResult:
    """Fit the champion's calibration and threshold on the newest of the first `labelled_batches` batches.

    Only batches that the estimator did not learn from count, the newest ones until `LEAST_EVENTS` of them had the
    outcome. Their patients are parted as in `split`: the map and the threshold come from the training patients, the
    other two parts are written for `register`'s gates and card. The result lies in MLflow as a search with a single
    model; the same champion and rows give the same run. Raises StateError when no such batch has matured, DataError
    when other data are asked for than the champion's, GateError when the scores hold nothing that a map could mend.
    """
    tracking = Tracking(settings)
    champion = tracking.champion()
    batches = Batches(settings)
    origin = origin_of(batches.storage, champion)
    refuse_other_data(settings, origin)
    # An estimator is older than its map, and the next map may see again what this one saw.
    first = int(champion.tags.get(Tag.ESTIMATOR_BATCHES, trained_through(batches.storage, champion)))
    numbers, rows = _newest(batches, first, labelled_batches)
    # By the salt of the champion's dataset: nobody whom it has learned from is among those that judge it.
    part = places(origin.parameters.salt, rows[batches.contract.patient])
    fit, held_back, tested = (rows[part == number].reset_index(drop=True) for number in range(3))
    for path, frame in ((validation, held_back), (test, tested)):
        with whole_file(path) as temporary:
            save_part(frame, temporary)
    identity = {"recalibrates": champion.run_id, "rows": rows_digest(rows)}
    tags: dict[str, str] = {
        Tag.SEARCH_DIGEST: hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        **{tag: champion.tags[tag] for tag in (Tag.DATASET_DIGEST, Tag.DATASET_SOURCE, Tag.FAMILY)},
        Tag.GIT_COMMIT: settings.git_commit or "unknown",
        Tag.STAGE: "recalibrate",
        Tag.RECALIBRATES: champion.version,
        Tag.LABELLED_BATCHES: str(labelled_batches),
        Tag.CALIBRATED_ON: json.dumps([batches.stream, numbers]),
        Tag.ESTIMATOR_BATCHES: str(first),
    }
    existing = tracking.finished_search(tags[Tag.SEARCH_DIGEST])
    if existing is not None:
        log.info("the same recalibration is there already: run %s", existing.run_id)
        found, parent = existing.params, existing.run_id
    else:
        proven = stored_part(batches.storage, champion.tags[Tag.DATASET_DIGEST], "validation")
        parent, found = _fit(tracking, champion, tags, fit, held_back, proven)
    intercept, slope = float(found["intercept"]), float(found["slope"])
    return RecalibrateResult(
        parent, intercept, slope, len(rows), champion.tags[Tag.DATASET_SOURCE], reused=existing is not None
    )


def _newest(batches: Batches, first: int, labelled_batches: int) -> tuple[list[int], pd.DataFrame]:
    """Numbers of the batches, and their rows, oldest first."""
    numbers: list[int] = []
    frames: list[pd.DataFrame] = []
    events = 0
    for number in reversed([one for one in batches.learnable(labelled_batches) if one >= first]):
        numbers.insert(0, number)
        frames.insert(0, batches.with_outcomes(number))
        events += int(target(frames[0], batches.contract).sum())
        if events >= LEAST_EVENTS:
            break
    if not frames:
        raise StateError(
            f"no batch from {first} to {labelled_batches - 1} has outcomes that the model has not learned from",
            "wait for outcomes: `health-predict status` shows what is waiting",
        )
    return numbers, pd.concat(frames, ignore_index=True)


def _fit(
    tracking: Tracking,
    champion: ModelVersion,
    tags: Mapping[str, str],
    fit: pd.DataFrame,
    held_back: pd.DataFrame,
    proven: pd.DataFrame,
) -> tuple[str, Mapping[str, str]]:
    """Fit and log the map; the parent run and its parameters. `proven`: rows that its threshold has to be clear of."""
    pipeline = tracking.load_pipeline(champion.version)
    features = pipeline.named_steps["features"]
    base = uncalibrated(pipeline.named_steps["estimator"])
    labels, judged = (target(frame, features.contract) for frame in (fit, held_back))
    calibrated = CalibratedClassifier(base).fit(features.transform(fit), labels)
    renewed = Pipeline([("features", features), ("estimator", calibrated)])
    threshold = cleared(f1_threshold(labels, renewed.predict_proba(fit)[:, 1]), renewed, proven)
    found = metrics(judged, renewed.predict_proba(held_back)[:, 1], threshold)
    log.info(
        "logit(new) = %.3f + %.3f logit(old), from %d encounters; observed/expected on others %.2f",
        calibrated.intercept,
        calibrated.slope,
        len(fit),
        found["observed_expected"],
    )
    curve = {"intercept": repr(calibrated.intercept), "slope": repr(calibrated.slope)}
    digest = tags[Tag.SEARCH_DIGEST]
    name = f"Recalibration of version {champion.version}"
    parent = tracking.resume_search(digest) or tracking.start_search(name, tags, curve)
    try:
        run_id = tracking.log_best(
            parent,
            champion.tags[Tag.FAMILY],
            renewed,
            {**tags, Tag.CONTRACT_DIGEST: features.contract.digest, Tag.BASELINE: "false"},
            {**tracking.run(champion.run_id).params, **curve, "threshold": repr(threshold)},
            {f"validation_{name}": value for name, value in found.items()},
            {"threshold.json": {"threshold": threshold, "chosen_by": "F1 on the newest outcomes"}},
        )
        reason = f"The estimator of version {champion.version}, recalibrated on {len(fit)} of the newest encounters."
        tracking.tag_run(parent, {Tag.CHOSEN: run_id, Tag.REASON: reason})
    except BaseException:
        tracking.end_search(parent, {}, "FAILED")
        raise
    # Last: only what is whole counts as finished.
    tracking.end_search(parent, {"best_f1": found["f1"], "best_auc": found["auc"]})
    return parent, curve
