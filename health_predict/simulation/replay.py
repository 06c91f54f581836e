"""Replays future batches against the running endpoint, with monitoring after each.

Nothing is kept in memory that matters: whether a batch was sent, its outcomes delivered and its monitoring settled
is read from storage, and every step is safe to repeat. So a simulation that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from health_predict.adapters.batches import Batches
from health_predict.adapters.dataset import fetch
from health_predict.adapters.endpoint import Endpoint
from health_predict.adapters.mlflow import CHAMPION, ModelVersion, Tracking
from health_predict.adapters.storage import Storage, open_storage, whole_file
from health_predict.adapters.target import open_target
from health_predict.core.cohort import as_requests, load_part, read_cohort, save_csv, target
from health_predict.core.columns import ENCOUNTER, TARGET
from health_predict.core.errors import GateError, SettingsError, StateError, UnreachableError
from health_predict.core.outcomes import write_outcomes
from health_predict.core.partition import Parameters, batch_bounds
from health_predict.core.promotion import Decision
from health_predict.core.synthetic import GroundTruth, Scenario, inject
from health_predict.settings import Settings
from health_predict.simulation.monitoring import readmission
from health_predict.stages.rollout import rollout
from health_predict.stages.split import split

log = logging.getLogger(__name__)

PORTION = 1000  # encounters in a request
LOG_SECONDS = 120.0  # until the service has shipped what it logged
MORE_DELAY = 3  # batches that outcomes take longer in the scenario delayed-labels
_PLAN = re.compile(r"simulations/(.+)/plan\.json")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is simulated: together with the data, all that the end depends on."""

    name: str
    scenarios: tuple[str, ...]
    from_batch: int
    """Where the drift begins."""
    policy: str
    delay: int
    """Batches until outcomes are known; 0: with the batch itself."""
    batches: int
    seed: int

    @property
    def stream(self) -> str:
        """Name under which its batches and watermarks are kept."""
        return f"sim-{self.name}"

    def due(self, number: int) -> int:
        """The batch after whose arrival the outcomes of batch `number` are delivered."""
        late = Scenario.DELAYED_LABELS in self.scenarios and number >= self.from_batch
        return number + self.delay + (MORE_DELAY if late else 0)


@dataclass(frozen=True, slots=True)
class Begun:
    """A simulation that has begun, as storage knows it."""

    plan: Plan
    dataset_digest: str
    first_version: str


def begun(storage: Storage, name: str) -> Begun | None:
    """The simulation of that name; None when there is none."""
    key = _plan_key(name)
    if not storage.exists(key):
        return None
    known = json.loads(storage.read(key))
    plan = Plan(**{**{field.name: known[field.name] for field in fields(Plan)}, "scenarios": tuple(known["scenarios"])})
    return Begun(plan, known["dataset_digest"], known["first_version"])


def all_begun(storage: Storage) -> list[Begun]:
    """Every simulation that has begun, by name."""
    names = [found[1] for key in storage.keys("simulations/") if (found := _PLAN.match(key))]
    return [one for name in names if (one := begun(storage, name)) is not None]


def _plan_key(name: str) -> str:
    return f"simulations/{name}/plan.json"


@dataclass(frozen=True, slots=True)
class Replay:
    """A simulation that has begun: the settings of all its stages, its data and its first version."""

    plan: Plan
    settings: Settings
    dataset_digest: str
    synthetic: bool
    first_version: str
    truths: tuple[GroundTruth, ...]

    def batch(self, number: int) -> pd.DataFrame:
        """A future batch with its outcomes, cohort frame (n, columns)."""
        storage = open_storage(self.settings.storage, self.settings.s3_endpoint_url)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "batch.parquet"
            storage.download(f"datasets/{self.dataset_digest}/batches/{number:02d}.parquet", file)
            return load_part(file)


