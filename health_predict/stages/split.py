"""split: the raw file to initial data by patient and future batches by time, under one digest.

Batches of arrivals whose outcomes have matured join the initial data.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from health_predict.adapters import keys
from health_predict.adapters.contracts import contract_of, use
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.dataset import RawData
from health_predict.adapters.data.raw_data import champion_origin, raw_data
from health_predict.adapters.files import write_file
from health_predict.adapters.scores import plug_in
from health_predict.adapters.storage import Storage, open_storage
from health_predict.core.data.cohort import encounter_of, part_bytes, target, training_cohort
from health_predict.core.data.contract import MISSING, Contract
from health_predict.core.data.leaks import refuse_leaks
from health_predict.core.data.partition import (
    BATCHES,
    Parameters,
    dataset_digest,
    inputs_digest,
    partition,
    rows_digest,
)
from health_predict.errors import StateError
from health_predict.report.data_profile import data_profile_page
from health_predict.settings import Settings

log = logging.getLogger(__name__)

# A manifest, and the files that it vouches for by their names in its folder.
Dataset = tuple[Mapping[str, Any], Mapping[str, bytes]]
_CUT = ("initial_share", "future_batches", "salt")


@dataclass(frozen=True, slots=True)
class SplitResult:
    """The dataset's name and origin, its manifest, and whether it had been made before."""

    dataset_digest: str
    dataset_source: str
    raw_uri: str
    manifest: Mapping[str, Any]
    reused: bool


def split(  # each path is an artifact of the pipeline
    settings: Settings,
    *,
    labelled_batches: int,
    train: Path,
    validation: Path,
    test: Path,
    batches: Path,
    profile: Path,
    given: Collection[str] = (),
) -> SplitResult:
    """Choose, check and partition the raw data; write the dataset to storage and its parts to the given paths.

    The first `labelled_batches` batches join the initial data (0: none). Such a dataset continues the champion's, if
    there is one, and is cut as that was; `given` names the parameters that are the settings' all the same. `train`,
    `validation` and `test` become Parquet, `batches` the manifest as JSON with the addresses of the future batches,
    `profile` HTML. The same data and parameters give the same digest anywhere; a dataset that lies whole in storage
    is used again. Raises DataError, before anything is written, when the raw data break the contract, are too few for
    the parts or may not take the place of the champion's; StateError when the champion's are gone.
    """
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    origin = champion_origin(settings)
    raw = raw_data(settings, origin, continues=labelled_batches > 0)
    log.info("raw data: %s (%s)", raw.path, raw.source)
    contract = contract_of(settings)
    plug_in(contract)  # missing, it would be noticed after the search
    cut = {name: getattr(settings, name) for name in _CUT}
    if labelled_batches and origin is not None:
        cut |= {name: getattr(origin.parameters, name) for name in _CUT if name not in given}
    parameters = Parameters(
        **cut, labelled_batches=labelled_batches, window=settings.training_window, contract=contract.digest
    )
    delivered, arrivals = _delivered(Batches(settings), labelled_batches)
    inputs = inputs_digest(raw.sha256, parameters, "" if delivered is None else rows_digest(delivered))
    index = keys.dataset_by_inputs(inputs)
    stored = _stored(storage, index)
    manifest, files = stored or _build(storage, raw, contract, parameters, delivered, arrivals)
    digest = str(manifest["digest"])
    use(storage, contract, settings)
    if stored:
        log.info("dataset %s is in storage and whole", digest[:12])
    else:
        storage.write(index, digest.encode())
    for name, path in (("train", train), ("validation", validation), ("test", test)):
        write_file(path, files[f"{name}.parquet"])
    write_file(profile, files[keys.PROFILE])
    futures = [name for name in manifest["parts"] if name.startswith(BATCHES)]
    addresses = {name: storage.uri(keys.part(digest, name)) for name in futures}
    write_file(batches, _json({**manifest, "uris": addresses}))
    return SplitResult(digest, str(raw.source), storage.uri(keys.raw(raw.sha256)), manifest, stored is not None)


