"""overview: one page that tells a model version's story, beside copies of all reports about it.

Everything is read from the registry and from storage, so that it works the same for a model that was trained on
this machine and for one of a cluster. The folder needs nothing from outside: it can be mailed as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from health_predict.adapters import keys
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.files import whole_file
from health_predict.adapters.storage import Storage, open_storage
from health_predict.adapters.tracking import CHAMPION, ModelVersion, Tag, Tracking
from health_predict.adapters.tracking.history import served
from health_predict.errors import HealthPredictError, StateError
from health_predict.operations.status import Status, evaluation, status
from health_predict.report.comparison import LABELS, in_a_hundred
from health_predict.report.page import difference, number, render
from health_predict.settings import Settings

INDEX = "index.html"
LEADERBOARD = "leaderboard.html"
_SIMULATION = re.compile(keys.simulation("([^/]+)", re.escape(keys.TIMELINE)))


@dataclass(frozen=True, slots=True)
class _Copies:
    """The folder that takes the copies; a report that is not there is left out."""

    storage: Storage
    folder: Path

    def copy(self, key: str, name: str) -> str:
        """Name of the copy; empty when there is no such report."""
        if not self.storage.exists(key):
            return ""
        self.storage.download(key, self.folder / name)
        return name


def build_overview(settings: Settings, version: str = "", folder: Path | None = None) -> Path:
    """Write the overview of a model version, by default of the champion, else of the newest; its path.

    Where no version is named it begins with what goes on now.
    `folder` takes the page and copies of the reports, by default `report/<version>` in the home. Raises StateError
    when there is no such version.
    """
    tracking = Tracking(settings)
    chosen = _chosen(tracking, version)
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    folder = folder or settings.home / "report" / chosen.version
    copies = _Copies(storage, folder)
    champion = tracking.by_alias(CHAMPION)
    judged, now = evaluation(tracking, chosen), None if version else status(settings)
    page = render(
        "overview.html",
        labels=LABELS,
        outcome=tracking.contract.outcome,
        version=chosen.version,
        tags=chosen.tags,
        serves=champion is not None and champion.version == chosen.version,
        evaluation=judged,
        in_a_hundred=_in_a_hundred(judged, tracking.contract.outcome.happened),
        now=now,
        links_now=_places(settings, now) if now else [],
        links=_reports(tracking, copies, chosen),
        batches=_batches(Batches(settings), copies),
        family=[
            {
                "version": one.version,
                "tags": one.tags,
                "compared": _compared(tracking, one),
                "served": served(one),
                "file": _card(copies, one, chosen),
            }
            for one in sorted(tracking.versions(), key=lambda one: -int(one.version))
        ],
    )
    with whole_file(folder / INDEX) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / INDEX


def _in_a_hundred(judged: Mapping[str, Any] | None, happened: str) -> str:
    metrics = judged["on_test"]["metrics"] if judged else {}
    return in_a_hundred(metrics, happened) if {"flag_rate", "precision", "recall"} <= metrics.keys() else ""


def _places(settings: Settings, now: Status) -> list[tuple[str, str]]:
    """What has pages of its own: name and address."""
    places = [("the endpoint's page, to try a prediction", f"{now.url}/")] if now.serving else []
    if settings.mlflow_tracking_uri.startswith("http"):
        places.append(("MLflow", settings.mlflow_tracking_uri))
    if settings.kfp_host:
        places.append(("the pipelines' dashboard", settings.kfp_host))
    return places


def _chosen(tracking: Tracking, version: str) -> ModelVersion:
    if version:
        return tracking.version(version)
    champion = tracking.by_alias(CHAMPION)
    chosen = champion or max(tracking.versions(), key=lambda one: int(one.version), default=None)
    if chosen is None:
        raise StateError("no model version is registered yet", "`health-predict demo` trains and deploys one")
    return chosen


def _reports(tracking: Tracking, copies: _Copies, version: ModelVersion) -> list[tuple[str, str, str]]:
    """Title, content and file of the reports about this version in their order; the file is empty if not made."""
    number, dataset = version.version, version.tags.get(Tag.DATASET_DIGEST, "none")
    profile = copies.copy(keys.dataset(dataset, keys.PROFILE), keys.PROFILE)
    card, rollout = (copies.copy(keys.model(number, name), name) for name in (keys.CARD, keys.ROLLOUT))
    pages = [
        ("Data profile", "who is in the data, what is missing, how they were split", profile),
        (
            "Search leaderboard",
            "every trial, and the best of each model family",
            _leaderboard(tracking, version, copies.folder),
        ),
        ("Model card", "intended use, metrics with intervals, calibration, subgroups", card),
        ("Beside the champion of its time", "which is better, and what would change", _beside(copies, version)),
        ("Rollout report", "each step on the way to the traffic", rollout),
    ]
    for key in copies.storage.keys(keys.SIMULATIONS):
        simulation = _SIMULATION.fullmatch(key)
        if simulation is not None:
            file = copies.copy(key, f"simulation-{simulation[1]}.html")
            pages.append((f"Simulation {simulation[1]}", "metrics, verdicts and versions, batch by batch", file))
    return pages


def _beside(copies: _Copies, version: ModelVersion) -> str:
    name = keys.compared_with(version.tags.get(Tag.DECIDED_AGAINST, "none"))
    return copies.copy(keys.model(version.version, name), name)


def _leaderboard(tracking: Tracking, version: ModelVersion, folder: Path) -> str:
    parent = version.tags.get(Tag.PARENT_RUN_ID, "")
    try:
        text = tracking.read_text(parent, LEADERBOARD) if parent else ""
    except HealthPredictError:
        return ""  # a recalibration has no search of its own
    if not text:
        return ""
    with whole_file(folder / LEADERBOARD) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return LEADERBOARD


def _card(copies: _Copies, version: ModelVersion, chosen: ModelVersion) -> str:
    """The card of a version; of another one than the chosen, all its reports are copied, as they link to each other."""
    if version.version == chosen.version:
        return copies.copy(keys.model(version.version, keys.CARD), keys.CARD)
    folder, prefix = f"version-{version.version}", keys.models(version.version)
    copied = [copies.copy(key, f"{folder}/{key.removeprefix(prefix)}") for key in copies.storage.keys(prefix)]
    return next((name for name in copied if name == f"{folder}/{keys.CARD}"), "")


def _report(batches: Batches, copies: _Copies, key: str) -> str:
    """The report about a batch, beside what it links to."""
    for name in (keys.EVIDENTLY, keys.EVIDENTLY_JSON):
        copies.copy(batches.report_key(key, name), f"batch-{key}/{name}")
    return copies.copy(batches.report_key(key, keys.REPORT), f"batch-{key}/{keys.REPORT}")


def _batches(batches: Batches, copies: _Copies) -> list[dict[str, Any]]:
    """The decision about each batch that monitoring judged, with how it ended and its report."""
    ended = {one.key: str(one.outcome) for one in batches.settled()}
    return [
        {
            "decision": one,
            "ended": ended.get(one.key, "under way"),
            "file": _report(batches, copies, one.key),
        }
        for one in sorted(batches.decisions(), key=lambda one: (one.batch, one.outcomes_alone))
    ]


def _compared(tracking: Tracking, version: ModelVersion) -> str:
    """A version's AUC less that of the champion of its time, on the same rows."""
    content = evaluation(tracking, version) or {}
    return "; ".join(
        f"{difference(comparison['metrics']['auc']['difference'])} against version {comparison['against']}, "
        f"{number(comparison['rows'], 0)} encounters"
        for comparison in content.get("comparisons", ())[:1]
    )
