"""drift: one batch against the reference of the champion, and what the policy makes of it.

A decision is stored before anything is done about it, so that a run that is killed is repeated with the same one;
`settle` closes the batch.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import TypeAdapter

from health_predict.adapters import keys
from health_predict.adapters.data.batches import Batch, Batches, Labelled, trained_through
from health_predict.adapters.data.parts import stored_part
from health_predict.adapters.data.raw_data import origin_of, refuse_other_data
from health_predict.adapters.data.records import FORMAT, BatchDecision, batch_key, kept_window
from health_predict.adapters.files import write_file
from health_predict.adapters.storage import Storage
from health_predict.adapters.tracking import ModelVersion, Tag, Tracking
from health_predict.core.choices import Policy
from health_predict.core.data.cohort import check, target
from health_predict.core.monitoring.drift import DriftFindings, DriftReference, Reason, ReasonKind, Verdict, assess
from health_predict.core.monitoring.input_drift import InputReference
from health_predict.core.monitoring.performance import LabelledWindow
from health_predict.core.monitoring.policy import Action, PolicyState, decide
from health_predict.core.monitoring.refit import LabelledRows
from health_predict.errors import DataError
from health_predict.report.drift_report import drift_page
from health_predict.report.page import render
from health_predict.settings import Settings

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]

ROLLING_DRAWS = 400  # a threshold for a note in the report needs fewer resamples than the decision
EVIDENTLY, EVIDENTLY_JSON, METRICS = "evidently.html", "evidently.json", "metrics.json"
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
    champion = tracking.champion()
    batches = Batches(settings, champion)
    refuse_other_data(settings, origin_of(batches.storage, champion))
    source = champion.tags.get(Tag.DATASET_SOURCE, "")
    number = next(iter(batches.waiting()), None) if batch is None else batch
    if number is None:
        why = f"Nothing to judge: {batches.silence}." if batches.silence else "No batch waits."
        log.info("%s", why)
        write_file(metrics, "{}")
        for path in (report, evidently):
            write_file(path, render("note.html", title="Monitoring", note=why))
        return DriftResult(NO_BATCH, "", Verdict.STEADY, Action.NONE, (why,), {}, source, 0, False, True)
    digest, problem = _arrived(batches, number)
    key = batch_key(number, digest)
    handled = batches.settlement(key) is not None
    record = batches.decision(key)
    if record is None:
        record, page = _decided(settings, tracking, batches, champion, number, digest, problem)
        batches.storage.write(batches.report_key(key, keys.REPORT), page.encode())
        batches.storage.write(batches.report_key(key, METRICS), record.to_json())
        batches.decide(record)  # last: what it names is complete
    else:
        log.info("batch %d was judged before, by model version %s", number, record.model_version)
    for name, path in ((keys.REPORT, report), (EVIDENTLY, evidently), (METRICS, metrics)):
        if batches.storage.exists(batches.report_key(key, name)):
            batches.storage.download(batches.report_key(key, name), path)
        else:
            write_file(
                path,
                render("note.html", title=f"Batch {number}", note="Not made: Evidently's report comes with an alarm."),
            )
    return DriftResult(
        batch=number,
        batch_digest=digest,
        verdict=record.verdict,
        action=Action.NONE if handled else record.action,
        reasons=record.reasons,
        metrics=record.metrics,
        dataset_source=source,
        labelled_batches=record.labelled_batches,
        quarantined=record.quarantined,
        already_handled=handled,
    )


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


def _decided(
    settings: Settings,
    tracking: Tracking,
    batches: Batches,
    champion: ModelVersion,
    number: int,
    digest: str,
    problem: str,
) -> tuple[BatchDecision, str]:
    """The record of what was decided about a batch, and its page."""
    record = BatchDecision(
        batch=number,
        batch_digest=digest,
        series=batches.series,
        model_version=champion.version,
        dataset_digest=champion.tags[Tag.DATASET_DIGEST],
    )
    for earlier in batches.settled():
        if earlier.batch_digest == digest and earlier.batch != number:
            why = f"Batch {number} holds the encounters of batch {earlier.batch}, which was handled: nothing is "
            why += "counted twice."
            page = render("note.html", title=f"Batch {number} is a repetition", note=why)
            return replace(record, reasons=(why,), repeats=f"{earlier.batch:02d}"), page
    if problem:
        log.warning("batch %d is quarantined: %s", number, problem)
        why = (
            f"Not judged: {problem}. The batches after it are not held up; deliver a corrected one under a new number."
        )
        page = render("note.html", title=f"Batch {number} is quarantined", note=why)
        return replace(record, reasons=(why,), quarantined=True), page
    first = trained_through(batches.storage, champion)
    learned = int(champion.tags.get(Tag.ESTIMATOR_BATCHES, first))
    model = _Model(champion, tracking.load_pipeline(champion.version), first, learned)
    return _judged(settings, batches, model, batches.batch(number), record)


@dataclass(frozen=True, slots=True)
class _Model:
    """The champion, with the number of the first batch that is new to it, and to its estimator.

    The latter is the smaller one when it was recalibrated since.
    """

    version: ModelVersion
    pipeline: Any
    first: int
    learned: int

    def scores(self, frame: pd.DataFrame) -> Floats:
        return np.asarray(self.pipeline.predict_proba(frame)[:, 1], dtype=np.float64)

    def served(self, labelled: Labelled) -> Floats:
        """Its scores of a batch: as they were served where it did, else computed."""
        scores = labelled.scores.copy()
        other = np.array([version != self.version.version for version in labelled.versions]) | ~np.isfinite(scores)
        if other.any():
            scores[other] = self.scores(labelled.batch.frame[other])
        return scores

    def known(self, labelled: Labelled) -> LabelledRows:
        """The encounters of a batch whose outcomes are known."""
        outcomes = labelled.joined.outcomes
        known = np.isfinite(outcomes)
        return LabelledRows(labelled.batch.frame[known], self.served(labelled)[known], outcomes[known])


def _judged(
    settings: Settings, batches: Batches, model: _Model, batch: Batch, record: BatchDecision
) -> tuple[BatchDecision, str]:
    """The record of a batch with its judgement, and its page."""
    champion = model.version
    dataset = champion.tags[Tag.DATASET_DIGEST]
    training, validation = (stored_part(batches.storage, dataset, name) for name in ("train", "validation"))
    validation_scores = model.scores(validation)
    reference = _reference(batches.storage, champion, training, target(validation), validation_scores)
    matured, labelled = _labelled(batches, model, batch)
    available = _available(batches, matured)
    scores = model.served(labelled[batch.number])
    findings, newest = _findings(reference, batches, model, batch, labelled)
    state = batches.policy_state(batches.series)
    action, why = _action(settings, state, batch.number, findings, anything_new=available > model.first)
    log.info("batch %d: %s; %s: %s", batch.number, findings.verdict, action, why)
    findings = replace(findings, reasons=(*findings.reasons, Reason(ReasonKind.ACTION, f"Action: {action}. {why}")))
    waiting = {number: one.joined.waiting for number, one in sorted(labelled.items()) if one.joined.waiting}
    second_opinion = _second_opinion(settings, batches, batch, training, findings)
    page = drift_page(
        findings,
        batch=batch.number,
        facts=[
            ("Model version", champion.version),
            ("Dataset", dataset[:12]),
            ("Source", champion.tags.get(Tag.DATASET_SOURCE, "")),
            ("Commit", champion.tags.get(Tag.GIT_COMMIT, "")[:12]),
            ("Batch digest", batch.digest[:12]),
        ],
        synthetic=champion.tags.get(Tag.DATASET_SOURCE) == "synthetic",
        reference_probabilities=validation_scores,
        probabilities=scores,
        outcomes=np.full(len(scores), np.nan) if newest is None else newest.joined.outcomes,
        judged=scores if newest is None else model.served(newest),
        waiting=[f"batch {number}: {what}" for number, what in waiting.items()],
        evidently=second_opinion,
    )
    window = None
    if newest is not None and findings.window is not None:
        window = kept_window(newest.batch.number, findings.window)
    judged = replace(
        record,
        verdict=findings.verdict,
        action=action,
        labelled_batches=available,
        reasons=tuple(reason.sentence for reason in findings.reasons),
        alarms=findings.alarms,
        waiting=waiting,
        matured=tuple(sorted(matured)),
        metrics=findings.metrics(),
        window=window,
        findings=findings.to_json(),
        evidently=second_opinion,
        state=state,
    )
    return judged, page


def _action(
    settings: Settings, state: PolicyState, batch: int, findings: DriftFindings, *, anything_new: bool
) -> tuple[Action, str]:
    """What the policy makes of the findings, and why; nothing while there is nothing new to learn from."""
    action, why = decide(
        Policy(settings.policy),
        state,
        batch,
        verdict=findings.verdict,
        miscalibrated=findings.calibration is not None and findings.calibration.mendable,
        interval=settings.policy_interval,
    )
    if action is not Action.NONE and not anything_new:
        return Action.NONE, "No outcomes are known that the model has not learned from."
    return action, why


def _labelled(batches: Batches, model: _Model, batch: Batch) -> tuple[set[int], dict[int, Labelled]]:
    """The batches whose outcomes have matured, and by number those that something is still asked of."""
    matured = {number for one in batches.decisions() for number in one.matured}
    labelled = {batch.number: batches.labelled(batch)}
    for number in batches.handled - {batch.number}:
        # Of what the estimator learned from, nothing more is asked.
        if number not in matured or number >= model.learned:
            labelled[number] = batches.labelled(batches.batch(number))
    return matured | {number for number, one in labelled.items() if one.joined.matured}, labelled


def _available(batches: Batches, matured: set[int]) -> int:
    """How many batches from the first one on have known outcomes; what was not judged does not stand in the way."""
    count = number = 0
    while number in matured or number in batches.passed:
        number += 1
        count = number if number - 1 in matured else count
    return count


def _findings(
    reference: DriftReference, batches: Batches, model: _Model, batch: Batch, labelled: Mapping[int, Labelled]
) -> tuple[DriftFindings, Labelled | None]:
    """What is found about a batch, and the newest outcomes that its performance was judged on.

    These are outcomes that the champion did not learn from and was not judged on yet; None: there are none.
    """
    earlier = [other for other in batches.handled if other < batch.number]
    # The batch that was judged last before this one.
    rolling = InputReference.fit(batches.batch(max(earlier)).frame, draws=ROLLING_DRAWS) if earlier else None
    inputs = assess(reference, batch.frame, model.served(labelled[batch.number]), None, rolling=rolling)
    windows = _windows(batches, model.version)
    matured = {number: one for number, one in sorted(labelled.items()) if one.joined.matured}
    new = [number for number in matured if number >= model.first and number not in windows]
    if not new:
        return inputs, None
    *before, last = new
    for number in before:  # several matured at once: only the newest is judged, the others are its history
        rows = model.known(matured[number])
        if 0 < rows.outcomes.sum() < len(rows.outcomes):
            windows[number] = LabelledWindow.of(rows.outcomes, rows.probabilities)
    newest = matured[last]
    judged = assess(
        reference,
        newest.batch.frame,
        model.served(newest),
        newest.joined.outcomes,
        rolling=rolling if last == batch.number else None,
        history=[window for number, window in sorted(windows.items()) if number < last],
        earlier=[model.known(one) for number, one in matured.items() if model.learned <= number < last],
    )
    if last == batch.number:
        return judged, newest
    about_outcomes = (reason for reason in judged.reasons if not reason.about_inputs)
    joined = replace(
        judged,
        reasons=(
            *(Reason(reason.kind, f"By the outcomes of batch {last}: {reason}") for reason in about_outcomes),
            *(reason for reason in inputs.reasons if reason.about_inputs),
        ),
        rows=inputs.rows,
        inputs=inputs.inputs,
        rolling=inputs.rolling,
        scores=inputs.scores,
    )
    return joined, newest


def _windows(batches: Batches, champion: ModelVersion) -> dict[int, LabelledWindow]:
    """What the champion was judged on before, by number of the batch."""
    return {
        record.judged: record.labelled_window
        for record in batches.decisions()
        if record.model_version == champion.version and record.judged is not None and record.labelled_window is not None
    }


def _second_opinion(
    settings: Settings, batches: Batches, batch: Batch, training: pd.DataFrame, findings: DriftFindings
) -> Mapping[str, float]:
    """Evidently's figures, where the settings or an alarm ask for its report, which goes to storage."""
    alarm = findings.verdict is not Verdict.STEADY or (findings.rolling or findings.inputs).alarm
    if settings.evidently == "never" or (settings.evidently == "alarm" and not alarm):
        return {}
    from health_predict.adapters.evidently import evidently_report  # eight seconds to import

    with tempfile.TemporaryDirectory(prefix="health-predict-drift-") as folder:
        page, figures = Path(folder) / EVIDENTLY, Path(folder) / EVIDENTLY_JSON
        found = evidently_report(training, batch.frame, page, json_file=figures)
        for file in (page, figures):
            batches.storage.upload(file, batches.report_key(batch.key, file.name))
    return found


def _reference(
    storage: Storage, champion: ModelVersion, training: pd.DataFrame, outcomes: npt.ArrayLike, scores: Floats
) -> DriftReference:
    """The champion's reference, fitted at its first batch and kept."""
    key = keys.drift_reference(champion.version)
    identity = {"format": FORMAT, "dataset": champion.tags[Tag.DATASET_DIGEST], "run": champion.run_id}
    if storage.exists(key):
        stored = json.loads(storage.read(key))
        if stored["identity"] == identity:
            return TypeAdapter(DriftReference).validate_python(stored["reference"])
    reference = DriftReference.fit(training, outcomes, scores)
    storage.write(key, json.dumps({"identity": identity, "reference": asdict(reference)}).encode())
    return reference
