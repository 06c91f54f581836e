"""forget: one patient's encounters are removed from everything that arrived and from every dataset.

What is removed is written down without the patient: how many encounters, when, and which models had learned from them.
`lineage` reads that. The raw file that the first model was trained on is not rewritten, since its SHA-256 names it:
whether it holds the patient is said. A bucket that keeps what an object held before loses that for all encounters and
outcomes: nobody can undo the removal, nor an accident of the days before. Safe to repeat; what a service has not
shipped yet is removed by the next time.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from health_predict.adapters import keys
from health_predict.adapters.contracts import contract_of
from health_predict.adapters.data.arrivals import Arrivals, identity_of
from health_predict.adapters.data.parts import read_frame
from health_predict.adapters.data.raw_data import origin_of
from health_predict.adapters.storage import Storage, open_storage
from health_predict.adapters.tracking import ModelVersion, Tag, Tracking
from health_predict.core.data.cohort import part_bytes
from health_predict.core.data.contract import MISSING
from health_predict.core.data.outcomes import PREDICTION_ID, keys_of
from health_predict.core.data.partition import places, rows_digest
from health_predict.settings import Settings

TEST = 2  # the place of those who only judge a model
LEARNED = {"train", "validation"}  # parts that a model is fitted and chosen on: the others only judge it


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was removed of a patient, and what is left."""

    encounters: int  # that had arrived, or waited at the door or in quarantine
    outcomes: int
    datasets: tuple[str, ...]  # digests of those that lost rows
    versions: tuple[str, ...]  # of the model, which had learned from rows of their dataset
    calibrated: tuple[str, ...]  # versions whose map from score to risk was fitted on a batch with the patient
    raw: tuple[str, ...]  # SHA-256 of raw files that still hold the patient
    old_states: int = 0  # of objects, which the storage had kept and which are gone, whoever's they were


def forget(settings: Settings, patient: str) -> Forgotten:
    """Remove every copy of a patient's encounters from storage, but for raw files."""
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    versions = Tracking(settings).versions()
    calibrated = tuple(one.version for one in versions if _calibrated_on(settings, storage, one, patient))
    encounters = outcomes = 0
    for stream in {settings.stream, *_streams(storage)}:
        found = _Stream(settings.model_copy(update={"stream": stream}), patient).forget()
        encounters, outcomes = encounters + found[0], outcomes + found[1]
    column = contract_of(settings).patient
    lost = {digest: parts for digest in _datasets(storage) if (parts := _shrink(storage, digest, column, patient))}
    for key in storage.keys(keys.SIMULATIONS):
        if key.endswith(".parquet"):
            _without(storage, key, column, patient)
    learned = tuple(one.version for one in versions if LEARNED & lost.get(one.tags.get(Tag.DATASET_DIGEST, ""), set()))
    raw = tuple(key.split("/")[1] for key in storage.keys(keys.RAW) if _holds(storage.read(key), column, patient))
    # Last, and each time: what is rewritten above leaves its state of before, also where this was killed before.
    old = sum(storage.erase_old(prefix) for prefix in keys.OF_PATIENTS)
    result = Forgotten(encounters, outcomes, tuple(lost), learned, calibrated, raw, old)
    if encounters or lost or old:
        _record(storage, settings, patient, result)
    return result


def _calibrated_on(settings: Settings, storage: Storage, version: ModelVersion, patient: str) -> bool:
    """Whether the map of a recalibrated version was fitted or chosen on a batch that still holds the patient."""
    if Tag.CALIBRATED_ON not in version.tags:
        return False
    stream, numbers = json.loads(version.tags[Tag.CALIBRATED_ON])
    origin = origin_of(storage, version)
    if origin.manifest and places(origin.parameters.salt, pd.Series([patient]))[0] == TEST:
        return False
    arrivals = Arrivals(settings.model_copy(update={"stream": stream}))
    column = arrivals.contract.patient
    return any(
        (arrivals.rows(arrivals.window(one).rows, [PREDICTION_ID, column])[column] == patient).any() for one in numbers
    )


