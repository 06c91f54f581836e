"""What monitoring keeps of a batch: what was decided about it, and how it ended."""

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

FORMAT = 2  # of what is kept of a reference and of a labelled window: it changes with their fields


def batch_key(number: int, digest: str) -> str:
    """How the records of a batch are named, by its number and the digest of its encounters."""
    return f"{number:02d}-{digest[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """What both records of a batch say; `series` is what it is one of (`Batches.series`)."""

    batch: int
    batch_digest: str
    series: str = ""
    verdict: Verdict = Verdict.STEADY
    action: Action = Action.NONE
    labelled_batches: int = 0  # how many batches a retraining may use

    @property
    def key(self) -> str:
        """As the names of its records have it."""
        return batch_key(self.batch, self.batch_digest)

    def to_json(self) -> bytes:
        """As it is stored. What was not asked is left out."""
        stored = {name: value for name, value in asdict(self).items() if value is not None or name == "window"}
        return json.dumps(stored, indent=1).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDecision(BatchRecord):
    """What was found about a batch and decided, before anything is done about it.

    The fields from `findings` on are None where it was not judged; nothing but its number, digest and reasons is known
    of a batch that is `quarantined` or `repeats` another one, whose number that is.
    """

    model_version: str
    dataset_digest: str
    quarantined: bool = False
    repeats: str | None = None
    reasons: tuple[str, ...] = ()  # sentences
    alarms: tuple[Alarm, ...] = ()
    waiting: Mapping[int, str] = field(default_factory=dict)  # what the outcomes of other batches wait for
    matured: tuple[int, ...] = ()  # batches whose outcomes are known
    metrics: Mapping[str, float] = field(default_factory=dict)
    window: Mapping[str, Any] | None = None  # of the outcomes that it was judged by (`kept_window`)
    findings: Mapping[str, Any] | None = None  # `DriftFindings.to_json`
    evidently: Mapping[str, float] | None = None
    state: PolicyState | None = None  # of the policy, before the decision

    @property
    def judged(self) -> int | None:
        """The batch whose outcomes the verdict rests on, None where none were known."""
        return int(self.window["batch"]) if self.window else None

    @property
    def labelled_window(self) -> LabelledWindow | None:
        """What is kept of these outcomes; None where there were none, or another format kept them."""
        values = dict(self.window or {})
        if values.pop("format", None) != FORMAT:
            return None
        values.pop("batch")
        return LabelledWindow(**values)

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


DECISION, SETTLED = TypeAdapter(BatchDecision), TypeAdapter(SettledBatch)
_INPUTS = TypeAdapter(InputFindings)


def kept_window(batch: int, window: LabelledWindow) -> dict[str, Any]:
    """What is kept of the outcomes of a batch."""
    return {"format": FORMAT, "batch": batch, **asdict(window)}
