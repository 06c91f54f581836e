"""XGBoost fitted without the zeros of indicator positions."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from xgboost import DMatrix, XGBClassifier

from health_predict.core.families.family import Score
from health_predict.core.families.sparse_xgboost import SparseXGBoost, without_zeros

PARAMETERS = {
    "n_estimators": 60,
    "max_depth": 4,
    "learning_rate": 0.1,
    "min_child_weight": 2.0,
    "colsample_bytree": 0.5,
    "subsample": 0.8,
    "tree_method": "hist",
    "random_state": 5,
    "n_jobs": 1,
}


@pytest.fixture(scope="module")
def encounters() -> tuple[np.ndarray, np.ndarray]:
    """Rows (900, 24): 16 indicators, four that count up to two, four amounts with zeros among them; labels (900,)."""
    random = np.random.default_rng(2)
    indicators = random.random((900, 16)) < 0.15
    counts = random.integers(0, 3, (900, 4))
    amounts = np.log1p(random.poisson(0.7, (900, 4)))
    rows = np.hstack([indicators, counts, amounts]).astype(np.float32)
    odds = rows[:, 0] - rows[:, 1] + 0.8 * rows[:, 16] - rows[:, 20] + rows[:, 2] * rows[:, 3] - 0.5
    return rows, (random.random(900) < 1 / (1 + np.exp(-odds))).astype(np.int8)


def test_it_is_the_model_of_dense_rows(encounters: tuple[np.ndarray, np.ndarray]) -> None:
    rows, labels = encounters
    dense = XGBClassifier(**PARAMETERS).fit(rows, labels)

    # when the same is fitted without the indicators' zeros
    sparse = SparseXGBoost(**PARAMETERS).fit(rows, labels)

    # then it splits alike, and answers dense rows alike, those with a level twice too, which training never had
    assert columns(sparse) == columns(dense)
    twice = rows.copy()
    twice[:, :16] *= 2
    for matrix in (rows, twice):
        np.testing.assert_allclose(sparse.predict_proba(matrix), dense.predict_proba(matrix), atol=1e-6)


def test_xgboost_s_own_contributions_are_those_of_dense_rows(encounters: tuple[np.ndarray, np.ndarray]) -> None:
    rows, labels = encounters
    models = (XGBClassifier(**PARAMETERS).fit(rows, labels), SparseXGBoost(**PARAMETERS).fit(rows, labels))

    # they walk the trees by rules of XGBoost's own about the numbers of nodes
    dense, sparse = (model.get_booster().predict(DMatrix(rows), pred_contribs=True) for model in models)

    np.testing.assert_allclose(sparse, dense, atol=1e-5)


def test_what_is_watched_is_what_comes_out(encounters: tuple[np.ndarray, np.ndarray]) -> None:
    # given two matrices, of which one is asked about at every look, and twice
    rows, labels = encounters
    some = rows[:100]
    seen: list[tuple[int, np.ndarray, np.ndarray]] = []

    def watch(rounds: int, score: Score) -> bool:
        score(some)
        seen.append((rounds, score(some), score(rows[100:200])))
        return rounds == 40

    stopped = SparseXGBoost(**PARAMETERS).fit(rows, labels, (20, 40, 60), watch)

    # then each look is at the model as it was then, and the last one at what comes out
    assert [rounds for rounds, *_ in seen] == [20, 40]
    assert stopped.get_booster().num_boosted_rounds() == 40
    for rounds, *looks in seen:
        for found, matrix in zip(looks, (some, rows[100:200]), strict=True):
            then = stopped.predict_proba(matrix, iteration_range=(0, rounds))[:, 1]
            np.testing.assert_array_equal(found, then)


def test_a_fitted_one_keeps_its_threads_and_no_callback(encounters: tuple[np.ndarray, np.ndarray]) -> None:
    fitted = pickle.loads(pickle.dumps(SparseXGBoost(**PARAMETERS).fit(*encounters)))

    assert type(fitted) is XGBClassifier and fitted.callbacks is None
    assert json.loads(fitted.get_booster().save_config())["learner"]["generic_param"]["nthread"] == "1"


def test_only_zeros_of_indicators_are_left_out(encounters: tuple[np.ndarray, np.ndarray]) -> None:
    rows, _ = encounters
    indicators = np.arange(24) < 16

    found = without_zeros(rows, indicators)

    np.testing.assert_array_equal(found.toarray(), rows)
    assert found.nnz == np.count_nonzero(rows[:, :16]) + rows[:, 16:].size


def columns(model: XGBClassifier) -> list[list[int]]:
    """The columns that each tree splits at, in no order of its sides."""
    trees = json.loads(model.get_booster().save_raw("json"))["learner"]["gradient_booster"]["model"]["trees"]
    return [
        sorted(column for column, left in zip(tree["split_indices"], tree["left_children"], strict=True) if left >= 0)
        for tree in trees
    ]
