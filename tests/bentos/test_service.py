"""The prediction service over its HTTP interface, in one process."""

from __future__ import annotations

import asyncio
import csv
import http.client
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
import pandas as pd
import pytest
import uvicorn
from bentoml.exceptions import UnprocessableEntity
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.pipeline import Pipeline
from typer.testing import CliRunner

from health_predict.adapters.serving import endpoint
from health_predict.adapters.serving.bentoml import BentoStore, bento_tag
from health_predict.adapters.storage import FolderStorage, S3Storage
from health_predict.cli import app as cli
from health_predict.core.data.cohort import save_csv
from health_predict.core.data.contract import MISSING, Kind
from health_predict.core.data.raw_encounters import read_encounters
from health_predict.core.model.contributions import Explainer
from health_predict.core.serving.compiled_model import CompiledModel
from health_predict.errors import DataError, SettingsError, UnreachableError
from health_predict.serving import middleware, prediction_log, shipping
from health_predict.serving.prediction_log import PredictionLog
from health_predict.serving.schemas import LONGEST_LIST, Prediction, encounter_model, violations
from health_predict.settings import Settings
from tests import hostile
from tests.browser import browser, needs_chromium
from tests.contracts import DIABETES
from tests.processes import wait_for
from tests.services import IDENTITY, JSON, Client, Source, imported, open_client

FEATURES, IDENTIFIERS, BY_NAME = DIABETES.features, DIABETES.identifiers, DIABETES.by_name
EXAMPLE, Encounter = DIABETES.request, encounter_model(DIABETES)
REQUIRED = [column.name for column in FEATURES if not column.nullable]
ASKED = (*FEATURES, *IDENTIFIERS)
IDENTIFIED = {"encounter_id": 12345, "patient_nbr": "678", "discharge_date": "2026-02-28"}


@pytest.fixture
def valid() -> dict[str, Any]:
    return dict(EXAMPLE)


def violated(answer: httpx.Response) -> dict[str, str]:
    """Type of each violation by the last part of its place."""
    assert answer.status_code == 422
    assert set(answer.json()) == {"detail"}
    assert all(set(item) == {"loc", "msg", "type"} for item in answer.json()["detail"])
    return {str(item["loc"][-1]): item["type"] for item in answer.json()["detail"]}


class TestPredict:
    def test_a_valid_encounter(self, client: Client, valid: dict[str, Any]) -> None:
        answer = client.predict(valid)
        assert answer.status_code == 200
        body = answer.json()
        assert set(body) == {"prediction", "probability_score", "risk_group", "model_version", "prediction_id"}
        assert body["prediction"] in (0, 1)
        assert 0 <= body["probability_score"] <= 1
        assert body["risk_group"] in ("low", "medium", "high", "very high")
        assert body["model_version"] == "7"

    def test_every_prediction_has_its_own_id(self, client: Client, valid: dict[str, Any]) -> None:
        ids = [client.predict(valid).json()["prediction_id"] for _ in range(5)]
        assert len(set(ids)) == 5
        assert all(len(value) == 36 and value[14] == "4" and value[19] in "89ab" for value in ids)

    def test_answers_are_those_of_the_pipeline(
        self, client: Client, pipeline: Pipeline, compiled: CompiledModel, cohort: pd.DataFrame
    ) -> None:
        # given real rows with missing values and levels that training never had
        frame = cohort.tail(200).reset_index(drop=True).copy()
        frame.loc[:20, "medical_specialty"] = "Astrology"
        frame.loc[10:30, "diag_1"] = "999.99"
        expected = pipeline.predict_proba(frame)[:, 1]
        rows = [encounter(frame, row) for row in range(len(frame))]
        # when they are scored one by one and together
        singly = [client.predict(row).json() for row in rows]
        together = client.post("/predict/batch", json=rows).json()
        # then all three agree
        for answers in (singly, together):
            assert [one["probability_score"] for one in answers] == pytest.approx(expected, abs=1e-6)
            assert [one["prediction"] for one in answers] == (expected >= compiled.threshold).astype(int).tolist()

    def test_risk_groups_follow_the_cutoffs(self, client: Client) -> None:
        scores = (0.0, 0.0999, 0.1, 0.1499, 0.15, 0.2499, 0.25, 1.0)
        groups = [one.risk_group for one in client.predictor.scorer.predictions(scores)]
        assert groups == ["low", "low", "medium", "medium", "high", "high", "very high", "very high"]

    @pytest.mark.parametrize("column", [column.name for column in ASKED if column.nullable])
    def test_unknown_is_null_or_a_question_mark_or_absent(
        self, client: Client, valid: dict[str, Any], column: str
    ) -> None:
        absent = {name: value for name, value in valid.items() if name != column}
        answers = [client.predict(body) for body in (absent, {**valid, column: None}, {**valid, column: "?"})]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert len({answer.json()["probability_score"] for answer in answers}) == 1

    def test_who_it_is_about_changes_no_score(self, client: Client, valid: dict[str, Any]) -> None:
        # given an encounter with and without its identifiers
        bodies = [valid, {**valid, **IDENTIFIED}, *({**valid, name: value} for name, value in IDENTIFIED.items())]
        # when they are scored one by one, together, and explained
        singly = [client.predict(body) for body in bodies]
        together = client.post("/predict/batch", json=bodies)
        explained = [client.post("/predict?explain=true", json=body) for body in bodies]
        # then all scores are the same, and no identifier contributes or comes back
        answers = [*(one.json() for one in (*singly, *explained)), *together.json()]
        assert len({answer["probability_score"] for answer in answers}) == 1
        assert len({json.dumps(one.json()["explanation"]) for one in explained}) == 1
        for answer in (*singly, together, *explained):
            assert not any(f'"{name}"' in answer.text for name in IDENTIFIED)

    def test_codes_are_numbers_or_their_digits(self, client: Client, valid: dict[str, Any]) -> None:
        names = ("admission_type_id", "discharge_disposition_id", "admission_source_id")
        as_text = client.predict({**valid, **{name: str(valid[name]) for name in names}})
        assert as_text.json()["probability_score"] == client.predict(valid).json()["probability_score"]

    def test_unseen_levels_are_scored_and_counted(self, client: Client, valid: dict[str, Any]) -> None:
        before = client.metric("unseen_total", column="medical_specialty")
        assert client.predict({**valid, "medical_specialty": "Astrology"}).status_code == 200
        batch = [{**valid, "medical_specialty": "Astrology"}, valid, {**valid, "medical_specialty": "Alchemy"}]
        assert client.post("/predict/batch", json=batch).status_code == 200
        assert client.metric("unseen_total", column="medical_specialty") == before + 3

    @pytest.mark.parametrize("code", ["999.99", "V91.9", "E999", "1"])
    def test_an_unseen_diagnosis_is_scored(self, client: Client, valid: dict[str, Any], code: str) -> None:
        assert client.predict({**valid, "diag_1": code}).status_code == 200

    @pytest.mark.parametrize("age", ["[0-10)", "[90-100)"])
    @pytest.mark.parametrize("days", [1, 14])
    def test_boundaries_are_inside(self, client: Client, valid: dict[str, Any], age: str, days: int) -> None:
        assert client.predict({**valid, "age": age, "time_in_hospital": days}).status_code == 200

    @pytest.mark.parametrize(
        "parameters", ["; charset=utf-8", ';charset="UTF-8"', "; charset=latin-1", "; v=1; q", ";"]
    )
    def test_a_type_with_parameters_is_accepted(self, client: Client, valid: dict[str, Any], parameters: str) -> None:
        body = json.dumps(valid).encode()
        for kind in ("application/json", "APPLICATION/JSON"):
            assert client.raw(body, **{"content-type": kind + parameters}).status_code == 200

    def test_a_whole_number_may_have_a_point(self, client: Client, valid: dict[str, Any]) -> None:
        # given the same numbers as JavaScript or a frame with missing values writes them
        pointed = {name: float(value) if isinstance(value, int) else value for name, value in valid.items()}
        assert pointed != {name: str(value) for name, value in valid.items()}
        body = json.dumps({**pointed, "encounter_id": 12345.0, "admission_type_id": 1e0}).encode()
        assert b"12345.0" in body
        # then they mean the same
        without = client.predict({**valid, "encounter_id": 12345, "admission_type_id": 1}).json()
        for answer in (client.raw(body).json(), client.raw(b"[" + body + b"]", "/predict/batch").json()[0]):
            assert answer["probability_score"] == without["probability_score"]


