"""The batches that monitoring watches: closed windows of arrivals, with what became of the patients.

All of it in storage (`keys`), so that runs on other machines find it. A look at a batch reads that batch, the one
before, and those whose outcomes are waited for: what it costs does not grow with the length of the stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import cached_property
from typing import TypeVar
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import TypeAdapter

from health_predict.adapters import keys
from health_predict.adapters.data.arrivals import PROBABILITY, TIME, VERSION, Arrivals, identity_of
from health_predict.adapters.data.outcome_files import outcomes_of
from health_predict.adapters.data.parts import read_frame, read_record
from health_predict.adapters.data.raw_data import origin_of
from health_predict.adapters.data.records import (
    DECISION,
    PROGRESS,
    SETTLED,
    BatchDecision,
    BatchRecord,
    Progress,
    SettledBatch,
    batch_key,
)
from health_predict.adapters.storage import Storage
from health_predict.adapters.tracking import ModelVersion, Tag
from health_predict.core.data.cohort import without_excluded
from health_predict.core.data.contract import MISSING
from health_predict.core.data.encounters import dates_of
from health_predict.core.data.outcomes import PREDICTION_ID, Joined, derived, join
from health_predict.core.data.partition import rows_digest
from health_predict.core.data.windows import Window, start_of
from health_predict.errors import StateError
from health_predict.settings import Settings

LAPSE_DAYS = 90  # after its follow-up, the outcomes of a batch are waited for no longer
_Record = TypeVar("_Record", bound=BatchRecord)


@dataclass(frozen=True)
class Batch:
    """A batch as it arrived."""

    number: int
    frame: pd.DataFrame
    """Cohort columns, without the outcome (n, columns), without those that the contract excludes."""
    ids: tuple[str, ...]
    """Prediction ids (n,)."""
    times: tuple[datetime, ...]
    """When each arrived (n,): the day of its date, else its receipt."""
    scores: npt.NDArray[np.float64]
    """What was predicted (n,)."""
    versions: tuple[str, ...]
    """By which version of the model (n,)."""
    window: Window

    @cached_property
    def digest(self) -> str:
        """Names its encounters, whatever their prediction ids. Of a million it takes seconds."""
        return rows_digest(self.frame)

    @property
    def key(self) -> str:
        """Number and digest, as the names of its records have them."""
        return batch_key(self.number, self.digest)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A batch with what is known of its outcomes."""

    batch: Batch
    joined: Joined

    @property
    def digest(self) -> str:
        """Names the encounters and their outcomes."""
        outcomes = self.joined.outcomes.astype("<f8").tobytes()
        return hashlib.sha256(self.batch.digest.encode() + outcomes).hexdigest()


