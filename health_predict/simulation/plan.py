"""What is simulated, and which simulations storage knows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from health_predict.adapters.storage import Storage
from health_predict.core.synthetic import Scenario

PLAN = "plan.json"
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
    data: Mapping[str, Any]
    """SHA-256 of the raw file, and the parameters by which it was cut: before any drift."""
    first_version: str


def begun(storage: Storage, name: str) -> Begun | None:
    """The simulation of that name; None when there is none."""
    key = file_key(name, PLAN)
    if not storage.exists(key):
        return None
    known = json.loads(storage.read(key))
    plan = Plan(**{**{field.name: known[field.name] for field in fields(Plan)}, "scenarios": tuple(known["scenarios"])})
    return Begun(plan, known.get("data", {}), known["first_version"])


def all_begun(storage: Storage) -> list[Begun]:
    """Every simulation that has begun, by name."""
    names = [found[1] for key in storage.keys("simulations/") if (found := _PLAN.match(key))]
    return [one for name in names if (one := begun(storage, name)) is not None]


def file_key(simulation: str, name: str) -> str:
    """Key in storage of a file of a simulation."""
    return f"simulations/{simulation}/{name}"
