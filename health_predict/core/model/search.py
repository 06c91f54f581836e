"""The search over one family: which point is tried next, which trial is stopped early, and which one wins.

Optuna's tree-structured Parzen estimator (Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011)
proposes, and the rule of ASHA (Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020) stops. Both
learn from the trials that ended before, and in their usual form from whichever happened to end first: the winner
would then depend on the load of the machine. Here a family has a fixed concurrency c: trial i is drawn, and judged,
by trials 0 to i - c, all of which must have ended, and by no other. So the same seed gives the same trials and the
same winner on any number of cores, on a cluster, and after a search was killed and continued; and what a trial must
reach is known when it starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from health_predict.core.model.families import FAMILIES, Choice, Family, Range, draws
from health_predict.core.model.families.family import Score

METRICS = ("auc", "average_precision", "f1", "brier")
# A trial is judged after these shares of its rounds: it goes on when its AUC is not below the median there.
RUNGS = (0.25, 0.5)
REDUCTION = 2
# Of a family's trials, the ones spread evenly over its space before the estimator takes over.
STARTUP = 6
# A winner's learning curve: after these shares of its rounds, and of so many training rows.
CURVE = tuple(share / 8 for share in range(1, 9))
CURVE_ROWS = 1000
# What a search's result depends on besides our own code and the libraries of its families.
LIBRARIES = ("scikit-learn", "numpy", "pandas", "scipy", "optuna")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What every trial sees: rows (n, d) float32 and labels (n,) int8 of both parts."""

    train_rows: npt.NDArray[np.float32]
    train_labels: npt.NDArray[np.int8]
    validation_rows: npt.NDArray[np.float32]
    validation_labels: npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Point:
    """A trial that is to be done, and the AUC it must reach at each of the RUNGS (minus infinity: any)."""

    family: str
    index: int
    parameters: Mapping[str, Any]
    cutoffs: tuple[float, ...] = (-math.inf,) * len(RUNGS)

    def falls_short(self, rungs: Sequence[float]) -> bool:
        """Whether a trial with these AUCs at the first RUNGS is to be stopped."""
        return any(auc < cutoff for auc, cutoff in zip(rungs, self.cutoffs, strict=False))


@dataclass(frozen=True, slots=True)
class TrialReport:
    """Validation metrics of a trial's model as it is now, and its AUCs at the RUNGS that it has passed."""

    metrics: Mapping[str, float]
    rungs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """A point and how it did; `stopped` when that was at one of the RUNGS. `error` is empty unless it failed."""

    family: str
    index: int
    parameters: Mapping[str, Any]
    metrics: Mapping[str, float]
    seconds: float
    rungs: tuple[float, ...] = ()
    stopped: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A winner's estimator, and (rounds, training AUC, validation AUC) on the way to it."""

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

        `recorded` trials, by index, are taken as they are instead of being proposed.
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
            if recorded is None or recorded.parameters != point.parameters:
                return point
            self.end(recorded)
        return None

    def end(self, trial: Trial) -> None:
        """Take the result of a trial."""
        self.ended[trial.index] = trial

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


def _distribution(optuna: Any, space: Range | Choice) -> Any:
    if isinstance(space, Choice):
        return optuna.distributions.CategoricalDistribution(space.options)
    if space.integer:
        return optuna.distributions.IntDistribution(int(space.low), int(space.high), log=space.log)
    return optuna.distributions.FloatDistribution(space.low, space.high, log=space.log)


def winner(trials: Iterable[Trial]) -> Trial | None:
    """The largest AUC of a family's trials that ran to their end, ties to the earlier one."""
    whole = [trial for trial in trials if not trial.error and not trial.stopped]
    return max(whole, key=lambda trial: (trial.metrics["auc"], -trial.index), default=None)


def libraries() -> dict[str, str]:
    """Versions of the libraries that a search's result depends on, in this process."""
    ours = {name for family in FAMILIES.values() for name in family.libraries}
    return {name: version(name) for name in (*LIBRARIES, *sorted(ours))}


def run_trial(point: Point, data: Prepared, seed: int, threads: int, report: Callable[[TrialReport], object]) -> None:
    """Fit one point on the training rows, and report how it does at each of the RUNGS and at its end.

    The metrics are those at the threshold with the largest F1. What `report` raises ends the trial.
    """
    from health_predict.core.model.evaluation import f1_threshold, metrics

    family = FAMILIES[point.family]
    rungs: list[float] = []

    def tell(scores: npt.NDArray[Any], *, rung: bool) -> None:
        exact = scores.astype(float)
        found = metrics(data.validation_labels, exact, f1_threshold(data.validation_labels, exact))
        if rung:
            rungs.append(found["auc"])
        report(TrialReport({name: found[name] for name in METRICS}, tuple(rungs)))

    def watch(rounds: int, score: Score) -> None:
        tell(score(data.validation_rows), rung=True)

    estimator = family.fit(
        point.parameters, data.train_rows, data.train_labels, seed=seed, threads=threads, shares=RUNGS, watch=watch
    )
    tell(estimator.predict_proba(data.validation_rows)[:, 1], rung=False)


def fit_winner(best: Trial, data: Prepared, seed: int, threads: int) -> Fitted:
    """The model of a trial, with its learning curve on the validation rows and on some training rows.

    It learns from the training rows alone: the threshold and the gates of `register` need validation rows that it has
    not seen.
    """
    from sklearn.metrics import roc_auc_score

    family = FAMILIES[best.family]
    every = max(1, len(data.train_rows) // CURVE_ROWS)
    some_rows, some_labels = data.train_rows[::every], data.train_labels[::every]
    curve: list[tuple[int, float, float]] = []

    def watch(rounds: int, score: Score) -> None:
        training = float(roc_auc_score(some_labels, score(some_rows)))
        validation = float(roc_auc_score(data.validation_labels, score(data.validation_rows)))
        curve.append((rounds, training, validation))

    estimator = family.fit(
        best.parameters, data.train_rows, data.train_labels, seed=seed, threads=threads, shares=CURVE, watch=watch
    )
    return Fitted(estimator, tuple(curve))
