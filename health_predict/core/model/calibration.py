"""Logistic recalibration: a new map from the scores of a fitted classifier to probabilities.

    logit(q) = intercept + slope * logit(p)

Source: Cox 1958, doi:10.1093/biomet/45.3-4.562; as model updating in Steyerberg, Clinical Prediction Models, 2019,
chapter 20. The map is monotone, so that it never changes the order of two patients: what it mends is the level of the
risks and how far they are apart, not the ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin

from health_predict.core.statistics import logit
from health_predict.errors import GateError

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float32]
Fold = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]

FOLDS = 5
LEAST_SLOPE = 0.1  # below it, the map would give everybody nearly the same risk


class CalibratedClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A fitted binary classifier whose probabilities pass through the map; it is not fitted again itself.

    One that has a map is to be wrapped without it (`uncalibrated`): calibrated anew, not twice.
    """

    def __init__(self, estimator: Any, intercept: float = 0.0, slope: float = 1.0) -> None:
        self.estimator = estimator
        self.intercept = intercept
        self.slope = slope

    @property
    def classes_(self) -> npt.NDArray[Any]:
        """Those of the classifier inside."""
        classes: npt.NDArray[Any] = self.estimator.classes_
        return classes

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, rows: Any, labels: Any) -> Self:
        """The map of the largest likelihood on rows (n, d) with labels (n,) in {0, 1}.

        Raises GateError when the scores hold next to nothing about the labels: then no map helps.
        """
        self.intercept, self.slope = fit_map(self.estimator.predict_proba(rows)[:, 1], labels)
        return self

    def predict_proba(self, rows: Any) -> Floats:
        """Probabilities (n, 2) of the outcome's absence, and of the outcome."""
        log_odds = self.intercept + self.slope * logit(self.estimator.predict_proba(rows)[:, 1])
        positive = 1 / (1 + np.exp(-log_odds))
        return np.column_stack([1 - positive, positive])

    def predict(self, rows: Any) -> npt.NDArray[Any]:
        """The likelier class of each row (n,)."""
        chosen: npt.NDArray[Any] = self.classes_[(self.predict_proba(rows)[:, 1] >= 0.5).astype(int)]
        return chosen


def uncalibrated(estimator: Any) -> Any:
    """The classifier itself, without a map around it."""
    return estimator.estimator if isinstance(estimator, CalibratedClassifier) else estimator


def patient_folds(labels: npt.NDArray[np.int8], patients: npt.ArrayLike) -> list[Fold]:
    """`FOLDS` pairs of row numbers, to learn from and held back; no patient (n,) is in both, the labels (n,) are even.

    Raises ValueError for too few patients.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    return list(folds.split(labels, labels, np.asarray(patients)))


def out_of_fold_scores(
    fit: Callable[[Rows, npt.NDArray[np.int8]], Any], rows: Rows, labels: npt.NDArray[np.int8], folds: Sequence[Fold]
) -> Floats:
    """Probabilities (n,) of training rows (n, d), each by a model that learned from the other folds' rows only.

    `fit(rows, labels)` gives a fitted classifier; it is called once a fold.
    """
    scores = np.empty(len(labels), dtype=np.float64)
    for learned, held_back in folds:
        scores[held_back] = fit(rows[learned], labels[learned]).predict_proba(rows[held_back])[:, 1]
    return scores


def fit_map(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[float, float]:
    """Intercept and slope of the largest likelihood for scores (n,) in [0, 1] and labels (n,) in {0, 1}.

    Raises GateError when one label is absent or the slope is below `LEAST_SLOPE`.
    """
    from sklearn.linear_model import LogisticRegression

    outcomes = np.asarray(labels, dtype=np.int8)
    if len(np.unique(outcomes)) < 2:
        raise GateError("a calibration needs encounters with the outcome and without it", "wait for more outcomes")
    # Without a penalty; tol far below what a probability is printed with.
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit(scores)[:, None], outcomes)
    intercept, slope = float(model.intercept_[0]), float(model.coef_[0, 0])
    if not slope >= LEAST_SLOPE:
        raise GateError(
            f"the scores hold next to nothing about the outcomes (slope {slope:.2f}): no calibration helps",
            "retrain: `health-predict pipeline run readmission`",
        )
    return intercept, slope
