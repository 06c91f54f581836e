"""A calibrated model is right where the old one was off, ranks as before, and is served as any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import Pipeline

from health_predict.adapters.tracking import Tracking
from health_predict.core.data.cohort import target
from health_predict.core.model.calibration import (
    FOLDS,
    CalibratedClassifier,
    fit_map,
    logit,
    out_of_fold_scores,
    patient_folds,
    uncalibrated,
)
from health_predict.core.model.contributions import Explainer, owners_of
from health_predict.core.model.families import FAMILIES
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.serving.compiled_model import compile_pipeline, prove_parity
from health_predict.core.serving.explained_model import explain_pipeline, scores
from health_predict.errors import GateError
from health_predict.settings import Settings
from tests.contracts import DIABETES


def test_the_map_that_made_the_outcomes_is_found() -> None:
    # given outcomes drawn from scores that are off by a known map
    rng = np.random.default_rng(0)
    scores = rng.beta(2, 10, 200_000)
    truth = 1 / (1 + np.exp(-(0.4 + 0.7 * logit(scores))))
    # then the map is found, within its standard error
    intercept, slope = fit_map(scores, rng.random(len(scores)) < truth)
    assert (intercept, slope) == (pytest.approx(0.4, abs=0.03), pytest.approx(0.7, abs=0.02))


def test_scores_without_meaning_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(GateError, match="no calibration helps"):
        fit_map(rng.random(5000), rng.random(5000) < 0.1)
    with pytest.raises(GateError, match="with the outcome and without it"):
        fit_map([0.1, 0.2], [0, 0])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_calibrated_compiled_explained_and_saved(
    family: str, cohort: pd.DataFrame, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    # given a model of the first rows, and later rows with half of the readmissions gone
    train, later = cohort.head(1800), cohort.iloc[1800:].reset_index(drop=True)
    features = EncounterFeatures(DIABETES, minimum_rows=30).fit(train)
    few = {"n_estimators": 30} if "n_estimators" in {**FAMILIES[family].fixed, **FAMILIES[family].first} else {}
    estimator = FAMILIES[family].fit(
        {**FAMILIES[family].first, **few}, features.transform(train), target(train, DIABETES), seed=1
    )
    labels = target(later, DIABETES) * (np.arange(len(later)) % 2)
    rows = features.transform(later)
    # when it is calibrated, twice
    once = CalibratedClassifier(estimator).fit(rows, labels)
    twice = CalibratedClassifier(uncalibrated(once)).fit(rows, labels)
    # then the second map replaces the first, the level is right and the order is kept
    assert uncalibrated(twice) is estimator
    assert (twice.intercept, twice.slope) == pytest.approx((once.intercept, once.slope))
    before, after = estimator.predict_proba(rows)[:, 1], once.predict_proba(rows)[:, 1]
    assert after.sum() == pytest.approx(labels.sum(), rel=1e-3)
    assert (np.diff(after[np.argsort(before, kind="stable")]) >= 0).all()
    # and it compiles within the tolerance of parity
    pipeline = Pipeline([("features", features), ("estimator", once)])
    assert prove_parity(compile_pipeline(pipeline, FAMILIES[family], 0.1), pipeline, later).largest_difference <= 1e-6
    # and its contributions, written and read again, add up to its scores
    explainer = Explainer.from_bytes(explain_pipeline(pipeline, FAMILIES[family], train).to_bytes())
    tables = {table.column: table for table in features.encoder_.tables}
    for number, expected in enumerate(scores(pipeline, rows[:5], explainer.unit)):
        amounts = [tables[column.name].of(str(later[column.name].iloc[number])) for column in DIABETES.features]
        total = explainer.base + explainer.by_column(amounts, owners_of(features.encoder_)).sum()
        assert total == pytest.approx(expected, abs=1e-4)
    # and MLflow keeps it, and loads it as a type that it may trust
    if family in ("LogisticRegression", "XGBoost"):  # a store costs a second
        tracking = Tracking(make_settings(home=tmp_path / "home"))
        run = tracking.log_best(tracking.start_search("s", {}, {}), family, pipeline, {}, {}, {}, {})
        assert tracking.load_run_pipeline(run).predict_proba(later)[:, 1] == pytest.approx(after)


def test_no_patient_is_scored_by_a_model_that_learned_from_them() -> None:
    # given patients with several encounters, and a classifier that remembers whom it has seen
    random = np.random.default_rng(2)
    patients = random.integers(0, 150, 600)
    labels = (random.random(600) < 0.2).astype(np.int8)
    rows = patients.astype(np.float32)[:, None]

    class Remembering:
        def __init__(self, seen: set[float]) -> None:
            self.seen = seen

        def predict_proba(self, asked: np.ndarray) -> np.ndarray:
            known = np.array([row in self.seen for row in asked[:, 0].tolist()], dtype=float)
            return np.column_stack([1 - known, known])

    fits: list[int] = []

    def fit(learned: np.ndarray, outcomes: np.ndarray) -> Remembering:
        fits.append(len(outcomes))
        return Remembering(set(learned[:, 0].tolist()))

    # when each row is scored out of fold
    scores = out_of_fold_scores(fit, rows, labels, patient_folds(labels, patients))
    # then by a model that never saw its patient, and every row once
    assert (scores == 0).all()
    assert sum(fits) == (FOLDS - 1) * 600


def test_out_of_fold_scores_show_what_training_scores_hide() -> None:
    # given a model that fits its training rows too closely
    from sklearn.ensemble import RandomForestClassifier

    random = np.random.default_rng(3)
    rows = random.random((2000, 8)).astype(np.float32)
    labels = (random.random(2000) < 0.05 + 0.3 * rows[:, 0]).astype(np.int8)

    def fit(learned: np.ndarray, outcomes: np.ndarray) -> object:
        return RandomForestClassifier(30, min_samples_leaf=3, random_state=0).fit(learned, outcomes)

    model = fit(rows, labels)
    # then its training scores ask for risks further apart, those out of fold for risks closer together
    _, hidden = fit_map(model.predict_proba(rows)[:, 1], labels)  # type: ignore[attr-defined]
    _, shown = fit_map(out_of_fold_scores(fit, rows, labels, patient_folds(labels, np.arange(2000))), labels)
    assert hidden > 1.5
    assert shown < 1
