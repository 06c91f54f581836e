"""Outcomes as they are delivered: CSV files at any time, matched to arrivals by one of three keys.

    the id that the service answered          prediction_id,<label>
    what identifies an encounter              its column or columns by the contract,<label>
    the patient and the day                   their two columns,<label>

A file is taken once. Its outcomes are kept beside the batch that they belong to; what belongs to none yet is tried
again with every batch that comes. Of two outcomes for the same encounter the later file's counts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from health_predict.adapters import keys
from health_predict.adapters.storage import Storage
from health_predict.core.data.contract import Contract
from health_predict.core.data.outcomes import Outcomes, matched, merged, read_outcomes
from health_predict.errors import DataError

log = logging.getLogger(__name__)

SHOWN = 10  # damaged files that are named


@dataclass(frozen=True, slots=True)
class OutcomeCounts:
    """What came of all outcomes so far."""

    taken: int = 0
    late: int = 0  # of these, for a batch whose outcomes were not waited for any more
    repeated: int = 0
    contradicting: int = 0
    damaged: tuple[str, ...] = ()  # files that cannot be read, the newest last


def outcomes_of(storage: Storage, stream: str, number: int, before: int | None = None) -> dict[str, int]:
    """The known outcomes of a batch by prediction id: all, or those taken in before a collection of that number."""
    key = keys.window_outcomes(stream, number)
    found: dict[str, int] = {}
    for collection, some in json.loads(storage.read(key)) if storage.exists(key) else ():
        if before is None or collection < before:
            found |= some
    return found


class OutcomeMatch:
    """One collection's matching. `identity` reads who is in a batch (n, prediction id and `keys_of`)."""

    def __init__(
        self,
        storage: Storage,
        stream: str,
        contract: Contract,
        collection: int,
        today: str,
        identity: Callable[[int], pd.DataFrame],
    ) -> None:
        self._storage, self._stream, self._collection, self._identity = storage, stream, collection, identity
        self._contract, self._today = contract, today
        self.counts = OutcomeCounts()
        self.damaged: list[str] = []  # digests of this collection's files that cannot be read

    def take(
        self, counts: OutcomeCounts, unmatched: Outcomes, closed: Sequence[int], waiting: Sequence[int], last: int
    ) -> tuple[OutcomeCounts, Outcomes, list[str]]:
        """Match what was delivered; the new counts, what is left, and the objects at the door that were taken.

        New outcomes are looked for in the batches that were `closed` now and that are `waiting`, and only what is left
        of them in all others up to the `last`, the newest first. Earlier ones, which were found nowhere, only in new
        batches.
        """
        self.counts = counts
        delivered = self._storage.keys(keys.outcomes_door(self._stream))
        fresh: Outcomes = {}
        for key in delivered:
            fresh = merged(fresh, self._read(key))
        left = merged(unmatched, fresh)
        for number in reversed(closed):
            left = self._match(number, left, late=False)
        new = _some(left, fresh, among=True)
        others = [number for number in range(last, -1, -1) if number not in closed]
        for number in sorted(others, key=lambda one: one not in waiting):
            if not any(new.values()):
                break
            new = self._match(number, new, late=number not in waiting)
        return self.counts, merged(_some(left, fresh, among=False), new), delivered

    def _read(self, key: str) -> Outcomes:
        """The outcomes of a file at the door, which is kept under its content."""
        data = self._storage.read(key)
        name = f"{self._today}-{hashlib.sha256(data).hexdigest()[:16]}-{key.rpartition('/')[2]}"
        self._storage.write(keys.taken_outcomes(self._stream, name), data)
        try:
            return read_outcomes(data, self._contract, self._storage.uri(key))
        except DataError as error:
            log.warning("set aside: %s", error.problem)
            self.damaged.append(hashlib.sha256(data).hexdigest())
            self.counts = replace(self.counts, damaged=(*self.counts.damaged, error.problem)[-SHOWN:])
            return {}

    def _match(self, number: int, wanted: Outcomes, *, late: bool) -> Outcomes:
        """Keep what belongs to a batch; what is left."""
        if not any(wanted.values()):
            return wanted
        found, left = matched(wanted, self._identity(number))
        if not found:
            return left
        known = outcomes_of(self._storage, self._stream, number, self._collection)
        repeated = sum(known.get(one) == value for one, value in found.items())
        contradicting = sum(known.get(one, value) != value for one, value in found.items())
        new = len(found) - repeated - contradicting
        self.counts = replace(
            self.counts,
            taken=self.counts.taken + new,
            late=self.counts.late + new * late,
            repeated=self.counts.repeated + repeated,
            contradicting=self.counts.contradicting + contradicting,
        )
        changed = {one: value for one, value in found.items() if known.get(one) != value}
        if changed:
            key = keys.window_outcomes(self._stream, number)
            kept = json.loads(self._storage.read(key)) if self._storage.exists(key) else []
            # A collection that was killed is repeated under its number.
            kept = [one for one in kept if one[0] < self._collection]
            self._storage.write(key, json.dumps([*kept, [self._collection, changed]]).encode())
        return left


def _some(outcomes: Outcomes, others: Outcomes, *, among: bool) -> Outcomes:
    """Those whose values are among the others', or are not."""
    return {
        key: {values: outcome for values, outcome in found.items() if (values in others.get(key, {})) is among}
        for key, found in outcomes.items()
    }
