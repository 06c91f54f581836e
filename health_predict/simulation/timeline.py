"""What a simulation showed: metrics by batch, verdicts, versions in service, retrainings, delay of detection.

A finding counts as a detection only when it rests on what the scenario changed: on rows of changed batches where it is
about inputs, on outcomes of changed batches where it is about performance. What is left may still be the stream's own
drift, so it is compared with a simulation of the same stream without the scenario, where there is one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from health_predict.adapters import keys
from health_predict.adapters.contracts import contract_of
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.records import BatchDecision, SettledBatch
from health_predict.adapters.files import write_file
from health_predict.core.choices import Scenario
from health_predict.core.data.cohort import encounter_of, target
from health_predict.core.monitoring.input_drift import ColumnFinding, QualityFinding
from health_predict.core.monitoring.policy import Action, Settlement
from health_predict.core.statistics import Estimate, auc_estimate, observed_expected
from health_predict.report.timeline_report import timeline_page
from health_predict.simulation.plan import Begun, all_begun
from health_predict.simulation.replay import Replay

_NOT_OF_INPUTS = ("concept", "delay")  # kinds of change that leave the rows as they are
_NOT_OF_OUTCOMES = ("delay",)
_Names = Callable[["Finding"], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Finding:
    """What monitoring found about a batch, and on what that rests."""

    batch: int
    verdict: str
    alarms: tuple[str, ...]  # what keeps the verdict from being steady
    judged: int | None  # the newest batch whose outcomes the verdict rests on; None: no outcomes were known
    news: tuple[str, ...]  # columns that differ from the batch before; of the first batch, from the training data
    recording: tuple[str, ...]  # columns whose recording changed since the batch before
    waiting: tuple[int, ...]  # batches whose outcomes were not known
    action: str
    outcome: str
    version_after: str
    labelled_batches: int  # from the first one on, those whose outcomes a new version may learn from


@dataclass(frozen=True, slots=True)
class Moment(Finding):
    """A batch of the simulation. Metrics are of the probabilities as they were served, against the true outcomes."""

    rows: int
    positives: int
    served_by: str
    auc: Estimate
    observed_expected: Estimate
    reasons: tuple[str, ...]
    input_alarm: bool  # against the training data
    quality: tuple[str, ...]  # columns whose recording changed since the training data


@dataclass(frozen=True, slots=True)
class Sign:
    """When findings of one kind came that rest on what the scenario changed and are not known to be the stream's own.

    `delay` counts batches from the begin of the change: 0 in its first batch, None never. Of `looks` that rest on
    nothing changed, `before` found something too.
    """

    delay: int | None
    what: tuple[str, ...]
    before: int
    looks: int


@dataclass(frozen=True, slots=True)
class Detection:
    """When an injected change was seen. A sign is None where the scenario leaves alone what it is about."""

    scenarios: tuple[str, ...]
    kinds: tuple[str, ...]
    from_batch: int
    inputs: Sign | None  # the inputs differ from the batch before
    recording: Sign | None  # their recording changed since the batch before
    verdict: Sign | None  # the verdict is not steady
    waited: int | None  # batches until outcomes were waited for that had been known by then before
    learned: int | None  # batches until a new version serves that has learned from changed batches
    compared_with: str  # the simulation of the same stream without the scenario; empty when there is none


@dataclass(frozen=True, slots=True)
class Timeline:
    """A whole simulation."""

    name: str
    policy: str
    delay: int
    synthetic: bool
    first_version: str
    moments: tuple[Moment, ...]
    detection: Detection | None  # None when nothing was injected
    retrainings: int  # new versions in service that were trained anew
    recalibrations: int
    lost: int  # challengers that did not pass


def moment(replay: Replay, number: int) -> Moment:
    """A batch that was settled."""
    batches = Batches(replay.settings)
    batch = batches.batch(number)
    settled, decision = batches.settlement(batch.key), batches.decision(batch.key)
    assert settled is not None and decision is not None
    contract = batches.contract
    sent = replay.batch(number)
    sent = sent.set_index(encounter_of(sent, contract)).loc[encounter_of(batch.frame, contract).tolist()]
    scores, labels = batch.scores, target(sent, contract).astype(np.float64)
    return Moment(
        **_finding(settled, decision),
        rows=len(labels),
        positives=int(labels.sum()),
        served_by=", ".join(sorted({*batch.versions})),
        auc=auc_estimate(labels, scores),
        observed_expected=observed_expected(labels, scores),
        reasons=decision.reasons,
        input_alarm=decision.inputs("training").alarm,
        quality=_columns(decision.inputs("training").quality),
    )


def _finding(settled: SettledBatch, decision: BatchDecision) -> dict[str, Any]:
    """The fields of `Finding`, from the records of a batch."""
    news = decision.inputs("before")
    return {
        "batch": settled.batch,
        "verdict": settled.verdict,
        "alarms": decision.alarms,
        "judged": decision.judged,
        "news": _columns([one for one in news.columns if one.alarm]),
        "recording": _columns(news.quality),
        "waiting": tuple(decision.waiting),
        "action": settled.action,
        "outcome": settled.outcome,
        "version_after": settled.version_after,
        "labelled_batches": settled.labelled_batches,
    }


def _columns(found: Sequence[ColumnFinding | QualityFinding]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.column for one in found))


def timeline(replay: Replay) -> Timeline:
    """All batches that were settled so far, and what came of them."""
    simulation = replay.simulation
    moments = tuple(moment(replay, one.batch) for one in Batches(replay.settings).settled())
    changed = [one for one in moments if one.outcome == Settlement.DEPLOYED]
    return Timeline(
        name=simulation.name,
        policy=simulation.policy,
        delay=simulation.delay,
        synthetic=replay.synthetic,
        first_version=simulation.first_version,
        moments=moments,
        detection=detect(simulation, moments, *_without_scenario(replay, moments)) if simulation.truths else None,
        retrainings=sum(one.action == Action.RETRAIN for one in changed),
        recalibrations=sum(one.action == Action.RECALIBRATE for one in changed),
        lost=sum(one.outcome == Settlement.LOST for one in moments),
    )


def detect(
    simulation: Begun, found: Sequence[Finding], compared_with: str = "", without: Mapping[int, Finding] | None = None
) -> Detection:
    """What counts as a detection among the findings about batches, in their order.

    `without`: by batch, what the simulation `compared_with` found on the same stream without the scenario.
    """
    start, kinds = simulation.from_batch, tuple(truth.kind for truth in simulation.truths)
    of_inputs = any(kind not in _NOT_OF_INPUTS for kind in kinds)
    of_outcomes = any(kind not in _NOT_OF_OUTCOMES for kind in kinds)

    def sign(names: _Names, newest: Callable[[Finding], int | None] = lambda one: one.batch) -> Sign:
        """The first finding that rests on a changed batch: `newest` is the newest one that a finding rests on."""
        looks = [(one, on) for one in found if (on := newest(one)) is not None]
        before = [one for one, on in looks if on < start]
        earlier = sum(bool(names(one)) for one in before)
        # What stood before the change may go on by itself, until another version serves: evidence accumulates.
        standing = names(before[-1]) if before and before[-1].outcome != Settlement.DEPLOYED else ()
        for one, on in looks:
            own = standing if without is None else names(without[one.batch])
            new = tuple(name for name in names(one) if name not in own)
            if on >= start and new:
                return Sign(one.batch - start, new, earlier, len(before))
        return Sign(None, (), earlier, len(before))

    def first(seen: Callable[[Finding], bool]) -> int | None:
        return next((one.batch - start for one in found if one.batch >= start and seen(one)), None)

    return Detection(
        scenarios=simulation.scenarios,
        kinds=kinds,
        from_batch=start,
        inputs=sign(lambda one: one.news) if of_inputs else None,
        recording=sign(lambda one: one.recording) if of_inputs else None,
        verdict=sign(lambda one: one.alarms, lambda one: one.judged) if of_outcomes else None,
        waited=first(lambda one: any(start <= number <= one.batch - simulation.delay for number in one.waiting)),
        learned=first(lambda one: one.outcome == Settlement.DEPLOYED and one.labelled_batches > start),
        compared_with=compared_with,
    )


def _without_scenario(replay: Replay, found: Sequence[Finding]) -> tuple[str, Mapping[int, Finding] | None]:
    """A simulation of the same stream, model and policy without drift that got as far, and its findings by batch.

    The seed need not be the same: it is the drift's.
    """

    def stream(one: Begun) -> tuple[Any, ...]:
        return one.data, one.first_version, one.policy, one.delay

    for other in all_begun(replay.storage):
        if set(other.scenarios) - {Scenario.NONE} or stream(other) != stream(replay.simulation):
            continue
        batches = Batches(replay.settings.model_copy(update={"stream": other.stream}))
        decisions = {one.batch: one for one in batches.decisions()}
        settled = {one.batch: one for one in batches.settled()}
        without = {number: Finding(**_finding(one, decisions[number])) for number, one in settled.items()}
        if all(one.batch in without for one in found):
            return other.name, without
    return "", None


def publish(replay: Replay, found: Timeline) -> str:
    """Write the page and its figures (JSON) to storage and, as a file to open, to the home; the page's address."""
    page = timeline_page(asdict(found), contract_of(replay.settings).outcome)
    replay.storage.write(keys.simulation(found.name, keys.FIGURES), json.dumps(asdict(found), indent=1).encode())
    replay.storage.write(keys.simulation(found.name, keys.TIMELINE), page.encode())
    file = replay.settings.home / "simulations" / found.name / keys.TIMELINE
    write_file(file, page)
    return str(file)
