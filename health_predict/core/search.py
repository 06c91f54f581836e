"""The search over one family: which point is tried next, which trial is stopped early, and which one wins.

Optuna's tree-structured Parzen estimator (Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011)
proposes, and the rule of ASHA (Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020) stops. Both
learn from the trials that ended before, and in their usual form from whichever happened to end first: the winner
would then depend on the load of the machine. Here a family has a fixed concurrency c: trial i is drawn, and judged,
by trials 0 to i - c, all of which must have ended, and by no other. So the same seed gives the same trials and the
same winner on any number of cores, on a cluster, and after a search was killed and continued; and what a trial must
reach is known when it starts, so that its process asks nobody whether to go on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from health_predict.core.families import FAMILIES, Choice, Family, Range, draws

METRICS = ("auc", "average_precision", "f1", "brier")
# A trial is looked at after these shares of its rounds, and judged at some of them: it goes on when its AUC is not
# below the median there.
CURVE = tuple(share / 8 for share in range(1, 9))
RUNGS = (0.25, 0.5)
REDUCTION = 2
# Of a family's trials, the ones spread evenly over its space before the estimator takes over.
STARTUP = 6
CURVE_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Prepared:
    """What every trial sees: rows (n, d) float32 and labels (n,) int8 of both parts."""

    train_rows: npt.NDArray[np.float32]
    train_labels: npt.NDArray[np.int8]
    validation_rows: npt.NDArray[np.float32]
    validation_labels: npt.NDArray[np.int8]


def in_order_of_labels(data: Prepared) -> Prepared:
    """The same, its training rows in the order of their labels.

    scikit-learn's forest sorts all labels anew for every tree: a quarter of its time, unless they are sorted already.
    """
    order = np.argsort(data.train_labels, kind="stable")
    return replace(data, train_rows=data.train_rows[order], train_labels=data.train_labels[order])


@dataclass(frozen=True, slots=True)
class Point:
    """A trial that is to be done, and the AUC it must reach at each of the RUNGS (minus infinity: any)."""

    family: str
    index: int
    parameters: Mapping[str, Any]
    cutoffs: tuple[float, ...] = (-math.inf,) * len(RUNGS)


@dataclass(frozen=True, slots=True)
class Trial:
    """A point and how it did.

    `rungs` are its AUCs at the RUNGS that it reached; `stopped` when it ended there. `error` is empty unless it failed.
    `fitted` is a pickled Fitted, where the trial ran to its end here and is the best of its family so far.
    """

    family: str
    index: int
    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    seconds: float
    rungs: tuple[float, ...] = ()
    stopped: bool = False
    error: str = ""
    fitted: bytes = field(default=b"", repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Fitted:
    """An estimator that was fitted to its end, and (rounds, training AUC, validation AUC) on the way there."""

    estimator: Any
    curve: tuple[tuple[int, float, float], ...]


class FamilySearch:
    """Proposes a family's trials: take `next()` as long as it gives points, and give each trial to `end()`."""

    def __init__(
        self,
        family: Family,
        *,
        trials: int,
        concurrency: int,
        seed: int,
        recorded: Mapping[int, Trial] | None = None,
    ) -> None:
        """`trials` is the whole budget, of which `concurrency` may be under way at once.

        `recorded` trials, by index, are taken as they are instead of being proposed; their parameters may be text.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.family = family
        self.trials = trials
        self.begun = 0
        self.ended: dict[int, Trial] = {}
        self.concurrency = concurrency
        self._recorded = dict(recorded or {})
        self._asked: list[Any] = []  # Optuna's trials
        self._told = 0
        self._distributions = {name: _distribution(optuna, space) for name, space in family.space.items()}
        self._study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(STARTUP, trials)),
        )
        for point in draws(family, min(STARTUP, trials), seed):
            self._study.enqueue_trial(point)

    def next(self) -> Point | None:
        """The next point; None while a trial that it learns from is missing, and when the budget is spent."""
        while self.begun < self.trials:
            known = max(0, self.begun - self.concurrency + 1)
            if any(index not in self.ended for index in range(known)):
                return None
            for index in range(self._told, known):
                self._tell(self._asked[index], self.ended[index])
            self._told = known
            asked = self._study.ask(self._distributions)
            self._asked.append(asked)
            point = Point(self.family.name, self.begun, asked.params, self._cutoffs(known))
            self.begun += 1
            recorded = self._recorded.get(point.index)
            if recorded is None or _text(recorded.parameters) != _text(point.parameters):
                return point
            self.end(replace(recorded, parameters=point.parameters))
        return None

    def end(self, trial: Trial) -> None:
        """Take the result of a trial; of the models, only the best trial's is kept."""
        before = self.best()
        self.ended[trial.index] = trial
        best = self.best()
        for worse in (before, trial):
            if worse is not None and best is not None and worse.index != best.index:
                self.ended[worse.index] = replace(worse, fitted=b"")

    def best(self) -> Trial | None:
        """The winner: the largest AUC of the trials that ran to their end, ties to the earlier one."""
        whole = [trial for trial in self.ended.values() if not trial.error and not trial.stopped]
        return max(whole, key=lambda trial: (trial.metrics["auc"], -trial.index), default=None)

    def _cutoffs(self, known: int) -> tuple[float, ...]:
        found = []
        for rung in range(len(RUNGS)):
            reached = [self.ended[index].rungs[rung] for index in range(known) if len(self.ended[index].rungs) > rung]
            found.append(float(np.quantile(reached, 1 - 1 / REDUCTION)) if reached else -math.inf)
        return tuple(found)

    def _tell(self, asked: Any, trial: Trial) -> None:
        from optuna.trial import TrialState

        if trial.error:
            self._study.tell(asked, state=TrialState.FAIL)
            return
        for rung, auc in enumerate(trial.rungs):
            asked.report(auc, rung)
        if trial.stopped:
            self._study.tell(asked, state=TrialState.PRUNED)
        else:
            self._study.tell(asked, trial.metrics["auc"])


