"""One page about a version: what is known is told, what was not made is named, and every link leads somewhere."""

from __future__ import annotations

import re
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.records import BatchDecision, SettledBatch
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import Tracking
from health_predict.commands import report
from health_predict.core.monitoring.drift import Verdict
from health_predict.core.monitoring.policy import Action, PolicyState, Settlement
from health_predict.errors import StateError
from health_predict.operations.overview import build_overview
from health_predict.settings import PREFIX, Settings

DATASET = "d" * 64


@pytest.fixture
def version(settings: Settings, tracking: Tracking, champion: str) -> str:
    """A champion with an evaluation, a model card, a rollout report and one judged batch; version 2 beside it."""
    run = tracking.version(champion).run_id
    auc = {"value": 0.6649, "low": 0.6291, "high": 0.7002}
    tested = {"rows": 2922, "positives": 343, "metrics": {"auc": auc}}
    tracking.log_json(run, "evaluation.json", {"reasons": ["beats the baseline by .01"], "on_test": tested})
    tracking.tag_version(champion, {"decision": "promote", "stage": "Production"})
    tracking.register(tracking.start_search("another", {}, {}), {"family": "LightGBM"}, "")
    storage = open_storage(settings.storage)
    for key in (f"datasets/{DATASET}/profile.html", f"models/{champion}/card.html", f"models/{champion}/rollout.html"):
        storage.write(key, f"<title>{key}</title>".encode())
    decision = BatchDecision(
        batch=3,
        batch_digest="b" * 64,
        model_version=champion,
        dataset_digest=DATASET,
        verdict=Verdict.RECALIBRATE,
        action=Action.RECALIBRATE,
        reasons=("40 % more readmissions <than> expected",),
        matured=(3,),
    )
    ended = SettledBatch(
        batch=3, batch_digest="b" * 64, outcome=Settlement.DEPLOYED, version_before="0", version_after=champion
    )
    batches = Batches(settings)
    batches.decide(decision)
    batches.settle(ended, batches.progress().after(decision, PolicyState()))
    batches.decide(replace(decision, batch_digest="c" * 64, outcomes_alone=True, reasons=("nothing moved",)))
    storage.write(f"monitoring/live/reports/0003-{'b' * 12}/report.html", b"<title>batch 3</title>")
    storage.write(f"monitoring/live/reports/0003-{'b' * 12}/evidently.html", b"<title>Evidently</title>")
    return champion


def test_the_champion_and_all_reports_about_it(settings: Settings, version: str) -> None:
    # when
    page = build_overview(settings)
    # then the page tells the story
    html = page.read_text()
    assert "Model version 1" in html and "XGBoost, serving now" in html and "Promoted" in html
    assert "beats the baseline by .01" in html and "0.63 to 0.70" in html and "2,922 encounters" in html
    assert "Nothing serves." in html and "the endpoint is down: `health-predict serve`" in html
    assert "3, its outcomes" in html and "nothing moved" in html
    assert "40 % more readmissions &lt;than&gt; expected" in html and "1</a> (this one)" in html and "LightGBM" in html
    # and each of its links leads to a copy beside it, of the report it says
    names = re.findall(r'href="([^"#:]+)"', html)
    batch = f"batch-0003-{'b' * 12}"
    assert names == ["profile.html", "card.html", "rollout.html", f"{batch}/report.html", "card.html"]
    # and beside the batch's report lies Evidently's, which it links to
    assert (page.parent / batch / "evidently.html").read_text() == "<title>Evidently</title>"
    assert (page.parent / "card.html").read_text() == "<title>models/1/card.html</title>"
    assert "Search leaderboard (not made)" in html


def test_a_version_by_its_number_into_a_folder(settings: Settings, version: str, tmp_path: Path) -> None:
    html = build_overview(settings, "2", tmp_path / "mail").read_text()
    # then it says nothing of what goes on
    assert "What waits" not in html
    # and the other version's card lies in a folder of its own, with what it links to
    assert '<a href="version-1/card.html">1</a>' in html
    assert {file.name for file in (tmp_path / "mail" / "version-1").iterdir()} == {"card.html", "rollout.html"}
    assert (tmp_path / "mail" / "index.html").is_file()
    assert "LightGBM, not serving" in html and "Not judged" in html and "Model card (not made)" in html


def test_nothing_is_registered(settings: Settings) -> None:
    with pytest.raises(StateError, match="no model version is registered"):
        build_overview(settings)
    with pytest.raises(StateError):
        build_overview(settings, "7")


def test_open_serves_the_page(settings: Settings, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a browser that reads two pages, after which the server is stopped
    read: list[str] = []
    servers: list[ThreadingHTTPServer] = []

    class Watched(ThreadingHTTPServer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            servers.append(self)

    def browse(url: str) -> None:
        def visit() -> None:
            try:
                for name in ("", "card.html"):
                    with urllib.request.urlopen(url + name, timeout=10) as answer:
                        read.append(answer.read().decode())
                # and by a name of somebody else's that leads here
                asked = urllib.request.Request(url, headers={"Host": "attacker.example"})
                with pytest.raises(urllib.error.HTTPError, match="421"):
                    urllib.request.urlopen(asked, timeout=10)
                read.append("refused")
            finally:
                servers[0].shutdown()

        threading.Thread(target=visit).start()

    monkeypatch.setattr(report, "ThreadingHTTPServer", Watched)
    monkeypatch.setattr("webbrowser.open", browse)
    values: dict[str, Any] = {"home": settings.home, "serving_port": settings.serving_port}
    for name, value in values.items():
        monkeypatch.setenv(PREFIX + name.upper(), str(value))
    # when
    report.open_()
    # then
    index, card, rebound = read
    assert rebound == "refused"
    assert "Model version 1" in index and "models/1/card.html" in card
