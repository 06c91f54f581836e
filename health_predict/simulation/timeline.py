"""What a simulation showed: metrics by batch, verdicts, versions in service, retrainings, delay of detection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from health_predict.adapters.batches import Batches
from health_predict.core.cohort import target
from health_predict.core.evaluation import Estimate
from health_predict.core.performance import auc_interval, observed_expected
from health_predict.core.policy import Action
from health_predict.report.timeline_report import timeline_page
from health_predict.simulation.replay import Replay


@dataclass(frozen=True, slots=True)
class Moment:
    """A batch of the simulation. Metrics are of the probabilities as they were served, against the true outcomes."""

    batch: int
    rows: int
    readmitted: int
    served_by: str
    auc: Estimate
    observed_expected: Estimate
    verdict: str
    action: str
    outcome: str
    reasons: tuple[str, ...]
    input_alarm: bool
    """Against the training data."""
    input_news: bool
    """Against the batch before."""
    quality: tuple[str, ...]
    """Columns whose recording changed."""
    version_after: str
    labelled_batches: int


@dataclass(frozen=True, slots=True)
class Detection:
    """When an injected change was seen, in batches after its begin: 0 in its first batch, None never."""

    scenarios: tuple[str, ...]
    kinds: tuple[str, ...]
    from_batch: int
    inputs: int | None
    """Until the inputs differ from the batch before."""
    quality: int | None
    verdict: int | None
    """Until the verdict is not steady."""
    action: int | None
    """Until a new version serves."""
    false_verdicts: int
    """Verdicts other than steady before the change."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """A whole simulation."""

    name: str
    policy: str
    delay: int
    synthetic: bool
    first_version: str
    moments: tuple[Moment, ...]
    detection: Detection | None
    retrainings: int
    """New versions in service that were trained anew."""
    recalibrations: int
    lost: int
    """Challengers that did not pass."""

    def to_json(self) -> dict[str, Any]:
        """A plain structure."""
        return asdict(self)


def moment(replay: Replay, number: int) -> Moment:
    """A batch that was settled."""
    batches = Batches(replay.settings)
    batch = batches.batch(number)
    settled = batches.settlement(batch.key)
    assert settled is not None
    decision = batches.decision(batch.key) or {}
    predictions = batches.predictions(batch)
    scores = np.array([predictions[one]["probability"] for one in batch.ids], dtype=np.float64)
    labels = target(replay.batch(number)).astype(np.float64)
    served = sorted({str(predictions[one]["model_version"]) for one in batch.ids})
    ratio, low, high, _ = observed_expected(labels, scores)
    findings = decision.get("findings") or {"inputs": {"alarm": False, "quality": []}, "rolling": None}
    return Moment(
        batch=number,
        rows=len(labels),
        readmitted=int(labels.sum()),
        served_by=", ".join(served),
        auc=Estimate(*auc_interval(labels, scores)),
        observed_expected=Estimate(ratio, low, high),
        verdict=settled["verdict"],
        action=settled["action"],
        outcome=settled["outcome"],
        reasons=tuple(decision["reasons"]),
        input_alarm=bool(findings["inputs"]["alarm"]),
        input_news=bool(findings["rolling"] and findings["rolling"]["alarm"]),
        quality=tuple(dict.fromkeys(one["column"] for one in findings["inputs"]["quality"])),
        version_after=settled["version_after"],
        labelled_batches=settled["labelled_batches"],
    )


def timeline(replay: Replay) -> Timeline:
    """All batches that were settled so far, and what came of them."""
    plan = replay.plan
    numbers = [int(one["batch"]) for one in Batches(replay.settings).settled()]
    moments = tuple(moment(replay, number) for number in numbers)
    changed = [one for one in moments if one.outcome == "deployed"]
    return Timeline(
        name=plan.name,
        policy=plan.policy,
        delay=plan.delay,
        synthetic=replay.synthetic,
        first_version=replay.first_version,
        moments=moments,
        detection=_detection(replay, moments) if plan.scenarios else None,
        retrainings=sum(one.action == Action.RETRAIN for one in changed),
        recalibrations=sum(one.action == Action.RECALIBRATE for one in changed),
        lost=sum(one.outcome == "lost" for one in moments),
    )


def _detection(replay: Replay, moments: Sequence[Moment]) -> Detection:
    start = replay.plan.from_batch
    known = set(moments[0].quality) if moments else set()
    for one in moments:
        if one.batch < start:
            known |= set(one.quality)

    def first(found: Sequence[bool]) -> int | None:
        return next(
            (one.batch - start for one, yes in zip(moments, found, strict=True) if yes and one.batch >= start), None
        )

    return Detection(
        scenarios=replay.plan.scenarios,
        kinds=tuple(truth.kind for truth in replay.truths) or ("none",),
        from_batch=start,
        inputs=first([one.input_news for one in moments]),
        quality=first([bool(set(one.quality) - known) for one in moments]),
        verdict=first([one.verdict != "steady" for one in moments]),
        action=first([one.outcome == "deployed" for one in moments]),
        false_verdicts=sum(one.verdict != "steady" for one in moments if one.batch < start),
    )


def publish(replay: Replay, found: Timeline) -> str:
    """Write the page and its figures (JSON) to storage and, as a file to open, to the home; the page's address."""
    from health_predict.adapters.storage import open_storage, whole_file

    page = timeline_page(found.to_json()).encode()
    storage = open_storage(replay.settings.storage, replay.settings.s3_endpoint_url)
    storage.write(f"simulations/{found.name}/timeline.json", json.dumps(found.to_json(), indent=1).encode())
    storage.write(f"simulations/{found.name}/timeline.html", page)
    file = replay.settings.home / "simulations" / found.name / "timeline.html"
    with whole_file(file) as temporary:
        temporary.write_bytes(page)
    return str(file)
