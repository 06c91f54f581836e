"""drift: one batch against the reference of the champion, and what the policy makes of it.

A decision is stored before anything is done about it, so that a run that is killed is repeated with the same one;
`settle` closes the batch.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.adapters.batches import Batch, Batches, Labelled, batch_key, trained_through
from health_predict.adapters.mlflow import CHAMPION, ModelVersion, Tracking
from health_predict.adapters.parts import stored_part
from health_predict.adapters.raw_data import origin_of, refuse_other_data
from health_predict.adapters.storage import Storage, whole_file
from health_predict.core.cohort import check, target
from health_predict.core.drift import DriftFindings, DriftReference, Verdict, assess
from health_predict.core.errors import DataError, StateError
from health_predict.core.input_drift import InputReference
from health_predict.core.performance import LabelledWindow
from health_predict.core.policy import Action, Policy, decide
from health_predict.core.refit import LabelledRows
from health_predict.report.drift_report import drift_page
from health_predict.report.page import render
from health_predict.settings import Settings

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Records = Sequence[Mapping[str, Any]]

FORMAT = 2  # of what is kept of a reference and of a labelled window: it changes with their fields
ROLLING_DRAWS = 400  # a threshold for a note in the report needs fewer resamples than the decision
REPORT, EVIDENTLY, EVIDENTLY_JSON, METRICS = "report.html", "evidently.html", "evidently.json", "metrics.json"
NO_BATCH = -1


@dataclass(frozen=True, slots=True)
class DriftResult:
    """The verdict on a batch, the action that follows, why, its figures, and whether it had been handled before.

    `batch` is -1 when none waits. `labelled_batches` is how many batches a retraining may use, `dataset_source` what
    the champion stands on.
    """

    batch: int
    batch_digest: str
    verdict: Verdict
    action: Action
    reasons: tuple[str, ...]
    metrics: Mapping[str, float]
    model_version: str
    dataset_source: str
    labelled_batches: int
    quarantined: bool
    already_handled: bool


def drift(settings: Settings, *, batch: int | None, report: Path, evidently: Path, metrics: Path) -> DriftResult:
    """Judge batch number `batch`, None: the next unhandled one, and write both reports and the findings (JSON).

    A batch is handled once: a repeat of one that was settled, under its number or another, gives the stored result
    and the action `none`. One that breaks the data contract is quarantined with a report. Inputs are judged at
    once, performance on the newest batch whose outcomes have matured since. Raises StateError when there is no
    champion or no such batch, DataError when other data are asked for than the champion's.
    """
    tracking = Tracking(settings)
    champion = tracking.by_alias(CHAMPION)
    if champion is None:
        raise StateError("no model version is the champion", "deploy one: `health-predict pipeline run readmission`")
    batches = Batches(settings, champion)
    refuse_other_data(settings, origin_of(batches.storage, champion))
    number = next(iter(batches.waiting()), None) if batch is None else batch
    files = {REPORT: report, EVIDENTLY: evidently, METRICS: metrics}
    if number is None:
        return _nothing(champion, batches, files)
    found, problem = _arrived(batches, number)
    key, digest = batch_key(number, found), found
    record = batches.decision(key)
    settled = batches.settlement(key)
    earlier = next((one for one in batches.settled() if one["batch_digest"] == digest and one["batch"] != number), None)
    if record is not None:
        log.info("batch %d was judged before, by model version %s", number, record["model_version"])
    elif earlier is not None:
        record = _repeated(batches, champion, number, digest, key, int(earlier["batch"]))
    elif problem:
        record = _quarantined(batches, champion, number, digest, key, problem)
    else:
        record = _judged(settings, tracking, batches, champion, batches.batch(number), key)
    for name, path in files.items():
        stored = batches.report_key(key, name)
        if batches.storage.exists(stored):
            batches.storage.download(stored, path)
        else:
            _write(
                path,
                render("note.html", title=f"Batch {number}", note="Not made: Evidently's report comes with an alarm."),
            )
    return DriftResult(
        batch=number,
        batch_digest=digest,
        verdict=Verdict(record["verdict"]),
        action=Action.NONE if settled is not None else Action(record["action"]),
        reasons=tuple(record["reasons"]),
        metrics=record["metrics"],
        model_version=record["model_version"],
        dataset_source=champion.tags.get("dataset_source", ""),
        labelled_batches=int(record["labelled_batches"]),
        quarantined=bool(record["quarantined"]),
        already_handled=settled is not None,
    )


def _nothing(champion: ModelVersion, batches: Batches, files: Mapping[str, Path]) -> DriftResult:
    why = f"Nothing to judge: {batches.silence}." if batches.silence else "No batch waits."
    log.info("%s", why)
    for name, path in files.items():
        _write(path, "{}" if name == METRICS else render("note.html", title="Monitoring", note=why))
    source = champion.tags.get("dataset_source", "")
    return DriftResult(
        NO_BATCH, "", Verdict.STEADY, Action.NONE, (why,), {}, champion.version, source, 0, False, already_handled=True
    )


def _write(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _arrived(batches: Batches, number: int) -> tuple[str, str]:
    """Digest of a batch, and why it is refused; empty when it keeps the contract."""
    try:
        arrived = batches.batch(number)
    except DataError as error:
        return batches.file_digest(number), error.problem
    if arrived.frame.empty:
        return arrived.digest, f"batch {number} has no encounters"
    try:
        check(arrived.frame, labelled=False, name=f"batch {number}")
    except DataError as error:
        return arrived.digest, error.problem
    return arrived.digest, ""


def _record(batches: Batches, champion: ModelVersion, number: int, digest: str, **values: Any) -> dict[str, Any]:
    return {
        "batch": number,
        "batch_digest": digest,
        "model_version": champion.version,
        "dataset_digest": champion.tags.get("dataset_digest", ""),
        "series": batches.series,
        "verdict": Verdict.STEADY,
        "action": Action.NONE,
        "quarantined": False,
        "labelled_batches": 0,
        "reasons": [],
        "alarms": [],
        "waiting": {},
        "matured": [],
        "metrics": {},
        "window": None,
        **values,
    }


def _repeated(
    batches: Batches, champion: ModelVersion, number: int, digest: str, key: str, earlier: int
) -> dict[str, Any]:
    why = f"Batch {number} holds the encounters of batch {earlier}, which was handled: nothing is counted twice."
    record = _record(batches, champion, number, digest, reasons=[why], repeats=f"{earlier:02d}")
    _store(batches, key, record, render("note.html", title=f"Batch {number} is a repetition", note=why))
    return record


def _quarantined(
    batches: Batches, champion: ModelVersion, number: int, digest: str, key: str, problem: str
) -> dict[str, Any]:
    log.warning("batch %d is quarantined: %s", number, problem)
    why = f"Not judged: {problem}. The batches after it are not held up; deliver a corrected one under a new number."
    record = _record(batches, champion, number, digest, reasons=[why], quarantined=True)
    _store(batches, key, record, render("note.html", title=f"Batch {number} is quarantined", note=why))
    return record


def _store(batches: Batches, key: str, record: Mapping[str, Any], page: str) -> None:
    batches.storage.write(batches.report_key(key, REPORT), page.encode())
    batches.storage.write(batches.report_key(key, METRICS), json.dumps(record, indent=1).encode())
    # Last: what it names is complete.
    batches.decide(key, record)


@dataclass(frozen=True, slots=True)
class _Performance:
    """The newest batch whose outcomes matured since the last look, and the labelled windows before it."""

    labelled: Labelled
    scores: Floats
    history: list[LabelledWindow]
    earlier: list[LabelledRows]
    """What became known before it since the estimator was trained."""


def _judged(
    settings: Settings, tracking: Tracking, batches: Batches, champion: ModelVersion, batch: Batch, key: str
) -> dict[str, Any]:
    storage, dataset = batches.storage, _dataset(champion)
    pipeline = tracking.load_pipeline(champion.version)
    with tempfile.TemporaryDirectory(prefix="health-predict-drift-") as folder:
        work = Path(folder)
        training = stored_part(storage, dataset, "train")
        validation = stored_part(storage, dataset, "validation")
        validation_scores = _scores(pipeline, validation)
        reference = _reference(storage, champion, training, target(validation), validation_scores)
        first = trained_through(storage, champion)
        learned = int(champion.tags.get("estimator_batches", first))  # fewer, when it was recalibrated since
        decisions, state = batches.decisions(), batches.policy_state(batches.series)
        known = _windows(decisions, champion)
        matured = {number for one in decisions for number in one["matured"]}
        labelled = {batch.number: batches.labelled(batch)}
        for number in batches.handled - {batch.number}:
            # Of what the estimator learned from, nothing more is asked.
            if number not in matured or number >= learned:
                labelled[number] = batches.labelled(batches.batch(number))
        matured |= {number for number, one in labelled.items() if one.joined.matured}
        available = _leading(decisions, batches.handled, matured)
        performance = _performance(champion, pipeline, labelled, first, learned, known)
        rolling = _before(batches, batch.number)
        scores = _served(pipeline, champion, labelled[batch.number])
        findings = assess(reference, batch.frame, scores, None, rolling=rolling)
        judged, outcomes = scores, np.full(len(scores), np.nan)
        if performance is not None:
            judged, outcomes = performance.scores, performance.labelled.joined.outcomes
            findings = _with_outcomes(reference, findings, batch, performance, rolling)
        waiting = {number: one.joined.waiting for number, one in sorted(labelled.items()) if one.joined.waiting}
        action, why = decide(
            Policy(settings.policy),
            state,
            batch.number,
            verdict=findings.verdict,
            miscalibrated=findings.calibration is not None and findings.calibration.mendable,
            interval=settings.policy_interval,
        )
        if action is not Action.NONE and available <= first:
            action, why = Action.NONE, "No outcomes are known that the model has not learned from."
        log.info("batch %d: %s; %s: %s", batch.number, findings.verdict, action, why)
        findings = replace(findings, reasons=(*findings.reasons, f"Action: {action}. {why}"))
        second_opinion: Mapping[str, float] = {}
        alarm = findings.verdict is not Verdict.STEADY or (findings.rolling or findings.inputs).alarm
        if settings.evidently == "always" or (settings.evidently == "alarm" and alarm):
            from health_predict.adapters.evidently import evidently_report  # eight seconds to import

            second_opinion = evidently_report(training, batch.frame, work / EVIDENTLY, json_file=work / EVIDENTLY_JSON)
            for name in (EVIDENTLY, EVIDENTLY_JSON):
                storage.upload(work / name, batches.report_key(key, name))
        page = drift_page(
            findings,
            batch=batch.number,
            facts=[
                ("Model version", champion.version),
                ("Dataset", champion.tags["dataset_digest"][:12]),
                ("Source", champion.tags.get("dataset_source", "")),
                ("Commit", champion.tags.get("git_commit", "")[:12]),
                ("Batch digest", batch.digest[:12]),
            ],
            synthetic=champion.tags.get("dataset_source") == "synthetic",
            reference_probabilities=validation_scores,
            probabilities=scores,
            outcomes=outcomes,
            judged=judged,
            waiting=[f"batch {number}: {what}" for number, what in waiting.items()],
            evidently=second_opinion,
        )
    record = _record(
        batches,
        champion,
        batch.number,
        batch.digest,
        verdict=findings.verdict,
        action=action,
        labelled_batches=available,
        reasons=[*findings.reasons],
        alarms=[*findings.alarms],
        waiting=waiting,
        matured=sorted(matured),
        metrics=findings.metrics(),
        window=None
        if performance is None or findings.window is None
        else {"format": FORMAT, "batch": performance.labelled.batch.number, **asdict(findings.window)},
        findings=findings.to_json(),
        evidently=second_opinion,
        state=state.to_json(),
    )
    _store(batches, key, record, page)
    return record


def _dataset(champion: ModelVersion) -> str:
    try:
        return champion.tags["dataset_digest"]
    except KeyError:
        raise StateError(
            f"model version {champion.version} does not name its dataset", "register the model again"
        ) from None


def _scores(pipeline: Any, frame: pd.DataFrame) -> Floats:
    return np.asarray(pipeline.predict_proba(frame)[:, 1], dtype=np.float64)


def _served(pipeline: Any, champion: ModelVersion, labelled: Labelled) -> Floats:
    """The champion's scores: as they were served where it did, else computed."""
    scores = labelled.scores.copy()
    other = np.array([version != champion.version for version in labelled.versions]) | ~np.isfinite(scores)
    if other.any():
        scores[other] = _scores(pipeline, labelled.batch.frame[other])
    return scores


