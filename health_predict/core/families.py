"""Model families and their search spaces: one entry here is all that a new family needs.

A family says what is searched, what is fixed, how its estimator is built, and how its fit is watched while it goes
on; `docs/extend.md` shows an example. Estimators take the dense float32 matrix of `EncounterFeatures` and answer
`predict_proba`. None weighs the classes: scores stay probabilities, and the threshold does the deciding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from health_predict.core.errors import SettingsError
from health_predict.core.sparse_xgboost import SparseXGBoost

BASELINE = "LogisticRegression"


@dataclass(frozen=True, slots=True)
class Range:
    """Values from `low` to `high`, both included; drawn on a log scale when `log`."""

    low: float
    high: float
    log: bool = False
    integer: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values."""

    options: tuple[Any, ...]


Rows = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int8]
Space = Mapping[str, Range | Choice]
Build = Callable[[Mapping[str, Any], int, int], Any]
# Probabilities (n,) of the model as it is now, for rows (n, d).
Score = Callable[[Rows], npt.NDArray[Any]]
# Told the rounds done and the model so far; True ends the fit there.
Watch = Callable[[int, Score], bool]
# Fits an unfitted estimator and tells the watcher after each number of rounds in the sequence.
Watched = Callable[[Any, Rows, Labels, Sequence[int], Watch], Any]


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of model.

    `build(parameters, seed, threads)` gives an unfitted estimator; `first` is tried before anything is drawn. A
    family that grows in rounds names the parameter that counts them in `rounds` and tells in `watched` how its fit
    is looked at on the way; one without reports once, at its end. A fit that is watched to its end gives the very
    model of one that is not.
    """

    name: str
    space: Space
    first: Mapping[str, Any]
    build: Build
    fixed: Mapping[str, Any] = field(default_factory=dict)
    rounds: str = ""
    watched: Watched | None = None

    def rounds_at(self, parameters: Mapping[str, Any], share: float) -> int:
        """After how many rounds a fit with these parameters has done a share of them; 0 for a family without."""
        whole = {**self.fixed, **parameters}.get(self.rounds, 0)
        return max(1, round(share * int(whole))) if whole else 0

    def fit(
        self,
        parameters: Mapping[str, Any],
        rows: Rows,
        labels: Labels,
        *,
        seed: int,
        threads: int = 1,
        shares: Sequence[float] = (),
        watch: Watch | None = None,
    ) -> Any:
        """A fitted estimator; rows (n, d), labels (n,).

        `watch` is told of the model after each of these shares (between 0 and 1) of its rounds.
        """
        # Search libraries hand whole numbers back as floats.
        exact = {
            name: int(value) if isinstance(self.space.get(name), Range) and self.space[name].integer else value  # type: ignore[union-attr]
            for name, value in parameters.items()
        }
        whole = {**self.fixed, **exact}
        estimator = self.build(whole, seed, threads)
        if watch is None or self.watched is None:
            return estimator.fit(rows, labels)
        at = sorted({self.rounds_at(exact, share) for share in shares})
        return self.watched(estimator, rows, labels, at, watch)


class StandardizedLogisticRegression:
    """Fits on standardised positions and folds the scales into the coefficients.

    The result is scikit-learn's own LogisticRegression on the raw positions: one matrix product to serve and to
    explain. Folding happens in float64.
    """

    def __init__(self, **parameters: Any) -> None:
        self.parameters = parameters

    def fit(self, rows: npt.NDArray[np.float32], labels: npt.NDArray[np.int8]) -> Any:
        """scikit-learn's LogisticRegression; rows (n, d), labels (n,)."""
        from sklearn.linear_model import LogisticRegression

        mean, scale = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
        scale[scale == 0] = 1.0
        model = LogisticRegression(**self.parameters).fit((rows - mean) / scale, labels)
        model.coef_ = model.coef_ / scale
        model.intercept_ = model.intercept_ - model.coef_ @ mean
        return model


def _logistic_regression(parameters: Mapping[str, Any], seed: int, threads: int) -> Any:
    return StandardizedLogisticRegression(max_iter=1000, random_state=seed, **parameters)


