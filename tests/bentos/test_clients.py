"""What others use to speak to the service: their own generators, parsers and checks, at their defaults."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.contracts import DIABETES
from tests.services import Client, Source, open_client

CLIENTS = Path(__file__).parent / "clients"
NODE_MODULES = CLIENTS / "node_modules"
EXAMPLE = DIABETES.request


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a program prints; it must end well."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        # The generator formats what it wrote by a program that it looks for there.
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture
def document(url: str, tmp_path: Path) -> Path:
    file = tmp_path / "docs.json"
    file.write_bytes(httpx.get(f"{url}/docs.json").content)
    return file


def test_a_generated_python_client(url: str, document: Path, tmp_path: Path) -> None:
    # given the client that openapi-python-client makes of the document, without a warning
    program = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none", "--fail-on-warning"]
    run(*program, "--path", document, "--output-path", tmp_path / "generated", cwd=tmp_path)
    shutil.copy(CLIENTS / "ask.py", tmp_path)
    # then it holds its types, and asks every path
    # Its own files are not strict.
    types = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file", os.devnull]
    run(*types, "ask.py", cwd=tmp_path)
    assert (
        json.loads(run(sys.executable, "ask.py", url, cwd=tmp_path, EXAMPLE=json.dumps(EXAMPLE)))["model_version"]
        == "7"
    )


@pytest.mark.skipif(shutil.which("node") is None, reason="skipped: no Node.js (Debian: apt-get install nodejs npm)")
@pytest.mark.skipif(not NODE_MODULES.is_dir(), reason="skipped: no npm packages (npm ci --prefix tests/bentos/clients)")
def test_a_generated_typescript_client(url: str, document: Path, tmp_path: Path) -> None:
    # given the types that openapi-typescript makes of the document
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    for name in ("ask.ts", "package.json", "tsconfig.json"):
        shutil.copy(CLIENTS / name, tmp_path)
    run(NODE_MODULES / ".bin" / "openapi-typescript", document, "-o", "generated.d.ts", cwd=tmp_path)
    # then a program in them compiles, and asks every path
    run(NODE_MODULES / ".bin" / "tsc", cwd=tmp_path)
    assert json.loads(run("node", "ask.js", url, cwd=tmp_path, EXAMPLE=json.dumps(EXAMPLE)))["model_version"] == "7"


def test_schemathesis_at_its_defaults(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/docs.json", "--max-examples", "10"]
    assert "No issues found" in run(*command, "--seed", "1", "--no-color", cwd=tmp_path)


class TestMetrics:
    # What a Prometheus of version 3 sends.
    ACCEPT = (
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
        "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
        "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
    )

    @pytest.mark.parametrize("shared", [False, True])
    def test_both_formats_tell_the_same(
        self, source: Source, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with open_client(source()) as client:
            assert client.predict(EXAMPLE).status_code == 200
            # when each is asked for
            plain, asked = client.get("/metrics"), client.get("/metrics", headers={"accept": self.ACCEPT})
        # then each says what it is, and its own parser reads it
        assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert asked.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert asked.text.endswith("# EOF\n")
        first, second = (
            {sample.name for family in parsed for sample in family.samples}
            for parsed in (
                text_string_to_metric_families(plain.text),
                openmetrics.text_string_to_metric_families(asked.text),
            )
        )
        assert first == second
        assert {"health_predict_requests_total", "health_predict_model"} <= first


class TestPages:
    PAGE = "https://ward.example"

    def preflight(self, client: Client) -> httpx.Response:
        asks = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
        return client.options("/predict", headers={"origin": self.PAGE, **asks})

    def test_no_other_page_may_ask_unless_told(self, client: Client) -> None:
        assert self.preflight(client).status_code == 405
        answer = client.post("/predict", json=EXAMPLE, headers={"origin": self.PAGE})
        assert not [name for name in answer.headers if name.startswith("access-control")]

    def test_a_page_that_is_named_may_ask(self, source: Source) -> None:
        with open_client(source(), serving_cors_origins=json.dumps([self.PAGE])) as client:
            # when the page asks, and sends what is refused
            answers = [
                self.preflight(client),
                *(client.post("/predict", json=body, headers={"origin": self.PAGE}) for body in (EXAMPLE, {})),
            ]
            other = client.post("/predict", json=EXAMPLE, headers={"origin": "https://other.example"})
        # then its browser hands it every answer, and no other page any
        assert [answer.status_code for answer in answers] == [200, 200, 422]
        assert {answer.headers["access-control-allow-origin"] for answer in answers} == {self.PAGE}
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("state", ["ready", "failed", "absent"])
def test_health_is_as_its_schema_says(source: Source, state: str) -> None:
    folder = source(run_id=state)
    if state == "failed":
        (folder / "golden.json").write_text("[]")
    elif state == "absent":
        (folder / "identity.json").unlink()
    with open_client(folder) as client:
        document = client.get("/docs.json").json()
        health: Any = client.get("/health")
    # given a schema that allows nothing more than it names
    schema = {**document["components"]["schemas"]["Health"], "components": document["components"]}
    assert schema["additionalProperties"] is False
    # then whatever the state, the answer keeps it
    assert health.status_code == (200 if state == "ready" else 503)
    Draft202012Validator(schema).validate(health.json())
    if state == "ready":
        assert set(health.json()) == set(schema["properties"])
