"""Which encounter goes where: the initial data and the batches by time, the splits by patient.

Encounters stand in the order that the contract names. The first share is the initial data, the rest is cut into batches
that play the future. Encounters that the contract excludes are left out everywhere. The initial data, and with it the
arrivals whose outcomes are known by now, go to train, validation and test by a salted hash of the patient, so a
patient stays in the same part however many arrivals join.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.data.cohort import encounter_of, exclusions, in_order, target, without_excluded
from health_predict.core.data.contract import MISSING, Contract
from health_predict.errors import DataError

FORMAT = 2  # changes when the same data and parameters give other parts
BATCHES = "batches/"  # begin of the names of the parts that are batches
TRAIN_SHARE = 0.70
VALIDATION_SHARE = 0.15  # the test set takes what is left
# Patients with, and patients without the outcome that a part must have. Those of training are parted into five folds;
# of the others two give an AUC with an interval.
LEAST_PATIENTS = {"train": 5, "validation": 2, "test": 2}
_PORTION = 10_000  # rows
ENOUGH_PATIENTS = 40  # of either kind before they are parted: 2 of 40 come into a part of 15 % in 99 cases of 100


@dataclass(frozen=True, slots=True)
class Parameters:
    """What decides the partition of given data. `labelled_batches` join the initial data, of which the newest
    `window` encounters train a model (0: all)."""

    initial_share: float
    future_batches: int
    salt: str
    labelled_batches: int = 0
    window: int = 0
    contract: str = ""  # digest

    def to_json(self) -> dict[str, Any]:
        """A plain structure with everything the partition depends on."""
        chosen = asdict(self)
        if not self.window:
            del chosen["window"]  # a dataset keeps the name that it had before there were windows
        return {
            **chosen,
            "train_share": TRAIN_SHARE,
            "validation_share": VALIDATION_SHARE,
            "partition_format": FORMAT,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`. Raises KeyError when something is missing."""
        names = ("initial_share", "future_batches", "salt", "labelled_batches")
        return cls(
            **{name: data[name] for name in names}, window=data.get("window", 0), contract=data.get("contract", "")
        )


@dataclass(frozen=True, slots=True)
class Partition:
    """The parts as cohort frames, and how many encounters the cohort lost on the way."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    batches: tuple[pd.DataFrame, ...]  # in order of time
    joined: pd.DataFrame  # the encounters with known labels that joined the initial ones
    initial_rows: int  # before the exclusion
    excluded: Mapping[str, int]  # encounters by excluded level, of all rows

    @property
    def splits(self) -> dict[str, pd.DataFrame]:
        """The splits of the patients, by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def parts(self) -> dict[str, pd.DataFrame]:
        """All frames by name: train, validation, test, batches/00, batches/01 and so on."""
        return self.splits | {f"{BATCHES}{number:02d}": frame for number, frame in enumerate(self.batches)}


