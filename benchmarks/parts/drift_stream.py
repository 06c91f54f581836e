"""The real stream: a model for each number of labelled batches, and every policy replayed on their scores.

A model of fixed configuration is fitted as the `split` stage would have it (the patients of the train part, all
batches known by then) and scores every row. Then any policy is a walk through this matrix. A retrained model is
judged against the champion on validation patients, as `register` does; a recalibration is a line on the log-odds
fitted on the newest batch.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.parts.cohorts import DIABETES, PATIENT
from health_predict.adapters.contracts import built_in
from health_predict.core.choices import Policy
from health_predict.core.data.cohort import target
from health_predict.core.data.partition import Parameters, partition, places
from health_predict.core.model.calibration import fit_map
from health_predict.core.model.evaluation import paired_difference
from health_predict.core.model.families import FAMILIES
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.monitoring.drift import DriftFindings, DriftReference, Verdict, assess
from health_predict.core.monitoring.performance import LabelledWindow
from health_predict.core.monitoring.policy import Action, PolicyState, Settlement, after, decide
from health_predict.core.monitoring.refit import LabelledRows
from health_predict.core.promotion import CHAMPION_MARGIN
from health_predict.core.statistics import delong

Floats = npt.NDArray[np.float64]

FAMILY = "LightGBM"
SALT = "readmission"
BATCHES = 16
INITIAL_SHARE = 0.2
TRAIN, VALIDATION, _ = range(3)


@dataclass(frozen=True)
class Stream:
    """A cohort (n rows) in order of time: batch (-1: initial), part and outcome of each row; scores by model (n,).

    Model `t` knows the initial data and batches 0 to t - 1.
    """

    frame: pd.DataFrame
    batch: npt.NDArray[np.int64]
    part: npt.NDArray[np.int64]
    outcomes: Floats
    scores: tuple[Floats, ...]

    def rows(self, batch: int) -> npt.NDArray[np.int64]:
        """Positions of a batch's rows."""
        return np.flatnonzero(self.batch == batch)


def build(frame: pd.DataFrame, models: Sequence[int] = range(BATCHES)) -> Stream:
    """Fit and score; one process a core. Models that were not asked for have no scores (shape (0,))."""
    cut = partition(frame, built_in(), Parameters(INITIAL_SHARE, BATCHES, SALT))
    pieces = [cut.train, cut.validation, cut.test, *cut.batches]
    rows = pd.concat(pieces, ignore_index=True)
    batch = np.repeat([-1, -1, -1, *range(BATCHES)], [len(piece) for piece in pieces])
    part = places(SALT, rows[PATIENT])
    global _SHARED  # handed to the workers by fork, which copies nothing
    _SHARED = (rows, batch, part)
    order = sorted(models, reverse=True)  # the slow ones first
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("fork")) as pool:
        scores = dict(zip(order, pool.map(_scores, order), strict=True))
    empty = np.zeros(0)
    return Stream(
        rows,
        batch,
        part,
        target(rows, DIABETES).astype(np.float64),
        tuple(scores.get(model, empty) for model in range(max(order) + 1)),
    )