def _text(parameters: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in parameters.items()}


def _distribution(optuna: Any, space: Range | Choice) -> Any:
    if isinstance(space, Choice):
        return optuna.distributions.CategoricalDistribution(space.options)
    if space.integer:
        return optuna.distributions.IntDistribution(int(space.low), int(space.high), log=space.log)
    return optuna.distributions.FloatDistribution(space.low, space.high, log=space.log)


def run_trial(
    point: Point, data: Prepared, seed: int, threads: int
) -> tuple[dict[str, float], tuple[float, ...], Fitted | None]:
    """Fit one point on the training rows: its validation metrics, its AUCs at the RUNGS, and the model.

    The model is None when the trial was stopped at the last of these AUCs. The metrics are those at the threshold with
    the largest F1. The learning curve is of the validation rows and of some training rows. A winner learns from the
    training rows alone: the threshold and the gates of `register` need validation rows that it has not seen.
    """
    from health_predict.core.evaluation import auc, f1_threshold, metrics

    family = FAMILIES[point.family]
    judged = [family.rounds_at(point.parameters, share) for share in RUNGS]
    every = max(1, len(data.train_rows) // CURVE_ROWS)
    some_rows, some_labels = data.train_rows[::every], data.train_labels[::every]
    rungs: list[float] = []
    curve: list[tuple[int, float, float]] = []
    stopped = False
    scores = None

    def watch(rounds: int, score: Any) -> bool:
        nonlocal stopped, scores
        scores = score(data.validation_rows)
        found = auc(data.validation_labels, scores)
        curve.append((rounds, auc(some_labels, score(some_rows)), found))
        while not stopped and len(rungs) < len(judged) and rounds >= judged[len(rungs)]:
            stopped = found < point.cutoffs[len(rungs)]
            rungs.append(found)
        return stopped

    estimator = family.fit(
        point.parameters, data.train_rows, data.train_labels, seed=seed, threads=threads, shares=CURVE, watch=watch
    )
    # Those of the last look are the model's own.
    if scores is None or (not stopped and curve[-1][0] < family.rounds_at(point.parameters, 1)):
        scores = estimator.predict_proba(data.validation_rows)[:, 1]
    scores = scores.astype(float)
    found = metrics(data.validation_labels, scores, f1_threshold(data.validation_labels, scores))
    fitted = None if stopped else Fitted(estimator, tuple(curve))
    return {name: found[name] for name in METRICS}, tuple(rungs), fitted
