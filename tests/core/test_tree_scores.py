"""Scores by formulas of conditions are those of the trees, whatever their shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.pipeline import Pipeline

from health_predict.core import tree_scores
from health_predict.core.calibration import CalibratedClassifier
from health_predict.core.cohort import target
from health_predict.core.contributions import LOG_ODDS, PROBABILITY, Explainer, TreeTables
from health_predict.core.explained_model import explain_pipeline
from health_predict.core.families import FAMILIES
from health_predict.core.features import EncounterFeatures
from health_predict.core.tree_scores import TreeScores
from health_predict.core.tree_tables import Tree, tables_of

POSITIONS = 4
# A leaf's value, or what a row is asked for and the two branches.
Branch = Any


def branches(depth: int) -> st.SearchStrategy[Branch]:
    leaf = st.integers(-8, 8).map(float)
    if not depth:
        return leaf
    inner = st.tuples(
        st.integers(0, POSITIONS - 1), st.sampled_from([-1.0, 0.0, 0.5, 2.0]), branches(depth - 1), branches(depth - 1)
    )
    return st.one_of(inner, inner, leaf)


def walked(branch: Branch, row: npt.NDArray[np.float32]) -> float:
    while isinstance(branch, tuple):
        position, bound, yes, no = branch
        branch = yes if row[position] <= bound else no
    return float(branch)


def chain(leaves: int) -> Branch:
    branch: Branch = 0.0
    for number in range(1, leaves):
        branch = (number % POSITIONS, number / leaves, float(number), branch)
    return branch


def as_tree(branch: Branch) -> Tree:
    nodes, left, right = [branch], [], []
    for node in nodes:  # grows while it is walked
        inner = isinstance(node, tuple)
        left.append(len(nodes) if inner else -1)
        right.append(len(nodes) + 1 if inner else -1)
        nodes += node[2:] if inner else ()
    return Tree(
        np.array(left),
        np.array(right),
        np.array([node[0] if isinstance(node, tuple) else -1 for node in nodes]),
        np.array([node[1] if isinstance(node, tuple) else 0 for node in nodes], dtype=np.float32),
        np.ones(len(nodes)),
        np.array([0.0 if isinstance(node, tuple) else node for node in nodes]),
    )


def explainer_of(trees: list[Branch], start: float = 0.0) -> Explainer:
    tables, base = tables_of(map(as_tree, trees), start)
    return Explainer(tables, base, LOG_ODDS)


def expected(trees: list[Branch], matrix: npt.NDArray[np.float32], start: float = 0.0) -> npt.NDArray[np.float64]:
    scores = np.array([start + sum(walked(tree, row) for tree in trees) for row in matrix.T])
    return 1 / (1 + np.exp(-scores))


@pytest.fixture
def matrix() -> npt.NDArray[np.float32]:
    """Some values lie on the bounds."""
    return np.random.default_rng(1).choice(np.array([-2, -1, 0, 0.25, 0.5, 1, 2, 3], np.float32), (POSITIONS, 300))


@given(trees=st.lists(branches(4), min_size=1, max_size=8), start=st.floats(-3, 3))
def test_as_walking_down_the_trees(trees: list[Branch], start: float) -> None:
    # given trees of any shape, some of them a mere leaf, that ask for the same things again
    random = np.random.default_rng(len(trees))
    rows = random.choice(np.array([-2, -1, 0, 0.25, 0.5, 1, 2, 3], np.float32), (POSITIONS, 100))
    scores = TreeScores.of(explainer_of(trees, start))
    # when rows are scored together, then each has the score of the leaves that it falls into
    if scores is None:
        assert not any(isinstance(tree, tuple) for tree in trees)
    else:
        assert scores(rows) == pytest.approx(expected(trees, rows, start), rel=1e-12)


@pytest.mark.parametrize(("leaves", "small"), [(2, True), (255, True), (256, True), (257, False)])
def test_the_most_leaves(leaves: int, small: bool, matrix: npt.NDArray[np.float32]) -> None:
    # given a tree with so many leaves beside a small one
    trees = [chain(2), chain(leaves)]
    scores = TreeScores.of(explainer_of(trees))
    # when it has more leaves than a byte can number, then it is not taken
    assert (scores is not None) is small
    if scores is not None:
        assert scores(matrix) == pytest.approx(expected(trees, matrix), rel=1e-12)


def test_too_many_operations_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a model whose formulas have a certain number of operations
    explainer = explainer_of([chain(20), chain(9), chain(33)])
    whole = TreeScores.of(explainer)
    assert whole is not None
    operations = sum(len(group.operations) for group in whole._groups)
    assert whole.worth_from == operations // 12
    # when no more are allowed than that, or than one less
    monkeypatch.setattr(tree_scores, "MOST_OPERATIONS", operations)
    allowed = TreeScores.of(explainer)
    monkeypatch.setattr(tree_scores, "MOST_OPERATIONS", operations - 1)
    # then it is taken, or not
    assert allowed is not None
    assert TreeScores.of(explainer) is None


@pytest.mark.parametrize("family", ["XGBoost", "LightGBM"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_as_the_family_scores(family: str, calibrated: bool, cohort: pd.DataFrame) -> None:
    # given a fitted booster, as it is or recalibrated
    features = EncounterFeatures(minimum_rows=30).fit(cohort)
    rows = np.asarray(features.transform(cohort), dtype=np.float32)
    chosen = FAMILIES[family]
    estimator = chosen.fit({**chosen.first, "n_estimators": 40}, rows, target(cohort), seed=1)
    if calibrated:
        estimator = CalibratedClassifier(estimator, intercept=0.2, slope=0.7)
    explainer = explain_pipeline(Pipeline([("features", features), ("estimator", estimator)]), chosen, cohort)
    # when its tables went to a file and back
    scores = TreeScores.of(Explainer.from_bytes(explainer.to_bytes()))
    # then they score as it does
    assert scores is not None
    assert scores(np.ascontiguousarray(rows.T)) == pytest.approx(estimator.predict_proba(rows)[:, 1], abs=1e-6)


def test_other_models_are_not_taken(cohort: pd.DataFrame) -> None:
    # given what a forest's tables look like, those of a linear model, and nothing
    tables, base = tables_of([as_tree(chain(3))])
    features = EncounterFeatures(minimum_rows=30).fit(cohort)
    chosen = FAMILIES["LogisticRegression"]
    estimator = chosen.fit(chosen.first, features.transform(cohort), target(cohort), seed=1)
    linear = explain_pipeline(Pipeline([("features", features), ("estimator", estimator)]), chosen, cohort)
    # then none is scored by conditions
    for explainer in (Explainer(tables, base, PROBABILITY), linear, None):
        assert TreeScores.of(explainer) is None


def test_tables_without_a_split(matrix: npt.NDArray[np.float32]) -> None:
    tables, base = tables_of([as_tree(0.5), as_tree(0.25)], 1.0)
    assert isinstance(tables, TreeTables)
    assert (tables.start, base) == (1.75, 1.75)
    assert TreeScores.of(Explainer(replace(tables), base, LOG_ODDS)) is None
