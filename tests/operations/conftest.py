"""A registry with a champion that nothing serves yet."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from health_predict.adapters.tracking import CHAMPION, Tracking
from health_predict.settings import Settings


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    return make_settings(serving_port=port)


@pytest.fixture
def tracking(settings: Settings) -> Tracking:
    return Tracking(settings)


@pytest.fixture
def champion(tracking: Tracking) -> str:
    """Version 1, with the alias and an evaluation."""
    run = tracking.start_search("a run", {"dataset_digest": "d" * 64, "git_commit": "c" * 40}, {})
    auc = {"value": 0.66, "low": 0.64, "high": 0.68}
    tracking.log_json(run, "evaluation.json", {"on_test": {"rows": 2922, "positives": 343, "metrics": {"auc": auc}}})
    tracking.end_search(run, {})
    tags = {"dataset_digest": "d" * 64, "dataset_source": "uci", "family": "XGBoost", "git_commit": "c" * 40}
    version = tracking.register(run, tags, "")
    tracking.set_alias(CHAMPION, version.version)
    return version.version
