"""The live loop in a cluster: what the Deployment was asked is judged once its outcomes are known, and learned from.

The stages run in this process, as where a cluster has no Kubeflow Pipelines; service, prediction log, storage, MLflow
and registry are the cluster's.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from health_predict.adapters import keys
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.parts import stored_part
from health_predict.adapters.serving.endpoint import Endpoint
from health_predict.adapters.tracking import Tag, Tracking
from health_predict.adapters.tracking.history import pin, served
from health_predict.core.choices import Approval
from health_predict.core.data.cohort import as_requests, save_csv, without_excluded
from health_predict.core.data.outcomes import write_outcomes
from health_predict.core.data.partition import rows_digest
from health_predict.core.promotion import Decision
from health_predict.errors import GateError
from health_predict.operations.status import status
from health_predict.settings import Settings
from health_predict.simulation.monitoring import deploy, monitoring, readmission
from health_predict.stages.approval import approve
from tests.cohorts import synthesize
from tests.contracts import DATE, DIABETES, ENCOUNTER, PATIENT, POSITIVE, TARGET
from tests.e2e import platform
from tests.e2e.conftest import (
    NAMESPACE,
    SERVING_PORT,
    Place,
    deployment,
    kubectl,
    object_store_keys,
    outside,
    served_version,
    until,
)

NAME = f"e2e-{secrets.token_hex(4)}"  # of this session alone: its storage, experiment and model
WEEKS, A_WEEK = 3, 800
COHORT = without_excluded(synthesize(20_000, seed=11), DIABETES)
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
MONDAY = TODAY - timedelta(days=TODAY.weekday() + 10 * 7)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A shell outside, a platform whose service ships its log at once, and a first model in service."""
    folder = tmp_path_factory.mktemp("live")
    storage = f"s3://mlpipeline/{NAME}"
    kubectl("-n", NAMESPACE, "delete", "deployment", "readmission-api", "--ignore-not-found", "--wait")
    platform.prepare(folder)
    platform.up(folder, storage_uri=storage, prediction_log_seconds="1")
    save_csv(COHORT[: -WEEKS * A_WEEK], folder / "first.csv")
    values = {
        **outside(),
        "storage_uri": storage,
        "mlflow_experiment": NAME,
        "registered_model": NAME,
        "data_source": str(folder / "first.csv"),
        "initial_share": 0.9,
        "future_batches": 1,
        "families": ("LogisticRegression",),
        "trials": 1,
        "evidently": "never",
        "rollout_observation": 0.0,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in object_store_keys().items():
            patch.setenv(name, value)
        settings = Place(folder / "home").settings(**values)
        first = readmission(settings, 0, folder)
        assert first.decision is Decision.PROMOTE, first.reasons
        yield settings
    kubectl("-n", NAMESPACE, "delete", "deployment", "readmission-api", "--wait")


def command(settings: Settings, *words: str) -> str:
    """What `health-predict ...` says."""
    environment = {**os.environ, **settings.environment()}
    words = (sys.executable, "-m", "health_predict", *words)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask_the_service(settings: Settings) -> pd.DataFrame:
    """Three weeks of encounters with their dates, asked through the Deployment; as it was asked, with outcomes.

    Who was in hospital often before comes back seldom: not what the model has learned.
    """
    sent = COHORT[-WEEKS * A_WEEK :].reset_index(drop=True)
    often = (sent["number_inpatient"].astype(int) > 0).to_numpy()
    readmitted = np.random.default_rng(7).random(len(sent)) < np.where(often, 0.02, 0.25)
    days = [(MONDAY + timedelta(days=7 * (at // A_WEEK) + at % 7)).date().isoformat() for at in range(len(sent))]
    sent = sent.assign(**{TARGET: np.where(readmitted, POSITIVE, DIABETES.outcome.negative), DATE: days})
    named = sent[[ENCOUNTER, PATIENT, DATE]].to_dict("records")
    bodies = [{**body, **names} for body, names in zip(as_requests(sent, DIABETES.features), named, strict=True)]
    with Endpoint(f"http://127.0.0.1:{SERVING_PORT}", settings) as endpoint:
        answers = [answer for some in endpoint.predict(bodies, 400) for answer in some]
    assert {answer["model_version"] for answer in answers} == {"1"}
    return sent


def test_what_was_served_is_judged_and_learned_from(settings: Settings, tmp_path: Path) -> None:
    # given a model in service, and encounters that its Deployment answered
    batches, tracking = Batches(settings), Tracking(settings)
    assert served_version() == tracking.champion().version == "1"
    sent = ask_the_service(settings)
    # when its pods have shipped what they logged
    until(lambda: sum(batches.storage.read(key).count(b"\n") for key in batches.arrivals.at_door()) == len(sent), 60)
    # when each week is over, then its inputs are judged, and nothing changes
    for week in range(1, WEEKS + 1):
        monitoring(settings.model_copy(update={"as_of": MONDAY + timedelta(days=7 * week)}))
    progress = batches.progress()
    assert (progress.settled, progress.waiting) == (WEEKS, (0, 1, 2))
    assert [len(batches.arrivals.window(number)) for number in range(WEEKS)] == [A_WEEK] * WEEKS
    assert batches.arrivals.state().quarantined == 0 and tracking.champion().version == "1"
    # when the outcomes are delivered, and have matured
    file = tmp_path / "outcomes.csv"
    file.write_bytes(write_outcomes({ENCOUNTER: sent[ENCOUNTER]}, DIABETES, sent[TARGET] == POSITIVE))
    assert f"{len(sent):,} outcomes" in command(settings, "data", "outcomes", str(file))
    asking = settings.model_copy(
        update={"as_of": MONDAY + timedelta(days=7 * WEEKS + 31), "approval": Approval.ASK, "shadow_rows": 2000}
    )
    monitoring(asking)
    # then the model is found wrong, another one waits for a person, and nothing has changed
    (found,) = [one for one in batches.settled() if one.action != "none"]
    assert (found.verdict, found.action, found.outcome) == ("retrain", "retrain", "waiting")
    assert served_version() == tracking.champion().version == found.version_after == "1"
    with pytest.raises(GateError, match="version 2 waits for approval"):
        deploy(asking, "2", tmp_path)
    # when a person approves it, then it is in service, in every pod, and the report says which decisions change
    approve(tracking, batches.storage, tracking.version("2"), "A. Person", "the truth has turned")
    deploy(asking, "2", tmp_path)
    champion = tracking.champion()
    assert served_version() == champion.version == "2"
    assert "of 2000 decisions change" in batches.storage.read(keys.model("2", keys.ROLLOUT)).decode()
    running = deployment()
    assert running["spec"]["template"]["spec"]["containers"][0]["image"] == champion.tags[Tag.IMAGE_URI]
    assert running["status"]["availableReplicas"] == running["status"]["updatedReplicas"] == 2
    # and it has learned from what was served, row by row, with the outcomes that were delivered
    digest = champion.tags[Tag.DATASET_DIGEST]
    parts = pd.concat([stored_part(batches.storage, digest, name) for name in ("train", "validation", "test")])
    columns = [column.name for column in DIABETES.table if column.name != ENCOUNTER]
    learned = parts.set_index(ENCOUNTER)[columns].loc[sent[ENCOUNTER]]
    pd.testing.assert_frame_equal(learned.astype(str), sent.set_index(ENCOUNTER)[columns].astype(str))
    # and its manifest names them by digest
    manifest = json.loads(batches.storage.read(keys.dataset(digest, keys.MANIFEST)))
    of_batch = sent.groupby(np.arange(len(sent)) // A_WEEK)
    assert [(one["batch"], one["rows"]) for one in manifest["arrivals"]] == [(week, len(of)) for week, of in of_batch]
    later = Batches(settings.model_copy(update={"as_of": MONDAY + timedelta(days=7 * WEEKS + 31)}))
    assert {one["rows_sha256"] for one in manifest["arrivals"]} == {
        rows_digest(later.with_outcomes(week)) for week in range(WEEKS)
    }
    # and nobody's turn is left
    assert not batches.storage.exists(keys.turn(settings.stream))
    # when it is rolled back, then the version before serves, pinned, and both versions say when they served
    pin(tracking, "1", "B. Person", "the night shift wants it")
    deploy(asking, "1", tmp_path)
    assert served_version() == tracking.champion().version == "1"
    assert "pinned by B. Person" in " ".join(status(settings).waiting)
    one, two = (served(tracking.version(number)) for number in ("1", "2"))
    assert [bool(interval.end) for interval in (*one, *two)] == [True, False, True]
