"""rollout with real Bentos: what serves is the champion, whatever fails or is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from health_predict.adapters.images import LayoutRegistry
from health_predict.adapters.serving.endpoint import ask
from health_predict.adapters.serving.processes import ProcessTarget
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tokens import Role, add_token
from health_predict.adapters.tracking import CHALLENGER, CHAMPION, Tracking
from health_predict.adapters.tracking.history import pin, release, served, served_before
from health_predict.commands import operate
from health_predict.core.choices import Approval
from health_predict.core.data.cohort import without_excluded
from health_predict.errors import GateError, SettingsError, StateError, UnreachableError
from health_predict.operations.lineage import lineage
from health_predict.operations.status import status
from health_predict.stages.rollout import RolloutOutcome, rollout, unpacked
from tests.certificates import issue
from tests.cohorts import synthesize
from tests.contracts import DIABETES
from tests.feed import logged
from tests.rollouts import Built, down, first, original, shared

__all__ = ["down", "first", "original", "shared"]  # fixtures
pytestmark = pytest.mark.slow


def test_the_first_rollout_and_its_repetition(down: Built) -> None:
    # given a challenger
    down.tracking.set_alias(CHALLENGER, "1")
    # when it is rolled out
    result = down.rollout("1")
    # then it serves, is champion and no challenger any more, and the report tells each step
    assert result.outcome is RolloutOutcome.DEPLOYED and result.url == f"http://127.0.0.1:{down.settings.serving_port}"
    assert down.served() == down.champion() == "1" and down.stage("1") == "Production"
    assert down.tracking.by_alias(CHALLENGER) is None
    page = down.report()
    assert "Golden requests through the endpoint" in page and "failed" not in page and "first champion" in page
    # and again changes nothing
    active = down.target.active()
    again = down.rollout("1")
    assert again.outcome is RolloutOutcome.UNCHANGED and down.target.active() == active
    assert "Unchanged" in down.report()


def test_the_next_version_replaces_the_one_before(first: Built) -> None:
    # when
    result = first.rollout("2")
    # then
    assert result.outcome is RolloutOutcome.DEPLOYED
    assert first.served() == first.champion() == "2"
    assert (first.stage("1"), first.stage("2")) == ("Archived", "Production")


def test_an_image_that_no_trusted_key_signed_is_not_rolled_out(first: Built, tmp_path: Path) -> None:
    # given a policy that wants a signature, and an image without one
    key = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)], check=True)
    subprocess.run(["openssl", "pkey", "-in", str(key), "-pubout", "-out", str(key.with_suffix(".pub"))], check=True)
    # when it is to be rolled out, then it is refused before anything of it runs
    with pytest.raises(GateError, match="vouches"):
        first.rollout("2", trusted_keys=str(key.with_suffix(".pub")))
    assert first.served() == first.champion() == "1"
    assert "Start the candidate" not in first.report()


def test_the_registry_says_when_each_version_served(first: Built) -> None:
    # given version 1 in service, when version 2 replaces it and a repetition finds that done
    first.rollout("2")
    first.rollout("2")
    # then the time of one ends where that of the other begins
    before, now = (served(first.tracking.version(number))[-1] for number in ("1", "2"))
    assert before.begin <= before.end == now.begin and not now.end
    assert served_before(first.tracking.versions(), first.tracking.version("2")) == first.tracking.version("1")


def test_an_endpoint_that_asks_for_tokens_gets_the_operators(down: Built, tmp_path: Path) -> None:
    # given an endpoint that takes two tokens
    tokens, sent = tmp_path / "tokens", tmp_path / "token"
    operator, client = add_token(tokens, "rollout", Role.OPERATOR), add_token(tokens, "ward-7", Role.CLIENT)
    closed = {"serving_tokens": str(tokens), "serving_token_file": str(sent)}
    # when a rollout has only a client's, it is undone and says why
    sent.write_text(client)
    with pytest.raises(GateError, match=r"403.*only an operator's token"):
        down.rollout("1", **closed)
    assert down.target.active() is None
    # and with an operator's, it serves to who has a token, and lineage finds what serves
    sent.write_text(operator)
    assert down.rollout("1", **closed).outcome is RolloutOutcome.DEPLOYED
    links = lineage(down.settings.model_copy(update=closed))
    assert not any(link.problem for link in links)
    assert "SERVING_TOKEN_FILE" in lineage(down.settings)[0].remedy
    # and a rollout after it does so too, with the newest encounters scored beside what serves
    assert down.rollout("2", **closed).outcome is RolloutOutcome.DEPLOYED
    down.target.stop()


def test_an_endpoint_with_a_certificate_is_asked_by_tls(down: Built, tmp_path: Path) -> None:
    # given a certificate of an authority that our clients know
    files = issue(tmp_path, "localhost")
    served = {"serving_tls_certificate": str(files.certificate), "serving_tls_key": str(files.key)}
    asked = {**served, "serving_host": "localhost", "serving_tls_ca": str(files.authority)}
    # when a version is rolled out, then it answers by TLS, and lineage asks it
    assert down.rollout("1", **asked).url == f"https://localhost:{down.settings.serving_port}"
    settings = down.settings.model_copy(update=asked)
    assert not any(link.problem for link in lineage(settings))
    # and whoever does not know the authority is told that
    with pytest.raises(UnreachableError, match="certificate verify failed"):
        ask(f"https://localhost:{settings.serving_port}/health", down.settings)
    down.target.stop()


def test_without_tokens_it_is_not_brought_up_for_others(down: Built) -> None:
    with pytest.raises(SettingsError, match="ask nobody who they are"):
        down.rollout("1", serving_host="0.0.0.0")
    with pytest.raises(SettingsError, match="ask nobody who they are"):
        ProcessTarget(down.settings.model_copy(update={"serving_host": "0.0.0.0"})).check_port()


@pytest.fixture
def asked(first: Built) -> Iterator[Built]:
    """Version 1 serves, and has logged some predictions."""
    storage = open_storage(first.settings.storage)
    logged(storage, "of-now", without_excluded(synthesize(400, seed=9), DIABETES), datetime.now(UTC))
    yield first
    for key in storage.keys("predictions/"):
        storage.delete(key)


def test_a_rollout_says_which_decisions_it_changes(asked: Built) -> None:
    # when another version is rolled out
    asked.rollout("2")
    # then the report counts the decisions that change, by subgroup, and shows the largest changes without a value of
    # a patient
    page = asked.report()
    changed, rows = map(int, re.findall(r"([0-9]+) of ([0-9]+) decisions change", page)[0])
    assert changed > 0 and rows > 300 and "gender: Female" in page
    assert len(re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}-5", page)) == min(changed, 10)
    # and neither answer came into the prediction log
    assert len(open_storage(asked.settings.storage).keys("predictions/")) == 1


def test_a_limit_of_changed_decisions_stops_a_rollout_but_no_rollback(asked: Built) -> None:
    # given encounters whose decisions differ between the versions
    # when no decision may change, then the rollout is undone and says how many would
    for limit in ("shadow_limit", "shadow_subgroup_limit"):
        with pytest.raises(GateError, match=r"of the decisions change for .* \(0.0% are allowed\)"):
            asked.rollout("2", **{limit: 0.0})
        assert asked.served() == asked.champion() == "1" and "would change" in asked.report()
    # but a version that a person has brought back is not held up
    pin(asked.tracking, "2", "A. Person", "it has to go")
    try:
        asked.rollout("2", shadow_limit=0.0)
        assert asked.served() == "2"
    finally:
        release(asked.tracking)


def test_a_version_that_waits_for_a_person_is_not_rolled_out(first: Built) -> None:
    # given a version that never served
    first.tracking.tag_version("2", {"served": "[]"})
    # when a person is asked, then it is refused before anything starts
    with pytest.raises(GateError, match="version 2 waits for approval"):
        first.rollout("2", approval=Approval.ASK)
    assert first.served() == first.champion() == "1"
    # and one that serves is no new version
    assert first.rollout("1", approval=Approval.ASK).outcome is RolloutOutcome.UNCHANGED


def test_a_wrong_golden_answer_undoes_the_rollout(first: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    # given an image whose golden requests expect something else
    unpack = LayoutRegistry.unpack

    def falsify(self: Any, uri: str, folder: Path) -> None:
        unpack(self, uri, folder)
        golden = folder / "src" / "golden.json"
        cases = json.loads(golden.read_text())
        cases[3]["answer"]["probability_score"] += 0.1
        golden.write_text(json.dumps(cases))

    monkeypatch.setattr(LayoutRegistry, "unpack", falsify)
    # when it is rolled out, then the reason is told and everything is as it was
    with pytest.raises(GateError, match=r"503|off by"):
        first.rollout("2")
    assert first.served() == first.champion() == "1" and first.stage("1") == "Production"
    page = first.report()
    assert "Undone" in page and "failed" in page


def test_a_failure_after_the_switch_leads_the_traffic_back(first: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a registry that fails while the alias moves
    set_alias = Tracking.set_alias

    def fail(self: Tracking, alias: str, version: str) -> None:
        set_alias(self, alias, version)
        if version == "2":
            assert first.served() == "2"  # the traffic is there already
            raise UnreachableError("MLflow does not answer", "start it")

    monkeypatch.setattr(Tracking, "set_alias", fail)
    # when
    with pytest.raises(UnreachableError, match="MLflow"):
        first.rollout("2")
    # then the version before serves and is champion
    assert first.served() == first.champion() == "1"
    assert (first.stage("1"), first.stage("2")) != ("Archived", "Production")
    assert "Move the alias champion back" in first.report()


def test_a_first_rollout_that_fails_leaves_no_champion(down: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a registry that fails when the version is tagged
    def fail(self: Tracking, version: str, tags: dict[str, str]) -> None:
        if tags.get("stage") == "Production":
            raise UnreachableError("MLflow does not answer", "start it")

    monkeypatch.setattr(Tracking, "tag_version", fail)
    # when
    with pytest.raises(UnreachableError, match="MLflow"):
        down.rollout("1")
    # then
    assert down.champion() == "" and down.target.active() is None


def test_a_taken_port_and_a_wrong_image_are_refused(down: Built) -> None:
    # given a program on the port
    place = ("127.0.0.1", down.settings.serving_port)
    with socket.create_server(place), pytest.raises(UnreachableError, match="taken by another program"):
        down.rollout("1")
    assert "Undone" in down.report() and down.champion() == ""
    # and the image of another version
    with pytest.raises(StateError, match="has image"):
        rollout(
            down.settings, image_uri=down.images["2"], model_version="1", report=down.settings.home / "rollout.html"
        )


def test_an_endpoint_that_is_down_has_left_its_port(down: Built) -> None:
    # given a client that stays connected to a version, whose workers therefore retire slowly
    down.rollout("1")
    with socket.create_connection(("127.0.0.1", down.settings.serving_port)) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        down.rollout("2")
        # when the endpoint is stopped
        assert down.target.stop()
        # then its port is free, at once
        with socket.create_server(("127.0.0.1", down.settings.serving_port)):
            pass


def test_a_damaged_image_is_not_started(first: Built) -> None:
    # given a layer with a changed byte
    digest = first.tracking.version("2").tags["bento_digest"].removeprefix("sha256:")
    layer = first.settings.home / "images" / "blobs" / "sha256" / digest
    whole = layer.read_bytes()
    layer.write_bytes(whole[:-600] + b"x" + whole[-599:])
    try:
        # when
        with pytest.raises(StateError, match="damaged"):
            first.rollout("2")
    finally:
        layer.write_bytes(whole)
    # then
    assert first.served() == first.champion() == "1"


KILLED = """
import os, signal, sys
from pathlib import Path
from health_predict.stages import rollout as stage
from health_predict.adapters.serving import processes
from health_predict.adapters.tracking import Tracking
from health_predict.settings import load_settings

