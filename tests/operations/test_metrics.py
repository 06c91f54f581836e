"""Metrics of the loop, and what k8s/monitoring makes of them and of the endpoint's, by Prometheus' own programs."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.records import BatchDecision, SettledBatch
from health_predict.adapters.files import write_json
from health_predict.adapters.tracking import Tracking
from health_predict.core.data.cohort import without_excluded
from health_predict.core.monitoring.drift import Alarm, Verdict
from health_predict.core.monitoring.policy import PolicyState, Settlement
from health_predict.operations.metrics import loop_metrics
from health_predict.serving.metrics import Metrics
from health_predict.settings import Settings
from tests.cohorts import synthesize
from tests.contracts import DIABETES
from tests.feed import logged
from tests.prometheus import MONITORING, needs, prometheus


def values(text: str) -> dict[tuple[str, ...], float]:
    """Each series, as its name and the values of its labels."""
    families = text_string_to_metric_families(text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


@pytest.fixture
def judged(settings: Settings, tracking: Tracking, champion: str) -> Settings:
    """A champion, three windows of ten, of which one was judged and found wrong, and a run of monitoring."""
    batches = Batches(settings.model_copy(update={"window": "10"}))
    frame = without_excluded(synthesize(60, seed=1), DIABETES).head(30).reset_index(drop=True)
    for number in range(3):
        rows = frame[10 * number : 10 * number + 10].reset_index(drop=True)
        logged(batches.storage, f"{number}", rows, datetime(2026, 10, 5, tzinfo=UTC))
    batches.arrivals.collect()
    names: Any = {"batch": 0, "batch_digest": "b" * 64}
    found = BatchDecision(
        **names, model_version=champion, dataset_digest="d" * 64, verdict=Verdict.RETRAIN, alarms=(Alarm.AUC,)
    )
    ended = SettledBatch(**names, outcome=Settlement.LOST, version_before=champion, version_after=champion)
    batches.decide(found)
    batches.settle(ended, batches.progress().after(found, PolicyState()))
    for day, state in (("05", "succeeded"), ("06", "succeeded"), ("07", "failed")):
        run = settings.home / "runs" / f"202610{day}T000000-monitoring"
        run.mkdir(parents=True)
        record = {
            "run_id": run.name,
            "pipeline": "monitoring",
            "state": state,
            "ended": f"2026-10-{day}T00:00:00+00:00",
        }
        write_json(run / "run.json", record)
    return settings


def test_the_state_of_the_loop(judged: Settings, champion: str) -> None:
    found = values(generate_latest(loop_metrics(judged)).decode())
    assert {name: found[(f"health_predict_{name}",)] for name in ("arrivals", "batches", "batches_waiting")} == {
        "arrivals": 30,
        "batches": 3,
        "batches_waiting": 2,
    }
    assert found["health_predict_outcomes_waiting",] == found["health_predict_model_versions",] == 1
    assert found["health_predict_champion", champion] == 1
    assert (found["health_predict_alarm", "AUC"], found["health_predict_alarm", "calibration slope"]) == (1, 0)
    monitored = datetime.fromtimestamp(found["health_predict_monitoring_success_timestamp_seconds",], UTC)
    assert monitored == datetime(2026, 10, 6, tzinfo=UTC)
    assert found["health_predict_window_end_timestamp_seconds",] > datetime(2026, 10, 5, tzinfo=UTC).timestamp()


def test_a_home_in_which_nothing_happened_has_metrics(settings: Settings) -> None:
    found = values(generate_latest(loop_metrics(settings)).decode())
    assert found["health_predict_batches",] == 0 and not any("champion" in name for name, *_ in found)


@needs("promtool", "amtool")
def test_rules_and_configuration_are_as_their_programs_want_them() -> None:
    for command in (
        ("promtool", "check", "rules", "rules.yaml"),
        ("promtool", "test", "rules", "rules_test.yaml"),
        ("promtool", "check", "config", "scrape.yaml"),
        ("amtool", "check-config", "alertmanager.yaml"),
    ):
        done = subprocess.run(command, cwd=MONITORING, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    # and each alert is tested
    rules = [
        rule["alert"]
        for group in yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
        for rule in group["rules"]
    ]
    tested = (MONITORING / "rules_test.yaml").read_text()
    assert [name for name in rules if f"alertname: {name}" not in tested] == []


def endpoint_metrics() -> str:
    metrics = Metrics(["/predict"])
    metrics.answered("/predict", 200, 0.01)
    return metrics.text("")[0].decode()


def test_dashboard_and_rules_ask_for_metrics_that_exist(judged: Settings) -> None:
    # given all that the endpoint and the loop may say
    families = [
        *text_string_to_metric_families(endpoint_metrics()),
        *text_string_to_metric_families(generate_latest(loop_metrics(judged)).decode()),
    ]
    there = {one.name + end for one in families for end in ("", "_total", "_bucket")}
    there |= {"health_predict_window_auc", "health_predict_window_observed_expected"}  # once outcomes are known
    # when it is compared with what is asked for
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    asked += [
        rule["expr"]
        for group in yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
        for rule in group["rules"]
    ]
    names = [{*re.findall(r"health_predict_\w+", query)} for query in asked]
    # then each query asks for something, and all of it exists
    assert all(found or "up{" in query for found, query in zip(names, asked, strict=True))
    assert set().union(*names) - there == set()


@pytest.fixture
def exporter(judged: Settings) -> Iterator[int]:
    """A port at which both kinds of metrics stand, as a node_exporter would show the loop's file."""
    text = (generate_latest(loop_metrics(judged)).decode() + endpoint_metrics()).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@needs("prometheus")
def test_a_prometheus_scrapes_them_and_raises_the_alarm(exporter: int, tmp_path: Path) -> None:
    # given a Prometheus with our configuration and rules
    with prometheus(tmp_path, {"readmission-api": exporter, "health-predict": exporter}) as ask:
        # then the drift of the last look is an alert, and both jobs are up
        found = ask('ALERTS{alertname="Drift", alertstate="firing"}')
        assert any("AUC" in labels for labels in found)
        assert set(ask("min(up)").values()) == {1.0}
