"""The compiled model is the pipeline, for every family, or it is refused."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import yaml
from sklearn.pipeline import Pipeline

from health_predict.core.data.codes import MISSING_CHAPTER
from health_predict.core.data.cohort import target
from health_predict.core.data.contract import MISSING, Contract, Kind
from health_predict.core.model.families import FAMILIES
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.model.row_encoder import ColumnTable, RowEncoder
from health_predict.core.serving.compiled_model import (
    CLEARANCE,
    CompiledModel,
    clear_threshold,
    cleared,
    compile_pipeline,
    edge_rows,
    prove_parity,
)
from health_predict.errors import GateError
from tests import modern
from tests.contracts import DIABETES

TRAIN = 2000


@pytest.fixture(scope="module")
def pipelines(cohort: pd.DataFrame) -> dict[str, Pipeline]:
    train = cohort.head(TRAIN)
    features = EncounterFeatures(DIABETES, minimum_rows=30).fit(train)
    rows, labels = features.transform(train), target(train, DIABETES)
    fitted = {}
    for name, family in FAMILIES.items():
        small = {"n_estimators": 40} if "n_estimators" in {**family.fixed, **family.first} else {}
        estimator = family.fit({**family.first, **small}, rows, labels, seed=1)
        fitted[name] = Pipeline([("features", features), ("estimator", estimator)])
    return fitted


@pytest.fixture(scope="module")
def validation(cohort: pd.DataFrame) -> pd.DataFrame:
    return cohort.iloc[TRAIN:].reset_index(drop=True)


def compiled_as(family: str, pipeline: Pipeline) -> CompiledModel:
    return compile_pipeline(pipeline, FAMILIES[family], 0.2)


@pytest.mark.parametrize("family", FAMILIES)
def test_parity_of_every_family(family: str, pipelines: dict[str, Pipeline], validation: pd.DataFrame) -> None:
    # given a threshold that is one of the scores, as the choice by F1 gives it
    scores = pipelines[family].predict_proba(validation)[:, 1].astype(float)
    threshold = float(np.sort(scores)[int(0.8 * len(scores))])
    # when it is cleared, and the pipeline compiled and compared
    compiled = compile_pipeline(pipelines[family], FAMILIES[family], cleared(threshold, pipelines[family], validation))
    parity = prove_parity(compiled, pipelines[family], validation)
    # then scores agree, and the new threshold decides as the old one, away from every score
    assert compiled.family == family
    assert parity.rows == len(validation)
    assert parity.edge_rows > 3000
    assert parity.largest_difference <= 1e-6
    assert parity.near == ()
    assert parity.threshold == compiled.threshold
    assert ((scores >= threshold) == (scores >= parity.threshold)).all()
    assert np.abs(scores - parity.threshold).min() >= CLEARANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_pipeline_gives_the_same_bytes(family: str, pipelines: dict[str, Pipeline]) -> None:
    again = pickle.loads(pickle.dumps(pipelines[family]))
    assert compiled_as(family, again).graph == compiled_as(family, pipelines[family]).graph


def test_the_graph_gives_probabilities_and_nothing_else(pipelines: dict[str, Pipeline]) -> None:
    graph = compiled_as("LightGBM", pipelines["LightGBM"]).graph
    session = onnxruntime.InferenceSession(graph)
    assert [value.name for value in session.get_inputs()] == ["rows"]
    assert [value.name for value in session.get_outputs()] == ["probabilities"]


def test_edge_rows_have_every_level_and_every_missing_pattern(validation: pd.DataFrame) -> None:
    edges, labels = edge_rows(validation, DIABETES)
    assert len(edges) == len(labels)
    for column in DIABETES.features:
        assert set(column.levels) <= set(edges[column.name])
        assert (MISSING in set(edges[column.name])) >= column.nullable
    nullable = [column.name for column in DIABETES.features if column.nullable]
    patterns = set(map(tuple, (edges[nullable] == MISSING).to_numpy().tolist()))
    assert len(patterns) == 2 ** len(nullable)
    assert {"0", "200"} <= set(edges["num_lab_procedures"])


def test_a_wrong_table_is_named(pipelines: dict[str, Pipeline], validation: pd.DataFrame) -> None:
    # given a compiled model whose table of ages lost a level
    compiled = compiled_as("LogisticRegression", pipelines["LogisticRegression"])
    broken = [_without_level(table, "[70-80)") if table.column == "age" else table for table in compiled.encoder.tables]
    broken_model = replace(compiled, encoder=RowEncoder(compiled.encoder.names, tuple(broken)))
    # when it is compared, then the rows of that level are named
    with pytest.raises(GateError, match=r"row encoder gives other numbers.*row"):
        prove_parity(broken_model, pipelines["LogisticRegression"], validation)


def _without_level(table: ColumnTable, level: str) -> ColumnTable:
    return replace(table, amounts={name: amounts for name, amounts in table.amounts.items() if name != level})


def test_another_graph_is_refused(pipelines: dict[str, Pipeline], validation: pd.DataFrame) -> None:
    graph = compiled_as("LightGBM", pipelines["LightGBM"]).graph
    model = replace(compiled_as("XGBoost", pipelines["XGBoost"]), graph=graph)
    with pytest.raises(GateError, match=r"differ by more than 1e-06: validation row 0; .*and \d+ more"):
        prove_parity(model, pipelines["XGBoost"], validation)


def test_a_threshold_that_rounding_crosses_is_refused(pipelines: dict[str, Pipeline], validation: pd.DataFrame) -> None:
    # given a score of the pipeline that is larger than that of its graph, as threshold
    model, pipeline = compiled_as("XGBoost", pipelines["XGBoost"]), pipelines["XGBoost"]
    rows = pipeline.named_steps["features"].transform(validation)
    expected = pipeline.predict_proba(validation)[:, 1].astype(float)
    larger = np.flatnonzero(expected > model.scorer()(rows))
    # then the two decide differently, which is not overlooked
    with pytest.raises(GateError, match=r"decisions at .* differ: validation row"):
        prove_parity(replace(model, threshold=float(expected[larger[0]])), pipeline, validation)


def test_a_score_that_is_no_number_is_refused(pipelines: dict[str, Pipeline], validation: pd.DataFrame) -> None:
    pipeline = pickle.loads(pickle.dumps(pipelines["LogisticRegression"]))
    pipeline.named_steps["estimator"].coef_[0, 0] = np.nan
    with pytest.raises(GateError, match="probabilities differ"):
        prove_parity(compiled_as("LogisticRegression", pipeline), pipelines["LogisticRegression"], validation)


def test_score_gives_the_positive_class(pipelines: dict[str, Pipeline], validation: pd.DataFrame) -> None:
    compiled: CompiledModel = compiled_as("RandomForest", pipelines["RandomForest"])
    rows = pipelines["RandomForest"].named_steps["features"].transform(validation)
    found = compiled.scorer()(rows)
    assert found == pytest.approx(pipelines["RandomForest"].predict_proba(validation)[:, 1], abs=1e-6)


class TestClearThreshold:
    def test_lies_midway(self) -> None:
        assert clear_threshold(0.4, np.array([0.1, 0.2, 0.4]), np.array([0.25])) == pytest.approx(0.325)

    def test_is_left_as_it_is_once_it_is_clear(self) -> None:
        scores = np.random.default_rng(0).random(1000)
        found = clear_threshold(0.4, scores, scores)
        assert clear_threshold(found, scores, scores) == found

    def test_leaves_a_gap_that_is_too_narrow(self) -> None:
        scores = np.array([0.1, 0.2, 0.2 + 1e-7, 0.4])
        found = clear_threshold(0.2 + 1e-7, scores, scores)
        assert found in (pytest.approx(0.15), pytest.approx(0.3))

    def test_real_rows_keep_their_side_where_made_up_ones_crowd(self) -> None:
        # given two real rows, and made-up ones that leave a gap only just below the lower one and far above it
        real, made_up = np.array([0.2, 0.21]), np.linspace(0.2, 0.205, 5001)
        # when the threshold of the upper one is cleared, then it stays between the two
        assert 0.205 < clear_threshold(0.21, real, made_up) < 0.21

    def test_beyond_all_scores(self) -> None:
        scores = np.array([0.3, 0.4])
        assert clear_threshold(0.9, scores, scores) > 0.4
        assert clear_threshold(0.0, scores, scores) < 0.3


class TestOtherKinds:
    """Numbers, flags, counts that may be missing, and ICD-10."""

    @pytest.fixture(scope="class")
    def fitted(self) -> EncounterFeatures:
        return EncounterFeatures(modern.CONTRACT, minimum_rows=30).fit(modern.encounters(2000))

    @pytest.mark.parametrize("name", FAMILIES)
    def test_parity_of_every_family(self, name: str, fitted: EncounterFeatures) -> None:
        train, later = modern.encounters(2000), modern.encounters(500, seed=1)
        family = FAMILIES[name]
        small = {"n_estimators": 40} if "n_estimators" in {**family.fixed, **family.first} else {}
        labels = target(train, modern.CONTRACT)
        estimator = family.fit({**family.first, **small}, fitted.transform(train), labels, seed=1)
        pipeline = Pipeline([("features", fitted), ("estimator", estimator)])
        compiled = compile_pipeline(pipeline, family, cleared(0.1, pipeline, later))
        parity = prove_parity(compiled, pipeline, later)
        assert parity.largest_difference <= 1e-6 and not parity.near
        assert compiled.contract == modern.CONTRACT

    def test_a_linear_model_of_numbers_far_from_zero(self) -> None:
        # given a number that differs by little beside its size, as a year does, and that tells much
        plain = yaml.load(modern.TEXT, yaml.BaseLoader)
        plain["columns"]["year"] = {"kind": "number", "minimum": "1900", "maximum": "2100"}
        contract, random = Contract.model_validate(plain), np.random.default_rng(0)
        year = random.normal(2020, 1.5, 2000).round(1)
        back = (random.random(2000) < 1 / (1 + np.exp(2 - (year - 2020)))).astype(int)
        frame = modern.encounters(2000).assign(year=year.astype(str), back=back.astype(str))
        features, family = EncounterFeatures(contract, minimum_rows=30).fit(frame), FAMILIES["LogisticRegression"]
        estimator = family.fit({"C": 0.03}, features.transform(frame), target(frame, contract), seed=1)
        assert abs(estimator.intercept_[0]) > 500
        # then the graph does not lose it in rounding
        pipeline = Pipeline([("features", features), ("estimator", estimator)])
        compiled = compile_pipeline(pipeline, family, cleared(0.2, pipeline, frame))
        assert prove_parity(compiled, pipeline, frame).largest_difference <= 1e-7
        assert compile_pipeline(pipeline, family, 0.2).graph == compiled.graph

    def test_edge_rows_keep_the_contract_and_reach_its_ends(self) -> None:
        later = modern.encounters(500, seed=1)
        edges, labels = edge_rows(later, modern.CONTRACT)
        assert len(edges) == len(labels)
        for column in modern.CONTRACT.features:
            values = set(edges[column.name])
            assert all(column.holds(value) for value in values), column.name
            assert (MISSING in values) == column.nullable
            if column.kind is Kind.NUMBER:
                numbers = {float(value) for value in values - {MISSING}}
                assert {float(column.minimum), float(column.maximum)} <= numbers
                assert any("." in value for value in values) and any("." not in value for value in values)
        assert {"-20000", "0"} <= set(edges["balance"])
        # and a code of every chapter of ICD-10 is there, with its dot and without
        chapters = modern.CONTRACT.by_name["first"].chapters
        assert {chapters.of(code) for code in edges["first"]} == set(chapters.names) - {MISSING_CHAPTER}
        assert {"I50.9", "I5019"} <= set(edges["first"])

    def test_many_nullable_columns_make_no_flood_of_rows(self) -> None:
        # given twenty columns that may be missing
        columns = {f"n{i}": {"kind": "number", "minimum": "0", "maximum": "1", "nullable": "true"} for i in range(20)}
        plain = {**yaml.load(modern.TEXT, yaml.BaseLoader), "single_predictor": "n0", "example": {}, "subgroups": []}
        plain["columns"] |= columns
        contract = Contract.model_validate(plain)
        frame = modern.encounters(50).assign(**dict.fromkeys(columns, "0.5"))
        # then each one, each two and all of them are missing in a row, and no more
        patterns = [label for label in edge_rows(frame, contract)[1] if label.startswith("missing: ")]
        nullable = sum(column.nullable for column in contract.features)
        assert len(patterns) == 2 + nullable + nullable * (nullable - 1) // 2
