"""A table with numbers, flags, dates and ICD-10 from its features to the answers of its Bento."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import Pipeline

from health_predict.adapters.serving.bentoml import bento_tag, write_source
from health_predict.core.data.cohort import target
from health_predict.core.data.contract import MISSING, Contract
from health_predict.core.data.raw_encounters import read_encounters
from health_predict.core.model.families import FAMILIES
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.serving.compiled_model import CompiledModel, cleared, compile_pipeline, edge_rows, prove_parity
from health_predict.core.serving.explained_model import explain_pipeline
from health_predict.stages.bento_build import golden_requests
from tests.modern import CONTRACT, encounters
from tests.services import IDENTITY, Client, open_client

FAMILY = FAMILIES["LightGBM"]
EXAMPLE = CONTRACT.request


@pytest.fixture(scope="module")
def train() -> pd.DataFrame:
    return encounters(2500)


@pytest.fixture(scope="module")
def later() -> pd.DataFrame:
    return encounters(600, seed=1)


@pytest.fixture(scope="module")
def pipeline(train: pd.DataFrame) -> Pipeline:
    features = EncounterFeatures(CONTRACT, minimum_rows=30).fit(train)
    small = {**FAMILY.first, "n_estimators": 40}
    estimator = FAMILY.fit(small, features.transform(train), target(train, CONTRACT), seed=1)
    return Pipeline([("features", features), ("estimator", estimator)])


@pytest.fixture(scope="module")
def compiled(pipeline: Pipeline, train: pd.DataFrame, later: pd.DataFrame) -> CompiledModel:
    model = compile_pipeline(pipeline, FAMILY, cleared(0.12, pipeline, later))
    assert prove_parity(model, pipeline, later).rows == len(later)
    return replace(model, explainer=explain_pipeline(pipeline, FAMILY, train))


@pytest.fixture(scope="module")
def folder(compiled: CompiledModel, later: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of its Bento."""
    source = tmp_path_factory.mktemp("bento") / "source"
    golden = golden_requests(compiled, later, IDENTITY["risk_cutoffs"])
    write_source(source, bento_tag("7", IDENTITY), compiled, IDENTITY, golden)
    return source


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with open_client(folder, prediction_log=tmp_path_factory.mktemp("log")) as client:
        yield client