class Batches:
    """The batches of the settings' stream."""

    def __init__(self, settings: Settings) -> None:
        self.arrivals = Arrivals(settings)
        self.storage: Storage = self.arrivals.storage
        self.contract = contract = self.arrivals.contract
        self._cohort = [column.name for column in contract.table if column.name != contract.target.name]
        self._identity = identity_of(contract)
        self.stream = settings.stream
        own = settings.follow_up_days
        self._follow_up_days = contract.follow_up_days if own is None else own
        self._derive = settings.derive_outcomes
        if self._derive and not contract.date:
            raise StateError(
                f"outcomes cannot be derived: the contract {contract.name} names no date of an encounter",
                "unset HEALTH_PREDICT_DERIVE_OUTCOMES and deliver them: `health-predict data outcomes FILE`",
            )
        self._now = settings.now
        self._zone = ZoneInfo(settings.time_zone)

    def numbers(self) -> range:
        """Numbers of the closed batches."""
        return range(self.arrivals.state().windows.number)

    def batch(self, number: int) -> Batch:
        """A batch by its number. Raises StateError when it is not there."""
        window = self.arrivals.window(number)
        frame = without_excluded(self.arrivals.rows(window.rows), self.contract)
        return Batch(
            number=number,
            frame=frame[self._cohort],
            ids=tuple(frame[PREDICTION_ID]),
            times=self._times(frame),
            scores=frame[PROBABILITY].to_numpy(dtype=np.float64),
            versions=tuple(frame[VERSION]),
            window=window,
        )

    def _times(self, frame: pd.DataFrame) -> tuple[datetime, ...]:
        dates = dates_of(frame, self.contract)
        days = {day: start_of(day, self._zone) for day in pd.unique(dates) if day != MISSING}
        received = (datetime.fromisoformat(one) for one in frame[TIME])
        return tuple(days.get(day) or time for day, time in zip(dates, received, strict=True))

    # Outcomes

    def labelled(self, batch: Batch) -> Labelled:
        """What is known of a batch's outcomes by now."""
        return Labelled(batch, self._joined(batch.window, batch.ids, batch.times))

    def outcomes(self, number: int) -> Joined:
        """The same by number, without reading the encounters."""
        window = self.arrivals.window(number)
        excluding = [one.column for one in self.contract.exclude]
        columns = [*dict.fromkeys((*self._identity, TIME, *excluding))]
        identity = without_excluded(self.arrivals.rows(window.rows, columns), self.contract)
        return self._joined(window, tuple(identity[PREDICTION_ID]), self._times(identity))

    def _joined(self, window: Window, ids: Sequence[str], times: Sequence[datetime]) -> Joined:
        known: Mapping[str, int] = outcomes_of(self.storage, self.stream, window.number)
        if self._derive:
            known = {**self._derived(window), **known}
        return join(times, ids, known, now=self._now, follow_up_days=self._follow_up_days)

    def _derived(self, window: Window) -> dict[str, int]:
        """Outcomes that follow from who came again, by prediction id; what was delivered goes before them."""
        identity = self.arrivals.rows(window.rows, self._identity)
        days = [day for day in identity[self.contract.date] if day != MISSING]
        if not days:
            return {}
        first, last = (date.fromisoformat(day) for day in (min(days), max(days)))
        span = (last - first).days + int(np.ceil(self._follow_up_days))
        later = [self._day((first + timedelta(days=ahead)).isoformat()) for ahead in range(span + 1)]
        return derived(identity, pd.concat(later, ignore_index=True), self.contract, self._follow_up_days)

    def _day(self, day: str) -> pd.DataFrame:
        folder = keys.arrivals(self.stream, f"{day}/")
        columns = [self.contract.patient, self.contract.date]
        frames = [read_frame(self.storage, key, columns) for key in self.storage.keys(folder)]
        return pd.concat([pd.DataFrame(columns=columns, dtype="str"), *frames], ignore_index=True)

    def lapses(self, number: int) -> bool:
        """Whether the outcomes of a batch need not be waited for any more: of a history, its closing counts."""
        window = self.arrivals.window(number)
        begin = max(start_of(window.end, self._zone), window.closed)
        return self._now >= begin + timedelta(days=self._follow_up_days + LAPSE_DAYS)

    def with_outcomes(self, number: int) -> pd.DataFrame:
        """What may be learned from a batch: encounters of known patients and outcomes, cohort frame (n, columns)."""
        labelled = self.labelled(self.batch(number))
        frame, outcomes = labelled.batch.frame, labelled.joined.outcomes
        contract, outcome = self.contract, self.contract.outcome
        known = np.isfinite(outcomes) & (frame[contract.patient] != MISSING).to_numpy()
        labels = np.where(outcomes[known] > 0, outcome.positive[0], outcome.negative)
        frame = frame[known].assign(**{outcome.column: labels})
        return frame[[column.name for column in contract.table]].astype("str").reset_index(drop=True)

    def learnable(self, before: int) -> list[int]:
        """Numbers of the batches before one whose outcomes have matured; those of a look that has not ended, too."""
        progress = self.progress()
        if progress.pending and (decision := self.decision(progress.pending)):
            progress = progress.after(decision, progress.policy)
        gone = {*progress.waiting, *progress.lapsed}
        return [number for number in range(min(before, progress.settled)) if number not in gone]

    # Records

    def progress(self) -> Progress:
        """How far monitoring has come. Raises StateError when it cannot be read."""
        key = keys.progress(self.stream)
        return read_record(PROGRESS, self.storage, key) if self.storage.exists(key) else Progress()

    def decision(self, batch_key: str) -> BatchDecision | None:
        """What was decided about a batch, None before. Raises StateError for a record that cannot be read."""
        return self._record(DECISION, keys.DECISIONS, batch_key)

    def decide(self, record: BatchDecision) -> None:
        """Store what was found and decided, whole, before it is acted on: the next look is this one until it ends."""
        self.storage.write(keys.record(self.stream, keys.DECISIONS, record.key), record.to_json())
        self._write_progress(replace(self.progress(), pending=record.key))

    def decisions(self) -> list[BatchDecision]:
        """All looks at these batches, by number of the batch. Raises StateError as `decision` does."""
        return self._records(DECISION, keys.DECISIONS)

    def settled(self) -> list[SettledBatch]:
        """How each look ended, by number of the batch. Raises StateError as `decision` does."""
        return self._records(SETTLED, keys.SETTLED)

    def settlement(self, batch_key: str) -> SettledBatch | None:
        """How a look ended, None before. Raises StateError as `decision` does."""
        return self._record(SETTLED, keys.SETTLED, batch_key)

    def settle(self, record: SettledBatch, progress: Progress) -> None:
        """Store how a look ended; the progress comes last, and it alone says that it did."""
        self.storage.write(keys.record(self.stream, keys.SETTLED, record.key), record.to_json())
        self._write_progress(progress)

    def _write_progress(self, progress: Progress) -> None:
        self.storage.write(keys.progress(self.stream), PROGRESS.dump_json(progress, indent=1))

    def report_key(self, batch_key: str, name: str) -> str:
        """Key of a file of the batch's report."""
        return keys.report(self.stream, batch_key, name)

    def _record(self, kind: TypeAdapter[_Record], name: str, batch_key: str) -> _Record | None:
        key = keys.record(self.stream, name, batch_key)
        return read_record(kind, self.storage, key) if self.storage.exists(key) else None

    def _records(self, kind: TypeAdapter[_Record], name: str) -> list[_Record]:
        found = [read_record(kind, self.storage, key) for key in self.storage.keys(keys.records(self.stream, name))]
        return sorted(found, key=lambda one: one.batch)


def trained_through(storage: Storage, version: ModelVersion) -> int:
    """How many batches had given their outcomes to the version: from that number on, a batch is new to it."""
    if Tag.LABELLED_BATCHES in version.tags:
        return int(version.tags[Tag.LABELLED_BATCHES])
    manifest = origin_of(storage, version).manifest
    return int(manifest["parameters"]["labelled_batches"]) if manifest else 0
