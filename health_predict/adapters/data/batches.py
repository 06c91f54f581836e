"""The batches that monitoring watches: where they lie, what was predicted for them, what became of the patients.

All of it in storage (`keys`), so that runs on other machines find it. A stream is a sequence of numbered batches.
Where none were delivered, the future batches of the champion's dataset stand in for them, unless HEALTH_PREDICT_REPLAY
says no. They hold their outcomes and need no log. A record is about the series of batches that it names: when delivered
ones come, or other data with another future, monitoring begins with their first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import TypeAdapter

from health_predict.adapters import keys
from health_predict.adapters.data.parts import read_frame
from health_predict.adapters.data.raw_data import origin_of
from health_predict.adapters.data.records import DECISION, SETTLED, BatchDecision, BatchRecord, SettledBatch, batch_key
from health_predict.adapters.storage import Storage, open_storage
from health_predict.adapters.tracking import ModelVersion, Tag
from health_predict.core.data.cohort import part_bytes, target
from health_predict.core.data.columns import COLUMNS, NEGATIVE, POSITIVE, TARGET
from health_predict.core.data.outcomes import PREDICTION_ID, Joined, join, read_outcomes
from health_predict.core.data.partition import BATCHES, rows_digest
from health_predict.core.monitoring.policy import PolicyState
from health_predict.errors import DataError, StateError
from health_predict.settings import Settings

log = logging.getLogger(__name__)

DELIVERED = "delivered"
_Record = TypeVar("_Record", bound=BatchRecord)
_NUMBER = re.compile(r"/(\d+)(?:-[0-9a-f]+)?\.(?:parquet|json)$")


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it arrived. `digest` names its encounters, whatever their prediction ids and their file."""

    number: int
    digest: str
    frame: pd.DataFrame
    """Cohort columns, with or without the outcome."""
    ids: tuple[str, ...]
    """Prediction ids; empty when the batch did not pass through the endpoint."""

    @property
    def key(self) -> str:
        """Number and digest, as the names of its records have them."""
        return batch_key(self.number, self.digest)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A batch with what is known of its outcomes, and what was predicted for it: scores (n,), NaN where unknown."""

    batch: Batch
    joined: Joined
    scores: npt.NDArray[np.float64]
    versions: tuple[str, ...]
    """Model version of each prediction; empty where unknown."""


class Batches:
    """The batches of the settings' stream. `champion` names the dataset that stands in for them."""

    def __init__(self, settings: Settings, champion: ModelVersion | None = None, now: datetime | None = None) -> None:
        self.storage: Storage = open_storage(settings.storage, settings.s3_endpoint_url)
        self.stream = settings.stream
        self._follow_up_days = settings.follow_up_days
        self._now = now or datetime.now(UTC)
        self._champion = champion
        self._replay = settings.replay

    # Arrivals

    @cached_property
    def have_arrived(self) -> bool:
        """Whether batches were delivered: else those of the champion's dataset stand in, if they may."""
        return bool(self.storage.keys(keys.delivered(self.stream)))

    @property
    def silence(self) -> str:
        """That nothing was delivered, where nothing may stand in for it; else empty."""
        if self.have_arrived or self._replay:
            return ""
        return f"no encounters were delivered to {self.storage.uri(keys.delivered(self.stream))}"

    @cached_property
    def _folder(self) -> str:
        if self.have_arrived or not self._replay or self._champion is None:
            return keys.delivered(self.stream)
        return keys.dataset(self._champion.tags.get(Tag.DATASET_DIGEST, "none"), BATCHES)

    @cached_property
    def series(self) -> str:
        """What the batches are: `delivered`, or the digest of those that stand in; empty where that is not known."""
        if self.have_arrived:
            return DELIVERED
        return origin_of(self.storage, self._champion).future if self._champion else ""

    def numbers(self) -> list[int]:
        """Numbers of the batches that are there, in order."""
        return _numbers(self.storage.keys(self._folder))

    @cached_property
    def handled(self) -> frozenset[int]:
        """Numbers of the batches that were judged: without those that were passed over."""
        return frozenset(one.batch for one in self.decisions()) - self.passed

    @cached_property
    def passed(self) -> frozenset[int]:
        """Numbers of the batches that were not judged: the quarantined ones and the repetitions."""
        return frozenset(one.batch for one in self.decisions() if one.quarantined or one.repeats)

    def waiting(self) -> list[int]:
        """Those that were not handled yet."""
        done = {one.batch for one in self.settled()}
        return [number for number in self.numbers() if number not in done]

    def deliver(self, number: int, frame: pd.DataFrame, ids: Sequence[str]) -> None:
        """Store a batch that the endpoint has scored: cohort frame (n, columns) without outcomes, and ids (n,)."""
        self.storage.write(
            keys.batch(keys.delivered(self.stream), number), part_bytes(frame.assign(**{PREDICTION_ID: ids}))
        )

    def delivered(self, number: int) -> bool:
        """Whether the batch is there."""
        return self.storage.exists(keys.batch(keys.delivered(self.stream), number))

    def batch(self, number: int) -> Batch:
        """A batch by its number, not checked against the contract.

        Raises StateError when it is not there; DataError, of a batch that is a file of something else, with
        the digest of the file in its problem.
        """
        key = keys.batch(self._folder, number)
        if not self.storage.exists(key):
            numbers = self.numbers()
            if not numbers:
                raise StateError(f"{self.storage.uri(self._folder)} has no batches", "deliver one: docs/monitoring.md")
            raise StateError(f"there is no batch {number}", f"batches are numbered {numbers[0]} to {numbers[-1]}")
        frame = self._parquet(key)
        ids = tuple(frame.pop(PREDICTION_ID)) if PREDICTION_ID in frame else ()
        inputs = frame.drop(columns=[TARGET], errors="ignore")
        return Batch(number, rows_digest(inputs), frame, ids)

    def file_digest(self, number: int) -> str:
        """SHA-256 of the bytes of a batch that cannot be read."""
        return hashlib.sha256(self.storage.read(keys.batch(self._folder, number))).hexdigest()

    def _parquet(self, key: str) -> pd.DataFrame:
        try:
            return read_frame(self.storage, key)
        except DataError:
            raise DataError(
                f"{self.storage.uri(key)} is not a readable Parquet file", "deliver the batch again"
            ) from None

    # Predictions and outcomes

    def labelled(self, batch: Batch) -> Labelled:
        """What was predicted for the batch and is known of its outcomes by now."""
        size = len(batch.frame)
        if not batch.ids:
            known = target(batch.frame).astype(np.float64) if TARGET in batch.frame else np.full(size, np.nan)
            unknown = int(np.isnan(known).sum())
            return Labelled(batch, Joined(known, 0, 0, unknown), np.full(size, np.nan), ("",) * size)
        found = self.predictions(batch)
        times = [datetime.fromisoformat(found[one]["time"]) if one in found else None for one in batch.ids]
        joined = join(times, batch.ids, self.outcomes, now=self._now, follow_up_days=self._follow_up_days)
        scores = np.array([found[one]["probability"] if one in found else np.nan for one in batch.ids])
        versions = tuple(str(found[one]["model_version"]) if one in found else "" for one in batch.ids)
        return Labelled(batch, joined, scores, versions)

    def with_outcomes(self, number: int) -> pd.DataFrame:
        """The encounters of a batch whose outcomes are known by now, with them: cohort frame (n, columns)."""
        labelled = self.labelled(self.batch(number))
        known = np.isfinite(labelled.joined.outcomes)
        outcomes = np.where(labelled.joined.outcomes[known] > 0, POSITIVE, NEGATIVE)
        frame = labelled.batch.frame[known].assign(**{TARGET: outcomes})
        return frame[[column.name for column in COLUMNS]].astype(str).reset_index(drop=True)

    def predictions(self, batch: Batch) -> dict[str, dict[str, Any]]:
        """Time, model version and probability of the batch's predictions, by id, as far as the log was shipped."""
        kept = keys.record(self.stream, keys.PREDICTED, batch.key)
        wanted = set(batch.ids)
        if self.storage.exists(kept):
            stored: dict[str, dict[str, Any]] = json.loads(self.storage.read(kept))
            if wanted <= stored.keys():
                return stored
        found: dict[str, dict[str, Any]] = {}
        for key in reversed(self.storage.keys(keys.PREDICTIONS)):  # names begin with the time: the newest first
            if not key.endswith(".jsonl"):
                continue
            for line in self.storage.read(key).splitlines():
                entry = json.loads(line)
                prediction_id = entry.get("prediction_id")  # services of an earlier version gave it another name
                if prediction_id in wanted:
                    found[prediction_id] = {
                        "time": entry["time"],
                        "model_version": entry["model_version"],
                        "probability": entry["probability_score"],
                    }
            if len(found) == len(wanted):
                # Once complete, no older part of the log has to be read for this batch again.
                self.storage.write(kept, json.dumps(found).encode())
                break
        return found

    @cached_property
    def outcomes(self) -> dict[str, int]:
        """All outcomes that were delivered, by prediction id; of two for the same id, the later file's.

        A file that cannot be read is left out and named in the log and in `damaged`.
        """
        found: dict[str, int] = {}
        for key in self.storage.keys(keys.OUTCOMES):
            try:
                found |= read_outcomes(self.storage.read(key), self.storage.uri(key))
            except DataError as error:
                log.warning("left out: %s", error.problem)
                self.damaged.append(error.problem)
        return found

    @cached_property
    def damaged(self) -> list[str]:
        """Outcome files that were left out, and why."""
        return []

    # Records

    def decision(self, batch_key: str) -> BatchDecision | None:
        """What was decided about a batch, None before. Raises StateError for a record that cannot be read."""
        return next(iter(self._records(DECISION, keys.record(self.stream, keys.DECISIONS, batch_key))), None)

    def decide(self, record: BatchDecision) -> None:
        """Store what was found and decided, whole, before it is acted on."""
        self.storage.write(keys.record(self.stream, keys.DECISIONS, record.key), record.to_json())

    def decisions(self) -> list[BatchDecision]:
        """All decisions about these batches, by number of the batch. Raises StateError as `decision` does."""
        return self._records(DECISION, *self.storage.keys(keys.records(self.stream, keys.DECISIONS)))

    def settled(self) -> list[SettledBatch]:
        """How each handled batch ended, by number of the batch. Raises StateError as `decision` does."""
        return self._records(SETTLED, *self.storage.keys(keys.records(self.stream, keys.SETTLED)))

    def settlement(self, batch_key: str) -> SettledBatch | None:
        """How a batch ended, None before. Raises StateError as `decision` does."""
        return next(iter(self._records(SETTLED, keys.record(self.stream, keys.SETTLED, batch_key))), None)

    def settle(self, record: SettledBatch, policy: PolicyState) -> None:
        """Store how a batch ended. The policy's state comes first: a repeat makes the same of the decision."""
        self.storage.write(keys.policy(self.stream), json.dumps({**asdict(policy), "series": record.series}).encode())
        self.storage.write(keys.record(self.stream, keys.SETTLED, record.key), record.to_json())

    def policy_state(self, series: str) -> PolicyState:
        """What the policy remembers of a series of batches."""
        key = keys.policy(self.stream)
        record = json.loads(self.storage.read(key)) if self.storage.exists(key) else {}
        return PolicyState(**record) if _same(record.pop("series", ""), series) else PolicyState()

    def report_key(self, batch_key: str, name: str) -> str:
        """Key of a file of the batch's report."""
        return keys.report(self.stream, batch_key, name)

    def _records(self, kind: TypeAdapter[_Record], *names: str) -> list[_Record]:
        """Those of the records that are there and about these batches, by number of the batch."""
        found = []
        for key in names:
            if self.storage.exists(key):
                try:
                    found.append(kind.validate_python(json.loads(self.storage.read(key))))
                except ValueError as error:
                    raise StateError(
                        f"{self.storage.uri(key)} cannot be read as a record of a batch: {error}",
                        "restore it from a backup, or begin a stream of another name: HEALTH_PREDICT_STREAM",
                    ) from None
        return sorted((one for one in found if _same(one.series, self.series)), key=lambda one: one.batch)


def trained_through(storage: Storage, version: ModelVersion) -> int:
    """How many batches had given their outcomes to the version: from that number on, a batch is new to it."""
    if Tag.LABELLED_BATCHES in version.tags:
        return int(version.tags[Tag.LABELLED_BATCHES])
    manifest = origin_of(storage, version).manifest
    return int(manifest["parameters"]["labelled_batches"]) if manifest else 0


def _same(one: str, other: str) -> bool:
    """Whether two series are the same; one that is not known counts as such."""
    return one == other or not (one and other)


def _numbers(keys: Sequence[str]) -> list[int]:
    return sorted(int(found[1]) for key in keys if (found := _NUMBER.search(key)))
