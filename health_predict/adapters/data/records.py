"""What monitoring keeps of a batch: what was decided about it, and how it ended; and how far it has come.

A batch is looked at twice: when it is closed, by its inputs, and when its outcomes have matured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from health_predict.core.monitoring.drift import Alarm, Verdict
from health_predict.core.monitoring.input_drift import InputFindings
from health_predict.core.monitoring.performance import LabelledWindow
from health_predict.core.monitoring.policy import Action, PolicyState, Settlement

KEPT_WINDOWS = 32  # evidence about a version rests on the newest; a year of weeks adds nothing to it
FORMAT = 3  # of what is kept of a reference and of a labelled window: it changes with their fields


def batch_key(number: int, digest: str) -> str:
    """How the records of a batch are named, by its number and the digest of its encounters."""
    return f"{number:04d}-{digest[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """What both records of a look at a batch say. `batch_digest` is of its encounters or, when its outcomes are looked
    at, of these too."""

    batch: int
    batch_digest: str
    verdict: Verdict = Verdict.STEADY
    action: Action = Action.NONE
    labelled_batches: int = 0  # how many batches a retraining may use

    @property
    def key(self) -> str:
        """As the names of its records have it."""
        return batch_key(self.batch, self.batch_digest)

    def to_json(self) -> bytes:
        """As it is stored. What was not asked is left out."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None}, indent=1).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptWindow:
    """What is kept of the outcomes of a batch, by which a version was judged."""

    batch: int
    model_version: str
    window: LabelledWindow
    format: int = FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDecision(BatchRecord):
    """What was found about a batch and decided, before anything is done about it."""

    model_version: str
    dataset_digest: str
    outcomes_alone: bool = False  # its inputs were judged before
    reasons: tuple[str, ...] = ()  # sentences
    alarms: tuple[Alarm, ...] = ()
    waiting: Mapping[int, str] = field(default_factory=dict)  # what the outcomes of other batches wait for
    matured: tuple[int, ...] = ()  # batches whose outcomes are known since the last look
    lapsed: tuple[int, ...] = ()  # batches whose outcomes are not waited for any more
    metrics: Mapping[str, float] = field(default_factory=dict)
    windows: tuple[KeptWindow, ...] = ()  # of the outcomes that were new to it; it was judged by the last
    findings: Mapping[str, Any] | None = None  # `DriftFindings.to_json`
    evidently: Mapping[str, float] | None = None
    state: PolicyState | None = None  # of the policy, before the decision

    @property
    def judged(self) -> int | None:
        """The batch whose outcomes the verdict rests on, None where none were known."""
        return self.windows[-1].batch if self.windows else None

    def inputs(self, against: Literal["training", "before"]) -> InputFindings:
        """The inputs against the training data or the batch before, which the first one has not; unjudged: nothing."""
        found = self.findings or {}
        stored = (found.get("rolling") if against == "before" else None) or found.get("inputs")
        return _INPUTS.validate_python(stored) if stored else InputFindings(False, 1.0, 0.0, 0.0, (), ())


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledBatch(BatchRecord):
    """How a batch ended, and the champions before and after."""

    outcome: Settlement
    version_before: str
    version_after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far monitoring has come with a stream: all that the next look needs of the ones before."""

    settled: int = 0  # batches whose inputs were judged: all before this number
    waiting: tuple[int, ...] = ()  # of these, those whose outcomes have not matured
    lapsed: tuple[int, ...] = ()  # of these, those whose outcomes never did
    windows: tuple[KeptWindow, ...] = ()  # of the newest outcomes, oldest first
    policy: PolicyState = field(default_factory=PolicyState)
    last: str = ""  # key of the last look's records
    pending: str = ""  # of a look that was decided and has not ended

    def after(self, decision: BatchDecision, policy: PolicyState) -> Progress:
        """Once a look has ended. The same look once more changes nothing."""
        gone = {*decision.matured, *decision.lapsed}
        new = () if decision.outcomes_alone or decision.batch < self.settled else (decision.batch,)
        judged = {one.batch for one in decision.windows}
        kept = (*(one for one in self.windows if one.batch not in judged), *decision.windows)
        return Progress(
            settled=max(self.settled, decision.batch + 1),
            waiting=tuple(number for number in (*self.waiting, *new) if number not in gone),
            lapsed=tuple(sorted({*self.lapsed, *decision.lapsed})),
            windows=kept[-KEPT_WINDOWS:],
            policy=policy,
            last=decision.key,
        )


DECISION, SETTLED, PROGRESS = TypeAdapter(BatchDecision), TypeAdapter(SettledBatch), TypeAdapter(Progress)
_INPUTS = TypeAdapter(InputFindings)