def encounter(frame: pd.DataFrame, row: int) -> dict[str, Any]:
    return {
        column.name: int(frame[column.name][row]) if column.kind is Kind.COUNT else str(frame[column.name][row])
        for column in FEATURES
    }


class TestViolations:
    @pytest.mark.parametrize("name", REQUIRED)
    def test_a_missing_field_is_named(self, client: Client, valid: dict[str, Any], name: str) -> None:
        del valid[name]
        assert violated(client.predict(valid)) == {name: "missing"}

    @pytest.mark.parametrize("name", [column.name for column in ASKED])
    @pytest.mark.parametrize("wrong", [True, 1.5, [], {}, -1, ""])
    def test_a_wrong_type_is_named(self, client: Client, valid: dict[str, Any], name: str, wrong: Any) -> None:
        assert set(violated(client.predict({**valid, name: wrong}))) == {name}

    @pytest.mark.parametrize(
        ("name", "wrong", "kind"),
        [
            ("age", "[200-210)", "literal_error"),
            ("age", "?", "literal_error"),
            ("gender", None, "literal_error"),
            ("time_in_hospital", 0, "greater_than_equal"),
            ("time_in_hospital", 15, "less_than_equal"),
            ("time_in_hospital", 3.5, "int_type"),
            ("time_in_hospital", 15.0, "less_than_equal"),
            ("encounter_id", 1e30, "less_than_equal"),
            ("time_in_hospital", "3", "int_type"),
            ("time_in_hospital", True, "int_type"),
            ("number_inpatient", -1, "greater_than_equal"),
            ("number_inpatient", 10**40, "less_than_equal"),
            ("admission_type_id", 0, "greater_than_equal"),
            ("admission_type_id", 1000, "less_than_equal"),
            ("admission_type_id", "01", "string_pattern_mismatch"),
            ("admission_type_id", "1\n", "string_pattern_mismatch"),
            ("diag_1", "250.", "string_pattern_mismatch"),
            ("diag_1", "250\n", "string_pattern_mismatch"),
            ("diag_1", "٢٥٠", "string_pattern_mismatch"),
            ("medical_specialty", "", "string_too_short"),
            ("medical_specialty", "x" * 101, "string_too_long"),
            ("encounter_id", 0, "greater_than_equal"),
            ("encounter_id", 10**18, "less_than_equal"),
            ("patient_nbr", "01", "string_pattern_mismatch"),
            ("patient_nbr", "9" * 19, "string_pattern_mismatch"),
            ("discharge_date", "2026-02-30", "value_error"),
            ("discharge_date", "28.02.2026", "string_pattern_mismatch"),
            ("discharge_date", "2026-02-28T10:00:00", "string_pattern_mismatch"),
            ("discharge_date", 20260228, "literal_error"),
        ],
    )
    def test_an_impossible_value_is_named(
        self, client: Client, valid: dict[str, Any], name: str, wrong: Any, kind: str
    ) -> None:
        assert violated(client.predict({**valid, name: wrong})) == {name: kind}

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
    def test_what_is_no_number_is_named(self, client: Client, valid: dict[str, Any], number: str) -> None:
        valid["num_medications"] = "number"
        body = json.dumps(valid).replace('"number"', number)
        assert violated(client.raw(body.encode())) == {"num_medications": "int_type"}

    def test_half_a_surrogate_is_no_json(self, client: Client, valid: dict[str, Any]) -> None:
        body = json.dumps({**valid, "medical_specialty": "\ud800"}).encode()
        assert violated(client.raw(body)) == {"body": "json_invalid"}

    def test_all_are_listed_at_once(self, client: Client, valid: dict[str, Any]) -> None:
        # given five different mistakes
        valid |= {"age": "[200-210)", "num_procedures": -1, "num_medications": 2.5, "readmitted": "NO"}
        del valid["gender"]
        # then there are five violations
        assert violated(client.predict(valid)) == {
            "gender": "missing",
            "age": "literal_error",
            "num_procedures": "greater_than_equal",
            "num_medications": "int_type",
            "readmitted": "extra_forbidden",
        }

    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b'{"a":1}x', b"\xff", b'{"a":"\xff"}', "{}".encode("utf-16"), b"\xef\xbb\xbf{}", b"1" * 5000],
    )
    def test_what_is_no_json(self, client: Client, body: bytes) -> None:
        for path in ("/predict", "/predict/batch"):
            assert violated(client.raw(body, path)) in ({"body": "json_invalid"}, {"body": "list_type"})

    @pytest.mark.parametrize("body", [b"[]", b"null", b'"text"', b"3", b"[" * 100_000, b'{"a":' * 100_000])
    def test_what_is_no_object(self, client: Client, body: bytes) -> None:
        assert violated(client.raw(body))["body"] in ("model_type", "json_invalid", "too_long")

    def test_no_value_comes_back(self, client: Client, valid: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        secret = "Jane-Doe-1234"
        bodies = [{**valid, column.name: secret} for column in ASKED]
        answers = [client.predict(body) for body in bodies]
        answers.append(client.post("/predict/batch", json=bodies))
        assert all(secret not in answer.text for answer in answers)
        assert secret not in caplog.text

    def test_a_long_name_is_cut(self, client: Client, valid: dict[str, Any]) -> None:
        answer = client.predict({**valid, "x" * 10_000: 1, "\u00e9": 1})
        assert answer.status_code == 422
        assert len(answer.text) < 500

    @hypothesis_settings(max_examples=300, deadline=None)
    @given(
        changes=st.dictionaries(
            st.sampled_from([column.name for column in FEATURES]) | st.text(max_size=5),
            st.none()
            | st.booleans()
            | st.integers(-3, 1005)
            | st.floats()
            | st.text(max_size=6)
            | st.sampled_from(["?", "No", "250.8", "V5", "E1234.5", "[70-80)", "17", "None", ">8", "999", "1000"])
            | st.lists(st.integers(), max_size=2),
            max_size=4,
        )
    )
    def test_what_is_wrong_is_named_and_what_is_right_reads_as_the_registered_model_reads_it(
        self, changes: dict[str, Any]
    ) -> None:
        body = json.dumps({**EXAMPLE, **changes}).encode()
        found = violations(Encounter, body)
        if found:
            assert all(len(item.loc) == 2 for item in found), found
        else:
            features = [*vars(Encounter(**json.loads(body))).values()][: len(FEATURES)]
            texts = [MISSING if value is None else str(value) for value in features]
            assert read_encounters(pd.DataFrame([json.loads(body)]), DIABETES).iloc[0].tolist() == texts


class TestExplanation:
    def test_the_largest_contributions_and_the_rest_make_the_score(
        self, client: Client, golden: list[dict[str, Any]]
    ) -> None:
        for case in golden:
            answer = client.post("/predict?explain=true", json=case["request"])
            assert answer.status_code == 200
            body = answer.json()
            found = body["explanation"]
            shown = found["contributions"]
            amounts = [abs(one["contribution"]) for one in shown]
            assert len(shown) == 10
            assert amounts == sorted(amounts, reverse=True)
            assert all(one["value"] == case["request"][one["column"]] for one in shown)
            total = found["base"] + sum(one["contribution"] for one in shown) + found["others"]
            assert total == pytest.approx(found["score"])
            assert found["unit"] == "log-odds"
            assert 1 / (1 + np.exp(-found["score"])) == pytest.approx(body["probability_score"], abs=1e-5)

    def test_off_unless_asked(self, client: Client, valid: dict[str, Any]) -> None:
        for query in ("", "?explain=false", "?explain=0", "?other=1"):
            assert "explanation" not in client.post(f"/predict{query}", json=valid).json()

    @pytest.mark.parametrize(
        ("query", "loc", "kind"),
        [
            ("explain=maybe", ["query", "explain"], "bool_parsing"),
            ("explain=", ["query", "explain"], "bool_parsing"),
            ("log=7", ["query", "log"], "bool_parsing"),
        ],
    )
    def test_a_wrong_option_is_named(
        self, client: Client, valid: dict[str, Any], query: str, loc: list[str], kind: str
    ) -> None:
        answer = client.post(f"/predict?{query}", json=valid)
        assert answer.status_code == 422
        assert [(item["loc"], item["type"]) for item in answer.json()["detail"]] == [(loc, kind)]

    def test_a_batch_is_not_explained(self, client: Client, valid: dict[str, Any]) -> None:
        answer = client.post("/predict/batch?explain=true", json=[valid])
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["query", "explain"]

    def test_a_bento_without_explanations(self, source: Source, valid: dict[str, Any]) -> None:
        folder = source(run_id="no explainer")
        (folder / "explainer.npz").unlink()
        with open_client(folder) as client:
            assert client.predict(valid).status_code == 200
            assert client.post("/predict?explain=true", json=valid).status_code == 422

    def test_not_ready_with_contributions_of_another_model(self, source: Source) -> None:
        # given an explainer whose mean is not this model's
        folder = source(run_id="other explainer")
        explainer = Explainer.from_bytes((folder / "explainer.npz").read_bytes())
        other = Explainer(explainer.tables, explainer.base + 0.5, explainer.unit)
        (folder / "explainer.npz").write_bytes(other.to_bytes())
        with open_client(folder) as client:
            assert client.get("/readyz").status_code == 503
            assert "contributions" in client.get("/health").json()["problem"]


class TestBatch:
    def test_answers_come_in_order(self, client: Client, cohort: pd.DataFrame) -> None:
        frame = cohort.head(1100).reset_index(drop=True)
        rows = [encounter(frame, row) for row in range(len(frame))]
        answers = client.post("/predict/batch", json=rows).json()
        picked = list(range(0, 1100, 100))
        singly = [client.predict(rows[row]).json()["probability_score"] for row in picked]
        assert [answers[row]["probability_score"] for row in picked] == pytest.approx(singly, abs=1e-6)
        assert len({answer["prediction_id"] for answer in answers}) == 1100

    def test_an_empty_list(self, client: Client) -> None:
        assert client.raw(b"[]", "/predict/batch").json() == []

    def test_violations_name_their_row(self, client: Client, valid: dict[str, Any]) -> None:
        wrong = {**valid, "age": "old"}
        answer = client.post("/predict/batch", json=[valid, wrong, valid, {**wrong, "gender": "x"}, 3])
        assert [item["loc"] for item in answer.json()["detail"]] == [
            ["body", 1, "age"],
            ["body", 3, "gender"],
            ["body", 3, "age"],
            ["body", 4],
        ]

    def test_malformed_codes_and_other_violations_are_named_together(
        self, client: Client, valid: dict[str, Any]
    ) -> None:
        rows = [valid] * 600
        # given new codes that are written well, and others that are not, beside a missing field
        rows[1] = {**valid, "diag_1": "V91.87"}
        rows[2] = {"age": "[70-80)"}
        rows[4] = {**valid, "diag_1": "diabetes", "admission_source_id": "\u0665"}
        rows[599] = {**valid, "diag_3": "250.8\n"}
        found = client.post("/predict/batch", json=rows).json()["detail"]
        # then only the latter are named, in order
        assert {item["loc"][1] for item in found[:-3]} == {2}
        assert [tuple(item["loc"][1:]) for item in found[-3:]] == [
            *((4, "admission_source_id"), (4, "diag_1")),
            (599, "diag_3"),
        ]
        # and nothing was counted
        assert client.predict(rows[1]).status_code == 200
        assert violated(client.predict(rows[599])) == {"diag_3": "string_pattern_mismatch"}

    def test_too_many_rows(self, client: Client, valid: dict[str, Any]) -> None:
        body = b"[" + b",".join([b"{}"] * 10_001) + b"]"
        assert violated(client.raw(body, "/predict/batch")) == {"body": "too_long"}

    def test_a_hostile_batch_has_a_short_answer(self, client: Client) -> None:
        answer = client.raw(b"[" + b",".join([b"{}"] * 10_000) + b"]", "/predict/batch")
        assert len(answer.json()["detail"]) == LONGEST_LIST + 1
        assert answer.json()["detail"][-1]["type"] == "truncated"

    def test_an_object_is_no_list(self, client: Client, valid: dict[str, Any]) -> None:
        assert violated(client.post("/predict/batch", json=valid)) == {"body": "list_type"}

    def test_too_many_waiting_batches(self, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
        service = imported(source())
        service.ROUTES["/predict/batch"] = replace(service.ROUTES["/predict/batch"], most=0)
        with Client(service) as client:
            assert client.raw(b"[]", "/predict/batch").status_code == 503


class TestRefusals:
    @pytest.mark.parametrize(
        "kind",
        ["text/plain", "application/x-www-form-urlencoded", "application/jsonl", "application/json+x", "", "pickle"],
    )
    def test_other_types(self, client: Client, valid: dict[str, Any], kind: str) -> None:
        answer = client.raw(json.dumps(valid).encode(), **{"content-type": kind})
        assert answer.status_code == 415
        assert set(answer.json()) == {"detail"}

    def test_a_compressed_body(self, client: Client) -> None:
        assert client.raw(b"x", **{"content-encoding": "gzip"}).status_code == 415

    @pytest.mark.parametrize(("path", "size"), [("/predict", 2**20 + 1), ("/predict/batch", 2**25 + 1)])
    def test_a_body_over_the_limit(self, client: Client, path: str, size: int) -> None:
        assert client.raw(b" " * size, path).status_code == 413

    def test_a_body_over_the_limit_of_unknown_length(self, client: Client) -> None:
        # given a body that comes in parts, with no length beforehand
        answer, read = self.parts(client, [b" " * 400_000] * 10)
        assert answer == 413
        assert read == 10

    def test_a_body_in_parts(self, client: Client, valid: dict[str, Any]) -> None:
        body = json.dumps(valid).encode()
        assert self.parts(client, [body[:100], b"", body[100:]])[0] == 200

    def test_a_large_body_that_waits_for_leave_is_not_read(self, client: Client) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"9" * 12), (b"expect", b"100-continue")]
        assert self.parts(client, [b" "], headers) == (413, 0)

    def test_a_client_that_leaves_gets_nothing(self, client: Client) -> None:
        sent = self.exchange(client, [{"type": "http.disconnect"}])[0]
        assert sent == []
        part = {"type": "http.request", "body": b"{", "more_body": True}
        assert self.exchange(client, [part, {"type": "http.disconnect"}])[0] == []

    def test_a_slow_body(self, client: Client) -> None:
        sent = self.exchange(client, [{"type": "http.request", "body": b"{", "more_body": True}], seconds=0.01)[0]
        assert sent[0]["status"] == 408
        assert (b"connection", b"close") in sent[0]["headers"]

    @staticmethod
    def exchange(
        client: Client, messages: list[dict[str, Any]], headers: Any = None, seconds: float = 10
    ) -> tuple[list[Any], int]:
        sent: list[Any] = []
        waiting = iter(messages)
        read = 0

        async def receive() -> dict[str, Any]:
            nonlocal read
            message = next(waiting, None)
            if message is None:
                await asyncio.Event().wait()
                raise AssertionError
            read += 1
            return message

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "path": "/predict", "method": "POST", "query_string": b""}
        scope["headers"] = headers or [(b"content-type", b"application/json")]

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            Encounter.model_validate_json((await receive())["body"])
            await send({"type": "http.response.start", "status": 200, "headers": []})

        route = middleware.Route(Encounter, 2**20, seconds, most=10, held=2**21)
        asyncio.run(middleware.Limits(inner, client.predictor, {"/predict": route}, frozenset())(scope, receive, send))
        return sent, read

    def parts(self, client: Client, bodies: list[bytes], headers: Any = None) -> tuple[int, int]:
        messages = [
            {"type": "http.request", "body": body, "more_body": number < len(bodies)}
            for number, body in enumerate(bodies, 1)
        ]
        sent, read = self.exchange(client, messages, headers)
        return sent[0]["status"], read

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/predict", 405),
            ("PUT", "/predict/batch", 405),
            ("POST", "/health", 405),
            ("DELETE", "/", 405),
            ("GET", "/nothing", 404),
            ("GET", "/../etc/passwd", 404),
            ("TRACE", "/predict", 405),
        ],
    )
    def test_other_paths_and_methods(self, client: Client, method: str, path: str, status: int) -> None:
        answer = client.request(method, path)
        assert answer.status_code == status
        assert ("allow" in answer.headers) == (status == 405)

    def test_what_nobody_foresaw_is_logged_without_values(
        self, source: Source, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given a fault of our own that carries a value
        def fail(values: Any) -> Any:
            raise KeyError(values)

        with open_client(source()) as client:
            monkeypatch.setattr(client.predictor.scorer, "score", fail)
            answer = client.predict({**EXAMPLE, "medical_specialty": "Jane-Doe-1234"})
        # then the client hears nothing of it, and the log only the type and the place
        assert answer.status_code == 500
        assert answer.json() == {"detail": "internal error"}
        assert "KeyError" in caplog.text
        assert "Jane" not in caplog.text


class TestUpgrade:
    """An offer to speak another protocol is ignored (RFC 9110, 7.8), as Java's and HTTP/2 clients make it."""

    OFFER = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"

    def ask(self, server: uvicorn.Server, *segments: bytes) -> list[int]:
        """The statuses of two requests over one connection: the one in these segments, and a plain one."""
        body = json.dumps(EXAMPLE).encode()
        plain = (
            "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n"
        )
        with socket.create_connection(server.servers[0].sockets[0].getsockname(), timeout=20) as wire:
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            found = []
            for parts in (segments, (plain.encode(), b"\r\n", body)):
                for part in parts:
                    wire.sendall(part)
                answer = http.client.HTTPResponse(wire)
                answer.begin()
                answer.read()
                found.append(answer.status)
        return found

    def head(self, path: str, *lines: str) -> bytes:
        fixed = ("Host: localhost", "Content-Type: application/json")
        return (
            f"POST {path} HTTP/1.1\r\n{self.OFFER}" + "".join(f"{line}\r\n" for line in (*fixed, *lines)) + "\r\n"
        ).encode()

    @pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
    def test_the_body_is_read_all_the_same(self, server: uvicorn.Server, path: str) -> None:
        body = json.dumps(EXAMPLE if path == "/predict" else [EXAMPLE]).encode()
        head = self.head(path, f"Content-Length: {len(body)}")
        assert self.ask(server, head + body) == [200, 200]
        assert self.ask(server, head, body[:100], body[100:]) == [200, 200]

    def test_a_body_in_chunks(self, server: uvicorn.Server) -> None:
        body = json.dumps(EXAMPLE).encode()
        chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:300], body[300:])]
        assert self.ask(server, self.head("/predict", "Transfer-Encoding: chunked"), *chunks, b"0\r\n\r\n") == [
            200,
            200,
        ]


