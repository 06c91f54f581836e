"""shadow: before a candidate takes the traffic, it scores the newest encounters beside the version that serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from health_predict.adapters.data.arrivals import Arrivals
from health_predict.adapters.serving.endpoint import Endpoint
from health_predict.core.data.cohort import as_requests
from health_predict.core.data.outcomes import PREDICTION_ID
from health_predict.core.model.changed_decisions import Changed, changed_decisions
from health_predict.core.model.evaluation import subgroup_levels
from health_predict.errors import GateError, HealthPredictError
from health_predict.settings import Settings

EXAMPLES = 10
PORTION = 1000  # encounters in a request


@dataclass(frozen=True, slots=True)
class Example:
    """An encounter whose decision changes: by its prediction id, without any value of the patient."""

    prediction_id: str
    groups: tuple[str, ...]
    probability_before: float
    probability_after: float
    flagged: bool
    """By the candidate."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """What the candidate would change: on all encounters first, then by subgroup; and the largest changes."""

    changes: tuple[Changed, ...]
    examples: tuple[Example, ...]

    def __str__(self) -> str:
        whole = self.changes[0]
        return (
            f"{whole.newly_flagged + whole.no_longer_flagged} of {whole.rows} decisions change ({whole.share:.1%}): "
            f"{whole.newly_flagged} newly flagged, {whole.no_longer_flagged} no longer"
        )


def shadow(settings: Settings, serving: str, candidate: str) -> Shadow | str:
    """Have both versions, by their URLs, score the newest encounters of the stream; or why there is nothing to say.

    Neither answer is logged. Raises GateError when the candidate does not answer.
    """
    arrivals = Arrivals(settings)
    frame = arrivals.newest(settings.shadow_rows)
    if frame.empty:
        return "there are no encounters to score"
    bodies = as_requests(frame, arrivals.contract.features)
    portion = min(PORTION, settings.serving_batch_rows)
    try:
        before = _answers(settings, serving, bodies, portion)
    except HealthPredictError as error:  # a rollout may be what mends it
        return f"what serves gave no answer: {error.problem}"
    try:
        after = _answers(settings, candidate, bodies, portion)
    except HealthPredictError as error:
        raise GateError(
            f"the candidate does not score encounters that arrived: {error.problem}",
            "HEALTH_PREDICT_SHADOW_ROWS=0 rolls it out without asking it",
        ) from error
    groups = subgroup_levels(frame, arrivals.contract)
    flags = [np.array([answer["prediction"] == 1 for answer in answers]) for answers in (before, after)]
    scores = [np.array([answer["probability_score"] for answer in answers]) for answers in (before, after)]
    changed = np.flatnonzero(flags[0] != flags[1])
    largest = changed[np.argsort(-np.abs(scores[1] - scores[0])[changed], kind="stable")][:EXAMPLES]
    examples = tuple(
        Example(
            prediction_id=str(frame[PREDICTION_ID].iloc[row]),
            groups=tuple(f"{attribute}: {level}" for (attribute, level), mask in groups.items() if mask[row]),
            probability_before=float(scores[0][row]),
            probability_after=float(scores[1][row]),
            flagged=bool(flags[1][row]),
        )
        for row in largest.tolist()
    )
    return Shadow(changed_decisions(flags[0], flags[1], groups), examples)


def _answers(settings: Settings, url: str, bodies: Sequence[dict[str, Any]], portion: int) -> list[dict[str, Any]]:
    with Endpoint(url, settings) as endpoint:
        return [answer for some in endpoint.predict(bodies, portion, log=False) for answer in some]