class _Stream:
    """The arrivals of one stream, and one patient."""

    def __init__(self, settings: Settings, patient: str) -> None:
        self._arrivals, self._patient = Arrivals(settings), patient
        self._storage, self._stream = self._arrivals.storage, settings.stream
        self._contract, self._identity = self._arrivals.contract, identity_of(self._arrivals.contract)
        self._gone = pd.DataFrame(columns=self._identity, dtype="str")

    def forget(self) -> tuple[int, int]:
        """How many encounters and outcomes were removed."""
        for key in self._arrivals.at_door():
            self._lines(key) if key.endswith(".jsonl") else self._rows(key)
        for key in self._storage.keys(keys.quarantine(self._stream, "")):
            if key.endswith(".jsonl"):
                self._lines(key)
        for key in self._storage.keys(keys.arrivals(self._stream)):
            self._blank(key)
        return len(self._gone), self._outcomes()

    def _lines(self, key: str) -> None:
        """Remove the patient's lines of a file of the prediction log."""
        kept, gone = [], []
        for line in self._storage.read(key).split(b"\n"):
            try:
                entry = json.loads(line)
                features = entry["features"]
                his = str(features.get(self._contract.patient)) == self._patient
            except (ValueError, KeyError, TypeError, AttributeError):
                his = False
            if his:
                named = {one: str(features.get(one) or MISSING) for one in self._identity}
                gone.append({**named, PREDICTION_ID: str(entry.get(PREDICTION_ID))})
            else:
                kept.append(line)
        if gone:
            self._remember(pd.DataFrame(gone))
            self._storage.write(key, b"\n".join(kept))

    def _rows(self, key: str) -> None:
        gone = _without(self._storage, key, self._contract.patient, self._patient)
        if gone is not None:
            self._remember(gone)

    def _blank(self, key: str) -> None:
        """Blank the patient's rows of a part: the others keep their places, by which windows name them."""
        identity = read_frame(self._storage, key, self._identity)
        his = (identity[self._contract.patient] == self._patient).to_numpy()
        if his.any():
            self._remember(identity[his])
            frame = read_frame(self._storage, key)
            frame.loc[his, :] = MISSING
            self._storage.write(key, part_bytes(frame))

    def _remember(self, gone: pd.DataFrame) -> None:
        self._gone = pd.concat([self._gone, gone[self._identity].astype("str")], ignore_index=True)

    def _outcomes(self) -> int:
        """Remove the outcomes of what is gone; how many there were."""
        names = {key: {*zip(*(self._gone[one] for one in key), strict=True)} for key in keys_of(self._contract)}
        removed = 0
        for folder in (keys.outcomes_door(self._stream), keys.taken_outcomes(self._stream, "")):
            for key in self._storage.keys(folder):
                data = self._storage.read(key)
                left = self._rows_without(data, names)
                if left != data:
                    self._storage.write(key, left)
                    if folder == keys.outcomes_door(self._stream):  # what was taken is counted with its batch
                        removed += data.count(b"\n") - left.count(b"\n")
        ids = {values[0] for values in names[(PREDICTION_ID,)]}
        for number in range(self._arrivals.state().windows.number):
            key = keys.window_outcomes(self._stream, number)
            if self._storage.exists(key):
                known = json.loads(self._storage.read(key))
                kept = [[at, {one: value for one, value in some.items() if one not in ids}] for at, some in known]
                removed += sum(len(some) for _, some in known) - sum(len(some) for _, some in kept)
                self._storage.write(key, json.dumps(kept).encode())
        state = self._arrivals.state()
        unmatched = tuple(
            (key, tuple(item for item in some if item[0] not in names[key] and not self._his(key, item[0])))
            for key, some in state.unmatched
        )
        if unmatched != state.unmatched:
            self._arrivals.write(replace(state, unmatched=unmatched))
        return removed

    def _his(self, key: tuple[str, ...], values: tuple[str, ...]) -> bool:
        patient = self._contract.patient
        return patient in key and values[key.index(patient)] == self._patient

    def _rows_without(self, data: bytes, names: Mapping[tuple[str, ...], set[tuple[str, ...]]]) -> bytes:
        """A file of outcomes without a patient's; one that is no such file stays as it is."""
        try:
            rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
        except (UnicodeDecodeError, csv.Error):
            return data
        columns = [*rows[0]] if rows else []
        key = next((key for key in names if {*columns} == {*key, self._contract.outcome.column}), None)
        if key is None:
            return data
        kept = [
            row
            for row in rows
            if (values := tuple(row[one] for one in key)) not in names[key] and not self._his(key, values)
        ]
        if len(kept) == len(rows):
            return data
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        return text.getvalue().encode()


def _without(storage: Storage, key: str, column: str, patient: str) -> pd.DataFrame | None:
    """Remove a patient's rows from a Parquet file; the rows, None where there were none."""
    frame = read_frame(storage, key)
    his = frame[column] == patient
    if not his.any():
        return None
    storage.write(key, part_bytes(frame[~his].reset_index(drop=True)))
    return frame[his]


def _shrink(storage: Storage, digest: str, column: str, patient: str) -> set[str]:
    """Remove a patient from the parts of a dataset; which lost rows now. The manifest says how many each has lost."""
    key = keys.dataset(digest, keys.MANIFEST)
    manifest: dict[str, Any] = json.loads(storage.read(key))
    lost, now = dict(manifest.get("forgotten", {})), set()
    for name in manifest["parts"]:
        gone = _without(storage, keys.part(digest, name), column, patient)
        if gone is not None:
            data = storage.read(keys.part(digest, name))
            rows = read_frame(storage, keys.part(digest, name))
            now.add(name)
            before = lost.get(name, {}).get("rows", 0)
            lost[name] = {"rows": before + len(gone), "rows_sha256": rows_digest(rows)}
            manifest["files"][f"{name}.parquet"] = hashlib.sha256(data).hexdigest()
    if now:
        storage.write(key, (json.dumps({**manifest, "forgotten": lost}, indent=1, sort_keys=True) + "\n").encode())
    return now


def _holds(raw: bytes, column: str, patient: str) -> bool:
    lines = io.StringIO(raw.decode("utf-8-sig", errors="replace"), newline="")
    return any(row.get(column) == patient for row in csv.DictReader(lines))


def _streams(storage: Storage) -> Iterable[str]:
    return {key.split("/")[1] for key in storage.keys(keys.ARRIVALS)}


def _datasets(storage: Storage) -> list[str]:
    suffix = f"/{keys.MANIFEST}"
    return [key.split("/")[1] for key in storage.keys(keys.DATASETS) if key.endswith(suffix)]


def _record(storage: Storage, settings: Settings, patient: str, result: Forgotten) -> None:
    """Write down what was done; of the patient only a hash with the salt of the split, to answer whether it was."""
    key = keys.forgotten()
    known = json.loads(storage.read(key)) if storage.exists(key) else []
    who = hashlib.sha256(f"{settings.salt}:{patient}".encode()).hexdigest()[:16]
    entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "patient": who, **asdict(result)}
    storage.write(key, json.dumps([*known, entry], indent=1).encode())