def _random_forest(parameters: Mapping[str, Any], seed: int, threads: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(random_state=seed, n_jobs=threads, **parameters)


def _xgboost(parameters: Mapping[str, Any], seed: int, threads: int) -> Any:
    return SparseXGBoost(random_state=seed, n_jobs=threads, **parameters)


def _lightgbm(parameters: Mapping[str, Any], seed: int, threads: int) -> Any:
    from lightgbm import LGBMClassifier

    return LGBMClassifier(random_state=seed, n_jobs=threads, **parameters)


def _positive(estimator: Any) -> Score:
    return lambda matrix: estimator.predict_proba(matrix)[:, 1]


def _positive_by_trees(forest: Any) -> Score:
    """A forest's answer as `_positive` gives it; a tree that answered for a matrix before is not asked again."""
    answered: dict[int, tuple[Rows, int, Any]] = {}  # holds the matrix, so that its id stays its own

    def score(matrix: Rows) -> npt.NDArray[Any]:
        _, done, total = answered.get(id(matrix), (matrix, 0, 0.0))
        for tree in forest.estimators_[done:]:
            total = total + tree.predict_proba(matrix, check_input=False)[:, 1]
        answered[id(matrix)] = matrix, len(forest.estimators_), total
        return np.asarray(total / len(forest.estimators_))

    return score


def warm_start(rounds: str, scorer: Callable[[Any], Score] = _positive) -> Watched:
    """Watches a scikit-learn ensemble by fitting it on from one number of rounds to the next."""

    def watched(estimator: Any, rows: Rows, labels: Labels, at: Sequence[int], watch: Watch) -> Any:
        whole = estimator.get_params()[rounds]
        score = scorer(estimator)
        estimator.set_params(warm_start=True)
        for done in at:
            estimator.set_params(**{rounds: done}).fit(rows, labels)
            if watch(done, score) or done == whole:
                break
        else:
            estimator.set_params(**{rounds: whole}).fit(rows, labels)
        return estimator.set_params(warm_start=False)

    return watched


def _watched_lightgbm(estimator: Any, rows: Rows, labels: Labels, at: Sequence[int], watch: Watch) -> Any:
    from lightgbm.callback import EarlyStopException

    def watcher(state: Any) -> None:
        def score(matrix: Rows) -> npt.NDArray[Any]:
            # A booster would take every core.
            return np.asarray(state.model.predict(matrix, num_threads=estimator.n_jobs))

        done = state.iteration + 1
        if done in at and watch(done, score):
            raise EarlyStopException(state.iteration, [])

    return estimator.fit(rows, labels, callbacks=[watcher])


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            BASELINE,
            space={"C": Range(3e-5, 3e-2, log=True)},
            first={"C": 3e-4},
            build=_logistic_regression,
        ),
        Family(
            "RandomForest",
            space={
                "min_samples_leaf": Range(5, 40, log=True, integer=True),
                "max_features": Choice(("log2", "sqrt")),
                "max_samples": Range(0.2, 0.6),
                "max_depth": Range(8, 24, integer=True),
            },
            first={"min_samples_leaf": 10, "max_features": "log2", "max_samples": 0.4, "max_depth": 24},
            build=_random_forest,
            fixed={"n_estimators": 200},
            rounds="n_estimators",
            watched=warm_start("n_estimators", _positive_by_trees),
        ),
        Family(
            "XGBoost",
            space={
                "n_estimators": Range(100, 500, integer=True),
                "max_depth": Range(2, 6, integer=True),
                "learning_rate": Range(0.01, 0.1, log=True),
                "min_child_weight": Range(1, 30, log=True),
                "colsample_bytree": Range(0.2, 0.8),
                "reg_lambda": Range(1, 30, log=True),
            },
            first={
                "n_estimators": 400,
                "max_depth": 3,
                "learning_rate": 0.03,
                "min_child_weight": 10,
                "colsample_bytree": 0.3,
                "reg_lambda": 10,
            },
            build=_xgboost,
            fixed={"subsample": 0.8, "tree_method": "hist", "objective": "binary:logistic"},
            rounds="n_estimators",
            watched=SparseXGBoost.fit,
        ),
        Family(
            "LightGBM",
            space={
                "n_estimators": Range(100, 500, integer=True),
                "num_leaves": Range(4, 32, log=True, integer=True),
                "learning_rate": Range(0.01, 0.1, log=True),
                "min_child_samples": Range(10, 100, log=True, integer=True),
                "colsample_bytree": Range(0.2, 0.8),
                "reg_lambda": Range(1, 30, log=True),
            },
            first={
                "n_estimators": 300,
                "num_leaves": 8,
                "learning_rate": 0.03,
                "min_child_samples": 40,
                "colsample_bytree": 0.3,
                "reg_lambda": 10,
            },
            build=_lightgbm,
            fixed={"subsample": 0.8, "subsample_freq": 1, "verbose": -1, "deterministic": True, "force_row_wise": True},
            rounds="n_estimators",
            watched=_watched_lightgbm,
        ),
    )
}


def choose(names: tuple[str, ...]) -> tuple[Family, ...]:
    """The families of these names, all when there are none. Raises SettingsError for an unknown name."""
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise SettingsError(f"unknown model family {', '.join(unknown)}", f"choose from {', '.join(FAMILIES)}")
    return tuple(FAMILIES[name] for name in names or FAMILIES)


def draws(family: Family, trials: int, seed: int) -> list[dict[str, Any]]:
    """`trials` points of a family's space: `first`, then a scrambled Sobol sequence.

    They do not depend on the order in which trials end, so a search gives the same winner every time. Source:
    Owen, Scrambling Sobol' and Niederreiter-Xing points, 1998.
    """
    from scipy.stats import qmc

    names = list(family.space)
    points = [dict(family.first)]
    if trials > 1:
        # A Sobol sequence is balanced in powers of two.
        unit = qmc.Sobol(len(names), seed=seed).random_base2(max(1, math.ceil(math.log2(trials - 1))))
        points += [
            {name: _at(family.space[name], float(u)) for name, u in zip(names, row, strict=True)}
            for row in unit[: trials - 1]
        ]
    return points


def _at(dimension: Range | Choice, u: float) -> Any:
    if isinstance(dimension, Choice):
        return dimension.options[min(int(u * len(dimension.options)), len(dimension.options) - 1)]
    low, high = dimension.low, dimension.high
    if dimension.integer:
        # Half a step on each side, so that both ends are as likely as the rest.
        low, high = low - 0.5 + 1e-9, high + 0.5 - 1e-9
    value = math.exp(math.log(low) + u * math.log(high / low)) if dimension.log else low + u * (high - low)
    if dimension.integer:
        return int(min(max(round(value), dimension.low), dimension.high))
    return float(f"{value:.6g}")