def _leading(decisions: Records, handled: Collection[int], matured: set[int]) -> int:
    """How many batches from the first one on have known outcomes; what was not judged does not stand in the way."""
    count = number = 0
    passed = {int(one["batch"]) for one in decisions} - set(handled)
    while number in matured or number in passed:
        number += 1
        count = number if number - 1 in matured else count
    return count


def _windows(decisions: Records, champion: ModelVersion) -> dict[int, LabelledWindow]:
    """What the champion was judged on before, by number of the batch."""
    found = {}
    for record in decisions:
        values = dict(record["window"] or {})
        if values.pop("format", None) == FORMAT and record["model_version"] == champion.version:
            number = int(values.pop("batch"))
            found[number] = LabelledWindow(**values)
    return found


def _performance(
    champion: ModelVersion,
    pipeline: Any,
    labelled: Mapping[int, Labelled],
    first: int,
    learned: int,
    known: Mapping[int, LabelledWindow],
) -> _Performance | None:
    """What the champion is judged on: outcomes that it did not learn from and that were not judged yet."""
    windows = dict(known)
    new = sorted(number for number, one in labelled.items() if number >= first and one.joined.matured)
    new = [number for number in new if number not in windows]
    if not new:
        return None
    for number in new[:-1]:  # several matured at once: only the newest is judged, the others are its history
        outcomes = labelled[number].joined.outcomes
        have = np.isfinite(outcomes)
        if 0 < outcomes[have].sum() < have.sum():
            windows[number] = LabelledWindow.of(outcomes[have], _served(pipeline, champion, labelled[number])[have])
    newest = labelled[new[-1]]
    earlier = [
        _known_rows(pipeline, champion, one)
        for number, one in sorted(labelled.items())
        if learned <= number < new[-1] and one.joined.matured
    ]
    history = [window for number, window in sorted(windows.items()) if number < new[-1]]
    return _Performance(newest, _served(pipeline, champion, newest), history, earlier)


