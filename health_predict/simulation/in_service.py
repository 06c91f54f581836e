"""What served before a simulation, which brings its own models into service, and how that serves again afterwards.

It is written down in storage before a simulation's first rollout and struck out once it serves again. So a simulation
that was killed and goes on, and another one that begins meanwhile, know what to put back.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace

from health_predict.adapters.data.batches import Batches
from health_predict.adapters.keys import SERVED_BEFORE
from health_predict.adapters.serving.target import open_target
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import CHALLENGER, CHAMPION, Tracking
from health_predict.core.monitoring.policy import Action
from health_predict.settings import ServingTarget, Settings
from health_predict.simulation.plan import Begun, begun
from health_predict.stages.rollout import serve

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedBefore:
    """What served before, and whose models do meanwhile."""

    simulation: str  # empty once what served before serves again
    version: str  # what served, else the champion; empty when there was neither
    running: bool  # whether the endpoint ran
    challenger: str  # the version with that alias; empty when there was none


def version_of(settings: Settings, simulation: Begun) -> tuple[str, bool]:
    """The version that a simulation is served by between two batches, and whether a step of it is half done.

    A step half done is repeated from the version that it began with: so it ends as if it had never been killed.
    """
    batches = Batches(settings.model_copy(update={"stream": simulation.stream}))
    progress = batches.progress()
    decision = batches.decision(progress.pending) if progress.pending else None
    if decision is not None and decision.action is not Action.NONE:
        return decision.model_version, True
    last = batches.settlement(progress.last) if progress.last else None
    return (last.version_after if last else simulation.first_version), False


def under_way(settings: Settings) -> ServedBefore | None:
    """What served before a simulation that runs or was killed; None when there is no such simulation."""
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    if not storage.exists(SERVED_BEFORE):
        return None
    found = ServedBefore(**json.loads(storage.read(SERVED_BEFORE)))
    return found if found.simulation else None  # struck out: what served before serves again


def remember(settings: Settings, simulation: str) -> bool:
    """Write down what serves before a simulation brings its models into service; whether that was done now.

    What is written down already stays, unless something else than a simulation's model serves by now.
    """
    known = under_way(settings)
    if known is not None and _serves_own(settings, known):
        _write(settings, replace(known, simulation=simulation))
        return False
    tracking, active = Tracking(settings), open_target(settings).active()
    champion, challenger = tracking.by_alias(CHAMPION), tracking.by_alias(CHALLENGER)
    version = active.model_version if active else champion.version if champion else ""
    found = ServedBefore(simulation, version, active is not None, challenger.version if challenger else "")
    _write(settings, found)
    log.info("what serves before the simulation: %s", f"version {version}" if version else "nothing")
    return True


def put_back(settings: Settings, *, keep: bool = False, ended: bool = True) -> str:
    """Have what served before a simulation serve again, or with `keep` leave the simulation's model; in words.

    `settings` are those of everything else: a process that serves gets them. `ended`: whether the simulation did; one
    that failed may go on. Nothing happens, and the answer is empty, when no simulation's model serves. Safe to repeat.
    """
    before = under_way(settings)
    if before is None:
        return ""
    target, tracking = open_target(settings), Tracking(settings)
    done = replace(before, simulation="")
    if not _serves_own(settings, before):
        _write(settings, done)
        return ""
    active = target.active()
    now = f"version {active.model_version}" if active else "the version"
    if not before.version:
        if ended:
            _write(settings, done)
        return f"nothing served before: {now} of this simulation serves on, `health-predict down` stops it"
    if keep:
        _write(settings, done)
        return (
            f"{now} of this simulation serves on; `health-predict pipeline run deployment -p "
            f"model_version={before.version}` brings back version {before.version}, which served before"
        )
    log.info("bringing back version %s, which served before", before.version)
    if settings.serving_target is ServingTarget.PROCESS:
        target.stop()  # it has the simulation's settings; a Deployment has its own
    serve(settings, tracking.version(before.version))
    challenger = tracking.by_alias(CHALLENGER)
    if before.challenger and before.challenger != before.version:
        tracking.set_alias(CHALLENGER, before.challenger)
    elif challenger is not None:
        tracking.delete_alias(CHALLENGER)
    _write(settings, done)
    if before.running:
        return f"version {before.version}, which served before, serves again"
    return f"version {before.version}, the champion before, serves; nothing ran before, `health-predict down` stops it"


def _serves_own(settings: Settings, before: ServedBefore) -> bool:
    """Whether what serves is still the simulation's, and not what somebody has rolled out since."""
    simulation = begun(open_storage(settings.storage, settings.s3_endpoint_url), before.simulation)
    if simulation is None:
        return True  # it was killed while it brought its first version into service
    version, half_done = version_of(settings, simulation)
    active, champion = open_target(settings).active(), Tracking(settings).by_alias(CHAMPION)
    serves = active.model_version if active else champion.version if champion else version
    return half_done or serves == version


def _write(settings: Settings, before: ServedBefore) -> None:
    open_storage(settings.storage, settings.s3_endpoint_url).write(SERVED_BEFORE, json.dumps(asdict(before)).encode())
