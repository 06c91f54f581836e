"""A patient is removed from every copy, the others stay where they are, and what is gone is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import boto3
import numpy as np
import pandas as pd
import pytest

from health_predict.adapters import keys
from health_predict.adapters.data.arrivals import Arrivals
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.parts import read_frame
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import Tag, Tracking
from health_predict.core.data.cohort import part_bytes, without_excluded
from health_predict.core.data.partition import Parameters, places, rows_digest
from health_predict.operations.forget import forget
from health_predict.settings import Settings
from tests.cohorts import synthesize
from tests.contracts import DIABETES, ENCOUNTER, PATIENT, TARGET
from tests.feed import dated, logged

DAY = datetime(2026, 1, 5, tzinfo=UTC)
HIS = "987654321"


def test_nothing_of_a_patient_is_left(settings: Settings, tracking: Tracking, champion: str) -> None:
    # given a patient with encounters in a closed batch, at the door, in quarantine, and in a dataset
    settings = settings.model_copy(update={"as_of": DAY + timedelta(days=7), "window": "week"})
    storage, arrivals = open_storage(settings.storage), Arrivals(settings)
    cohort = without_excluded(synthesize(40, seed=5), DIABETES)
    cohort.loc[[3, 12, 21, 33], PATIENT] = HIS
    days = [(DAY + timedelta(days=at % 7)).date().isoformat() for at in range(10)]
    logged(storage, "predictions-0", dated(cohort[:10], days), DAY + timedelta(days=7))
    ids = cohort[ENCOUNTER][:10]
    rows = "\n".join(["encounter_id,readmitted", *(f"{one},1" for one in ids)])
    storage.write(keys.outcomes("live", "a"), rows.encode())
    storage.write(keys.outcomes("live", "b"), f"patient_nbr,discharge_date,readmitted\n{HIS},2026-02-01,1\n".encode())
    arrivals.collect()
    before = Batches(settings).batch(0)
    logged(storage, "predictions-1", cohort[10:15], DAY)
    added = dated(cohort[20:25].drop(columns=TARGET), days[:5])
    arrivals.add(added, "a file", lambda text: (np.zeros(len(text)), "1"))
    line = {"features": {PATIENT: int(HIS), "age": "?"}, "prediction_id": "x"}
    storage.write(keys.quarantine("live", "broken.jsonl"), json.dumps(line).encode() + b"\n{torn\n")
    digest = "d" * 64
    part = cohort[30:].reset_index(drop=True)
    storage.write(keys.part(digest, "train"), part_bytes(part))
    manifest = {"parts": {"train": {"rows_sha256": rows_digest(part)}}, "files": {"train.parquet": "-"}}
    storage.write(keys.dataset(digest, keys.MANIFEST), json.dumps(manifest).encode())
    # when the patient is to be forgotten
    found = forget(settings, HIS)
    # then no object in storage holds the number, and who learned from it is named
    assert (found.encounters, found.datasets, found.versions) == (4, (digest,), (champion,))
    assert found.outcomes == 1
    for key in storage.keys(""):
        assert HIS.encode() not in storage.read(key), key
        if key.endswith(".parquet"):
            assert HIS not in {*read_frame(storage, key)[PATIENT]}
    # and the others are where they were
    after = Batches(settings).batch(0)
    assert [*after.ids] == [one for one, his in zip(before.ids, before.frame[PATIENT] == HIS, strict=True) if not his]
    assert Batches(settings).arrivals.collect().arrived == 10 + 4 + 4
    # and what is gone is said, once
    entries = json.loads(storage.read(keys.forgotten()))
    assert [entry["encounters"] for entry in entries] == [4]
    again = forget(settings, HIS)
    assert (again.encounters, again.datasets) == (0, ())
    assert len(json.loads(storage.read(keys.forgotten()))) == 1


def test_old_versions_in_a_bucket_go_too(make_settings: Callable[..., Settings], s3_endpoint: str) -> None:
    # given a bucket that keeps what an object held before, with a patient at the door and one that was overwritten
    s3 = boto3.client("s3", endpoint_url=s3_endpoint)
    s3.create_bucket(Bucket="data")
    s3.put_bucket_versioning(Bucket="data", VersioningConfiguration={"Status": "Enabled"})
    settings = make_settings(storage_uri="s3://data/below", s3_endpoint_url=s3_endpoint)
    Tracking(settings)
    storage = open_storage(settings.storage, s3_endpoint)
    line = json.dumps({"features": {PATIENT: HIS, "age": "?"}, "prediction_id": "x"}).encode()
    storage.write(keys.quarantine("live", "broken.jsonl"), line + b"\n{torn\n")
    storage.write(keys.quarantine("live", "gone.jsonl"), line)
    storage.delete(keys.quarantine("live", "gone.jsonl"))
    # and an old version of what is no patient's
    for text in (b"old", b"new"):
        storage.write(keys.model("1", keys.CARD), text)

    def versions(prefix: str) -> list[bytes]:
        found = s3.list_object_versions(Bucket="data", Prefix=f"below/{prefix}").get("Versions", [])
        return [s3.get_object(Bucket="data", Key=one["Key"], VersionId=one["VersionId"])["Body"].read()
                for one in found]  # fmt: skip

    assert HIS.encode() in b"".join(versions(keys.ARRIVALS))
    # when the patient is forgotten, and a command that was killed before it was through is repeated
    found, again = forget(settings, HIS), forget(settings, HIS)
    # then no version of any object holds the number, and how many went is written down
    assert HIS.encode() not in b"".join(versions(""))
    assert (found.encounters, found.old_states, again.old_states) == (1, 2, 0)
    assert [entry["old_states"] for entry in json.loads(storage.read(keys.forgotten()))] == [2]
    # and what is no patient's keeps its old version
    assert versions(keys.model("1", "")) == [b"new", b"old"]


@pytest.mark.parametrize("learned", [True, False])
def test_a_map_that_alone_saw_the_patient_is_named_as_such(
    settings: Settings, tracking: Tracking, learned: bool
) -> None:
    # given a version that was recalibrated on a batch with the patient, who is to learn from or to judge by
    salt = next(f"{at}" for at in range(99) if (places(f"{at}", pd.Series([HIS]))[0] == 2) != learned)
    settings = settings.model_copy(update={"as_of": DAY + timedelta(days=7), "window": "week"})
    storage, arrivals = open_storage(settings.storage), Arrivals(settings)
    cohort = without_excluded(synthesize(40, seed=5), DIABETES)[:14]
    cohort.loc[cohort.index[3], PATIENT] = HIS
    days = [(DAY + timedelta(days=at % 7)).date().isoformat() for at in range(14)]
    logged(storage, "predictions-0", dated(cohort, days), DAY + timedelta(days=7))
    arrivals.collect()
    manifest = {"raw_sha256": "a" * 64, "parameters": Parameters(0.2, 16, salt).to_json(), "parts": {}}
    storage.write(keys.dataset("e" * 64, keys.MANIFEST), json.dumps(manifest).encode())
    tags = {Tag.DATASET_DIGEST: "e" * 64, Tag.RECALIBRATES: "1", Tag.CALIBRATED_ON: json.dumps(["live", [0]])}
    version = tracking.register(tracking.start_search("recalibration", {}, {}), tags, "").version
    # when the patient is forgotten, then the version is named once, not among those that learned from a dataset
    found = forget(settings, HIS)
    assert (found.encounters, found.versions, found.calibrated) == (1, (), (version,) if learned else ())
    assert forget(settings, HIS).calibrated == ()


def test_who_only_waited_in_the_future_was_not_learned_from(
    settings: Settings, tracking: Tracking, champion: str
) -> None:
    # given a patient who is in no part of the dataset but a future batch
    storage = open_storage(settings.storage)
    part = without_excluded(synthesize(20, seed=5), DIABETES)
    part.loc[3, PATIENT] = HIS
    storage.write(keys.part("d" * 64, "batches/00"), part_bytes(part))
    manifest = {"parts": {"batches/00": {"rows_sha256": rows_digest(part)}}, "files": {}}
    storage.write(keys.dataset("d" * 64, keys.MANIFEST), json.dumps(manifest).encode())
    # when the patient is forgotten, then the dataset loses a row, and no version is said to have learned from it
    found = forget(settings, HIS)
    assert (found.datasets, found.versions) == (("d" * 64,), ())
