"""Which trials a search makes, which it stops, and which one wins."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from health_predict.core import evaluation
from health_predict.core.evaluation import f1_threshold
from health_predict.core.families import FAMILIES, draws
from health_predict.core.search import (
    METRICS,
    RUNGS,
    FamilySearch,
    Point,
    Prepared,
    Trial,
    in_order_of_labels,
    run_trial,
)


def fitted(point: Point) -> Trial:
    """What a trial would give: best near a learning rate of .05."""
    auc = 0.7 - abs(point.parameters["learning_rate"] - 0.05)
    rungs: list[float] = []
    for cutoff in point.cutoffs:
        rungs.append(auc - 0.05)
        if rungs[-1] < cutoff:
            return Trial(point.family, point.index, point.parameters, {"auc": auc}, 1.0, tuple(rungs), True)
    return Trial(point.family, point.index, point.parameters, {"auc": auc}, 1.0, tuple(rungs))


def searched(
    chance: random.Random, *, trials: int = 20, concurrency: int = 4, broken: Sequence[int] = (), **values: Any
) -> FamilySearch:
    """A search whose trials end in any order."""
    search = FamilySearch(FAMILIES["XGBoost"], trials=trials, concurrency=concurrency, seed=3, **values)
    running: list[Point] = []
    while True:
        while (point := search.next()) is not None:
            running.append(point)
        assert len(running) <= concurrency
        if not running:
            break
        point = running.pop(chance.randrange(len(running)))
        failed = Trial(point.family, point.index, point.parameters, {}, 0.0, error="no luck")
        search.end(failed if point.index in broken else fitted(point))
    assert len(search.ended) == trials
    return search


def test_the_winner_does_not_depend_on_which_trial_ends_first() -> None:
    one, two = searched(random.Random(1)), searched(random.Random(2))
    assert [one.ended[index] for index in range(20)] == [two.ended[index] for index in range(20)]
    assert one.best() == two.best()


def test_a_search_goes_on_from_the_trials_that_were_recorded() -> None:
    whole = searched(random.Random(1))
    # given some of its trials as they come back from a store, one of them of another search
    recorded = {
        index: replace(trial, parameters={name: str(value) for name, value in trial.parameters.items()})
        for index, trial in whole.ended.items()
        if index in (0, 1, 2, 5, 9)
    }
    recorded[9] = replace(recorded[9], parameters={})
    fresh: list[int] = []
    search = FamilySearch(FAMILIES["XGBoost"], trials=20, concurrency=4, seed=3, recorded=recorded)
    while (point := search.next()) is not None:
        fresh.append(point.index)
        search.end(fitted(point))
    # then only the others are done, and it ends as the whole one
    assert fresh == [index for index in range(20) if index not in (0, 1, 2, 5)]
    assert search.ended == whole.ended


def test_the_search_begins_with_the_first_point_and_learns() -> None:
    search = searched(random.Random(1), trials=30)
    # given a start that is spread over the space
    start = draws(FAMILIES["XGBoost"], 6, 3)
    assert [search.ended[index].parameters for index in range(6)] == start
    # then later trials are better than that, and some were not fitted to the end
    aucs = [search.ended[index].metrics["auc"] for index in range(30)]
    assert np.mean(aucs[15:]) > np.mean(aucs[:6])
    assert any(trial.stopped for trial in search.ended.values())


def test_a_stopped_or_failed_trial_does_not_win() -> None:
    search = searched(random.Random(1), broken=(0, 5))
    best = search.best()
    assert best is not None
    assert not best.stopped
    assert best.index not in (0, 5)
    whole = [t for t in search.ended.values() if not t.error and not t.stopped]
    assert best.metrics["auc"] == max(trial.metrics["auc"] for trial in whole)


@pytest.fixture(scope="module")
def data() -> Prepared:
    source = np.random.default_rng(0)
    rows = source.random((600, 6)).astype(np.float32)
    labels = (source.random(600) < 0.1 + 0.5 * rows[:, 0]).astype(np.int8)
    return Prepared(rows[:400], labels[:400], rows[400:], labels[400:])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trial_reports_on_its_way_and_gives_the_model_of_an_unwatched_fit(name: str, data: Prepared) -> None:
    family = FAMILIES[name]
    small = {"n_estimators": 40} if "n_estimators" in family.first else {}
    point = Point(name, 0, {**family.first, **small})
    # when a trial runs to its end
    metrics, rungs, fitted = run_trial(point, data, 1, 1)
    assert fitted is not None
    assert len(rungs) == (len(RUNGS) if family.rounds else 0)
    # then its model is the one that nobody watched
    unwatched = family.fit(point.parameters, data.train_rows, data.train_labels, seed=1)
    np.testing.assert_array_equal(
        fitted.estimator.predict_proba(data.validation_rows), unwatched.predict_proba(data.validation_rows)
    )
    # and its metrics are those of that one
    scores = unwatched.predict_proba(data.validation_rows)[:, 1].astype(float)
    found = evaluation.metrics(data.validation_labels, scores, f1_threshold(data.validation_labels, scores))
    assert metrics == {metric: found[metric] for metric in METRICS}
    if family.rounds:
        # and its curve ends with its AUC, and passes through the rungs
        validation = [auc for _, _, auc in fitted.curve]
        assert validation[-1] == pytest.approx(metrics["auc"], abs=1e-9)
        assert (validation[1], validation[3]) == pytest.approx(rungs, abs=1e-9)
        # when more is asked of it than it reaches, it stops there
        _, rungs, fitted = run_trial(Point(name, 0, point.parameters, (0.0, 1.1)), data, 1, 1)
        assert (len(rungs), fitted) == (2, None)


def test_rows_in_the_order_of_labels_are_the_same_rows(data: Prepared) -> None:
    ordered = in_order_of_labels(data)

    # then those of a label stay in their order, and each keeps its label
    assert (np.diff(ordered.train_labels) >= 0).all()
    for label in (0, 1):
        expected = data.train_rows[data.train_labels == label]
        np.testing.assert_array_equal(ordered.train_rows[ordered.train_labels == label], expected)
    # and those of validation are left alone
    assert ordered.validation_rows is data.validation_rows
    assert ordered.validation_labels is data.validation_labels


def test_a_learning_curve_is_of_rows_of_both_labels(data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    # given rows in the order of their labels, of which the curve takes some
    monkeypatch.setattr("health_predict.core.search.CURVE_ROWS", 50)
    ordered = in_order_of_labels(data)

    _, _, fitted = run_trial(Point("XGBoost", 0, {**FAMILIES["XGBoost"].first, "n_estimators": 40}), ordered, 1, 1)

    # then an AUC of training rows can be told
    assert fitted is not None
    assert all(0.5 < training < 1 for _, training, _ in fitted.curve)


def test_a_search_keeps_the_model_of_its_best_trial_only() -> None:
    # given trials that get better and worse
    search = FamilySearch(FAMILIES["XGBoost"], trials=3, concurrency=1, seed=1)
    for auc in (0.6, 0.7, 0.65):
        point = search.next()
        assert point is not None
        model = f"model {auc}".encode()
        search.end(Trial("XGBoost", point.index, point.parameters, {"auc": auc}, 1.0, fitted=model))
    # then the best one's is there
    assert [trial.fitted for trial in search.ended.values()] == [b"", b"model 0.7", b""]