def batch_bounds(rows: int, parameters: Parameters) -> list[int]:
    """Rows, in order of time, at which the future batches begin, and the end: batches + 1 numbers."""
    initial = round(parameters.initial_share * rows)
    later, batches = rows - initial, parameters.future_batches
    return [initial + later * number // batches for number in range(batches + 1)]


def patient_share(salt: str, patient: str) -> float:
    """Where a patient falls between 0 and 1: the first 64 bits of sha256(`salt:patient`)."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{patient}".encode()).digest()[:8], "big") / 2**64


def partition(
    frame: pd.DataFrame, contract: Contract, parameters: Parameters, delivered: pd.DataFrame | None = None
) -> Partition:
    """Cut a valid, labelled cohort frame into its parts.

    `delivered` are the encounters of the labelled batches of arrivals, in order of time. Raises DataError when a part
    has too few patients of either outcome or a batch none; it says how many would do, or with which share of initial
    encounters.
    """
    cutting = _Cutting(frame, contract, parameters, delivered)
    result = cutting.cut(parameters)
    if sum(result.excluded.values()) == len(frame):
        why = "; ".join(f"{one.column} {', '.join(one.levels)}: {one.reason}" for one in contract.exclude)
        raise DataError(
            f"all {len(frame):,} encounters are excluded by the contract ({why})",
            "give encounters of patients who are not",
        )
    if lacking := cutting.lacking(result):
        patients = frame[contract.patient].nunique()
        raise DataError(
            f"{len(frame):,} encounters (patients: {patients:,}) are too few: {'; '.join(lacking[:4])}",
            cutting.remedy(result),
        )
    return result


@dataclass(frozen=True, slots=True)
class _Cutting:
    """What is to be cut."""

    frame: pd.DataFrame
    contract: Contract
    parameters: Parameters
    delivered: pd.DataFrame | None

    def cut(self, parameters: Parameters) -> Partition:
        contract = self.contract
        order = np.argsort(in_order(self.frame, contract), kind="stable")
        ordered = self.frame.iloc[order].reset_index(drop=True)
        bounds = batch_bounds(len(ordered), parameters)
        cuts = tuple(without_excluded(ordered.iloc[start:end], contract) for start, end in itertools.pairwise(bounds))
        joined = ordered.iloc[:0] if self.delivered is None else self.delivered
        labelled = pd.concat([ordered.iloc[: bounds[0]], joined], ignore_index=True)
        # What was delivered may be of the file too; an arrival may have no number.
        encounters = encounter_of(labelled, contract)
        labelled = labelled[(encounters == MISSING) | ~encounters.duplicated(keep="last")]
        newest = labelled.tail(parameters.window) if parameters.window else labelled
        labelled = without_excluded(newest, contract)
        place = places(parameters.salt, labelled[contract.patient])
        train, validation, test = (labelled[place == part].reset_index(drop=True) for part in range(3))
        return Partition(
            train=train,
            validation=validation,
            test=test,
            batches=cuts,
            joined=joined,
            initial_rows=bounds[0],
            excluded=exclusions(ordered, contract),
        )

    def lacking(self, cut: Partition) -> list[str]:
        """What there is too little of to train, choose and test a model, and to watch it."""
        parts, found = cut.parts(), []
        for name, least in LEAST_PATIENTS.items():
            positive = target(parts[name], self.contract) == 1
            for outcome, rows in (("with", positive), ("without", ~positive)):
                patients = parts[name].loc[rows, self.contract.patient].nunique()
                if patients < least:
                    what = f"{outcome} {self.contract.outcome.an_event}"
                    found.append(f"{name} has {patients} of the {least} patients {what} that it needs")
        return found + [f"nothing is left for {name}" for name, part in parts.items() if part.empty and "/" in name]

    def remedy(self, cut: Partition) -> str:
        """Which share would do, else how many encounters."""
        parameters, frame, contract, remedies = self.parameters, self.frame, self.contract, []
        for share in (step / 20 for step in range(1, 20)):
            larger = replace(parameters, initial_share=share)
            if share > parameters.initial_share and not self.lacking(self.cut(larger)):
                remedies.append(f"set HEALTH_PREDICT_INITIAL_SHARE={share:g}")
                break
        if any(batch.empty for batch in cut.batches):
            remedies.append("set HEALTH_PREDICT_FUTURE_BATCHES lower")
        if parameters.window:
            remedies.append("set HEALTH_PREDICT_TRAINING_WINDOW higher, or to 0")
        kept = without_excluded(frame, contract)
        labels = target(kept, contract)
        rarer = min(kept.loc[labels == outcome, contract.patient].nunique() for outcome in (0, 1))
        needed = f"with {ENOUGH_PATIENTS} patients of either outcome among the first {parameters.initial_share:.0%}"
        if rarer:
            rows = len(frame) * ENOUGH_PATIENTS / (rarer * parameters.initial_share)
            needed += f", here some {float(f'{rows:.2g}'):,.0f} encounters"
        return ", or ".join([*remedies, f"give more data, {needed}"])


def places(salt: str, patients: pd.Series[str]) -> npt.NDArray[np.int64]:
    """Part of each patient (n,): 0 train, 1 validation, 2 test. The same patient is always in the same one."""
    codes, distinct = pd.factorize(patients)
    shares = np.array([patient_share(salt, str(patient)) for patient in distinct], dtype=np.float64)
    return np.searchsorted([TRAIN_SHARE, TRAIN_SHARE + VALIDATION_SHARE], shares, side="right")[codes]


def rows_digest(frame: pd.DataFrame) -> str:
    """SHA-256 of a frame's columns and cells, row by row in their order, as text.

    It depends on nothing else: not on the library that holds the frame, nor on the file it came from.
    """
    digest = hashlib.sha256(("\x1f".join(frame.columns) + "\x1e").encode())
    for start in range(0, len(frame), _PORTION):  # text as Python has it takes ten times the memory
        portion = frame.iloc[start : start + _PORTION]
        for row in zip(*(portion[name].tolist() for name in frame.columns), strict=True):
            # Cells of a valid frame hold no control characters, so the separators are unambiguous.
            digest.update(("\x1f".join(row) + "\x1e").encode())
    return digest.hexdigest()


def inputs_digest(raw_sha256: str, parameters: Parameters, delivered: str = "") -> str:
    """SHA-256 of what a dataset is made from. Known before the work is done, unlike `dataset_digest`.

    `delivered` is the `rows_digest` of labelled batches that are not of the raw file.
    """
    inputs = {"raw_sha256": raw_sha256, "parameters": parameters.to_json()}
    return _digest(inputs | ({"delivered": delivered} if delivered else {}))


def dataset_digest(raw_sha256: str, parameters: Parameters, parts: Mapping[str, str]) -> str:
    """SHA-256 that names a dataset: its raw file, its parameters and the `rows_digest` of each part by name."""
    return _digest({"raw_sha256": raw_sha256, "parameters": parameters.to_json(), "parts": dict(parts)})


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