def _delivered(batches: Batches, labelled_batches: int) -> tuple[pd.DataFrame | None, list[dict[str, Any]]]:
    """The encounters of the labelled batches with their outcomes, None without such batches, and where they lie."""
    if not labelled_batches:
        return None, []
    frames, arrivals = [], []
    for number in batches.learnable(labelled_batches):
        frame = batches.with_outcomes(number)
        if len(frame):
            frames.append(frame)
            rows = [[one.part, one.first, one.last] for one in batches.arrivals.window(number).rows]
            arrivals.append({"batch": number, "rows": len(frame), "rows_sha256": rows_digest(frame), "of": rows})
    if not frames:
        raise StateError(
            f"none of the first {labelled_batches} batches of stream {batches.stream} has outcomes of known patients",
            "wait for outcomes: `health-predict status` shows what is waiting",
        )
    log.info("%d batches with outcomes join the initial encounters", len(frames))
    delivered = pd.concat(frames, ignore_index=True)
    encounters = encounter_of(delivered, batches.contract)
    return delivered[(encounters == MISSING) | ~encounters.duplicated(keep="last")].reset_index(drop=True), arrivals


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _stored(storage: Storage, index: str) -> Dataset | None:
    """The dataset made before from the same inputs, if every file of it is there and as it was written."""
    if not storage.exists(index):
        return None
    try:
        digest = storage.read(index).decode()
        manifest = json.loads(storage.read(keys.dataset(digest, keys.MANIFEST)))
        files = {name: storage.read(keys.dataset(digest, name)) for name in manifest["files"]}
        found = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        raw = storage.exists(keys.raw(manifest["raw_sha256"]))
        if raw and manifest["digest"] == digest and found == manifest["files"]:
            return manifest, files
    except (StateError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s does not lead to a readable dataset: %s", storage.uri(index), error)
    log.warning("the dataset behind %s is incomplete or damaged and is made again", storage.uri(index))
    return None


def _build(
    storage: Storage,
    raw: RawData,
    contract: Contract,
    parameters: Parameters,
    delivered: pd.DataFrame | None,
    arrivals: list[dict[str, Any]],
) -> Dataset:
    frame, unlabelled = training_cohort(raw.path, contract)
    log.info("checked %d encounters against the contract %s", len(frame) + unlabelled, contract.name)
    if unlabelled:
        log.info("%d of them have no next one that counts, so no label: they are left out", unlabelled)
    cut = partition(frame, contract, parameters, delivered)
    refuse_leaks(cut.train, contract)
    parts = cut.parts()
    described = {name: _described(part, contract) for name, part in parts.items()}
    digest = dataset_digest(raw.sha256, parameters, {name: str(described[name]["rows_sha256"]) for name in parts})
    sizes = ", ".join(f"{name} {len(parts[name])}" for name in ("train", "validation", "test"))
    log.info("dataset %s: %s", digest[:12], sizes)
    files = {f"{name}.parquet": part_bytes(part) for name, part in parts.items()}
    origin = {"raw_sha256": raw.sha256, "source": str(raw.source)}
    page = data_profile_page(
        frame, contract, cut, parameters=parameters, dataset_digest=digest, unlabelled=unlabelled, **origin
    )
    files[keys.PROFILE] = page.encode()
    manifest = {
        "digest": digest,
        **origin,
        "contract": contract.digest,
        "rows": len(frame),
        "unlabelled": unlabelled,
        "initial_rows": cut.initial_rows,
        "excluded": dict(cut.excluded),
        "parameters": parameters.to_json(),
        "parts": described,
        **({"arrivals": arrivals} if arrivals else {}),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    # From here on there are effects, each whole: the raw file, the parts, and last the manifest that vouches for them.
    if not storage.exists(keys.raw(raw.sha256)):
        storage.upload(raw.path, keys.raw(raw.sha256))
    for name, data in files.items():
        storage.write(keys.dataset(digest, name), data)
    storage.write(keys.dataset(digest, keys.MANIFEST), _json(manifest))
    log.info("wrote %d files to %s", len(files) + 1, storage.uri(keys.dataset(digest)))
    return manifest, files


def _described(part: pd.DataFrame, contract: Contract) -> dict[str, Any]:
    positives = int(target(part, contract).sum())
    return {
        "rows": len(part),
        "patients": int(part[contract.patient].nunique()),
        "positives": positives,
        "prevalence": round(positives / len(part), 6),
        "rows_sha256": rows_digest(part),
    }
