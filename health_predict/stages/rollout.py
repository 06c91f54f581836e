"""rollout: a pushed image takes over the endpoint, or everything stays as it was.

The candidate starts beside the version that serves and answers the golden requests of its own Bento. Then the
traffic is led to it and it is asked again through the stable address. Only then the alias `champion` moves, and
the version before ends. Whatever fails, or kills this process, is undone: the alias is what is serving.
"""

from __future__ import annotations

import contextlib
import http
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from health_predict.adapters import keys
from health_predict.adapters.files import write_file
from health_predict.adapters.images import open_registry
from health_predict.adapters.images.attestations import attested
from health_predict.adapters.notifications import Event, tell
from health_predict.adapters.serving.endpoint import ask
from health_predict.adapters.serving.port import Active, Rollout
from health_predict.adapters.serving.target import open_target
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import CHALLENGER, CHAMPION, ModelVersion, Tag, Tracking, VersionStage
from health_predict.adapters.tracking.history import pinned, record_service
from health_predict.core.model.changed_decisions import over_limit
from health_predict.errors import GateError, HealthPredictError, StateError
from health_predict.report.page import render
from health_predict.settings import Settings
from health_predict.stages.approval import must_be_approved
from health_predict.stages.shadow import Shadow, shadow

log = logging.getLogger(__name__)

GOLDEN_FILE = "src/golden.json"  # in an unpacked Bento
# Probabilities of the compiled model, computed elsewhere: equal but for the last digits of a float32.
TOLERANCE = 1e-6


class RolloutOutcome(StrEnum):
    """How a rollout ended."""

    DEPLOYED = "deployed"
    UNCHANGED = "unchanged"
    UNDONE = "undone"


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """How the rollout ended, why, and where the endpoint answers."""

    outcome: RolloutOutcome
    reason: str
    url: str


class StepResult(StrEnum):
    """How a step of a rollout ended."""

    DONE = "done"
    FAILED = "failed"
    NOT_DONE = "not done"  # there was nothing to do


class Step(NamedTuple):
    """A step of a rollout as its report shows it."""

    name: str
    result: StepResult
    seconds: float
    detail: str


def rollout(settings: Settings, *, image_uri: str, model_version: str, report: Path) -> RolloutResult:
    """Make the image's version the one that serves, and the champion.

    Gives `unchanged` when it serves already. Raises GateError (or the error that hindered it) after everything was
    undone; the report is written in any case. A repeat after a kill ends in the same state.
    """
    change = _Change(settings, image_uri, model_version)
    try:
        if change.serves():
            change.promote()
            result = change.result(RolloutOutcome.UNCHANGED, f"version {model_version} serves already")
        else:
            change.deploy()
            reason = f"version {model_version} answered as expected before and after the switch"
            result = change.result(RolloutOutcome.DEPLOYED, reason)
        challenger = change.tracking.by_alias(CHALLENGER)
        if challenger is not None and challenger.version == model_version:
            change.tracking.delete_alias(CHALLENGER)
    except HealthPredictError as error:
        change.write(report, change.result(RolloutOutcome.UNDONE, error.problem))
        log.error("rollout of version %s undone: %s", model_version, error.problem)
        why = f"Version {model_version} did not come into service: {error.problem}."
        tell(settings, Event.UNDONE, f"{model_version} {time.time_ns()}", why, "`health-predict status`")
        raise
    change.write(report, result)
    log.info("version %s at %s: %s", model_version, result.url, result.outcome.value)
    if active := change.target.active():  # its time says which rollout it was, also to a repeated one
        why = f"Version {model_version} is in service since {active.since}."
        tell(settings, Event.DEPLOYED, f"{model_version} {active.since}", why, "`health-predict status`")
    return result


def serve(settings: Settings, version: ModelVersion) -> RolloutResult:
    """Roll out a version by its image. Raises StateError when it has none."""
    if Tag.IMAGE_URI not in version.tags:
        raise StateError(
            f"version {version.version} has no image",
            f"`health-predict pipeline run deployment -p model_version={version.version}` builds and deploys one",
        )
    image, report = version.tags[Tag.IMAGE_URI], settings.home / "serving" / keys.ROLLOUT
    return rollout(settings, image_uri=image, model_version=version.version, report=report)


