"""record_end: what is written about a run of a cluster that ended."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from kubernetes.config import kube_config
from pydantic import SecretStr

from health_predict.adapters.notifications import Event, tell
from health_predict.adapters.storage import open_storage
from health_predict.settings import Settings
from health_predict.stages.record_end import record_end
from tests.receivers import webhook

POD = {"metadata": {"name": "the-pod", "creationTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Failed"}}
LAST_LINE = {"stage": "register", "message": "the gates refuse it", "remedy": "read the card", "exit_code": 6}


class ApiServer(BaseHTTPRequestHandler):
    """What the real one says of a run with one failed pod; tests/e2e asks a real one."""

    def do_GET(self) -> None:
        if self.path.startswith("/api/v1/namespaces/kubeflow/pods/the-pod/log"):
            body = f"a line before\n2026-01-01 {json.dumps(LAST_LINE)}\n"
        else:
            assert self.path.endswith("labelSelector=pipeline%2Frunid%3Drun-1")
            body = json.dumps({"items": [POD]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def api_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), ApiServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(config))
        # The client library reads KUBECONFIG once, when it is imported.
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
        yield
        server.shutdown()


def test_a_failed_run_is_recorded_with_its_reason(settings: Settings, api_server: None) -> None:
    # when a run ended because a stage failed
    end = record_end(settings, pipeline="readmission", run_id="run-1", state="FAILED")
    # then the record says what that stage said last
    stored = json.loads(open_storage(settings.storage).read("runs/run-1.json"))
    assert (stored["state"], stored["pipeline"], stored["champion"]) == ("failed", "readmission", "")
    assert (stored["error"], stored["remedy"]) == ("register: the gates refuse it", "read the card")
    assert stored["ended"] == end["ended"]


def test_people_are_told_of_a_failed_run_and_of_what_its_stages_left(settings: Settings, api_server: None) -> None:
    with webhook() as receiver:
        # given a run whose stage left a message, and whose other stage failed
        settings = settings.model_copy(update={"notify": (SecretStr(receiver.address),)})
        tell(settings, Event.REFUSED, "2 against 1", "The gates refuse version 2.", "`health-predict report open 2`")
        # when its end is recorded, twice
        for _ in range(2):
            record_end(settings, pipeline="readmission", run_id="run-1", state="FAILED")
        # then both are told once
        assert receiver.titles == ["challenger refused", "run failed"]
        assert receiver.letters[1]["message"] == (
            "Run run-1 of readmission failed: register: the gates refuse it.\n\nNext: read the card"
        )


def test_a_run_that_succeeded_needs_no_reason(settings: Settings) -> None:
    # when a run ended well, and is recorded twice
    first = record_end(settings, pipeline="training", run_id="run-2", state="COMPLETE")
    record_end(settings, pipeline="training", run_id="run-2", state="COMPLETE")
    # then there is one record
    storage = open_storage(settings.storage)
    assert storage.keys("runs/") == ["runs/run-2.json"]
    assert (first["state"], first["error"]) == ("succeeded", "")


def test_an_end_is_recorded_without_an_api_server(settings: Settings) -> None:
    # when a run failed and no cluster can be asked why
    end = record_end(settings, pipeline="training", run_id="run-3", state="FAILED")
    # then that it failed is recorded all the same
    assert (end["state"], end["error"]) == ("failed", "")
    assert json.loads(open_storage(settings.storage).read("runs/run-3.json"))["state"] == "failed"


def test_why_a_run_failed_is_recorded_without_mlflow(settings: Settings, api_server: None) -> None:
    # given an MLflow that is away, perhaps because of which the run failed
    away = settings.model_copy(update={"mlflow_tracking_uri": "http://127.0.0.1:9"})
    # when the end is recorded, then it has the reason, and no champion
    end = record_end(away, pipeline="training", run_id="run-1", state="FAILED")
    assert (end["champion"], end["error"]) == ("", "register: the gates refuse it")