where, image, version, report = sys.argv[1:]

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if where == "alias":
    Tracking.set_alias = kill
else:
    processes.ProcessRollout.commit = kill
stage.rollout(load_settings(), image_uri=image, model_version=version, report=Path(report))
"""


@pytest.mark.parametrize("where", ["alias", "commit"])
def test_a_kill_anywhere_and_a_repetition_end_in_the_same_state(first: Built, where: str, tmp_path: Path) -> None:
    # given a rollout that is killed
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, where, first.images["2"], "2", str(tmp_path / "rollout.html")],
        env={**os.environ, **first.settings.environment()},
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "rollout.html").exists()
    assert first.served() in ("1", "2")
    # when it runs again
    first.rollout("2")
    # then
    assert first.served() == first.champion() == "2"
    assert (first.stage("1"), first.stage("2")) == ("Archived", "Production")


def test_lineage_reaches_back_to_data_and_commit(first: Built) -> None:
    # given a served version, then every link holds
    links = lineage(first.settings)
    assert [link.name for link in links] == [
        *("endpoint", "image", "Bento", "model version", "MLflow run", "dataset", "git commit")
    ]
    assert [link.problem for link in links] == [""] * 7
    # and status names it
    found = status(first.settings)
    assert found.serving is not None and found.serving.model_version == found.champion == "1"
    assert found.waiting == ()

    # when something is changed, then the broken link is named, and mended again
    def broken() -> str:
        last = lineage(first.settings)[-1]
        return f"{last.name}: {last.problem}"

    version = first.tracking.version("1")
    for name, link in (("dataset_digest", "model version: tag dataset_digest"), ("bento_digest", "model version: tag")):
        first.tracking.tag_version("1", {name: "0" * 64})
        assert broken().startswith(link)
        first.tracking.tag_version("1", {name: version.tags[name]})
    first.tracking.set_alias(CHAMPION, "2")
    assert broken().startswith("model version: the champion")
    first.tracking.set_alias(CHAMPION, "1")
    digest = version.tags["dataset_digest"]
    manifest = json.loads(open_storage(first.settings.storage).read(f"datasets/{digest}/manifest.json"))
    storage = open_storage(first.settings.storage)
    test_part = storage.read(f"datasets/{digest}/test.parquet")
    for key, old, new, link in (
        (f"raw/{manifest['raw_sha256']}/data.csv", b"Caucasian", b"Caucasiam", "dataset: the SHA-256"),
        (f"datasets/{digest}/manifest.json", b'"rows_sha256": "', b'"rows_sha256": "0', "dataset: the digest"),
        (f"datasets/{digest}/manifest.json", b'"raw_sha256"', b'"raw"', "dataset: the manifest"),
        (f"datasets/{digest}/train.parquet", b"PAR1", b"XXXX", "dataset: the SHA-256 of part train"),
        (f"datasets/{digest}/validation.parquet", None, test_part, "dataset: the SHA-256 of part validation"),
    ):
        whole = storage.read(key)
        storage.write(key, new if old is None else whole.replace(old, new, 1))
        assert broken().startswith(link), key
        storage.write(key, whole)
    service = unpacked(first.settings, first.images["1"]) / "src" / "service.py"
    source = service.read_text()
    service.write_text(source + "# changed\n")
    assert broken().startswith("Bento: the digest")
    service.write_text(source)
    assert broken().startswith("git commit: ") and lineage(first.settings)[-1].problem == ""


def test_the_commands_find_what_the_stage_left(first: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a served version, and a shell with its settings
    for name, value in first.settings.environment().items():
        monkeypatch.setenv(name, value)
    app = typer.Typer()
    operate.mount(app)

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return str(result.stdout)  # a slow machine tells on standard error that it is at work

    # when it is served again, then nothing changes
    served = json.loads(call("serve", "--json"))
    assert served == {"outcome": "unchanged", "model_version": "1", "url": first.target.url}
    assert f"version 1 answers at {first.target.url}" in call("serve")
    # and what is told to people and to scripts agrees
    assert "version 1 at" in call("status") and "SYNTHETIC" in call("status")
    assert json.loads(call("lineage", "--json"))["intact"] is True
    assert "hashed again" in call("lineage")
    # and what was stopped comes back as it was
    assert "is down" in call("down") and "nothing was running" in call("down")
    assert json.loads(call("serve", "--json"))["outcome"] == "deployed"
    assert first.served() == first.champion() == "1"
