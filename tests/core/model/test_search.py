"""Which trials a search makes, which it stops, and which one wins."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from health_predict.core.model import evaluation
from health_predict.core.model.evaluation import f1_threshold
from health_predict.core.model.families import FAMILIES, draws
from health_predict.core.model.search import (
    METRICS,
    RUNGS,
    FamilySearch,
    Point,
    Prepared,
    Trial,
    TrialReport,
    fit_winner,
    run_trial,
    winner,
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
    assert winner(one.ended.values()) == winner(two.ended.values())


def test_a_search_goes_on_from_the_trials_that_were_recorded() -> None:
    whole = searched(random.Random(1))
    # given some of its trials as they come back from a store, one of them of another search
    parsed = FAMILIES["XGBoost"].parsed
    recorded = {
        index: replace(trial, parameters=parsed({name: str(value) for name, value in trial.parameters.items()}))
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
    best = winner(search.ended.values())
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


class StoppedError(Exception):
    """What ends a trial from without."""


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trial_reports_on_its_way_and_can_be_stopped_there(name: str, data: Prepared) -> None:
    family = FAMILIES[name]
    point = Point(name, 0, {**family.first, **({"n_estimators": 40} if "n_estimators" in family.first else {})})
    # when a trial runs to its end
    outcomes: list[TrialReport] = []
    run_trial(point, data, 1, 1, outcomes.append)
    # then it told of each rung, and then of its end
    rungs = len(RUNGS) if family.rounds else 0
    assert [len(outcome.rungs) for outcome in outcomes] == [*range(1, rungs + 1), rungs]
    assert list(outcomes[-1].rungs) == [outcome.metrics["auc"] for outcome in outcomes[:-1]]
    # and its metrics are those of the model that nobody watched
    unwatched = family.fit(point.parameters, data.train_rows, data.train_labels, seed=1)
    scores = unwatched.predict_proba(data.validation_rows)[:, 1].astype(float)
    found = evaluation.metrics(data.validation_labels, scores, f1_threshold(data.validation_labels, scores))
    assert outcomes[-1].metrics == {metric: found[metric] for metric in METRICS}

    # when it is stopped where it tells of itself, it ends there
    def stop(outcome: TrialReport) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        run_trial(point, data, 1, 1, stop)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_winner_is_the_model_of_an_unwatched_fit_with_a_learning_curve(name: str, data: Prepared) -> None:
    family = FAMILIES[name]
    small = {"n_estimators": 40} if "n_estimators" in family.first else {}
    best = Trial(name, 0, {**family.first, **small}, {"auc": 0.7}, 1.0)
    # when a winner is fitted
    fitted = fit_winner(best, data, 1, 1)
    # then its model is the one that nobody watched
    unwatched = family.fit(best.parameters, data.train_rows, data.train_labels, seed=1)
    scores = fitted.estimator.predict_proba(data.validation_rows)
    np.testing.assert_array_equal(scores, unwatched.predict_proba(data.validation_rows))
    # and its curve, which a family that grows in rounds has, ends with its AUC
    assert len(fitted.curve) == (8 if family.rounds else 0)
    for rounds, training, validation in fitted.curve[-1:]:
        assert rounds == family.rounds_at(best.parameters, 1)
        assert training > validation - 0.1
        assert validation == pytest.approx(roc_auc_score(data.validation_labels, scores[:, 1]), abs=1e-9)


def test_a_trial_falls_short_where_it_is_below_what_it_must_reach() -> None:
    point = Point("XGBoost", 0, {}, (0.6, 0.65))
    assert not point.falls_short(())
    assert not point.falls_short((0.6,))
    assert point.falls_short((0.59,))
    assert point.falls_short((0.6, 0.64))
    assert not Point("XGBoost", 0, {}).falls_short((0.1, 0.1))