_SHARED: tuple[pd.DataFrame, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None


def _scores(model: int) -> Floats:
    assert _SHARED is not None
    rows, batch, part = _SHARED
    train = rows[(batch < model) & (part == TRAIN)].reset_index(drop=True)
    features = EncounterFeatures(built_in()).fit(train)
    family = FAMILIES[FAMILY]
    fitted = family.fit(family.first, features.transform(train), target(train, DIABETES), seed=0, threads=1)
    return np.asarray(fitted.predict_proba(features.transform(rows))[:, 1], dtype=np.float64)


@dataclass(frozen=True)
class Replay:
    """What a policy did and what came of it; `scores` of each batch as they were served."""

    actions: tuple[Action, ...]
    lost: tuple[int, ...]  # batches after which a challenger lost
    findings: tuple[DriftFindings | None, ...]
    scores: tuple[Floats, ...]

    @property
    def retrainings(self) -> int:
        """Trainings begun, whether or not their model was deployed."""
        return sum(action is Action.RETRAIN for action in self.actions)


@dataclass
class _Version:
    """A model version in service: which model, and the line of its recalibration."""

    model: int
    line: tuple[float, float]
    windows: list[LabelledWindow]

    def scores(self, stream: Stream, rows: npt.NDArray[np.int64]) -> Floats:
        return _on_line(stream.scores[self.model][rows], self.line)


def replay(
    stream: Stream, policy: Policy, *, interval: int = 4, delay: int = 0, batches: int = BATCHES, draws: int = 400
) -> Replay:
    """Walk a policy through the stream. Outcomes of a batch are known `delay` batches after it."""
    version = _Version(0, (0.0, 1.0), [])
    reference: DriftReference | None = None
    state = PolicyState()
    actions, lost, served = [], [], []
    found: list[DriftFindings | None] = []
    for batch in range(batches):
        served.append(version.scores(stream, stream.rows(batch)))
        known = batch - delay  # the newest batch whose outcomes are known
        findings = None
        if policy is Policy.DRIFT and known >= version.model:
            reference = reference or _reference(stream, version, draws)
            findings = _assess(stream, version, reference, known)
            if findings.window is not None:
                version.windows.append(findings.window)
        found.append(findings)
        verdict = findings.verdict if findings else Verdict.STEADY
        mendable = bool(findings and findings.calibration and findings.calibration.mendable)
        action, _ = decide(policy, state, batch, verdict=verdict, miscalibrated=mendable, interval=interval)
        if action is Action.RETRAIN and (known < 0 or batch == batches - 1):
            action = Action.NONE  # nothing new is known, or nobody would be scored by it
        actions.append(action)
        outcome = Settlement.DEPLOYED
        if action is Action.RECALIBRATE:
            rows = stream.rows(known)
            line = fit_map(stream.scores[version.model][rows], stream.outcomes[rows])
            version = _Version(version.model, line, [])
            reference = None
        elif action is Action.RETRAIN:
            challenger = _Version(known + 1, (0.0, 1.0), [])
            if _wins(stream, version, challenger):
                version, reference = challenger, None
            else:
                outcome = Settlement.LOST
                lost.append(batch)
        state = after(state, action, outcome, batch)
    return Replay(tuple(actions), tuple(lost), tuple(found), tuple(served))


def _reference(stream: Stream, version: _Version, draws: int) -> DriftReference:
    labelled = stream.batch < version.model
    validation = np.flatnonzero(labelled & (stream.part == VALIDATION))
    train = stream.frame[labelled & (stream.part == TRAIN)]
    scores = version.scores(stream, validation)
    return DriftReference.fit(train, built_in(), stream.outcomes[validation], scores, draws=draws)


def _assess(stream: Stream, version: _Version, reference: DriftReference, batch: int) -> DriftFindings:
    parts = [
        LabelledRows(stream.frame.iloc[rows], version.scores(stream, rows), stream.outcomes[rows])
        for rows in map(stream.rows, range(version.model, batch + 1))
    ]
    *earlier, newest = parts
    return assess(
        reference, newest.frame, newest.probabilities, newest.outcomes, history=version.windows, earlier=earlier
    )


def _wins(stream: Stream, champion: _Version, challenger: _Version) -> bool:
    """The gate of `register` on the validation rows that the challenger's training left out."""
    rows = np.flatnonzero((stream.batch < challenger.model) & (stream.part == VALIDATION))
    difference = paired_difference(
        stream.outcomes[rows].astype(np.int8),
        challenger.scores(stream, rows),
        champion.scores(stream, rows),
        stream.frame[PATIENT].iloc[rows],
        resamples=200,
    )
    return difference.high >= 0 and difference.value >= -CHAMPION_MARGIN


def _on_line(scores: Floats, line: tuple[float, float]) -> Floats:
    if line == (0.0, 1.0):
        return scores
    clipped = np.clip(scores, 1e-6, 1 - 1e-6)
    result: Floats = 1 / (1 + np.exp(-(line[0] + line[1] * np.log(clipped / (1 - clipped)))))
    return result


def walk(stream: Stream, retrained_after: Iterable[int], batches: int = BATCHES) -> list[Floats]:
    """Scores as served when the model is retrained after given batches and every challenger wins."""
    chosen, model, served = set(retrained_after), 0, []
    for batch in range(batches):
        served.append(stream.scores[model][stream.rows(batch)])
        model = batch + 1 if batch in chosen else model
    return served


def mean_auc(stream: Stream, served: Sequence[Floats]) -> float:
    """Prequential AUC: the mean over the batches."""
    return float(np.mean([delong(stream.outcomes[stream.rows(i)], scores)[0] for i, scores in enumerate(served)]))


def best_in_hindsight(stream: Stream, retrainings: int, batches: int = BATCHES) -> tuple[int, ...]:
    """The retraining times that nobody could know: the best of all sets of that size."""
    auc = np.full((batches, batches), np.nan)
    for model, batch in itertools.combinations_with_replacement(range(batches), 2):
        rows = stream.rows(batch)
        auc[model, batch] = delong(stream.outcomes[rows], stream.scores[model][rows])[0]

    def total(chosen: tuple[int, ...]) -> float:
        bounds = [0, *(batch + 1 for batch in chosen), batches]
        return float(sum(auc[start, start:end].sum() for start, end in itertools.pairwise(bounds)))

    return max(itertools.combinations(range(batches - 1), retrainings), key=total)
