"""What is simulated, and which simulations storage knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pydantic import TypeAdapter

from health_predict.adapters import keys
from health_predict.adapters.storage import Storage
from health_predict.core.choices import Scenario
from health_predict.core.data.scenarios import GroundTruth

MORE_DELAY = 3  # batches that outcomes take longer in the scenario delayed-labels
_PLAN = re.compile(keys.simulation("(.+)", re.escape(keys.PLAN)))


@dataclass(frozen=True)
class Plan:
    """What is simulated: together with the data, all that the end depends on."""

    name: str
    scenarios: tuple[str, ...]
    from_batch: int  # where the drift begins
    policy: str
    delay: int  # batches until outcomes are known; 0: with the batch itself
    batches: int
    seed: int

    @property
    def stream(self) -> str:
        """Name under which its batches and watermarks are kept."""
        return keys.simulation_stream(self.name)

    def due(self, number: int) -> int:
        """The batch after whose arrival the outcomes of batch `number` are delivered."""
        late = Scenario.DELAYED_LABELS in self.scenarios and number >= self.from_batch
        return number + self.delay + (MORE_DELAY if late else 0)


@dataclass(frozen=True)
class Begun(Plan):
    """A simulation that has begun, as storage knows it."""

    data: Mapping[str, Any]  # SHA-256 of the raw file, and the parameters by which it was cut: before any drift
    first_version: str
    truths: tuple[GroundTruth, ...] = ()  # what was done to the data

    @property
    def plan(self) -> Plan:
        """What is simulated."""
        return Plan(**{field.name: getattr(self, field.name) for field in fields(Plan)})

    def write(self, storage: Storage) -> None:
        """Store it, whole."""
        storage.write(keys.simulation(self.name, keys.PLAN), _BEGUN.dump_json(self, indent=1))


_BEGUN = TypeAdapter(Begun)


def begun(storage: Storage, name: str) -> Begun | None:
    """The simulation of that name; None when there is none."""
    key = keys.simulation(name, keys.PLAN)
    return _BEGUN.validate_json(storage.read(key)) if storage.exists(key) else None


def all_begun(storage: Storage) -> list[Begun]:
    """Every simulation that has begun, by name."""
    names = [found[1] for key in storage.keys(keys.SIMULATIONS) if (found := _PLAN.match(key))]
    return [one for name in names if (one := begun(storage, name)) is not None]
