"""drift: one future batch against the reference of the champion."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.adapters.evidently import REFERENCE_ROWS, evidently_report
from health_predict.adapters.mlflow import CHAMPION, ModelVersion, Tracking
from health_predict.adapters.storage import Storage, open_storage
from health_predict.core.cohort import check, load_part, target
from health_predict.core.columns import TARGET
from health_predict.core.drift import DriftFindings, DriftReference, Verdict, assess
from health_predict.core.errors import DataError, StateError
from health_predict.core.input_drift import InputReference
from health_predict.core.performance import LabelledWindow
from health_predict.report.drift_report import drift_page
from health_predict.settings import Settings

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]

REFERENCE_FORMAT = 1
ROLLING_DRAWS = 400  # a threshold for a note in the report needs fewer resamples than the decision
REPORT, EVIDENTLY, METRICS = "report.html", "evidently.html", "metrics.json"


@dataclass(frozen=True, slots=True)
class DriftResult:
    """The verdict on a batch, why, its figures, and whether it had been handled before."""

    verdict: Verdict
    reasons: tuple[str, ...]
    metrics: Mapping[str, float]
    model_version: str
    batch_digest: str
    already_handled: bool


def drift(settings: Settings, *, batch: int, report: Path, evidently: Path, metrics: Path) -> DriftResult:
    """Compare batch number `batch` with the champion's reference and write both reports and the findings (JSON).

    A batch is handled once for each model version: a repeat gives the stored result and files. Raises StateError
    when there is no champion or no such batch, DataError when the batch breaks the data contract.
    """
    tracking = Tracking(settings)
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    champion = tracking.by_alias(CHAMPION)
    if champion is None:
        raise StateError("no model version is the champion", "deploy one: `health-predict pipeline run readmission`")
    dataset = _dataset(champion)
    with tempfile.TemporaryDirectory(prefix="health-predict-drift-") as folder:
        work = Path(folder)
        file = _batch_file(storage, dataset, batch, work)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        prefix = f"drift/{champion.version}/{digest[:12]}"
        watermark = f"watermarks/monitoring/{champion.version}/{digest}.json"
        outputs = {REPORT: report, EVIDENTLY: evidently, METRICS: metrics}
        known = storage.exists(watermark) and all(storage.exists(f"{prefix}/{name}") for name in outputs)
        if known:
            log.info("batch %d was handled before for model version %s", batch, champion.version)
        else:
            frame = load_part(file)
            check(frame, labelled=False, name=f"batch {batch}")
            if frame.empty:
                raise DataError(f"batch {batch} has no encounters", "run the split stage again")
            _handle(storage, tracking, champion, dataset, batch, digest, frame, prefix, work)
            # Last: what it names is complete.
            storage.write(watermark, storage.read(f"{prefix}/{METRICS}"))
        for name, path in outputs.items():
            storage.download(f"{prefix}/{name}", path)
        stored = json.loads(storage.read(watermark))
    return DriftResult(
        Verdict(stored["verdict"]), tuple(stored["reasons"]), stored["metrics"], champion.version, digest, known
    )


def _dataset(champion: ModelVersion) -> str:
    try:
        return f"datasets/{champion.tags['dataset_digest']}"
    except KeyError:
        raise StateError(
            f"model version {champion.version} does not name its dataset", "register the model again"
        ) from None


def _batch_file(storage: Storage, dataset: str, batch: int, work: Path) -> Path:
    key = f"{dataset}/batches/{batch:02d}.parquet"
    if not storage.exists(key):
        numbers = sorted(int(found[1]) for key in storage.keys(f"{dataset}/batches/") if (found := _NUMBER.search(key)))
        if not numbers:
            raise StateError(f"{storage.uri(dataset)} has no future batches", "run the split stage")
        raise StateError(f"there is no batch {batch}", f"batches are numbered {numbers[0]} to {numbers[-1]}")
    file = work / "batch.parquet"
    storage.download(key, file)
    return file


_NUMBER = re.compile(r"/(\d+)\.parquet$")


def _part(storage: Storage, key: str, work: Path) -> pd.DataFrame:
    file = work / "part.parquet"
    storage.download(key, file)
    return load_part(file)


def _handle(
    storage: Storage,
    tracking: Tracking,
    champion: ModelVersion,
    dataset: str,
    batch: int,
    digest: str,
    frame: pd.DataFrame,
    prefix: str,
    work: Path,
) -> None:
    """Compute the findings and put the three files into storage."""
    pipeline = tracking.load_pipeline(champion.version)
    training = _part(storage, f"{dataset}/train.parquet", work)
    validation = _part(storage, f"{dataset}/validation.parquet", work)
    validation_scores = np.asarray(pipeline.predict_proba(validation)[:, 1], dtype=np.float64)
    scores = np.asarray(pipeline.predict_proba(frame)[:, 1], dtype=np.float64)
    outcomes = target(frame).astype(np.float64) if TARGET in frame else np.full(len(frame), np.nan)
    reference = _reference(storage, champion, training, target(validation), validation_scores)
    before = f"{dataset}/batches/{batch - 1:02d}.parquet"
    rolling = InputReference.fit(_part(storage, before, work), draws=ROLLING_DRAWS) if storage.exists(before) else None
    findings = assess(
        reference,
        frame,
        scores,
        outcomes,
        rolling=rolling,
        history=_history(storage, champion.version, batch),
    )
    log.info("batch %d: %s", batch, findings.verdict)
    evidently_file = work / EVIDENTLY
    second_opinion = evidently_report(training, frame, evidently_file)
    page = drift_page(
        findings,
        batch=batch,
        facts=[
            ("Model version", champion.version),
            ("Dataset", champion.tags["dataset_digest"][:12]),
            ("Source", champion.tags.get("dataset_source", "")),
            ("Commit", champion.tags.get("git_commit", "")[:12]),
            ("Batch digest", digest[:12]),
        ],
        synthetic=champion.tags.get("dataset_source") == "synthetic",
        reference_probabilities=validation_scores,
        probabilities=scores,
        outcomes=outcomes,
        evidently=second_opinion,
        evidently_rows=min(REFERENCE_ROWS, len(training)),
    )
    storage.upload(evidently_file, f"{prefix}/{EVIDENTLY}")
    storage.write(f"{prefix}/{REPORT}", page.encode())
    storage.write(f"{prefix}/{METRICS}", _record(findings, champion, batch, digest, second_opinion))


def _record(
    findings: DriftFindings, champion: ModelVersion, batch: int, digest: str, second_opinion: Mapping[str, float]
) -> bytes:
    content = {
        "verdict": findings.verdict,
        "reasons": findings.reasons,
        "model_version": champion.version,
        "dataset_digest": champion.tags["dataset_digest"],
        "batch": batch,
        "batch_digest": digest,
        "metrics": findings.metrics(),
        "findings": findings.to_json(),
        "evidently": second_opinion,
    }
    return json.dumps(content, indent=1).encode()


def _reference(
    storage: Storage, champion: ModelVersion, training: pd.DataFrame, outcomes: npt.ArrayLike, scores: Floats
) -> DriftReference:
    """The champion's reference, fitted at its first batch and kept."""
    key = f"drift/{champion.version}/reference.json"
    identity = {"format": REFERENCE_FORMAT, "dataset": champion.tags["dataset_digest"], "run": champion.run_id}
    if storage.exists(key):
        stored = json.loads(storage.read(key))
        if stored["identity"] == identity:
            return DriftReference.from_json(stored["reference"])
    reference = DriftReference.fit(training, outcomes, scores)
    storage.write(key, json.dumps({"identity": identity, "reference": reference.to_json()}).encode())
    return reference


def _history(storage: Storage, version: str, batch: int) -> list[LabelledWindow]:
    """Labelled windows of the batches before this one, oldest first."""
    records: list[dict[str, Any]] = [
        json.loads(storage.read(key)) for key in storage.keys(f"watermarks/monitoring/{version}/")
    ]
    earlier = [record for record in records if record["batch"] < batch and record["findings"]["window"]]
    earlier.sort(key=lambda record: record["batch"])
    return [LabelledWindow(**record["findings"]["window"]) for record in earlier]