def begin(settings: Settings, plan: Plan) -> Replay:
    """Prepare the data, and bring the model of the initial data into service; or find what was begun.

    Raises SettingsError for an impossible plan, StateError when another plan has its name, GateError when no model
    of the initial data passes its gates.
    """
    if not 1 <= plan.batches <= settings.future_batches or not 0 <= plan.from_batch < settings.future_batches:
        raise SettingsError(
            f"{plan.batches} batches from {plan.from_batch} on do not fit into {settings.future_batches}",
            "give fewer, or set HEALTH_PREDICT_FUTURE_BATCHES",
        )
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    settings = settings.model_copy(
        # Time is made fast: outcomes come by the count of batches, and the log is shipped at once.
        update={"stream": plan.stream, "policy": plan.policy, "follow_up_days": 0.0, "prediction_log_seconds": 1}
    )
    settings, truths = _with_drift(settings, plan)
    with tempfile.TemporaryDirectory(prefix="health-predict-simulation-") as folder:
        work = Path(folder)
        files = {name: work / name for name in ("train", "validation", "test", "batches", "profile")}
        data = split(settings, labelled_batches=0, **files)
        found = {**asdict(plan), "scenarios": list(plan.scenarios), "dataset_digest": data.dataset_digest}
        key = _plan_key(plan.name)
        known = json.loads(storage.read(key)) if storage.exists(key) else None
        if known is not None:
            first = known.pop("first_version")
            if known != found:
                wrong = sorted(name for name in found if known.get(name) != found[name])
                raise StateError(
                    f"simulation {plan.name} was begun with another {', '.join(wrong)}", "give this one another --name"
                )
            replay = Replay(plan, settings, data.dataset_digest, data.dataset_source == "synthetic", first, truths)
            _go_on(replay)
            return replay
        version = _first_version(settings, storage, data.manifest, work)
        # Stopped first, since what runs has the settings of another time; what it logged is shipped by that.
        open_target(settings).stop()
        _serve(settings, version)
        # Last: from here on there is a simulation.
        storage.write(key, json.dumps({**found, "first_version": version.version}, indent=1).encode())
    return Replay(plan, settings, data.dataset_digest, data.dataset_source == "synthetic", version.version, truths)


def _with_drift(settings: Settings, plan: Plan) -> tuple[Settings, tuple[GroundTruth, ...]]:
    """Settings that name the drifted data, written once, and what was done to them."""
    raw = fetch(settings)
    injected = [name for name in plan.scenarios if name != Scenario.NONE]
    if not injected:
        return settings, ()
    identity = json.dumps([raw.sha256, injected, plan.from_batch, plan.seed, settings.initial_share])
    identity += str(settings.future_batches)
    stem = f"simulation-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    file, truth_file = settings.home / "data" / f"{stem}.csv", settings.home / "data" / f"{stem}.truth.json"
    if not (file.is_file() and truth_file.is_file()):
        log.info("injecting %s from batch %d on", " and ".join(injected), plan.from_batch)
        frame = read_cohort(raw.path)
        frame = frame.iloc[np.argsort(frame[ENCOUNTER].astype(np.int64).to_numpy(), kind="stable")]
        frame = frame.reset_index(drop=True)
        parameters = Parameters(settings.initial_share, settings.future_batches, settings.salt)
        row = batch_bounds(len(frame), parameters)[plan.from_batch]
        made = []
        for number, scenario in enumerate(injected):
            frame, truth = inject(frame, scenario, row, plan.seed + number)
            made.append(truth.to_json())
        with whole_file(truth_file) as temporary:
            temporary.write_text(json.dumps(made, indent=1))
        with whole_file(file) as temporary:
            save_csv(frame, temporary)
    truths = tuple(
        GroundTruth(**{**one, "scenario": Scenario(one["scenario"]), "columns": tuple(one["columns"])})
        for one in json.loads(truth_file.read_text())
    )
    return settings.model_copy(update={"data_source": str(file), "data_sha256": ""}), truths


