"""Who may ask the endpoint: attacks on its tokens, and what those who have one get."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from health_predict.adapters.serving.endpoint import Endpoint, ask
from health_predict.adapters.tokens import Role, add_token, digest_of, read_tokens, remove_token
from health_predict.cli import app as cli
from health_predict.errors import SettingsError, StateError
from health_predict.settings import Settings
from tests.browser import browser, needs_chromium
from tests.contracts import DIABETES
from tests.services import Client, Source, bearer, imported, open_client

EXAMPLE = DIABETES.request
CLOSED = [("POST", "/predict"), ("POST", "/predict/batch"), ("GET", "/metrics"), ("GET", "/elsewhere")]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


@pytest.fixture
def operator(tokens: Path) -> str:
    return add_token(tokens, "operator", Role.OPERATOR)


@pytest.fixture
def ward(tokens: Path, operator: str) -> str:
    return add_token(tokens, "ward-7", Role.CLIENT)


@pytest.fixture
def closed(source: Source, tokens: Path, ward: str) -> Iterator[Client]:
    """A service that asks for tokens."""
    with open_client(source(), serving_tokens=tokens) as client:
        yield client


def attempts(token: str) -> dict[str, dict[str, str] | list[tuple[str, str]]]:
    """Headers of those who have no token, and of one who has it and sends it otherwise."""
    basic = base64.b64encode(f"ward-7:{token}".encode()).decode()
    return {
        "none": {},
        "wrong": bearer("x" * 43),
        "empty": bearer(""),
        "its digest": bearer(digest_of(token.encode())),
        "its beginning": bearer(token[:-1]),
        "more than it": bearer(token + "x"),
        "another scheme": {"authorization": f"Basic {basic}"},
        "no scheme": {"authorization": token},
        "another header": {"x-api-key": token, "cookie": f"token={token}"},
        "beside another": [("authorization", f"Bearer {token}"), ("authorization", "Bearer x")],
        "no ASCII": {"authorization": "Bearer \u00e9\u0000"},
    }


class TestWithoutAToken:
    @pytest.mark.parametrize(("method", "path"), CLOSED)
    @pytest.mark.parametrize("attempt", attempts(""))
    def test_nobody_gets_in(self, closed: Client, ward: str, method: str, path: str, attempt: str) -> None:
        sent = attempts(ward)[attempt]
        headers = [(name, value.encode()) for name, value in (sent if isinstance(sent, list) else sent.items())]
        # when somebody asks without the token where it belongs
        answer = closed.request(method, path, json=EXAMPLE if method == "POST" else None, headers=headers)
        # then the answer says nothing but that, and it is counted
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json().keys() == {"detail"}
        closed.headers.update(bearer(ward))
        counted = sum(closed.metric("callers_total", outcome=outcome) for outcome in ("none", "wrong"))
        assert counted == 1
        assert closed.metric("decisions_total", prediction="0") + closed.metric("decisions_total", prediction="1") == 0

    def test_the_token_is_not_taken_from_the_address(self, closed: Client, ward: str) -> None:
        assert closed.post(f"/predict?token={ward}&access_token={ward}", json=EXAMPLE).status_code == 401

    def test_a_large_body_is_refused_unread(self, closed: Client, ward: str) -> None:
        assert closed.post("/predict/batch", json=[EXAMPLE] * 5000).status_code == 401

    def test_probes_are_answered(self, closed: Client) -> None:
        assert [closed.get(path).status_code for path in ("/livez", "/healthz", "/readyz")] == [200, 200, 200]

    def test_nothing_tells_what_serves(self, closed: Client, ward: str) -> None:
        assert closed.get("/health").json() == {"ready": True}
        said = closed.get("/health", headers=bearer(ward)).json()
        page, document = closed.get("/").text, closed.get("/docs.json").text
        for name in ("bento_tag", "bento_digest", "threshold"):
            assert str(said[name]) and str(said[name]) not in page + document
        assert json.loads(document)["info"]["version"] == ""
        assert closed.get("/health", headers=bearer("x")).status_code == 401

    def test_the_document_names_the_scheme(self, closed: Client, client: Client) -> None:
        document = closed.get("/docs.json").json()
        (name,) = document["components"]["securitySchemes"]
        assert document["components"]["securitySchemes"][name] == {"type": "http", "scheme": "bearer"}
        assert document["paths"]["/predict"]["post"]["security"] == [{name: []}]
        assert "401" in document["paths"]["/predict/batch"]["post"]["responses"]
        # and of a service that asks nobody it does not
        assert "securitySchemes" not in client.get("/docs.json").json()["components"]


class TestWithAToken:
    def test_predictions_are_answered(self, closed: Client, ward: str) -> None:
        closed.headers.update(bearer(ward))
        assert closed.predict(EXAMPLE).status_code == 200
        assert closed.post("/predict/batch", json=[EXAMPLE]).status_code == 200
        assert closed.post("/predict", json=EXAMPLE, headers={"authorization": f"bearer  {ward}"}).status_code == 200
        assert closed.metric("callers_total", outcome="taken") >= 3
        assert closed.get("/health").json()["model_version"] == "7"

    @pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
    def test_only_an_operator_keeps_a_prediction_out_of_the_log(
        self, source: Source, tokens: Path, operator: str, ward: str, path: str, tmp_path: Path
    ) -> None:
        body = EXAMPLE if path == "/predict" else [EXAMPLE]
        with open_client(source(), serving_tokens=tokens, prediction_log=tmp_path / "log") as client:
            # when both ask for it
            refused = client.post(f"{path}?log=false", json=body, headers=bearer(ward))
            done = client.post(f"{path}?log=false", json=body, headers=bearer(operator))
            assert client.post(path, json=body, headers=bearer(ward)).status_code == 200
        # then the client is refused, and hears why
        assert refused.status_code == 403 and "operator" in refused.json()["detail"]
        assert done.status_code == 200
        lines = [line for file in (tmp_path / "log").glob("*.jsonl") for line in file.read_text().splitlines()]
        assert len(lines) == 1

    def test_who_asked_what_is_written_down_without_values(
        self, source: Source, tokens: Path, ward: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # given a service that asks for tokens
        with open_client(source(), serving_tokens=tokens) as client:
            # when somebody with one, somebody without, and a probe ask, the first also for what is not there
            client.post("/predict?explain=true", json=EXAMPLE, headers=bearer(ward))
            client.get("/patients/4711", headers=bearer(ward))
            client.post("/predict", json=EXAMPLE, headers=bearer("x" * 43))
            client.get("/livez")
        lines = [line for line in capsys.readouterr().out.splitlines() if " access " in line]
        found = [json.loads(line.partition(" access ")[2]) for line in lines]
        # then a line tells of each but the probe: who, what, with which answer, and nothing that was sent
        assert [(one["caller"], one["method"], one["path"], one["status"]) for one in found] == [
            ("ward-7", "POST", "/predict", 200),
            ("ward-7", "GET", "other", 404),
            (None, "POST", "/predict", 401),
        ]
        assert {key for one in found for key in one} == {"caller", "method", "path", "status", "seconds"}

    def test_it_is_in_no_log(
        self, source: Source, tokens: Path, ward: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        # given all that any library of the service has to say
        caplog.set_level(logging.DEBUG)
        with open_client(source(), serving_tokens=tokens, prediction_log=tmp_path / "log") as client:
            # when requests with it are answered and refused, and one fails
            statuses = [client.predict(body).status_code for body in (EXAMPLE, {})]
            client.headers.update(bearer(ward))
            statuses += [client.predict(body).status_code for body in (EXAMPLE, {})]
            statuses.append(client.post("/predict", json=EXAMPLE, headers=bearer(ward + "x")).status_code)
            client.predictor._scorer = None
            statuses.append(client.predict(EXAMPLE).status_code)
            metrics = client.get("/metrics").text
        assert statuses == [401, 401, 200, 422, 401, 500]
        # then neither it nor what the file holds of it is in the log, the metrics or the prediction log
        logged = "".join(file.read_text() for file in (tmp_path / "log").glob("*.jsonl"))
        assert logged
        for secret in (ward, digest_of(ward.encode())):
            assert secret not in caplog.text + metrics + logged


class TestRotation:
    def test_it_needs_no_restart(self, closed: Client, tokens: Path, ward: str) -> None:
        def status(token: str) -> int:
            return closed.post("/predict", json=EXAMPLE, headers=bearer(token)).status_code

        assert status(ward) == 200
        # when another token is handed out
        new = add_token(tokens, "ward-7-next", Role.CLIENT)
        # then both are taken, until the first is removed
        assert (status(ward), status(new)) == (200, 200)
        remove_token(tokens, "ward-7")
        assert (status(ward), status(new)) == (401, 200)

    @pytest.mark.parametrize("damage", ["gone", "a token in plain text"])
    def test_a_wrong_file_lets_nobody_in(
        self, closed: Client, tokens: Path, ward: str, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        kept = tokens.read_text()
        closed.headers.update(bearer(ward))
        assert closed.predict(EXAMPLE).status_code == 200
        # when the file goes wrong
        if damage == "gone":
            tokens.unlink()
        else:
            tokens.write_text(f"{kept}{ward}\n")
        # then nobody gets in, and the log says so once, without what stands there
        assert [closed.predict(EXAMPLE).status_code for _ in range(3)] == [401] * 3
        assert caplog.text.count("nobody is let in") == 1
        assert ward not in caplog.text
        # and mending it is enough
        tokens.write_text(kept)
        assert closed.predict(EXAMPLE).status_code == 200


class TestBeyondThisMachine:
    def test_it_does_not_start_without_tokens(self, source: Source, tokens: Path) -> None:
        with pytest.raises(SettingsError, match="ask nobody who they are -> set HEALTH_PREDICT_SERVING_TOKENS"):
            imported(source(), serving_host="0.0.0.0")
        with pytest.raises(SettingsError, match=r"cannot be read.*token add"):
            imported(source(), serving_host="0.0.0.0", serving_tokens=tokens)

    def test_whoever_comes_from_elsewhere_is_refused_all_the_same(self, source: Source) -> None:
        # given a service that was told to listen on this machine, and was led to another address
        service = imported(source(), serving_hosts='["192.0.2.7"]')
        with Client(service, "http://192.0.2.7") as client:
            answer = client.predict(EXAMPLE)
            assert client.get("/livez").status_code == 200
        assert answer.status_code == 401 and "no file of tokens" in answer.json()["detail"]

    def test_a_page_of_another_site_cannot_ask_by_its_own_name(self, client: Client, source: Source) -> None:
        # when a browser is led here by a name that somebody else controls
        answer = client.post("/predict", json=EXAMPLE, headers={"host": "attacker.example"})
        assert answer.status_code == 400
        assert client.get("/health", headers={"host": "attacker.example:80"}).status_code == 400
        assert client.get("/health", headers={"host": "attacker."}).status_code == 400
        # then the names of this machine go on, those without a dot, and those that the settings add
        for host in ("localhost:3000", "127.0.0.1", "[::1]:3000", "x", "readmission-api:3000"):
            assert client.post("/predict", json=EXAMPLE, headers={"host": host}).status_code == 200
        with open_client(source(), serving_hosts='["ward.example"]') as named:
            assert named.post("/predict", json=EXAMPLE, headers={"host": "ward.example"}).status_code == 200


class TestFile:
    def run(self, *words: str, file: object = "") -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["token", *words], env={"HEALTH_PREDICT_SERVING_TOKENS": str(file)})
        return done.exit_code, done.output.strip()

    def test_tokens_are_made_listed_and_removed(self, tokens: Path) -> None:
        # when two are made
        (_, ward), (_, operator) = (
            self.run("add", *words, file=tokens) for words in (("ward-7",), ("me", "--operator"))
        )
        # then they are of 256 bits, and the file, which is its owner's alone, knows their digests only
        assert len(base64.urlsafe_b64decode(ward + "=")) == 32 and ward != operator
        assert tokens.stat().st_mode & 0o077 == 0
        assert ward not in tokens.read_text() and digest_of(ward.encode()) in tokens.read_text()
        listed = json.loads(self.run("list", "--json", file=tokens)[1])
        assert listed == [{"name": "ward-7", "role": "client"}, {"name": "me", "role": "operator"}]
        assert self.run("remove", "ward-7", file=tokens) == (0, "removed ward-7")
        assert [token.name for token in read_tokens(tokens)] == ["me"]

    def test_errors_say_what_to_do(self, tokens: Path, ward: str) -> None:
        with pytest.raises(StateError, match="there is a token ward-7 already"):
            add_token(tokens, "ward-7", Role.CLIENT)
        with pytest.raises(StateError, match=r"there is no token ward-8.*token list"):
            remove_token(tokens, "ward-8")
        with pytest.raises(SettingsError, match="no name of a token"):
            add_token(tokens, "ward 7", Role.CLIENT)
        assert self.run("list")[0] != 0


class TestOurClients:
    @pytest.fixture
    def service_settings(self, tokens: Path, ward: str) -> dict[str, str]:
        return {"serving_tokens": str(tokens)}

    def settings(self, tmp_path: Path, token: str) -> Settings:
        file = tmp_path / "token"
        file.write_text(f"{token}\n")
        return Settings(serving_token_file=str(file))

    def test_they_send_the_token_of_the_settings(self, url: str, operator: str, tmp_path: Path) -> None:
        settings = self.settings(tmp_path, operator)
        with Endpoint(url, settings) as endpoint:
            (answers,) = endpoint.predict([EXAMPLE], 10, log=False)
        assert answers[0]["model_version"] == "7"
        assert ask(f"{url}/health", settings).json()["model_version"] == "7"

    def test_they_say_what_is_missing(self, url: str, ward: str, tmp_path: Path) -> None:
        for settings in (Settings(), self.settings(tmp_path, "x" * 43)):
            with Endpoint(url, settings) as endpoint, pytest.raises(SettingsError, match="SERVING_TOKEN_FILE"):
                list(endpoint.predict([EXAMPLE], 10))
        with Endpoint(url, self.settings(tmp_path, ward)) as endpoint, pytest.raises(SettingsError, match="operator"):
            list(endpoint.predict([EXAMPLE], 10, log=False))
        with pytest.raises(SettingsError, match=r"cannot be read.*SERVING_TOKEN_FILE"):
            Endpoint(url, Settings(serving_token_file=str(tmp_path / "none")))
        with pytest.raises(SettingsError, match="does not hold a token"):
            Endpoint(url, self.settings(tmp_path, "two words"))

    @needs_chromium
    def test_the_page_takes_a_token(self, url: str, operator: str) -> None:
        with browser() as chromium, chromium.visit(url) as page:
            # when an operator's token is given
            page.locator("#token").fill(operator)
            page.locator("#token").blur()
            page.get_by_text("Model version 7").wait_for()
            page.get_by_role("button", name="Predict", exact=True).click()
            page.locator(".bars").wait_for()
            said = page.locator("#answer").inner_text()
            kept = page.evaluate(
                "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
            )
        # then what it opens is shown, and it is kept nowhere
        assert "A risk of" in said and "From a risk of 0.0 %" not in said
        assert operator not in kept