def as_people_have_them(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Requests with numbers as numbers, flags as true and false, and levels that are digits as digits."""
    rows = []
    for texts in frame[[column.name for column in CONTRACT.features]].to_dict("records"):
        row = {name: CONTRACT.by_name[name].value(text) for name, text in texts.items()}
        row["intensive"] = texts["intensive"] == "Yes"
        row |= {name: {"?": None, "1": True, "0": False}[texts[name]] for name in ("smoker",)}
        row["triage"] = None if texts["triage"] == "?" else int(texts["triage"])
        rows.append(row)
    return rows


def test_the_bento_holds_the_contract(folder: Path) -> None:
    assert Contract.from_json((folder / "contract.json").read_bytes()) == CONTRACT
    assert json.loads((folder / "identity.json").read_text())["contract_digest"] == CONTRACT.digest


def test_it_is_ready_and_says_what_it_serves(client: Client) -> None:
    assert client.get("/readyz").status_code == 200
    assert client.get("/health").json()["contract_digest"] == CONTRACT.digest
    # and its document and page speak of this table and of no other, but for the name that every Bento has
    document, page = client.get("/docs.json"), client.get("/").text
    assert document.json()["info"]["title"] == CONTRACT.title
    assert "back within 30 days" in document.json()["info"]["description"]
    assert document.json()["components"]["schemas"]["Encounter"]["properties"]["creatinine"]["example"] == 1.35
    for text in (document.text, page):
        assert "creatinine" in text
        words = re.sub("readmission(:v7-|__)", "", text.lower())
        assert not [word for word in ("readmi", "diabet", "insulin", "icd-9", "discharge") if word in words]


def test_answers_are_those_of_the_pipeline(client: Client, pipeline: Pipeline, later: pd.DataFrame) -> None:
    expected = pipeline.predict_proba(later)[:, 1]
    # given the encounters as numbers and as they are written
    plain, texts = as_people_have_them(later), later[[*EXAMPLE]].to_dict("records")
    written = [{**text, "age": row["age"], "stays": row["stays"]} for text, row in zip(texts, plain, strict=True)]
    for rows in (plain, written):
        together = client.post("/predict/batch", json=rows)
        assert together.status_code == 200, together.text[:500]
        assert [one["probability_score"] for one in together.json()] == pytest.approx(expected, abs=1e-6)
        singly = [client.predict(row).json()["probability_score"] for row in rows[:40]]
        assert singly == pytest.approx(expected[:40], abs=1e-6)


def test_every_edge_row_is_taken_and_scored_alike(client: Client, pipeline: Pipeline, later: pd.DataFrame) -> None:
    edges, _ = edge_rows(later, CONTRACT)
    answer = client.post("/predict/batch?log=false", json=as_people_have_them(edges))
    assert answer.status_code == 200, answer.text[:500]
    expected = pipeline.predict_proba(edges)[:, 1]
    assert [one["probability_score"] for one in answer.json()] == pytest.approx(expected, abs=1e-6)


def test_what_the_log_holds_reads_as_the_registered_model_reads_it(client: Client, later: pd.DataFrame) -> None:
    # given what the service made of requests
    model = client.predictor._encounter
    for row in as_people_have_them(later.head(50)):
        held = vars(model.model_validate(row))
        features = {name: held[name] for name in EXAMPLE}
        # then it is what a file with the same cells would give
        read = read_encounters(pd.DataFrame([features], dtype=object), CONTRACT).iloc[0].tolist()
        assert read == read_encounters(pd.DataFrame([row], dtype=object), CONTRACT).iloc[0].tolist()
        assert all(CONTRACT.by_name[name].holds(text) for name, text in zip(EXAMPLE, read, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"creatinine": 31},
        {"creatinine": -0.01},
        {"creatinine": "1e3"},
        {"creatinine": "1.35 mg"},
        {"creatinine": True},
        {"creatinine": 1e-300},
        {"temperature": None},
        {"temperature": 29.9},
        {"intensive": "yes"},
        {"intensive": None},
        {"smoker": 2},
        {"triage": 6},
        {"triage": 1.5},
        {"stays": 61},
        {"stays": "2"},
        {"first": "250.83"},
        {"first": "i50"},
        {"second": "E11.65000"},
        {"ward": " 4B"},
        {"left": "2024-02-30"},
        {"visit": "a\nb"},
    ],
)
def test_what_breaks_the_contract_is_named_in_its_words(client: Client, changes: dict[str, Any]) -> None:
    answer = client.predict({**EXAMPLE, **changes})
    assert answer.status_code == 422, answer.text
    ((name, _),) = changes.items()
    (found,) = answer.json()["detail"]
    columns = {one.name: one for one in (*CONTRACT.features, *CONTRACT.identifiers)}
    assert (found["loc"], found["msg"]) == (["body", name], f"must be {columns[name].allowed}")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_number_is_refused(client: Client, number: str) -> None:
    body = json.dumps({**EXAMPLE, "creatinine": "number"}).replace('"number"', number)
    assert client.raw(body.encode()).status_code == 422


@pytest.mark.parametrize("column", [column.name for column in CONTRACT.features if column.nullable])
def test_unknown_is_null_or_a_question_mark_or_absent(client: Client, column: str) -> None:
    absent = {name: value for name, value in EXAMPLE.items() if name != column}
    answers = [client.predict(body) for body in (absent, {**EXAMPLE, column: None}, {**EXAMPLE, column: MISSING})]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert len({answer.json()["probability_score"] for answer in answers}) == 1


def test_an_explanation_adds_up_and_shows_what_was_sent(client: Client, later: pd.DataFrame) -> None:
    for row in as_people_have_them(later.head(20)):
        body = client.post("/predict?explain=true", json=row).json()
        found = body["explanation"]
        total = found["base"] + sum(one["contribution"] for one in found["contributions"]) + found["others"]
        assert total == pytest.approx(found["score"])
        assert 1 / (1 + np.exp(-found["score"])) == pytest.approx(body["probability_score"], abs=1e-5)
        sent = {one["column"]: one["value"] for one in found["contributions"]}
        written = {**row, "intensive": "Yes" if row["intensive"] else "No"}
        written["smoker"] = None if row["smoker"] is None else "1" if row["smoker"] else "0"
        assert len(sent) == 10 and sent == {name: written[name] for name in sent}
