"""What the library knows of a model family, and the points of its space that a search begins with.

Estimators take the dense float32 matrix of `EncounterFeatures` and answer `predict_proba`. None weighs the classes:
scores stay probabilities, and the threshold does the deciding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

    from health_predict.core.model.contributions import Explainer
    from health_predict.core.model.features import EncounterFeatures


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
# Told the rounds done and the model so far; what it raises ends the fit there.
Watch = Callable[[int, Score], object]
# Fits an unfitted estimator and tells the watcher after each number of rounds in the sequence.
Watched = Callable[[Any, Rows, Labels, Sequence[int], Watch], Any]
# The ONNX model of a fitted estimator for rows (n, width): one input, and an output of probabilities (n, 2).
ToOnnx = Callable[[Any, int], Any]
# The contributions of a fitted estimator, given the fitted features and the encounters that it learned from.
Explain = Callable[[Any, "EncounterFeatures", "pd.DataFrame"], "Explainer"]


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of model.

    `build(parameters, seed, threads)` gives an unfitted estimator; `first` is tried before anything is drawn. A
    family that grows in rounds names the parameter that counts them in `rounds` and tells in `watched` how its fit
    is looked at on the way; one without reports once, at its end. A fit that is watched to its end gives the very
    model of one that is not.

    `to_onnx` is what the service scores with, `explain` what it explains with; both are checked against the estimator.
    `importance` says in words what the estimator's own weights of features are, where it states them (`coef_` or
    `feature_importances_`). `trusted_types` are the types that skops has to be told of to save and load an estimator,
    `libraries` the distributions that it needs beside NumPy, pandas and scikit-learn.
    """

    name: str
    space: Space
    first: Mapping[str, Any]
    build: Build
    to_onnx: ToOnnx
    explain: Explain
    trusted_types: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    rounds: str = ""
    watched: Watched | None = None
    importance: str = ""

    def parsed(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters with the types of the space: MLflow gives text, and KFP gives whole numbers as floats."""
        return {name: _parsed(self.space.get(name), value) for name, value in parameters.items()}

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
        exact = self.parsed(parameters)
        whole = {**self.fixed, **exact}
        estimator = self.build(whole, seed, threads)
        if watch is None or self.watched is None:
            return estimator.fit(rows, labels)
        at = sorted({self.rounds_at(exact, share) for share in shares})
        return self.watched(estimator, rows, labels, at, watch)


def _parsed(dimension: Range | Choice | None, value: Any) -> Any:
    if isinstance(dimension, Range):
        return int(float(value)) if dimension.integer else float(value)
    if isinstance(dimension, Choice):
        return next((option for option in dimension.options if str(option) == str(value)), value)
    return value


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
