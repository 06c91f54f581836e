"""Messages to people: what happened, why, and what to do next. Never a patient's value.

A stage leaves a message in storage, under an id that follows from the event, so that a stage that is repeated tells
once. Where a command or a run ends, `deliver` sends what waits. Which address took a message is kept with it, so that
one that is away neither holds up the others nor has them told twice. A message reaches each address at least once: one
that took it and did not say so gets it again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import TypeAdapter

from health_predict.adapters import keys, receivers
from health_predict.adapters.locks import only_one
from health_predict.adapters.receivers import Letter
from health_predict.adapters.storage import Storage, open_storage
from health_predict.errors import DataError, HealthPredictError
from health_predict.settings import Settings

log = logging.getLogger(__name__)

OTHERS_SECONDS = 10.0  # that another process of this home may deliver


class Event(StrEnum):
    """What people are told of."""

    DRIFT = "drift alarm"
    RETRAINING = "retraining begun"
    REFUSED = "challenger refused"
    WAITING = "waiting for approval"
    DEPLOYED = "deployed"
    UNDONE = "rollout undone"
    FAILED = "run failed"
    QUARANTINED = "batch quarantined"
    BACKUP = "backup failed"

    @property
    def kind(self) -> str:
        """How much it matters, in apprise's words."""
        if self in (Event.UNDONE, Event.FAILED, Event.BACKUP):
            return "failure"
        if self is Event.DEPLOYED:
            return "success"
        return "info" if self is Event.RETRAINING else "warning"


@dataclass(frozen=True, slots=True)
class Message:
    """One event in words. `took`: which addresses have it, by `_mark`."""

    event: Event
    reason: str
    next_step: str
    time: str
    took: tuple[str, ...] = ()

    @property
    def letter(self) -> Letter:
        """As it is sent."""
        return Letter(f"health-predict: {self.event}", f"{self.reason}\n\nNext: {self.next_step}", self.event.kind)


_MESSAGE = TypeAdapter(Message)


def tell(settings: Settings, event: Event, key: str, reason: str, next_step: str) -> None:
    """Leave a message for the addresses of the settings; nothing happens when there are none, or in a simulation.

    `key` says which event of its kind it is: the same one is told once. `reason` is a sentence, without a value of a
    patient; `next_step` a command or a link. Raises nothing: a message that cannot be kept is sent at once.
    """
    if not settings.notify or keys.is_simulation(settings.stream):
        return
    name = hashlib.sha256(f"{event}\n{key}".encode()).hexdigest()[:32]
    message = Message(event, reason, next_step, datetime.now(UTC).isoformat())
    try:
        storage = _storage(settings)
        if not storage.exists(keys.sent_message(name)):
            storage.exchange(keys.waiting_message(name), _MESSAGE.dump_json(message, indent=1), None)
    except (HealthPredictError, OSError) as error:
        log.warning("the message %r is sent at once, since it cannot be kept: %s", str(event), error)
        receivers.send([(address, [message.letter]) for address in _addresses(settings)])


@contextmanager
def delivered(settings: Settings) -> Iterator[None]:
    """Whatever becomes of the block, what waits is sent at its end."""
    try:
        yield
    finally:
        deliver(settings)


def deliver(settings: Settings) -> None:
    """Send what waits to every address that has not got it, in order, within seconds; what was not taken is kept.

    Raises nothing: what becomes of a message changes the end of no command.
    """
    addresses = _addresses(settings)
    if not addresses:
        return
    try:
        with only_one(settings.home / "notifications", OTHERS_SECONDS):
            left = _deliver(_storage(settings), addresses)
    except Exception as error:  # of a storage or a record: the messages wait for the next time
        log.warning("messages are kept and sent the next time: %s", type(error).__name__)
        return
    if left:
        count = "1 message" if left == 1 else f"{left} messages"
        log.warning(
            "%s not taken by every address, kept and sent again the next time: `health-predict notify list`", count
        )


def _deliver(storage: Storage, addresses: list[str]) -> int:
    """How many messages still wait then."""
    messages = _waiting(storage)
    ready = {name: one for name, one in messages.items() if not storage.exists(keys.sent_message(name))}
    asked = {}
    for address in addresses:
        if names := [name for name, one in ready.items() if _mark(address) not in one.took]:
            asked[address] = names
    counts = receivers.send([(address, [ready[name].letter for name in names]) for address, names in asked.items()])
    for (address, names), count in zip(asked.items(), counts, strict=True):
        for name in names[:count]:
            ready[name] = replace(ready[name], took=(*ready[name].took, _mark(address)))
    left = 0
    for name, message in messages.items():
        done = ready.get(name, message)
        if name in ready and not {_mark(one) for one in addresses} <= {*done.took}:
            left += 1
            if done != message:
                storage.write(keys.waiting_message(name), _MESSAGE.dump_json(done, indent=1))
            continue
        if name in ready:
            storage.write(keys.sent_message(name), _MESSAGE.dump_json(done, indent=1))
        storage.delete(keys.waiting_message(name))
    return left


def tell_failure(settings: Settings, run_id: str, pipeline: str, error: HealthPredictError | None) -> None:
    """Tell that a run failed; `error` is what its stage ended with, where that is known.

    What is wrong with data, or how a stage broke, may be said with a value of a patient: the run's log says it.
    """
    safe = error is not None and not isinstance(error, DataError)
    why = f": {error.problem}" if error is not None and safe else "; its log says why"
    next_step = error.remedy if error is not None and safe and error.remedy else "`health-predict pipeline list`"
    tell(settings, Event.FAILED, run_id, f"Run {run_id} of {pipeline} failed{why}.", next_step)


def undelivered(settings: Settings) -> list[Message]:
    """What waits for an address that has not taken it, oldest first. Raises UnreachableError without a storage."""
    return [*_waiting(_storage(settings)).values()]


def _waiting(storage: Storage) -> dict[str, Message]:
    """What was told and is not delivered to everybody, by name, oldest first."""
    found = {}
    for key in storage.keys(keys.WAITING_MESSAGES):
        name = key.removeprefix(keys.WAITING_MESSAGES).removesuffix(".json")
        found[name] = _MESSAGE.validate_json(storage.read(key))
    return dict(sorted(found.items(), key=lambda item: item[1].time))


def try_out(settings: Settings) -> list[tuple[str, bool]]:
    """Send every address a message of its own; each in its masked form, and whether it took that."""
    addresses = _addresses(settings)
    letter = Letter("health-predict: test", "This is a test.\n\nNext: nothing is to be done.", "info")
    counts = receivers.send([(address, [letter]) for address in addresses])
    return [(receivers.masked(address), count == 1) for address, count in zip(addresses, counts, strict=True)]


def _addresses(settings: Settings) -> list[str]:
    return list(dict.fromkeys(one.get_secret_value() for one in settings.notify))


def _mark(address: str) -> str:
    """What stands for an address in storage: enough to tell a few apart, too little to try out secrets by."""
    return hashlib.sha256(address.encode()).hexdigest()[:8]


def _storage(settings: Settings) -> Storage:
    return open_storage(settings.storage, settings.s3_endpoint_url)
