"""What `demo` does when the version that it trained was rejected, or when a later one serves."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from health_predict.adapters import keys
from health_predict.adapters.data.raw_data import champion_origin
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import CHAMPION, Tag, Tracking
from health_predict.commands.demo import _serve_champion, _went_on
from health_predict.core.data.partition import Parameters
from health_predict.errors import GateError
from health_predict.settings import Settings
from health_predict.stages import rollout


def rejected(tracking: Tracking) -> str:
    """A version that was judged and rejected."""
    run = tracking.start_search("a run", {}, {})
    tracking.log_json(run, "evaluation.json", {"decision": "reject", "reasons": ["not worse than the baseline: worse"]})
    return tracking.register(run, {}, "").version


def test_without_a_champion_the_reason_is_told(settings: Settings) -> None:
    version = rejected(Tracking(settings))
    with pytest.raises(GateError, match="nothing serves yet: not worse than the baseline"):
        _serve_champion(settings, version)


def test_a_champion_that_is_down_serves_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a champion with an image, whose endpoint is down, and a version that was rejected
    tracking = Tracking(settings)
    champion = tracking.register(tracking.start_search("another run", {}, {}), {"image_uri": "oci:x@sha256:1"}, "")
    tracking.set_alias(CHAMPION, champion.version)
    version = rejected(tracking)
    begun: list[dict[str, Any]] = []
    monkeypatch.setattr(rollout, "rollout", lambda settings, **values: begun.append(values))
    # then the champion is rolled out
    _serve_champion(settings, version)
    (values,) = begun
    assert (values["model_version"], values["image_uri"]) == (champion.version, "oci:x@sha256:1")


def test_a_champion_that_went_on_from_the_same_data_stays(settings: Settings) -> None:
    # given a champion of some data
    tracking, storage, said = Tracking(settings), open_storage(settings.storage), io.StringIO()
    manifest = {"raw_sha256": "a" * 64, "source": "uci", "parameters": Parameters(0.2, 16, "salt").to_json()}
    storage.write(keys.dataset("d" * 64, keys.MANIFEST), json.dumps(manifest).encode())
    tags = {Tag.DATASET_DIGEST: "d" * 64}
    champion = tracking.register(tracking.start_search("a run", {}, {}), tags, "")
    tracking.set_alias(CHAMPION, champion.version)

    def kept(raw_sha256: str) -> str | None:
        return _went_on(settings, champion_origin(settings), raw_sha256, Console(file=said, width=1000))

    # then a demo on these data trains, since the champion knows no others
    assert kept("a" * 64) is None
    # when the champion learned from what arrived since, then it stays, which one line says
    tracking.tag_version(champion.version, {Tag.LABELLED_BATCHES: "3", Tag.RECALIBRATES: "1"})
    assert kept("a" * 64) == champion.version
    assert "version 1 stays: it was recalibrated since, on the outcomes of 3 batches" in said.getvalue()
    assert said.getvalue().count("\n") == 1
    # and a demo on other data trains
    assert kept("b" * 64) is None