def _known_rows(pipeline: Any, champion: ModelVersion, labelled: Labelled) -> LabelledRows:
    known = np.isfinite(labelled.joined.outcomes)
    scores = _served(pipeline, champion, labelled)
    return LabelledRows(labelled.batch.frame[known], scores[known], labelled.joined.outcomes[known])


def _with_outcomes(
    reference: DriftReference,
    inputs: DriftFindings,
    batch: Batch,
    performance: _Performance,
    rolling: InputReference | None,
) -> DriftFindings:
    """The findings about the inputs of a batch, joined by those about performance on the newest outcomes."""
    labelled = performance.labelled
    judged = assess(
        reference,
        labelled.batch.frame,
        performance.scores,
        labelled.joined.outcomes,
        rolling=rolling if labelled.batch.number == batch.number else None,
        history=performance.history,
        earlier=performance.earlier,
    )
    if labelled.batch.number == batch.number:
        return judged
    reasons = (
        *(
            f"By the outcomes of batch {labelled.batch.number}: {reason}"
            for reason in judged.reasons
            if reason not in judged.about_inputs
        ),
        *inputs.about_inputs,
    )
    return replace(
        judged,
        reasons=reasons,
        about_inputs=inputs.about_inputs,
        rows=inputs.rows,
        inputs=inputs.inputs,
        rolling=inputs.rolling,
        scores=inputs.scores,
    )


def _before(batches: Batches, number: int) -> InputReference | None:
    """The batch that was judged last before this one, as a reference."""
    earlier = [other for other in batches.handled if other < number]
    return InputReference.fit(batches.batch(max(earlier)).frame, draws=ROLLING_DRAWS) if earlier else None


def _reference(
    storage: Storage, champion: ModelVersion, training: pd.DataFrame, outcomes: npt.ArrayLike, scores: Floats
) -> DriftReference:
    """The champion's reference, fitted at its first batch and kept."""
    key = f"drift/{champion.version}/reference.json"
    identity = {"format": FORMAT, "dataset": champion.tags["dataset_digest"], "run": champion.run_id}
    if storage.exists(key):
        stored = json.loads(storage.read(key))
        if stored["identity"] == identity:
            return DriftReference.from_json(stored["reference"])
    reference = DriftReference.fit(training, outcomes, scores)
    storage.write(key, json.dumps({"identity": identity, "reference": reference.to_json()}).encode())
    return reference
