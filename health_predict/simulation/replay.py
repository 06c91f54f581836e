"""Replays future batches against the running endpoint, with monitoring after each.

Nothing is kept in memory that matters: whether a batch was sent, its outcomes delivered and its monitoring settled
is read from storage, and every step is safe to repeat. So a simulation that was killed goes on where it was.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC
from pathlib import Path

import numpy as np
import pandas as pd

from health_predict.adapters import keys
from health_predict.adapters.contracts import contract_of, synthetic_of
from health_predict.adapters.data.arrivals import PROBABILITY, TIME, VERSION
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.outcome_files import outcomes_of
from health_predict.adapters.data.parts import read_frame
from health_predict.adapters.data.raw_data import champion_origin, origin_of, raw_data
from health_predict.adapters.serving.endpoint import Endpoint
from health_predict.adapters.serving.target import open_target
from health_predict.adapters.storage import Storage, open_storage
from health_predict.adapters.tracking import CHAMPION, ModelVersion, Tag, Tracking
from health_predict.core.choices import Policy, Scenario
from health_predict.core.data.cohort import as_requests, in_order, part_bytes, target, training_cohort
from health_predict.core.data.encounters import complete
from health_predict.core.data.outcomes import PREDICTION_ID, write_outcomes
from health_predict.core.data.partition import BATCHES, Parameters, batch_bounds, partition
from health_predict.core.data.scenarios import GroundTruth, inject
from health_predict.core.data.sources import Source
from health_predict.core.promotion import Decision
from health_predict.errors import GateError, SettingsError, StateError
from health_predict.settings import Settings
from health_predict.simulation.in_service import remember, version_of
from health_predict.simulation.monitoring import dataset, monitoring, readmission
from health_predict.simulation.plan import Begun, Plan, begun
from health_predict.stages.rollout import serve

log = logging.getLogger(__name__)

PORTION = 1000  # encounters in a request


@dataclass(frozen=True, slots=True)
class Replay:
    """A simulation that has begun, with the settings of all its stages, and whether its patients are made up."""

    simulation: Begun
    settings: Settings
    synthetic: bool

    @property
    def storage(self) -> Storage:
        """Where its batches lie."""
        return open_storage(self.settings.storage, self.settings.s3_endpoint_url)

    def batch(self, number: int) -> pd.DataFrame:
        """A future batch with its outcomes, cohort frame (n, columns)."""
        return read_frame(self.storage, keys.batch(keys.simulation(self.simulation.name, BATCHES), number))


def begin(settings: Settings, plan: Plan, *, keep: bool = False) -> Replay:
    """Prepare the data, and bring the model of the initial data into service; or find what was begun.

    The data are the champion's and cut as its dataset was; drift is injected into what is sent, never into what a
    model begins with. What served before is written down first (`in_service`). A simulation that has ended brings
    nothing into service, unless its last model is to be kept there. Raises SettingsError for an impossible plan,
    StateError when another plan has its name, GateError when no model of the initial data passes its gates, and what
    `raw_data` raises.
    """
    origin = champion_origin(settings)
    # Real data do not take the place of synthetic ones in the middle of a simulation.
    raw = raw_data(settings, origin, continues=not settings.data_source)
    synthetic = raw.source == Source.SYNTHETIC
    contract = contract_of(settings)
    parameters = Parameters(settings.initial_share, settings.future_batches, settings.salt, contract=contract.digest)
    if origin is not None and origin.raw_sha256 == raw.sha256:
        parameters = replace(origin.parameters, labelled_batches=0, window=0)
    if not 1 <= plan.batches <= parameters.future_batches or not 0 <= plan.from_batch < parameters.future_batches:
        raise SettingsError(
            f"{plan.batches} batches from {plan.from_batch} on do not fit into {parameters.future_batches}",
            "give fewer; the champion's dataset has so many, HEALTH_PREDICT_FUTURE_BATCHES without one",
        )
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    settings = settings.model_copy(
        update={
            "data_source": str(raw.path),
            **{name: getattr(parameters, name) for name in ("initial_share", "future_batches", "salt")},
            # Time is made fast: outcomes come by the count of batches.
            "stream": plan.stream,
            "policy": Policy(plan.policy),
            "follow_up_days": 0.0,
        }
    )
    data = {"raw_sha256": raw.sha256, "parameters": parameters.to_json()}
    known = begun(storage, plan.name)
    if known is not None:
        was, asked = {**asdict(known.plan), "data": known.data}, {**asdict(plan), "data": data}
        if wrong := sorted(name for name in asked if was[name] != asked[name]):
            raise StateError(
                f"simulation {plan.name} was begun with another {', '.join(wrong)}", "give this one another --name"
            )
        if keep or Batches(settings).progress().settled < plan.batches:
            _go_on(settings, known, anew=remember(settings, plan.name))
        return Replay(known, settings, synthetic)
    truths = _write_batches(settings, plan, training_cohort(raw.path, contract)[0], parameters)
    remember(settings, plan.name)
    version = _first_version(settings, storage)
    # Stopped first, since what runs has the settings of another time; what it logged is shipped by that.
    open_target(settings).stop()
    serve(settings, version)
    made = Begun(**asdict(plan), data=data, first_version=version.version, truths=truths)
    made.write(storage)  # last: from here on there is a simulation
    return Replay(made, settings, synthetic)


def _write_batches(
    settings: Settings, plan: Plan, frame: pd.DataFrame, parameters: Parameters
) -> tuple[GroundTruth, ...]:
    """The future batches as they will be sent, with drift injected; what was done to them."""
    contract, storage = contract_of(settings), open_storage(settings.storage, settings.s3_endpoint_url)
    frame = frame.iloc[np.argsort(in_order(frame, contract), kind="stable")].reset_index(drop=True)
    row = batch_bounds(len(frame), parameters)[plan.from_batch]
    truths = []
    injected = [name for name in plan.scenarios if name != Scenario.NONE]
    synthetic = synthetic_of(contract, settings) if injected and contract.synthetic else None
    if injected:
        log.info("injecting %s from batch %d on", " and ".join(injected), plan.from_batch)
    for number, scenario in enumerate(injected):
        frame, truth = inject(frame, contract, synthetic, scenario, row, plan.seed + number)
        truths.append(truth)
    for number, batch in enumerate(partition(frame, contract, parameters).batches[: plan.batches]):
        storage.write(keys.batch(keys.simulation(plan.name, BATCHES), number), part_bytes(batch))
    return tuple(truths)


def _first_version(settings: Settings, storage: Storage) -> ModelVersion:
    """The version that was trained on the initial encounters, else a new one."""
    tracking, names = Tracking(settings), ("train", "validation", "test")
    with tempfile.TemporaryDirectory(prefix="health-predict-simulation-") as folder:
        parts = dataset(settings, 0, Path(folder)).manifest["parts"]
        for version in tracking.versions():
            if Tag.IMAGE_URI not in version.tags:  # it has never passed its gates
                continue
            theirs = origin_of(storage, version).manifest.get("parts")
            same = theirs and all(theirs[name]["rows_sha256"] == parts[name]["rows_sha256"] for name in names)
            if same and Tag.RECALIBRATES not in version.tags:
                log.info("version %s was trained on the initial encounters", version.version)
                return version
        log.info("no version was trained on the initial encounters: training one")
        result = readmission(settings, 0, Path(folder))
    if result.decision is not Decision.PROMOTE:
        raise GateError(
            f"the model of the initial data was rejected: {'; '.join(result.reasons)}",
            "simulate in a home of its own (HEALTH_PREDICT_HOME), where no later model is champion",
        )
    return tracking.version(result.model_version)


def _go_on(settings: Settings, simulation: Begun, *, anew: bool) -> None:
    """Have the version serve that the simulation had come to, with its settings, if something else does by now."""
    tracking, target = Tracking(settings), open_target(settings)
    expected, _ = version_of(settings, simulation)
    champion, active = tracking.by_alias(CHAMPION), target.active()
    if anew or active is None or champion is None or {active.model_version, champion.version} != {expected}:
        log.info("bringing version %s back into service", expected)
        target.stop()
        serve(settings, tracking.version(expected))


def play(replay: Replay, monitor: Callable[[Settings], object] = monitoring) -> Iterator[int]:
    """Send each batch, deliver what outcomes are due, and `monitor` it; gives the number of each that ended."""
    simulation = replay.simulation
    for number in range(simulation.batches):
        batches = Batches(replay.settings)
        if batches.progress().settled <= number:
            frame = replay.batch(number)
            if number not in batches.numbers() and not batches.arrivals.at_door():
                _send(replay, batches, number, frame)
            deliver_outcomes(replay, number)
            # Each batch is a window of its own.
            monitor(replay.settings.model_copy(update={"window": str(len(frame))}))
        yield number


def _send(replay: Replay, batches: Batches, number: int, frame: pd.DataFrame) -> None:
    """Have the endpoint score a batch, and leave it at the door with what it answered."""
    log.info("batch %d: sending %d encounters", number, len(frame))
    portion, contract = min(PORTION, replay.settings.serving_batch_rows), batches.contract
    bodies = as_requests(frame, contract.features)
    with Endpoint(open_target(replay.settings).url, replay.settings) as endpoint:
        # Not logged by the service: a simulation is no part of the live stream.
        answers = [answer for some in endpoint.predict(bodies, portion, log=False) for answer in some]
    # Only now they have arrived: of what a killed attempt sent before, nobody knows.
    meta = {
        PREDICTION_ID: [answer["prediction_id"] for answer in answers],
        TIME: replay.settings.now.astimezone(UTC).isoformat(timespec="microseconds"),
        VERSION: [answer["model_version"] for answer in answers],
        PROBABILITY: [repr(float(answer["probability_score"])) for answer in answers],
    }
    batches.arrivals.land(
        complete(frame.drop(columns=[contract.target.name]), contract, f"batch {number}").assign(**meta)
    )


def deliver_outcomes(replay: Replay, number: int) -> None:
    """Deliver the outcomes that are due once batch `number` has arrived, each batch's once."""
    simulation, storage, contract = replay.simulation, replay.storage, contract_of(replay.settings)
    for earlier in range(number + 1):
        if simulation.due(earlier) <= number and not outcomes_of(storage, simulation.stream, earlier):
            log.info("the outcomes of batch %d are known", earlier)
            frame = replay.batch(earlier)
            named = {name: frame[name] for name in contract.encounter}
            file = write_outcomes(named, contract, target(frame, contract))
            storage.write(keys.outcomes(simulation.stream, f"{earlier:04d}"), file)