def _first_version(settings: Settings, storage: Storage, manifest: Any, work: Path) -> ModelVersion:
    """The version that was trained on the same initial encounters, else a new one."""
    tracking = Tracking(settings)
    wanted = [manifest["parts"][name]["rows_sha256"] for name in ("train", "validation", "test")]
    for version in tracking.versions():
        key = f"datasets/{version.tags.get('dataset_digest', 'none')}/manifest.json"
        if version.tags.get("decision") != Decision.PROMOTE or "image_uri" not in version.tags:
            continue
        if "recalibrates" in version.tags or not storage.exists(key):
            continue
        parts = json.loads(storage.read(key))["parts"]
        if [parts[name]["rows_sha256"] for name in ("train", "validation", "test")] == wanted:
            log.info("version %s was trained on the initial encounters", version.version)
            return version
    log.info("no version was trained on the initial encounters: training one")
    result = readmission(settings, 0, work)
    if result.decision is not Decision.PROMOTE:
        raise GateError(
            f"the model of the initial data was rejected: {'; '.join(result.reasons)}",
            "simulate in a home of its own (HEALTH_PREDICT_HOME), where no later model is champion",
        )
    return tracking.version(result.model_version)


def _serve(settings: Settings, version: ModelVersion) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rollout(
            settings,
            image_uri=version.tags["image_uri"],
            model_version=version.version,
            report=Path(folder) / "rollout.html",
        )


def _go_on(replay: Replay) -> None:
    """Serve what served when the simulation ended, if something else does by now."""
    batches, tracking = Batches(replay.settings), Tracking(replay.settings)
    settled = batches.settled()
    expected = settled[-1]["version_after"] if settled else replay.first_version
    champion, active = tracking.by_alias(CHAMPION), open_target(replay.settings).active()
    closed = {one["batch"] for one in settled}
    pending = any(one["batch"] not in closed and one["action"] != "none" for one in batches.decisions())
    if pending and champion is not None:
        expected = champion.version  # the killed step may have got as far as its rollout
    if active is None or active.model_version != expected or champion is None or champion.version != expected:
        log.info("bringing version %s back into service", expected)
        open_target(replay.settings).stop()
        _serve(replay.settings, tracking.version(expected))


def play(replay: Replay, handle: Callable[[Settings, int], object], told: Callable[[int], None]) -> None:
    """Send each batch, deliver what outcomes are due, and have `handle` monitor it; `told` hears of each that ended."""
    plan, settings = replay.plan, replay.settings
    for number in range(plan.batches):
        batches = Batches(settings)
        if any(one["batch"] == number for one in batches.settled()):
            told(number)
            continue
        if not batches.delivered(number):
            _send(replay, batches, number)
        _await_log(Batches(settings), number)
        for earlier in range(number + 1):
            if plan.due(earlier) <= number:
                _deliver_outcomes(replay, earlier)
        handle(settings, number)
        told(number)


def _send(replay: Replay, batches: Batches, number: int) -> None:
    frame = replay.batch(number).drop(columns=[TARGET])
    log.info("batch %d: sending %d encounters", number, len(frame))
    ids: list[str] = []
    portion = min(PORTION, replay.settings.serving_batch_rows)
    with Endpoint(open_target(replay.settings).url) as endpoint:
        for answers in endpoint.predict(as_requests(frame), portion):
            ids += [answer["prediction_id"] for answer in answers]
    # Only now the batch exists: what a killed attempt sent before has ids that nobody asks for.
    batches.deliver(number, frame, ids)


def _await_log(batches: Batches, number: int) -> None:
    end = time.monotonic() + LOG_SECONDS
    batch = batches.batch(number)
    while missing := len(batch.ids) - len(batches.predictions(batch)):
        if time.monotonic() > end:
            raise UnreachableError(
                f"{missing} predictions of batch {number} are not in the shipped log after {LOG_SECONDS:g} s",
                "see `health-predict serve --logs` and HEALTH_PREDICT_STORAGE_URI",
            )
        time.sleep(0.3)


def _deliver_outcomes(replay: Replay, number: int) -> None:
    batches = Batches(replay.settings)
    key = f"outcomes/{replay.plan.stream}-{number:02d}.csv"
    if not batches.storage.exists(key):
        log.info("the outcomes of batch %d are known", number)
        ids = batches.batch(number).ids
        batches.storage.write(key, write_outcomes(ids, target(replay.batch(number))))
