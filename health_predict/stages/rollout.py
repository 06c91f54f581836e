"""rollout: a pushed image takes over the endpoint, or everything stays as it was.

The candidate starts beside the version that serves and answers the golden requests of its own Bento. Then the
traffic is led to it and it is asked again through the stable address. Only then the alias `champion` moves, and
the version before ends. Whatever fails, or kills this process, is undone: the alias is what is serving.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from health_predict.adapters.images import open_registry
from health_predict.adapters.mlflow import CHALLENGER, CHAMPION, ModelVersion, Tracking
from health_predict.adapters.storage import open_storage, whole_file
from health_predict.adapters.target import Active, Rollout, Target, open_target
from health_predict.core.errors import GateError, HealthPredictError, StateError
from health_predict.report.page import render
from health_predict.settings import Settings

log = logging.getLogger(__name__)

PRODUCTION, ARCHIVED = "Production", "Archived"
GOLDEN_FILE = "src/golden.json"  # in an unpacked Bento
ANSWER_SECONDS = 10.0
# Probabilities of the compiled model, computed elsewhere: equal but for the last digits of a float32.
TOLERANCE = 1e-6


class Outcome(StrEnum):
    """How a rollout ended."""

    DEPLOYED = "deployed"
    UNCHANGED = "unchanged"
    UNDONE = "undone"


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """How the rollout ended, why, and where the endpoint answers."""

    outcome: Outcome
    reasons: tuple[str, ...]
    url: str


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a rollout as its report shows it."""

    name: str
    passed: bool
    seconds: float
    detail: str