def unpacked(settings: Settings, image_uri: str) -> Path:
    """Folder of the Bento of an image on this machine."""
    return settings.home / "serving" / "images" / image_uri.rpartition(":")[2]


class _Change:
    """One version taking the place of another, step by step."""

    def __init__(self, settings: Settings, image_uri: str, model_version: str) -> None:
        self.settings, self.image_uri = settings, image_uri
        self.target, self.tracking = open_target(settings), Tracking(settings)
        self.version = self.tracking.version(model_version)
        if self.version.tags.get(Tag.IMAGE_URI) != image_uri:
            raise StateError(
                f"model version {model_version} has image {self.version.tags.get(Tag.IMAGE_URI, 'none')}, "
                f"not {image_uri}",
                "run the deployment pipeline of that version again",
            )
        must_be_approved(settings, self.tracking, self.version)
        self.folder = unpacked(settings, image_uri)
        self.before: Active | None = self.target.active()
        self.steps: list[Step] = []
        self.shadow: Shadow | None = None

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
            self.steps.append(Step(name, StepResult.FAILED, time.monotonic() - begin, problem))
            raise
        self.steps.append(Step(name, StepResult.DONE, time.monotonic() - begin, "; ".join(details)))

    def serves(self) -> bool:
        """Whether the endpoint already answers by this image and version as it should."""
        active = self.before
        if active is None or (active.image_uri, active.model_version) != (self.image_uri, self.version.version):
            return False
        try:
            with self.step("Ask the version that serves") as details:
                if not self.folder.is_dir():  # another machine rolled it out
                    open_registry(self.settings).unpack(self.image_uri, self.folder)
                details.append(self.ask_golden(self.target.url))
        except HealthPredictError as error:
            log.warning("version %s serves, but: %s", self.version.version, error.problem)
            return False
        return True

    def deploy(self) -> None:
        """The whole way from the image to the champion, undone when a step fails."""
        with self.target.rollout() as change:
            self.before = self.target.active()  # another rollout may have ended in the meantime
            with self.step("Verify and unpack the image") as details:
                self.unpack()
                details.append(self.image_uri)
            with self.step("Start the candidate") as details:
                candidate = change.start(self.image_uri, self.version.version, self.folder)
                details.append(f"ready at {candidate}, taking no traffic")
            with self.step("Golden requests to the candidate") as details:
                details.append(self.ask_golden(candidate))
            self.compare_decisions(candidate)
            with self.step("Lead the traffic to the candidate"):
                change.switch()
            with self.step("Golden requests through the endpoint") as details:
                details.append(self.ask_golden(self.target.url))
            self.take_over(change)

    def compare_decisions(self, candidate: str) -> None:
        """Have the candidate score the newest encounters beside what serves. Raises GateError above a limit.

        A rollback only says what it changes: nothing may stand in its way.
        """
        settings, number = self.settings, self.version.version
        with self.step("Score the newest encounters beside the version that serves") as details:
            found = shadow(settings, self.target.url, candidate) if self.before else "nothing served before"
            details.append(str(found))
            if isinstance(found, Shadow):
                self.shadow = found
                over = over_limit(found.changes, settings.shadow_limit, settings.shadow_subgroup_limit)
                pin = pinned(self.tracking) if over else None
                if over and not (pin and pin.version == number):
                    raise GateError(
                        "; ".join(over),
                        "HEALTH_PREDICT_SHADOW_LIMIT and HEALTH_PREDICT_SHADOW_SUBGROUP_LIMIT say how many may change; "
                        f"`health-predict compare {number}` shows more",
                    )
        if self.shadow is None:
            self.steps[-1] = self.steps[-1]._replace(result=StepResult.NOT_DONE)

    def unpack(self) -> None:
        """The image's Bento in its folder, and no others but that of the version that serves."""
        registry = open_registry(self.settings)
        registry.verify(self.image_uri)
        if trusted := self.settings.trusted_keys:
            log.info("signed by the key %s", attested(registry, self.image_uri, Path(trusted)).signer)
        kept = (self.folder, unpacked(self.settings, self.before.image_uri) if self.before else None)
        for old in self.folder.parent.glob("*"):
            if old not in kept:
                shutil.rmtree(old, ignore_errors=True)
        registry.unpack(self.image_uri, self.folder)

    def take_over(self, change: Rollout) -> None:
        """Move the alias and end the version before; if either fails, move it back."""
        replaced = self.replaced()
        try:
            with self.step("Move the alias champion") as details:
                self.promote()
                details.append(f"replaces version {', '.join(replaced)}" if replaced else "the first champion")
            with self.step("Stop the version before"):
                change.commit()
        except BaseException:
            with self.step("Move the alias champion back"):
                with contextlib.suppress(HealthPredictError):  # it may be the manager itself that failed
                    change.undo()
                record_service(self.tracking, replaced[:1], [self.version.version])
                if replaced:
                    self.tracking.set_alias(CHAMPION, replaced[0])
                    self.tracking.tag_version(replaced[0], {Tag.STAGE: VersionStage.PRODUCTION})
                else:
                    self.tracking.delete_alias(CHAMPION)
                stage = self.version.tags.get(Tag.STAGE, VersionStage.STAGING)
                self.tracking.tag_version(self.version.version, {Tag.STAGE: stage})
            raise

    def replaced(self) -> list[str]:
        """Versions that this one replaces: what was champion, and what served (they differ after a kill)."""
        champion = self.tracking.by_alias(CHAMPION)
        found = [champion.version if champion else "", self.before.model_version if self.before else ""]
        return [number for number in dict.fromkeys(found) if number and number != self.version.version]

    def promote(self) -> None:
        """Make the version the champion."""
        replaced = self.replaced()
        self.tracking.set_alias(CHAMPION, self.version.version)
        self.tracking.tag_version(self.version.version, {Tag.STAGE: VersionStage.PRODUCTION})
        for number in replaced:
            self.tracking.tag_version(number, {Tag.STAGE: VersionStage.ARCHIVED})
        record_service(self.tracking, [self.version.version], replaced)

    def ask_golden(self, url: str) -> str:
        """Send each golden request and compare the answer; what was done. Raises GateError on a difference."""
        cases = json.loads((self.folder / GOLDEN_FILE).read_text(encoding="utf-8"))
        worst = 0.0
        for number, case in enumerate(cases, 1):
            # These patients do not exist: they are no predictions to be logged and watched.
            response = ask(f"{url}/predict?log=false", self.settings, case["request"])
            if response.status != http.HTTPStatus.OK:
                raise GateError(f"{url} answers {response.status}: {response.text[:200]}")
            answer, expected = response.json(), case["answer"]
            what = f"golden request {number} of {len(cases)}"
            for name, value in (("model_version", self.version.version), *expected.items()):
                if name != "probability_score" and answer.get(name) != value:
                    raise GateError(f"{what} at {url}: {name} is {answer.get(name)!r}, expected {value!r}")
            difference = abs(float(answer["probability_score"]) - float(expected["probability_score"]))
            if not difference <= TOLERANCE:
                raise GateError(f"{what}: the probability is off by {difference:.2g}")
            worst = max(worst, difference)
        return f"{len(cases)} answers as expected, probabilities within {worst:.1g}"

    def result(self, outcome: RolloutOutcome, reason: str) -> RolloutResult:
        """How it ended."""
        return RolloutResult(outcome, reason, self.target.url)

    def write(self, report: Path, result: RolloutResult) -> None:
        """Write the report, which storage keeps too unless nothing was changed."""
        before, version = self.before, self.version
        page = render(
            "rollout.html",
            outcome=result.outcome.value,
            reasons=[result.reason],
            url=result.url,
            steps=self.steps,
            shadow=self.shadow,
            version=version.version,
            tags=version.tags,
            image_uri=self.image_uri,
            served_before=before.model_version if before else "",
            before=f"version {before.model_version}, since {before.since}" if before else "nothing",
        )
        write_file(report, page)
        if result.outcome is not RolloutOutcome.UNCHANGED:
            storage = open_storage(self.settings.storage, self.settings.s3_endpoint_url)
            storage.upload(report, keys.model(version.version, keys.ROLLOUT))