class TestClients:
    @pytest.fixture
    def file(self, cohort: pd.DataFrame, tmp_path: Path) -> Path:
        file = tmp_path / "encounters.csv"
        save_csv(cohort.head(2500).drop(columns="readmitted"), file)
        return file

    def test_a_file_is_scored_in_its_order(
        self, url: str, file: Path, cohort: pd.DataFrame, pipeline: Pipeline, tmp_path: Path
    ) -> None:
        answer = CliRunner().invoke(
            cli, ["predict", str(file), "--url", url, "-o", str(tmp_path / "out.csv"), "--json"]
        )
        assert answer.exit_code == 0, answer.output
        told = json.loads(answer.stdout.splitlines()[-1])
        written = pd.read_csv(tmp_path / "out.csv", dtype=str)
        assert written["encounter_id"].tolist() == cohort["encounter_id"].head(2500).tolist()
        expected = pipeline.predict_proba(cohort.head(2500))[:, 1]
        assert written["probability_score"].astype(float).to_numpy() == pytest.approx(expected, abs=1e-6)
        assert told["encounters"] == 2500
        assert told["positives"] == (written["prediction"] == "1").sum()
        assert told["model_versions"] == ["7"]

    def test_a_file_arrives_with_its_numbers(
        self, url: str, file: Path, cohort: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given a service whose requests are watched
        post, bodies = http.client.HTTPConnection.request, []

        def request(connection: Any, method: str, path: str, body: bytes, *arguments: Any) -> None:
            bodies.append(json.loads(body))
            post(connection, method, path, body, *arguments)

        monkeypatch.setattr(http.client.HTTPConnection, "request", request)
        # when a file is scored
        CliRunner().invoke(cli, ["predict", str(file), "--url", url, "-o", str(tmp_path / "out.csv")])
        # then outcomes will find its encounters by their numbers
        sent = [(one["encounter_id"], one["patient_nbr"]) for some in bodies for one in some]
        expected = cohort.head(2500)[["encounter_id", "patient_nbr"]].itertuples(index=False, name=None)
        assert sent == [*expected]

    def test_the_default_name(self, url: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        answer = CliRunner().invoke(cli, ["predict", str(file), "--url", url])
        assert "encounters.predictions.csv: 2500 encounters by version 7" in answer.output
        assert (tmp_path / "encounters.predictions.csv").is_file()

    def test_nothing_is_written_when_it_fails(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given an endpoint that is not there
        monkeypatch.setattr(endpoint, "PAUSE_SECONDS", 0.0)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
            answer = CliRunner().invoke(cli, ["predict", str(file), "--url", url, "-o", str(tmp_path / "out.csv")])
        assert isinstance(answer.exception, UnreachableError)
        assert not (tmp_path / "out.csv").exists()

    def test_an_address_that_is_none(self) -> None:
        with pytest.raises(SettingsError, match="is no address"):
            endpoint.Endpoint("localhost:3000", Settings())

    def test_a_refused_encounter_is_named(self, url: str, valid: dict[str, Any]) -> None:
        rows = [valid, valid, {**valid, "age": "old"}]
        with (
            endpoint.Endpoint(url, Settings()) as asked,
            pytest.raises(DataError, match="encounter 3, age: must be one of"),
        ):
            list(asked.predict(rows, portion=2))

    def test_a_busy_service_is_asked_again(
        self, url: str, valid: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given a service whose queue is full at the first attempt
        refused = iter([True])
        post = http.client.HTTPConnection.request

        def request(connection: Any, method: str, path: str, *arguments: Any) -> None:
            post(connection, method, path + ("/busy" if next(refused, False) else ""), *arguments)

        monkeypatch.setattr(endpoint, "PAUSE_SECONDS", 0.0)
        with endpoint.Endpoint(url, Settings()) as asked:
            assert [len(answers) for answers in asked.predict([valid] * 3, portion=2)] == [2, 1]

    @pytest.mark.parametrize(("log", "path"), [(True, "/predict/batch"), (False, "/predict/batch?log=false")])
    def test_a_client_may_ask_not_to_be_logged(
        self, url: str, valid: dict[str, Any], monkeypatch: pytest.MonkeyPatch, log: bool, path: str
    ) -> None:
        # given a client whose requests are watched
        post, asked = http.client.HTTPConnection.request, []

        def request(connection: Any, method: str, path: str, *arguments: Any) -> None:
            asked.append(path)
            post(connection, method, path, *arguments)

        monkeypatch.setattr(http.client.HTTPConnection, "request", request)
        # when
        with endpoint.Endpoint(url, Settings()) as client:
            assert len([*client.predict([valid] * 3, portion=2, log=log)]) == 2
        # then every portion says so
        assert asked == [path, path]

    def test_another_server_is_told_apart(self, url: str, valid: dict[str, Any]) -> None:
        with (
            endpoint.Endpoint(f"{url}/elsewhere", Settings()) as asked,
            pytest.raises(UnreachableError, match="answers 404"),
        ):
            list(asked.predict([valid], portion=1))

    def test_the_client_of_the_documentation(self, url: str, valid: dict[str, Any]) -> None:
        # given the code as it stands in docs/client.md
        text = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
        names: dict[str, Any] = {"__name__": "client"}
        exec(text.split("```python\n")[1].split("```")[0], names)
        client = names["Client"]("127.0.0.1", int(url.rpartition(":")[2]))
        # then it scores, and names what is wrong
        one = client.predict(valid)
        assert (one.model_version, one.prediction in (0, 1)) == ("7", True)
        assert client.predict_many([valid, valid])[1].probability_score == one.probability_score
        with pytest.raises(names["RefusedError"], match="literal_error"):
            client.predict({**valid, "age": "old"})


@pytest.mark.no_cover  # every line that they reach has a test of its own, and coverage doubles what they take
class TestHostile:
    """A short version of `make fuzz-serving`."""

    def test_nothing_is_our_fault(self, client: Client) -> None:
        # given bodies of every kind that no honest client sends
        statuses: Counter[int] = Counter()
        for path, kind, body in hostile.bodies(1500, seed=1):
            answer = client.raw(body, path, **{"content-type": kind})
            statuses[answer.status_code] += 1
            if answer.status_code != 200:
                assert set(answer.json()) == {"detail"}
        # then each gets its answer, and none is a failure of the service
        assert set(statuses) == {200, 415, 422}
        assert statuses[422] > 900

    @pytest.mark.filterwarnings("ignore")
    def test_the_openapi_document_is_kept(self, url: str) -> None:
        import schemathesis
        from schemathesis.config import SchemathesisConfig

        # given requests made from the document, inside and outside of it
        api = schemathesis.openapi.from_url(f"{url}/docs.json", config=SchemathesisConfig())
        asked: Counter[str] = Counter()
        for result in api.get_all_operations():
            operation = result.ok()
            strategy = operation.as_strategy() | operation.as_strategy(
                generation_mode=schemathesis.GenerationMode.NEGATIVE
            )

            @given(case=strategy)
            @hypothesis_settings(
                max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
            )
            def ask(case: Any) -> None:
                # then every answer is one that the document allows
                case.call_and_validate()
                asked[case.operation.path] += 1

            ask()
        assert set(asked) == set(httpx.get(f"{url}/docs.json").json()["paths"])


class TestAboutItself:
    def test_health(self, client: Client) -> None:
        answer = client.get("/health")
        assert answer.status_code == 200
        body = answer.json()
        assert body["ready"] is True
        assert body["problem"] == body["warning"] == ""
        assert (body["model_version"], body["family"]) == ("7", "LightGBM")
        assert body["bento_digest"].startswith("sha256:")
        assert body["bento_tag"].startswith("readmission:v7-")
        assert body["dataset_digest"] == "d"
        assert body["since"].endswith("+00:00")

    @pytest.mark.parametrize(("kind", "word"), [("synthetic", "SYNTHETIC DATA"), ("custom", "custom data")])
    def test_other_data_are_announced(self, source: Source, kind: str, word: str) -> None:
        with open_client(source(dataset_source=kind)) as client:
            assert word in client.get("/health").json()["warning"]
            assert word in client.get("/").text

    def test_probes(self, client: Client) -> None:
        assert [client.get(path).status_code for path in ("/livez", "/healthz", "/readyz")] == [200, 200, 200]
        assert client.head("/readyz").status_code == 200

    @pytest.mark.parametrize("harm", ["answer", "request", "none", "absent", "graph"])
    def test_not_ready_when_the_golden_requests_fail(self, source: Source, harm: str, golden: list[Any]) -> None:
        # given a Bento whose model does not answer as it did
        folder = source(run_id=harm)
        file = folder / "golden.json"
        cases = json.loads(file.read_text())
        if harm == "answer":
            cases[3]["answer"]["probability_score"] += 1e-3
            file.write_text(json.dumps(cases))
        elif harm == "request":
            cases[3]["request"]["age"] = "[200-210)"
            file.write_text(json.dumps(cases))
        elif harm == "none":
            file.write_text("[]")
        elif harm == "absent":
            file.unlink()
        else:
            (folder / "model.onnx").write_bytes(b"no graph")
        with open_client(folder) as client:
            # then it lives, takes no request, and says why
            assert client.get("/livez").status_code == 200
            assert client.get("/readyz").status_code == 503
            assert client.get("/health").json()["problem"].startswith("the model cannot be served: ")
            assert client.predict(golden[0]["request"]).status_code == 503
            assert client.get("/docs.json").status_code == 200

    def test_golden_requests_are_answered_and_are_nobodys(
        self, client: Client, golden: list[dict[str, Any]], cohort: pd.DataFrame
    ) -> None:
        known = {tuple(row) for row in cohort[[column.name for column in FEATURES]].itertuples(index=False, name=None)}
        for case in golden:
            answer = client.predict(case["request"]).json()
            assert {name: answer[name] for name in case["answer"]} == case["answer"]
            values = ["?" if value is None else str(value) for value in case["request"].values()]
            assert tuple(values) not in known
        assert len({case["answer"]["risk_group"] for case in golden}) > 1

    def test_labels_are_bounded(self, client: Client) -> None:
        client.get("/metrics")
        before = client.get("/metrics").text.count("\n")
        for number in range(50):
            client.get(f"/some/path/{number}")
            client.post(f"/predict?number={number}", json={})
        after = client.get("/metrics").text
        assert after.count("\n") <= before + 4
        assert "some/path" not in after

    def test_metrics_count_what_happened(self, source: Source, golden: list[dict[str, Any]]) -> None:
        with open_client(source()) as client:
            rows = [case["request"] for case in golden]
            answers = [client.predict(row).json() for row in rows] + client.post("/predict/batch", json=rows).json()
            positives = sum(answer["prediction"] for answer in answers)
            assert client.metric("requests_total", route="/predict", status="200") == len(rows)
            assert client.metric("decisions_total", prediction="1") == positives
            assert client.metric("decisions_total", prediction="0") == len(answers) - positives
            assert sum(client.metric("probabilities_total", up_to=f"{step / 20:.2g}") for step in range(1, 21)) == len(
                answers
            )
            scores = np.array([answer["probability_score"] for answer in answers])
            assert client.metric("probabilities_total", up_to="0.15") == ((scores > 0.1) & (scores <= 0.15)).sum()
            assert client.metric("latency_seconds_count", route="/predict") == len(rows)
            assert client.metric("model", model_version="7", family="LightGBM") == 1

    def test_openapi_says_what_is_done(self, client: Client) -> None:
        document = client.get("/docs.json").json()
        assert document["openapi"].startswith("3.1")
        predict = document["paths"]["/predict"]["post"]
        assert {"200", "413", "415", "422"} <= set(predict["responses"])
        assert "400" not in predict["responses"]
        body = predict["requestBody"]["content"]["application/json"]
        assert client.predict(body["example"]).status_code == 200
        schema = document["components"]["schemas"]["Encounter"]
        assert list(schema["properties"]) == [column.name for column in ASKED]
        assert schema["required"] == REQUIRED
        assert schema["properties"]["time_in_hospital"]["maximum"] == 14
        assert set(BY_NAME["age"].levels) == set(schema["properties"]["age"]["enum"])
        assert predict["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/Encounter")
        for name in ("Encounter", "Prediction", "Violations", "Problem", "Health"):
            assert name in document["components"]["schemas"]

    @pytest.mark.parametrize("path", ["/", "/docs"])
    def test_the_page_needs_no_other_host(self, client: Client, path: str) -> None:
        page = client.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert "http://" not in page.text
        assert "https://" not in page.text
        assert all(column.name in page.text for column in ASKED)
        # and what is tried out on it does not count as an encounter
        assert "ask('predict?log=false'" in page.text and "ask('predict/batch?log=false'" in page.text

    @needs_chromium
    def test_a_try_on_the_page_is_answered_in_words(self, url: str, cohort: pd.DataFrame, tmp_path: Path) -> None:
        # given a file of encounters, as a CSV with the label and quotes
        cohort.head(30).to_csv(tmp_path / "some.csv", index=False, quoting=csv.QUOTE_ALL)
        with browser() as chromium, chromium.visit(url) as page:
            # when the example is tried, and the file
            page.get_by_role("button", name="Predict", exact=True).click()
            page.locator(".bars").wait_for()
            page.locator("#file").set_input_files(tmp_path / "some.csv")
            page.get_by_role("button", name="Predict all").click()
            page.get_by_text("of 30 encounters are flagged").wait_for()
            # then the risk is said in words, with its group, and what raised it is drawn with its words
            said = page.locator("#answer").inner_text()
            program = page.locator("#python").inner_text()
        answer = httpx.post(f"{url}/predict?log=false", json=EXAMPLE).json()
        assert f"A risk of {100 * answer['probability_score']:.1f} % of being readmitted within 30 days" in said
        assert f"risk group {answer['risk_group']}" in said and "discharge_disposition_id: 3, skilled nursing" in said
        # and the same by program is a program
        assert f'requests.post("{url}/predict", json=encounter' in program
        body: dict[str, Any] = {}
        exec(program.partition("answer =")[0].replace("import requests", ""), body)
        assert body["encounter"] == EXAMPLE


class TestPredictionLog:
    def lines(self, folder: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]

    def test_every_prediction_is_there_once(self, source: Source, golden: list[dict[str, Any]], tmp_path: Path) -> None:
        # given a service with a log
        rows = [case["request"] for case in golden]
        pretty = json.dumps(rows[0], indent=2).encode()
        before = datetime.now(UTC)
        # when it answers, refuses and ends
        with open_client(source(), prediction_log=tmp_path / "log") as client:
            answers = [client.raw(pretty).json(), *client.post("/predict/batch", json=rows).json()]
            assert client.predict({"age": "wrong"}).status_code == 422
            assert client.post("/predict?log=false", json=rows[1]).status_code == 200
        # then the log holds what was answered, and only that
        lines = self.lines(tmp_path / "log")
        assert [{name: line[name] for name in answers[0]} for line in lines] == answers
        moments = [datetime.fromisoformat(line["time"]) for line in lines]
        assert before <= moments[0] <= moments[-1] <= datetime.now(UTC)
        asked = dict.fromkeys(column.name for column in ASKED)
        assert {**asked, **rows[0]} == lines[0]["features"] == lines[1]["features"]
        assert not list((tmp_path / "log").glob("*.part"))

    def test_who_it_is_about_is_logged(self, source: Source, valid: dict[str, Any], tmp_path: Path) -> None:
        # given encounters with identifiers, and without
        bodies = [{**valid, **IDENTIFIED}, {**valid, "patient_nbr": 9}, valid]
        # when
        with open_client(source(), prediction_log=tmp_path / "log") as client:
            assert client.predict(bodies[0]).status_code == 200
            assert client.post("/predict/batch", json=bodies).status_code == 200
            document = client.get("/docs.json").json()
        # then each line says what its request did
        found = [{name: line["features"][name] for name in IDENTIFIED} for line in self.lines(tmp_path / "log")]
        none = dict.fromkeys(IDENTIFIED)
        assert found == [IDENTIFIED, IDENTIFIED, {**none, "patient_nbr": 9}, none]
        # and the document says what a day looks like
        day = document["components"]["schemas"]["Encounter"]["properties"]["discharge_date"]
        assert any("[12][0-9]{3}-" in kind.get("pattern", "") for kind in day["anyOf"])

    @staticmethod
    def append(log: PredictionLog, number: int, times: int = 1, specialty: str = "Cardiology") -> None:
        prediction = Prediction(
            prediction=0, probability_score=0.1, risk_group="low", model_version="7", prediction_id=str(number)
        )
        log.extend([prediction] * times, [Encounter(**{**EXAMPLE, "medical_specialty": specialty})] * times)

    def ids(self, folder: Path) -> list[int]:
        return [int(line["prediction_id"]) for line in self.lines(folder)]

    def test_files_rotate_by_size(self, tmp_path: Path) -> None:
        log = PredictionLog(tmp_path, file_bytes=1)
        for number in range(3):
            self.append(log, number, times=600)
        log.close()
        # a file for each write, which takes many blocks
        sizes = [file.stat().st_size for file in tmp_path.glob("*.jsonl")]
        assert sum(sizes) // prediction_log.WRITTEN_BYTES - 1 <= len(sizes) < 20
        assert max(sizes) < 3 * prediction_log.WRITTEN_BYTES
        assert Counter(self.ids(tmp_path)) == dict.fromkeys(range(3), 600)

    def test_files_rotate_by_age(self, source: Source, tmp_path: Path) -> None:
        log = PredictionLog(tmp_path, file_seconds=0)
        self.append(log, 1)
        wait_for(lambda: bool(list(tmp_path.glob("*.jsonl"))), seconds=10)
        log.close()

    def test_a_full_queue_drops_and_counts(self, tmp_path: Path) -> None:
        # given a disk that takes nothing: the folder is a file
        (tmp_path / "log").write_text("in the way")
        dropped: list[int] = []
        written: list[int] = []
        log = PredictionLog(tmp_path / "log", dropped=dropped.append, written=written.append, queue_bytes=30)
        # a block that is begun below the limit is taken whole
        self.append(log, 0)
        for number in range(1, 5):
            self.append(log, number)
        assert sum(dropped) == 4
        # when the disk is back
        (tmp_path / "log").unlink()
        wait_for(lambda: bool(written))
        # then there is room again
        self.append(log, 9)
        log.close()
        assert self.ids(tmp_path / "log") == [0, 9]

    def test_a_disk_that_breaks_is_told_once_each_time(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        written: list[int] = []
        log = PredictionLog(tmp_path / "log", file_bytes=1, written=written.append)
        for times in (1, 2):
            (tmp_path / "log").write_text("in the way")
            self.append(log, times)
            wait_for(lambda times=times: caplog.text.count("cannot write") == times)  # type: ignore[misc]
            (tmp_path / "log").unlink()
            wait_for(lambda times=times: len(written) == times)  # type: ignore[misc]
            wait_for(lambda: bool(list((tmp_path / "log").glob("*.jsonl"))))
            shutil.rmtree(tmp_path / "log")
        log.close()

    def test_it_goes_on_when_the_disk_is_back(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "log").write_text("in the way")
        log = PredictionLog(tmp_path / "log")
        self.append(log, 1)
        wait_for(lambda: "cannot write" in caplog.text)
        (tmp_path / "log").unlink()
        log.close()
        assert self.ids(tmp_path / "log") == [1]

    def test_a_block_that_fits_by_half_is_taken_back(
        self, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given a disk that is full in the middle of a block, once
        log = PredictionLog(tmp_path)
        real = os.write
        calls: list[int] = []

        def half(descriptor: int, data: Any) -> int:
            calls.append(1)
            if len(calls) == 1:
                return real(descriptor, bytes(data)[:20])
            if len(calls) == 2:
                raise OSError(28, "No space left on device")
            return real(descriptor, data)

        monkeypatch.setattr(prediction_log.os, "write", half)
        self.append(log, 1)
        self.append(log, 2)
        wait_for(lambda: len(calls) >= 3, seconds=10)
        log.close()
        # then nothing is torn and nothing is twice there
        assert self.ids(tmp_path) == [1, 2]

    def test_a_disk_that_stays_full_leaves_whole_lines(
        self, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given a line on a disk that then takes half of a write and no more
        written: list[int] = []
        log = PredictionLog(tmp_path, written=written.append)
        self.append(log, 1)
        wait_for(lambda: bool(written))
        real, calls = os.write, iter([20])

        def full(descriptor: int, data: Any) -> int:
            for length in calls:
                return real(descriptor, bytes(data)[:length])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(prediction_log.os, "write", full)
        self.append(log, 2)
        # when the service ends
        log.close()
        # then what is published has no torn line
        assert self.ids(tmp_path) == [1]

    def test_what_a_killed_service_left_is_finished(self, source: Source, tmp_path: Path) -> None:
        # given an unfinished file with a torn last line, and an empty one
        (tmp_path / "predictions-a.jsonl.part").write_bytes(b'{"id":"1"}\n{"id":"2')
        (tmp_path / "predictions-b.jsonl.part").write_bytes(b"")
        # when a service starts and ends
        PredictionLog(tmp_path).close()
        # then the whole lines are published
        assert [path.name for path in tmp_path.iterdir()] == ["predictions-a.jsonl"]
        assert self.lines(tmp_path) == [{"id": "1"}]

    def test_a_file_in_use_is_left_alone(self, source: Source, tmp_path: Path) -> None:
        written: list[int] = []
        first = PredictionLog(tmp_path, written=written.append)
        self.append(first, 1)
        wait_for(lambda: bool(written))
        PredictionLog(tmp_path).close()
        assert len(list(tmp_path.glob("*.part"))) == 1
        first.close()
        assert self.ids(tmp_path) == [1]


class TestShipping:
    """Finished files of the prediction log on their way to storage."""

    NAME = "predictions-20261125T103000-1-0123456789abcdef.jsonl"
    KEY = f"predictions/2026-11-25/{NAME}"

    def test_predictions_arrive_in_storage_once(
        self, source: Source, golden: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        # given a service that ships, and a probe that is nobody's prediction
        storage = FolderStorage(tmp_path / "storage")
        rows = [case["request"] for case in golden]
        with open_client(source(), prediction_log=tmp_path / "log", storage_uri=storage.root.as_uri()) as client:
            answers = [client.predict(rows[0]).json(), *client.post("/predict/batch", json=rows).json()]
            assert client.post("/predict?log=false", json=rows[1]).status_code == 200
            assert client.post("/predict/batch?log=false", json=rows).status_code == 200
        # when it has ended
        # then storage has every prediction once, and the folder is empty
        keys = storage.keys("predictions/")
        lines = [json.loads(line) for key in keys for line in storage.read(key).splitlines()]
        assert [line["prediction_id"] for line in lines] == [answer["prediction_id"] for answer in answers]
        assert not list((tmp_path / "log").glob("predictions*"))
        assert b"prediction_log_files_shipped_total 1.0" in client.predictor.metrics.text("")[0]

    def test_a_day_and_a_name_are_the_key(self, source: Source) -> None:
        assert shipping.key_of(Path("log") / self.NAME) == self.KEY
        assert shipping.key_of(Path("notes.jsonl")) is None

    def test_shipping_again_changes_nothing(self, source: Source, tmp_path: Path) -> None:
        # given a file that was stored, by a worker that was killed before it deleted it
        storage = FolderStorage(tmp_path / "storage")
        file = tmp_path / self.NAME
        file.write_text("line\n")
        storage.upload(file, self.KEY)
        storage.upload(file, self.KEY)
        assert storage.keys("") == [self.KEY]

    def test_storage_that_is_away_is_waited_for(
        self, source: Source, golden: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        # given storage that cannot be written to
        folder = tmp_path / "log"
        (tmp_path / "storage").write_text("in the way")
        failures: list[int] = []
        storage = FolderStorage(tmp_path / "storage")
        folder.mkdir()
        (folder / self.NAME).write_text("line\n")
        shipper = shipping.Shipper(folder, storage, failed=failures.append, pause=0.01)
        # when some attempts failed, then the file is still there and it was said once
        wait_for(lambda: len(failures) >= 3)
        assert (folder / self.NAME).exists()
        assert caplog.text.count("storage does not take the prediction log") == 1
        # when storage is back, then it arrives
        (tmp_path / "storage").unlink()
        wait_for(lambda: not (folder / self.NAME).exists())
        shipper.close()
        assert (tmp_path / "storage" / self.KEY).read_text() == "line\n"
        assert "takes the prediction log again" in caplog.text

    def test_a_full_spool_drops_and_says_so(
        self, source: Source, valid: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        # given a folder that holds as much as it may, and storage that is away
        (tmp_path / "log").mkdir()
        (tmp_path / "log" / self.NAME).write_bytes(b"x" * 2**20)
        (tmp_path / "storage").write_text("in the way")
        with open_client(
            source(),
            prediction_log=tmp_path / "log",
            prediction_log_limit_mb=1,
            storage_uri=(tmp_path / "storage").as_uri(),
        ) as client:
            wait_for(lambda: client.metric("prediction_log_spool_bytes") == 2**20)
            wait_for(lambda: "the prediction log is full" in caplog.text)
            # then predictions go on, and are counted as dropped
            assert client.predict(valid).status_code == 200
            assert client.metric("prediction_log_dropped_total") == 1

    def test_one_worker_ships_at_a_time(self, source: Source, tmp_path: Path) -> None:
        # given a store that shows who is in it
        inside: list[int] = []
        worst: list[int] = []

        class Slow:
            def upload(self, file: Path, key: str) -> None:
                inside.append(1)
                worst.append(len(inside))
                threading.Event().wait(0.002)
                inside.pop()

        for number in range(20):
            (tmp_path / f"predictions-20261125T103000-1-{number:016x}.jsonl").write_text("line\n")
        shipped: list[int] = []
        shippers = [shipping.Shipper(tmp_path, Slow(), shipped=shipped.append, pause=0.001) for _ in range(3)]
        wait_for(lambda: not list(tmp_path.glob("*.jsonl")))
        for shipper in shippers:
            shipper.close()
        assert max(worst) == 1
        assert sum(shipped) == 20

    def test_a_bucket(self, source: Source, tmp_path: Path, s3_endpoint: str) -> None:
        storage = S3Storage("bucket", "some/prefix", s3_endpoint)
        storage._client.create_bucket(Bucket="bucket")
        file = tmp_path / self.NAME
        file.write_text("line\n")
        shipper = shipping.Shipper(tmp_path, storage, pause=0.01)
        wait_for(lambda: not file.exists())
        shipper.close()
        # then what reads storage finds it
        assert storage.keys("predictions/") == [self.KEY]
        assert storage.read(self.KEY) == b"line\n"

    def test_an_unknown_storage(self, source: Source, tmp_path: Path) -> None:
        with open_client(source(), prediction_log=tmp_path, storage_uri="ftp://somewhere") as client:
            assert client.get("/readyz").status_code == 503
            assert "ftp://somewhere" in client.get("/health").json()["problem"]


class TestSettings:
    def test_no_log_by_its_limit(self, source: Source, valid: dict[str, Any], tmp_path: Path) -> None:
        with open_client(source(), prediction_log=tmp_path / "log", prediction_log_limit_mb=0) as client:
            assert client.predict(valid).status_code == 200
        assert not (tmp_path / "log").exists()

    def test_a_wrong_number_is_named(self, source: Source) -> None:
        with pytest.raises(SettingsError, match="HEALTH_PREDICT_SERVING_THREADS"):
            imported(source(), serving_threads=0)

    def test_limits_of_a_batch(self, source: Source, valid: dict[str, Any]) -> None:
        with open_client(source(), serving_batch_rows=2, serving_batch_mb=1, serving_threads=2) as client:
            assert violated(client.post("/predict/batch", json=[valid] * 3)) == {"body": "too_long"}
            assert client.raw(b" " * (2**20 + 1), "/predict/batch").status_code == 413


def served(folder: Path, home: Path, **environment: str) -> tuple[subprocess.Popen[bytes], str]:
    """A Bento, served by BentoML's command from an empty folder, and its address once it is ready.

    The packages of this environment are seen but for httptools, which the Bento's own environment does not have.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (home / "hidden").mkdir(parents=True)
    (home / "hidden" / "httptools.py").write_text("raise ImportError('hidden')")
    (home / "empty").mkdir()
    command = [sys.executable, "-m", "bentoml", "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with (home / "output").open("wb") as output:
        server = subprocess.Popen(
            command,
            env={
                **os.environ,
                "HOME": str(home / "home"),
                "PYTHONPATH": str(home / "hidden"),
                "BENTOML_HOME": str(home / "bentoml"),
                "BENTOML_DO_NOT_TRACK": "true",
                "BENTOML_CONFIG_OPTIONS": "services.readmission.workers=2",
                **environment,
            },
            cwd=home / "empty",
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: _is_ready(url) or server.poll() is not None, seconds=240)
        assert server.poll() is None, (home / "output").read_text()
    except BaseException:
        server.kill()
        raise
    return server, url


@pytest.mark.slow
def test_bentoml_serve(compiled: CompiledModel, golden: list[dict[str, Any]], tmp_path: Path) -> None:
    # given a Bento, served as its users do, by two workers
    bento = BentoStore(tmp_path / "store").build(bento_tag("7", IDENTITY), compiled, IDENTITY, golden)
    server, url = served(bento.folder, tmp_path, HEALTH_PREDICT_PREDICTION_LOG=str(tmp_path / "log"))
    secret = "Jane-Doe-1234"
    try:
        rows, expected = [case["request"] for case in golden], [case["answer"]["probability_score"] for case in golden]
        # when BentoML's own clients ask it
        with bentoml.SyncHTTPClient(url) as client:
            answers = [client.predict(row) for row in rows]
            answers += client.predict_batch(rows)
            with pytest.raises(UnprocessableEntity):
                client.predict({**rows[0], "age": secret})
            with pytest.raises(UnprocessableEntity):
                client.predict_batch([{**rows[0], secret: 1}])

        async def ask() -> Any:
            async with bentoml.AsyncHTTPClient(url) as client:
                return [await client.predict(rows[0]), *await client.predict_batch(rows[:2])]

        answers += asyncio.run(ask())
        # then it answers as at build time, and any worker counts for all
        scores = [answer["probability_score"] for answer in answers]
        assert scores == pytest.approx([*expected, *expected, expected[0], *expected[:2]], abs=1e-6)
        metrics = httpx.get(f"{url}/metrics").text
        assert f'requests_total{{route="/predict",status="200"}} {len(golden) + 1}.0' in metrics
        assert httpx.get(f"{url}/health").json()["bento_digest"] == bento.digest
        # and BentoML tells of the same API
        schema = httpx.get(f"{url}/schema.json").json()
        assert [route["route"] for route in schema["routes"]] == ["/predict", "/predict/batch"]
        assert list(schema["routes"][0]["input"]["properties"]) == [column.name for column in ASKED]
        # and what a client sends too much of is refused, not cut off
        assert httpx.post(f"{url}/predict", content=b" " * 3_000_000, headers=JSON).status_code == 413
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(120)
    # and it ends in order, with every prediction in the log once
    assert code == 0
    lines = [line for file in (tmp_path / "log").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert sorted(json.loads(line)["prediction_id"] for line in lines) == sorted(
        answer["prediction_id"] for answer in answers
    )
    # and no value of a refused request is in a log, nor did a library write into the home
    assert secret not in (tmp_path / "output").read_text()
    assert not (tmp_path / "home").exists()


def test_bentomls_commands_know_the_bento(
    compiled: CompiledModel, golden: list[dict[str, Any]], tmp_path: Path
) -> None:
    bento = BentoStore(tmp_path).build(bento_tag("7", IDENTITY), compiled, IDENTITY, golden)
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "true"}

    def told(*arguments: str) -> Any:
        command = [sys.executable, "-m", "bentoml", *arguments, "-o", "json"]
        return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)

    assert [item["tag"] for item in told("list")] == [bento.tag]
    assert told("get", bento.tag)["labels"]["model_version"] == "7"


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=1).status_code == 200
    except httpx.HTTPError:
        return False
