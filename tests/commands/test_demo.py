"""What `demo` does when the version that it trained was rejected."""

from __future__ import annotations

from typing import Any

import pytest

from health_predict.adapters.tracking import CHAMPION, Tracking
from health_predict.commands.demo import _serve_champion
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
