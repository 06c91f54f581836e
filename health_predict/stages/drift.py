"""drift: take in what arrived, and look at one batch against the reference of the champion.

A batch is looked at when it is closed, by its inputs, and once more when its outcomes have matured, in the look at a
later batch or, where none waits, by themselves. What the policy makes of that is stored before anything is done about
it, so that a run that is killed is repeated with the same decision; `settle` ends the look.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import TypeAdapter

from health_predict.adapters import keys
from health_predict.adapters.data.arrivals import State
from health_predict.adapters.data.batches import Batch, Batches, Labelled, trained_through
from health_predict.adapters.data.monitoring_turn import Turn
from health_predict.adapters.data.parts import stored_part
from health_predict.adapters.data.raw_data import origin_of, refuse_other_data
from health_predict.adapters.data.records import FORMAT, BatchDecision, KeptWindow, Progress
from health_predict.adapters.files import write_file
from health_predict.adapters.locks import only_one
from health_predict.adapters.notifications import Event, tell
from health_predict.adapters.tracking import ModelVersion, Tag, Tracking
from health_predict.core.choices import Policy
from health_predict.core.data.cohort import target
from health_predict.core.monitoring.drift import DriftFindings, DriftReference, Reason, ReasonKind, Verdict, assess
from health_predict.core.monitoring.input_drift import InputReference
from health_predict.core.monitoring.performance import LabelledWindow
from health_predict.core.monitoring.policy import Action, decide
from health_predict.core.monitoring.refit import LabelledRows
from health_predict.report.drift_report import drift_page
from health_predict.report.page import render
from health_predict.settings import Settings

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]

ROLLING_DRAWS = 400  # a threshold for a note in the report needs fewer resamples than the decision
METRICS = "metrics.json"
NO_BATCH = -1
COLLECT_SECONDS = (
    600.0  # that another run on this machine may take in arrivals; a cluster's schedule runs one at a time
)
EARLIER = 16  # batches since the model was trained that a refit learns from, the newest ones


@dataclass(frozen=True, slots=True)
class DriftResult:
    """The verdict on a batch, the action that follows, why, and its figures.

    `batch` is -1 when there is nothing to look at. `labelled_batches` is how many batches a retraining may use,
    `dataset_source` what the champion stands on.
    """

    batch: int
    batch_digest: str
    verdict: Verdict
    action: Action
    reasons: tuple[str, ...]
    metrics: Mapping[str, float]
    dataset_source: str
    labelled_batches: int


def drift(settings: Settings, *, report: Path, evidently: Path, metrics: Path, run_id: str = "") -> DriftResult:
    """Take in what arrived, judge what is due, and write both reports and the findings (JSON).

    Due is the oldest batch that was not judged; where there is none, the outcomes that have matured since. Raises
    StateError when there is no champion, DataError when other data are asked for than the champion's, UnreachableError
    while another run is at work: this one's turn, by its `run_id`, ends with `settle`.
    """
    tracking = Tracking(settings)
    champion = tracking.champion()
    batches = Batches(settings)
    refuse_other_data(settings, origin_of(batches.storage, champion))
    source = champion.tags.get(Tag.DATASET_SOURCE, "")
    Turn(settings, batches.storage, run_id).take()
    progress = batches.progress()
    with only_one(settings.home / "arrivals", COLLECT_SECONDS, problem="another run has been taking in arrivals"):
        state = batches.arrivals.collect(progress.waiting)
        batches.arrivals.expire([*progress.waiting, *batches.numbers()[max(0, progress.settled - 1) :]])
    if progress.pending:
        record = batches.decision(progress.pending)
        assert record is not None  # written before it was named
        log.info("batch %d was judged before, by model version %s", record.batch, record.model_version)
    else:
        look = _due(batches, progress)
        if look is None:
            why = _nothing(batches, state)
            log.info("%s", why)
            write_file(metrics, "{}")
            for path in (report, evidently):
                write_file(path, render("note.html", title="Monitoring", note=why))
            return DriftResult(NO_BATCH, "", Verdict.STEADY, Action.NONE, (why,), {}, source, 0)
        first = trained_through(batches.storage, champion)
        learned = int(champion.tags.get(Tag.ESTIMATOR_BATCHES, first))
        model = _Model(champion, tracking.load_pipeline(champion.version), first, learned)
        record, page = _judged(settings, batches, model, look)
        batches.storage.write(batches.report_key(record.key, keys.REPORT), page.encode())
        batches.storage.write(batches.report_key(record.key, METRICS), record.to_json())
        batches.decide(record)  # last: what it names is complete
    _tell(settings, batches, record)
    for name, path in ((keys.REPORT, report), (keys.EVIDENTLY, evidently), (METRICS, metrics)):
        if batches.storage.exists(batches.report_key(record.key, name)):
            batches.storage.download(batches.report_key(record.key, name), path)
        else:
            note = "Not made: Evidently's report comes with an alarm."
            write_file(path, render("note.html", title=f"Batch {record.batch}", note=note))
    return DriftResult(
        batch=record.batch,
        batch_digest=record.batch_digest,
        verdict=record.verdict,
        action=record.action,
        reasons=record.reasons,
        metrics=record.metrics,
        dataset_source=source,
        labelled_batches=record.labelled_batches,
    )


def _tell(settings: Settings, batches: Batches, record: BatchDecision) -> None:
    """Tell people of an alarm, and of what is begun because of it or by the policy."""
    key = f"{batches.stream} {record.key}"
    if record.verdict is not Verdict.STEADY:
        report = batches.storage.uri(batches.report_key(record.key, keys.REPORT))
        tell(settings, Event.DRIFT, key, f"Batch {record.batch}: {' '.join(record.reasons)}", f"read {report}")
    if record.action is not Action.NONE:
        begun = f"After batch {record.batch} the policy begins to {record.action} version {record.model_version}."
        tell(settings, Event.RETRAINING, key, begun, "`health-predict pipeline list` says how it ends")


@dataclass(frozen=True, slots=True)
class _Look:
    """What is due: a batch, and the outcomes that are known since the last look."""

    batch: Batch
    outcomes_alone: bool
    matured: tuple[Labelled, ...]  # oldest first
    lapsed: tuple[int, ...]
    waiting: Mapping[int, str]  # what the others wait for
    progress: Progress

    @property
    def digest(self) -> str:
        """Of the batch, or of what is looked at alone."""
        return self.matured[-1].digest if self.outcomes_alone else self.batch.digest


def _due(batches: Batches, progress: Progress) -> _Look | None:
    """The next look, None when nothing is due."""
    newest = next(iter(batches.numbers()[progress.settled :]), None)
    joined = {number: batches.outcomes(number) for number in progress.waiting}
    read = {} if newest is None else {newest: batches.batch(newest)}
    joined |= {number: batches.labelled(batch).joined for number, batch in read.items()}
    ready = [number for number, one in joined.items() if one.matured]
    if newest is None and not ready:
        return None
    read |= {number: batches.batch(number) for number in ready if number not in read}
    open_still = {number: one for number, one in joined.items() if number not in ready}
    lapsed = tuple(number for number in open_still if batches.lapses(number))
    return _Look(
        batch=read[ready[-1] if newest is None else newest],
        outcomes_alone=newest is None,
        matured=tuple(Labelled(read[number], joined[number]) for number in ready),
        lapsed=lapsed,
        waiting={number: one.waiting for number, one in open_still.items() if number not in lapsed},
        progress=progress,
    )


def _nothing(batches: Batches, state: State) -> str:
    if not state.arrived:
        return f"Nothing to judge: no encounters have arrived in stream {batches.stream}."
    open_rows = state.windows.waiting
    return f"No batch waits: {open_rows:,} arrivals are in the open window, and no outcomes have matured since."


@dataclass(frozen=True, slots=True)
class _Model:
    """The champion, with the number of the first batch that is new to it, and to its estimator.

    The latter is the smaller one when it was recalibrated since.
    """

    version: ModelVersion
    pipeline: Any
    first: int
    learned: int
    known_scores: dict[int, Floats] = field(default_factory=dict)  # by number of the batch: each is asked about often

    def scores(self, frame: pd.DataFrame) -> Floats:
        return np.asarray(self.pipeline.predict_proba(frame)[:, 1], dtype=np.float64)

    def served(self, batch: Batch) -> Floats:
        """Its scores of a batch: as they were served where it did, else computed, once in a look."""
        if batch.number not in self.known_scores:
            scores = batch.scores.copy()
            other = np.array([version != self.version.version for version in batch.versions])
            if other.any():
                scores[other] = self.scores(batch.frame[other])
            self.known_scores[batch.number] = scores
        return self.known_scores[batch.number]

    def known(self, labelled: Labelled) -> LabelledRows:
        """The encounters of a batch whose outcomes are known."""
        outcomes = labelled.joined.outcomes
        known = np.isfinite(outcomes)
        return LabelledRows(labelled.batch.frame[known], self.served(labelled.batch)[known], outcomes[known])


def _judged(settings: Settings, batches: Batches, model: _Model, look: _Look) -> tuple[BatchDecision, str]:
    """The record of a look with its judgement, and its page."""
    champion, batch, dataset = model.version, look.batch, model.version.tags[Tag.DATASET_DIGEST]
    record = BatchDecision(
        batch=batch.number,
        batch_digest=look.digest,
        model_version=champion.version,
        dataset_digest=dataset,
        outcomes_alone=look.outcomes_alone,
        waiting=look.waiting,
        matured=tuple(one.batch.number for one in look.matured),
        lapsed=look.lapsed,
        labelled_batches=_available(look),
        state=look.progress.policy,
    )
    if batch.frame.empty:
        why = f"Batch {batch.number} holds no encounter any more: all were removed on purpose."
        return replace(record, reasons=(why,)), render("note.html", title=f"Batch {batch.number}", note=why)
    training, validation = (stored_part(batches.storage, dataset, name) for name in ("train", "validation"))
    validation_scores = model.scores(validation)
    reference = _reference(batches, champion, training, validation, validation_scores)
    scores = model.served(batch)
    findings, windows = _findings(reference, batches, model, look, scores)
    newest = next((one for one in look.matured if windows and one.batch.number == windows[-1].batch), None)
    action, why = _action(settings, look, findings, anything_new=record.labelled_batches > model.first)
    log.info("batch %d: %s; %s: %s", batch.number, findings.verdict, action, why)
    findings = replace(findings, reasons=(*findings.reasons, Reason(ReasonKind.ACTION, f"Action: {action}. {why}")))
    second_opinion = _second_opinion(settings, batches, record.key, batch, training, findings)
    page = drift_page(
        findings,
        batches.contract,
        batch=batch.number,
        facts=[
            ("Arrivals", f"from {batch.window.begin} to before {batch.window.end}"),
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
        judged=scores if newest is None else model.served(newest.batch),
        waiting=[f"batch {number}: {what}" for number, what in look.waiting.items()],
        evidently=second_opinion,
    )
    judged = replace(
        record,
        verdict=findings.verdict,
        action=action,
        reasons=tuple(reason.sentence for reason in findings.reasons),
        alarms=findings.alarms,
        metrics=findings.metrics(),
        windows=windows,
        findings=findings.to_json(),
        evidently=second_opinion,
    )
    return judged, page


def _action(settings: Settings, look: _Look, findings: DriftFindings, *, anything_new: bool) -> tuple[Action, str]:
    """What the policy makes of the findings, and why; nothing while there is nothing new to learn from."""
    if look.outcomes_alone and settings.policy in (Policy.EVERY, Policy.SCHEDULED):
        return Action.NONE, "The policy goes by batches, and none was closed."
    action, why = decide(
        Policy(settings.policy),
        look.progress.policy,
        look.batch.number,
        verdict=findings.verdict,
        miscalibrated=findings.calibration is not None and findings.calibration.mendable,
        interval=settings.policy_interval,
    )
    if action is not Action.NONE and not anything_new:
        return Action.NONE, "No outcomes are known that the model has not learned from."
    return action, why


def _available(look: _Look) -> int:
    """How many batches from the first one on have known outcomes; those that lapsed do not stand in the way."""
    progress = look.progress
    seen = max(progress.settled, look.batch.number + 1)
    lapsed = {*progress.lapsed, *look.lapsed}
    count = min(look.waiting, default=seen)
    while count and count - 1 in lapsed:
        count -= 1
    return count


def _findings(
    reference: DriftReference, batches: Batches, model: _Model, look: _Look, scores: Floats
) -> tuple[DriftFindings, tuple[KeptWindow, ...]]:
    """What is found, and what is kept of the outcomes that are new to the champion; the last of them judge it."""
    batch = look.batch
    rolling = None
    if batch.number and not look.outcomes_alone:
        before = batches.batch(batch.number - 1).frame
        rolling = InputReference.fit(before, reference.contract, draws=ROLLING_DRAWS) if len(before) else None
    inputs = assess(reference, batch.frame, scores, None, rolling=rolling)
    new = [one for one in look.matured if one.batch.number >= model.first]
    if not new:
        return inputs, ()
    version = model.version.version
    history = [one for one in look.progress.windows if one.model_version == version and one.format == FORMAT]
    for one in new[:-1]:  # several matured at once: only the newest is judged, the others are its history
        rows = model.known(one)
        if 0 < rows.outcomes.sum() < len(rows.outcomes):
            window = LabelledWindow.of(rows.outcomes, rows.probabilities)
            history.append(KeptWindow(batch=one.batch.number, model_version=version, window=window))
    newest = new[-1]
    last = newest.batch.number
    learnable = [number for number in batches.learnable(last) if number >= model.learned][-EARLIER:]
    known = {one.batch.number: one for one in look.matured if model.learned <= one.batch.number < last}
    earlier = [
        model.known(known[number] if number in known else batches.labelled(batches.batch(number)))
        for number in sorted({*learnable, *known})[-EARLIER:]
    ]
    judged = assess(
        reference,
        newest.batch.frame,
        model.served(newest.batch),
        newest.joined.outcomes,
        rolling=rolling if last == batch.number else None,
        history=[one.window for one in history if one.batch < last],
        earlier=earlier,
    )
    windows = [one for one in history if one.batch in known]
    if judged.window is not None:
        windows.append(KeptWindow(batch=last, model_version=version, window=judged.window))
    if last == batch.number and not look.outcomes_alone:
        return judged, tuple(windows)
    about_outcomes = (reason for reason in judged.reasons if not reason.about_inputs)
    joined = replace(
        judged,
        reasons=(
            *(Reason(reason.kind, f"By the outcomes of batch {last}: {reason}") for reason in about_outcomes),
            *(reason for reason in inputs.reasons if reason.about_inputs and not look.outcomes_alone),
        ),
        rows=inputs.rows,
        inputs=inputs.inputs,
        rolling=inputs.rolling,
        scores=inputs.scores,
    )
    return joined, tuple(windows)


def _second_opinion(
    settings: Settings, batches: Batches, key: str, batch: Batch, training: pd.DataFrame, findings: DriftFindings
) -> Mapping[str, float]:
    """Evidently's figures, where the settings or an alarm ask for its report, which goes to storage."""
    alarm = findings.verdict is not Verdict.STEADY or (findings.rolling or findings.inputs).alarm
    if settings.evidently == "never" or (settings.evidently == "alarm" and not alarm):
        return {}
    from health_predict.adapters.evidently import evidently_report  # eight seconds to import

    contract = batches.contract
    with tempfile.TemporaryDirectory(prefix="health-predict-drift-") as folder:
        page, figures = Path(folder) / keys.EVIDENTLY, Path(folder) / keys.EVIDENTLY_JSON
        found = evidently_report(training, batch.frame, contract, page, json_file=figures)
        for file in (page, figures):
            batches.storage.upload(file, batches.report_key(key, file.name))
    return found


def _reference(
    batches: Batches, champion: ModelVersion, training: pd.DataFrame, validation: pd.DataFrame, scores: Floats
) -> DriftReference:
    """The champion's reference, fitted at its first batch and kept."""
    storage, contract = batches.storage, batches.contract
    key, reference_type = keys.drift_reference(champion.version), TypeAdapter(DriftReference)
    identity = {
        "format": FORMAT,
        "contract": contract.digest,
        "dataset": champion.tags[Tag.DATASET_DIGEST],
        "run": champion.run_id,
    }
    if storage.exists(key):
        stored = json.loads(storage.read(key))
        if stored["identity"] == identity:
            return reference_type.validate_python(stored["reference"])
    reference = DriftReference.fit(training, contract, target(validation, contract), scores)
    plain = reference_type.dump_python(reference, mode="json", exclude_defaults=True)
    storage.write(key, json.dumps({"identity": identity, "reference": plain}).encode())
    return reference
