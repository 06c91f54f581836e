"""Contributions are what the `shap` library computes, for every family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import Pipeline

from health_predict.core.data.cohort import target
from health_predict.core.model.contributions import PROBABILITY, Explainer, LinearTables, owners_of
from health_predict.core.model.families import FAMILIES, Family
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.model.tree_tables import explain_graph
from health_predict.core.serving.explained_model import explain_pipeline, scores
from health_predict.errors import GateError, StateError
from tests.contracts import DIABETES
from tests.documented_family import documented_family

ROWS = 25


@pytest.fixture(scope="module", params=[*FAMILIES.values(), documented_family()], ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    """Each family, and the one of the documentation, whose trees are read from its graph."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def fitted(family: Family, cohort: pd.DataFrame) -> Pipeline:
    features = EncounterFeatures(DIABETES, minimum_rows=30).fit(cohort)
    few = {family.rounds: 30} if family.rounds else {}
    estimator = family.fit({**family.first, **few}, features.transform(cohort), target(cohort, DIABETES), seed=1)
    return Pipeline([("features", features), ("estimator", estimator)])


def reference(estimator: Any, background: Any, rows: Any) -> Any:
    shap = pytest.importorskip("shap", reason="skipped: shap has no wheel for this machine")
    if type(estimator).__name__ == "LogisticRegression":
        # Only the mean of the background counts for a linear model.
        masker = shap.maskers.Independent(background.mean(axis=0, keepdims=True))
        return shap.LinearExplainer(estimator, masker).shap_values(rows.astype(np.float64))
    values = np.asarray(shap.TreeExplainer(estimator, feature_perturbation="tree_path_dependent").shap_values(rows))
    return values[..., 1] if values.ndim == 3 else values


def amounts_of(pipeline: Pipeline, frame: pd.DataFrame, row: int) -> list[Any]:
    tables = {table.column: table for table in pipeline.named_steps["features"].encoder_.tables}
    return [tables[column.name].of(str(frame[column.name].iloc[row])) for column in DIABETES.features]


def test_as_the_shap_library_says(family: Family, fitted: Pipeline, cohort: pd.DataFrame) -> None:
    # given the tables of a model, written and read again
    features, estimator = fitted.named_steps["features"], fitted.named_steps["estimator"]
    explainer = Explainer.from_bytes(explain_pipeline(fitted, family, cohort).to_bytes())
    frame = cohort.tail(ROWS)
    rows = features.transform(frame)
    expected = reference(estimator, features.transform(cohort).astype(np.float64), rows)
    owners = owners_of(features.encoder_)
    alone = {at for at, columns in enumerate(owners) if len(columns) == 1}
    for number, row in enumerate(rows):
        by_column = explainer.by_column(amounts_of(fitted, frame, number), owners)
        # then positions have shap's values
        if not isinstance(explainer.tables, LinearTables):
            assert explainer.by_position(row) == pytest.approx(expected[number], abs=1e-6)
        # and a column that shares no position has the sum of its own
        for column, table in enumerate(features.encoder_.tables):
            mine = [at for at, columns in enumerate(owners) if column in columns]
            if mine and alone.issuperset(mine):
                assert by_column[column] == pytest.approx(expected[number][mine].sum(), abs=1e-5), table.column
        # and nothing is lost
        assert by_column.sum() == pytest.approx(expected[number].sum(), abs=1e-4)


def test_contributions_add_up_to_the_score(family: Family, fitted: Pipeline, cohort: pd.DataFrame) -> None:
    explainer = explain_pipeline(fitted, family, cohort)
    rows = fitted.named_steps["features"].transform(cohort.tail(ROWS))
    owners = owners_of(fitted.named_steps["features"].encoder_)
    totals = [
        explainer.base + explainer.by_column(amounts_of(fitted, cohort.tail(ROWS), row), owners).sum()
        for row in range(ROWS)
    ]
    assert totals == pytest.approx(scores(fitted, rows, explainer.unit), abs=1e-4)
    if explainer.unit == PROBABILITY:
        assert 0 < explainer.base < 1


def test_the_same_model_gives_the_same_bytes(family: Family, fitted: Pipeline, cohort: pd.DataFrame) -> None:
    assert explain_pipeline(fitted, family, cohort).to_bytes() == explain_pipeline(fitted, family, cohort).to_bytes()


def test_what_does_not_add_up_is_refused(
    family: Family, fitted: Pipeline, cohort: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given tables whose contributions are not the model's
    monkeypatch.setattr(Explainer, "by_column", lambda self, amounts, owners: np.zeros(len(amounts)))
    with pytest.raises(GateError, match="do not add up to the score: training row"):
        explain_pipeline(fitted, family, cohort)


def test_a_graph_that_is_no_ensemble_of_trees_is_refused(cohort: pd.DataFrame) -> None:
    # given a linear model that shall be explained by the trees of its graph
    features = EncounterFeatures(DIABETES, minimum_rows=30).fit(cohort)
    family = FAMILIES["LogisticRegression"]
    estimator = family.fit(family.first, features.transform(cohort), target(cohort, DIABETES), seed=1)
    pipeline = Pipeline([("features", features), ("estimator", estimator)])
    # then the error says what to do
    with pytest.raises(StateError, match=r"LogisticRegression is not one ensemble of trees.*`explain`"):
        explain_pipeline(pipeline, replace(family, explain=explain_graph(family.to_onnx)), cohort)


def test_trees_of_nothing_but_a_root(cohort: pd.DataFrame) -> None:
    # given a booster that finds nothing to split
    features = EncounterFeatures(DIABETES, minimum_rows=30).fit(cohort)
    family = FAMILIES["XGBoost"]
    parameters = {**family.first, "n_estimators": 3, "min_child_weight": 1e9}
    estimator = family.fit(parameters, features.transform(cohort), target(cohort, DIABETES), seed=1)
    explainer = explain_pipeline(Pipeline([("features", features), ("estimator", estimator)]), family, cohort)
    # then nothing contributes
    assert not explainer.by_position(features.transform(cohort.head(1))[0]).any()