@dataclass
class _Journal:
    """What was done so far."""

    steps: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; its block may append details."""
        log.info("%s", name)
        details: list[str] = []
        begin = time.monotonic()
        try:
            yield details
        except BaseException as error:
            problem = error.problem if isinstance(error, HealthPredictError) else repr(error)
            self.steps.append(Step(name, False, time.monotonic() - begin, problem))
            raise
        self.steps.append(Step(name, True, time.monotonic() - begin, "; ".join(details)))


def rollout(settings: Settings, *, image_uri: str, model_version: str, report: Path) -> RolloutResult:
    """Make the image's version the one that serves, and the champion.

    Gives `unchanged` when it serves already. Raises GateError (or the error that hindered it) after everything was
    undone; the report is written in any case. A repeat after a kill ends in the same state.
    """
    target = open_target(settings)
    tracking = Tracking(settings)
    version = tracking.version(model_version)
    if version.tags.get("image_uri") != image_uri:
        raise StateError(
            f"model version {model_version} has image {version.tags.get('image_uri', 'none')}, not {image_uri}",
            "run the deployment pipeline of that version again",
        )
    before = target.active()
    journal = _Journal()
    try:
        if _serves(journal, target, before, version, image_uri, settings):
            _promote(tracking, version, _replaced(tracking, before, version))
            result = RolloutResult(Outcome.UNCHANGED, (f"version {model_version} serves already",), target.url)
        else:
            with target.rollout() as change:
                before = target.active()  # another rollout may have ended in the meantime
                _change(settings, journal, target, change, tracking, version, image_uri, before)
            reason = f"version {model_version} answered as expected before and after the switch"
            result = RolloutResult(Outcome.DEPLOYED, (reason,), target.url)
        _settle(tracking, version)
    except HealthPredictError as error:
        result = RolloutResult(Outcome.UNDONE, (error.problem,), target.url)
        _write(settings, report, result, journal, version, image_uri, before)
        log.error("rollout of version %s undone: %s", model_version, error.problem)
        raise
    _write(settings, report, result, journal, version, image_uri, before)
    log.info("version %s at %s: %s", model_version, target.url, result.outcome.value)
    return result


def unpacked(settings: Settings, image_uri: str) -> Path:
    """Folder of the Bento of an image on this machine."""
    return settings.home / "serving" / "images" / image_uri.rpartition(":")[2]


def _serves(
    journal: _Journal, target: Target, active: Active | None, version: ModelVersion, image_uri: str, settings: Settings
) -> bool:
    """Whether the endpoint already answers by this image and version as it should."""
    if active is None or (active.image_uri, active.model_version) != (image_uri, version.version):
        return False
    try:
        with journal.step("Ask the version that serves") as details:
            folder = unpacked(settings, image_uri)
            if not folder.is_dir():  # another machine rolled it out
                open_registry(settings).unpack(image_uri, folder)
            details.append(_ask_golden(target.url, folder, version.version))
    except HealthPredictError as error:
        log.warning("version %s serves, but: %s", version.version, error.problem)
        return False
    return True


def _change(
    settings: Settings,
    journal: _Journal,
    target: Target,
    change: Rollout,
    tracking: Tracking,
    version: ModelVersion,
    image_uri: str,
    before: Active | None,
) -> None:
    folder = unpacked(settings, image_uri)
    with journal.step("Verify and unpack the image") as details:
        registry = open_registry(settings)
        registry.verify(image_uri)
        for old in folder.parent.glob("*"):
            if old != folder and (before is None or old != unpacked(settings, before.image_uri)):
                shutil.rmtree(old, ignore_errors=True)
        registry.unpack(image_uri, folder)
        details.append(image_uri)
    with journal.step("Start the candidate") as details:
        candidate = change.start(image_uri, version.version, folder)
        details.append(f"ready at {candidate}, taking no traffic")
    with journal.step("Golden requests to the candidate") as details:
        details.append(_ask_golden(candidate, folder, version.version))
    with journal.step("Lead the traffic to the candidate"):
        change.switch()
    with journal.step("Golden requests through the endpoint") as details:
        details.append(_ask_golden(target.url, folder, version.version))
    replaced = _replaced(tracking, before, version)
    try:
        with journal.step("Move the alias champion") as details:
            _promote(tracking, version, replaced)
            details.append(f"replaces version {', '.join(replaced)}" if replaced else "the first champion")
        with journal.step("Stop the version before"):
            change.commit()
    except BaseException:
        with journal.step("Move the alias champion back"):
            with contextlib.suppress(HealthPredictError):  # it may be the manager itself that failed
                change.undo()
            _restore(tracking, version, replaced)
        raise


def _replaced(tracking: Tracking, before: Active | None, version: ModelVersion) -> list[str]:
    """Versions that this one replaces: what was champion, and what served (they differ after a kill)."""
    champion = tracking.by_alias(CHAMPION)
    found = [champion.version if champion else "", before.model_version if before else ""]
    return [number for number in dict.fromkeys(found) if number and number != version.version]


def _promote(tracking: Tracking, version: ModelVersion, replaced: list[str]) -> None:
    tracking.set_alias(CHAMPION, version.version)
    tracking.tag_version(version.version, {"stage": PRODUCTION})
    for number in replaced:
        tracking.tag_version(number, {"stage": ARCHIVED})


def _restore(tracking: Tracking, version: ModelVersion, replaced: list[str]) -> None:
    if replaced:
        tracking.set_alias(CHAMPION, replaced[0])
        tracking.tag_version(replaced[0], {"stage": PRODUCTION})
    else:
        tracking.delete_alias(CHAMPION)
    tracking.tag_version(version.version, {"stage": version.tags.get("stage", "Staging")})


def _settle(tracking: Tracking, version: ModelVersion) -> None:
    """The new champion is no challenger any more."""
    challenger = tracking.by_alias(CHALLENGER)
    if challenger is not None and challenger.version == version.version:
        tracking.delete_alias(CHALLENGER)


def _ask_golden(url: str, folder: Path, model_version: str) -> str:
    """Send each golden request and compare the answer; what was done, in words. Raises GateError on a difference."""
    cases = json.loads((folder / GOLDEN_FILE).read_text(encoding="utf-8"))
    worst = 0.0
    for number, case in enumerate(cases, 1):
        answer = _predict(url, case["request"])
        expected = case["answer"]
        if str(answer.get("model_version")) != model_version:
            raise GateError(f"{url} answers as model version {answer.get('model_version')}, not {model_version}")
        difference = abs(float(answer["probability_score"]) - float(expected["probability_score"]))
        worst = max(worst, difference)
        what = f"golden request {number} of {len(cases)}"
        for name in ("prediction", "risk_group"):
            if answer.get(name) != expected[name]:
                raise GateError(f"{what}: {name} is {answer.get(name)!r}, expected {expected[name]!r}")
        if not difference <= TOLERANCE:
            raise GateError(f"{what}: the probability is off by {difference:.2g}")
    return f"{len(cases)} answers as expected, probabilities within {worst:.1g}"


def _predict(url: str, encounter: Any) -> dict[str, Any]:
    # A connection for each request: it goes to whoever takes the traffic now.
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=ANSWER_SECONDS)
    try:
        # These patients do not exist: they are no predictions to be logged and watched.
        connection.request("POST", "/predict?log=false", json.dumps(encounter), {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise GateError(f"{url} gives no answer: {error!r}") from None
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        raise GateError(f"{url} answers {response.status}: {body[:200].decode(errors='replace')}")
    answer: dict[str, Any] = json.loads(body)
    return answer


def _write(
    settings: Settings,
    report: Path,
    result: RolloutResult,
    journal: _Journal,
    version: ModelVersion,
    image_uri: str,
    before: Active | None,
) -> None:
    page = render(
        "rollout.html",
        outcome=result.outcome.value,
        reasons=result.reasons,
        url=result.url,
        steps=journal.steps,
        version=version.version,
        tags=version.tags,
        image_uri=image_uri,
        before=f"version {before.model_version}, since {before.since}" if before else "nothing",
    )
    with whole_file(report) as temporary:
        temporary.write_text(page, encoding="utf-8")
    # The story of the change is worth keeping, that of a check is not.
    if result.outcome is not Outcome.UNCHANGED:
        storage = open_storage(settings.storage, settings.s3_endpoint_url)
        storage.upload(report, f"models/{version.version}/rollout.html")
