"""The drift stage against a real MLflow store and folder storage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from health_predict.adapters.data.batches import Batches
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import CHAMPION, Tracking
from health_predict.core.data.cohort import exclude_not_readmittable, load_part, save_csv, save_part, target
from health_predict.core.data.outcomes import write_outcomes
from health_predict.core.data.partition import Parameters, places
from health_predict.core.data.synthetic import synthesize
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.monitoring.drift import Verdict
from health_predict.core.monitoring.policy import Action, Settlement
from health_predict.core.promotion import Decision
from health_predict.errors import DataError, StateError
from health_predict.settings import Settings
from health_predict.stages.drift import NO_BATCH, DriftResult, drift
from health_predict.stages.recalibrate import recalibrate
from health_predict.stages.register import register
from health_predict.stages.settle import settle
from tests.conftest import as_if_real

DATASET = "d" * 64
SALT = "of the champion's dataset"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Settings:
    """A store with a champion, its dataset and four batches: alike, alike, one that breaks the contract, alike."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(mlflow_database, home / "mlflow.db")
    settings = Settings(home=home, git_commit="abc", evidently="never")
    storage = open_storage(settings.storage)
    cohort = exclude_not_readmittable(synthesize(9000, seed=2))
    parts = {"train": cohort[:3000], "validation": cohort[3000:4000], "test": cohort[3000:4000]}
    parts |= {"batches/00": cohort[4000:5200], "batches/01": cohort[5200:6400]}
    parts["batches/02"] = cohort[6400:7000].assign(age="[200-210)")
    parts["batches/03"] = cohort[7000:8500]
    for name, frame in parts.items():
        file = home / "part.parquet"
        save_part(frame.reset_index(drop=True), file)
        storage.upload(file, f"datasets/{DATASET}/{name}.parquet")
    manifest = {"raw_sha256": "a" * 64, "source": "synthetic", "parameters": Parameters(0.4, 4, SALT).to_json()}
    storage.write(f"datasets/{DATASET}/manifest.json", json.dumps(manifest).encode())
    train: pd.DataFrame = parts["train"].reset_index(drop=True)
    pipeline = Pipeline([("features", EncounterFeatures()), ("estimator", LogisticRegression(C=0.01, max_iter=1000))])
    pipeline.fit(train, target(train))
    tracking = Tracking(settings)
    tags = {"dataset_digest": DATASET, "dataset_source": "synthetic", "git_commit": "abc"}
    tags["family"] = "LogisticRegression"
    parent = tracking.start_search("search", tags, {})
    run = tracking.log_best(parent, "LogisticRegression", pipeline, tags, {"threshold": "0.15"}, {}, {})
    version = tracking.register(run, {**tags, "threshold": "0.15"}, "for the test")
    tracking.set_alias(CHAMPION, version.version)
    return settings


def run_stage(settings: Settings, batch: int | None, folder: Path) -> DriftResult:
    return drift(
        settings,
        batch=batch,
        report=folder / "report.html",
        evidently=folder / "evidently.html",
        metrics=folder / "metrics.json",
    )


def finish(settings: Settings, result: DriftResult) -> Settlement:
    return settle(settings, batch=result.batch, batch_digest=result.batch_digest)


def test_batches_are_handled_in_turn_each_once(settings: Settings, tmp_path: Path) -> None:
    # when the next batch is asked for
    first = run_stage(settings, None, tmp_path / "one")
    # then it is the first one, there is a verdict with reasons and figures, and there are three whole files
    assert (first.batch, first.labelled_batches, first.already_handled) == (0, 1, False)
    assert first.verdict in Verdict
    assert np.isfinite(list(first.metrics.values())).all()
    html = (tmp_path / "one" / "report.html").read_text()
    assert "Synthetic data" in html
    assert "Drift report, batch 0" in html
    record = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert record["verdict"] == first.verdict
    assert record["batch_digest"] == first.batch_digest
    assert "Not made" in (tmp_path / "one" / "evidently.html").read_text()

    # when the process dies before the batch is settled
    again = run_stage(settings, None, tmp_path / "two")
    # then the next run begins with what was decided
    assert again == first
    assert (tmp_path / "two" / "report.html").read_text() == html

    # when it is settled, twice
    assert finish(settings, first) == finish(settings, first) == Settlement.UNCHANGED
    # then a repeat gives the stored result and nothing to do
    repeat = run_stage(settings, 0, tmp_path / "three")
    assert repeat.already_handled and repeat.action is Action.NONE
    assert (repeat.reasons, repeat.metrics) == (first.reasons, first.metrics)

    # when the next batch comes, it knows its predecessor
    second = run_stage(settings, None, tmp_path / "four")
    findings = json.loads((tmp_path / "four" / "metrics.json").read_text())["findings"]
    assert (second.batch, second.labelled_batches) == (1, 2)
    assert findings["rolling"] is not None
    assert findings["discrimination"]["windows"] == 2
    finish(settings, second)

    # when one breaks the contract, it is put aside with a report and the one after it has its turn
    third = run_stage(settings, None, tmp_path / "five")
    assert third.quarantined and third.action is Action.NONE
    assert "age" in (tmp_path / "five" / "report.html").read_text()
    assert finish(settings, third) is Settlement.QUARANTINED
    fourth = run_stage(settings, None, tmp_path / "six")
    assert (fourth.batch, fourth.labelled_batches) == (3, 4)
    finish(settings, fourth)
    none = run_stage(settings, None, tmp_path / "seven")
    assert (none.batch, finish(settings, none)) == (NO_BATCH, Settlement.UNCHANGED)


class Hospital:
    """Sends batches through a pretended endpoint: what matters here is what lies in storage afterwards."""

    def __init__(self, settings: Settings) -> None:
        self.batches = Batches(settings)
        self.storage = self.batches.storage
        self.stream = settings.stream
        self.ids: dict[int, list[str]] = {}

    def send(self, number: int, frame: pd.DataFrame, probability: float = 0.1, time: str = "2020-01-01") -> None:
        self.ids[number] = [f"{self.stream}-{number}-{row}" for row in range(len(frame))]
        entry = {"time": f"{time}T00:00:00+00:00", "model_version": "9", "probability_score": probability}
        lines = [json.dumps({**entry, "prediction_id": one}) for one in self.ids[number]]
        self.storage.write(f"predictions/{time}/{self.stream}-{number}.jsonl", "\n".join(lines).encode())
        self.batches.deliver(number, frame.drop(columns=["readmitted"]).reset_index(drop=True), self.ids[number])

    def tell(self, number: int, readmitted: npt.ArrayLike) -> None:
        self.storage.write(f"outcomes/{self.stream}-{number}.csv", write_outcomes(self.ids[number], readmitted))


def test_late_outcomes_and_batches_out_of_order(settings: Settings, tmp_path: Path) -> None:
    # given a stream of its own, whose second batch comes first
    settings = settings.model_copy(update={"stream": "late"})
    hospital, cohort = Hospital(settings), exclude_not_readmittable(synthesize(6000, seed=4))
    # and a log in which a service of an earlier version wrote
    hospital.storage.write("predictions/2020-01-02/earlier.jsonl", b'{"id":"1","probability":0.1}\n')
    hospital.send(1, cohort[1500:3000])
    early = run_stage(settings, None, tmp_path)
    # then its inputs are judged, its performance is not, and the report says what is waited for
    assert (early.batch, early.verdict, early.labelled_batches) == (1, Verdict.STEADY, 0)
    assert "batch 1: 1,500 without an outcome" in (tmp_path / "report.html").read_text()
    assert "auc" not in early.metrics
    finish(settings, early)

    # when the one before it arrives, and outcomes of both, three times as many readmissions as expected
    hospital.send(0, cohort[:1500])
    raised = np.random.default_rng(0).random(1500) < 0.35
    hospital.tell(0, raised)
    hospital.tell(1, raised)
    late = run_stage(settings, None, tmp_path)
    # then it is its turn; what is judged is the newest outcomes, and both batches may train a model
    assert (late.batch, late.labelled_batches) == (0, 2)
    assert late.metrics["observed_expected"] > 2
    assert late.verdict is not Verdict.STEADY and late.action is not Action.NONE
    assert late.reasons[0].startswith("By the outcomes of batch 1")

    # when the challenger loses, everything stays, and the loss is remembered
    assert finish(settings, late) is Settlement.LOST
    # when the same encounters arrive once more under another number, nothing is counted twice
    hospital.send(2, cohort[:1500])
    repeated = run_stage(settings, None, tmp_path)
    assert (repeated.batch, repeated.action) == (2, Action.NONE)
    assert "holds the encounters of batch 0" in repeated.reasons[0]
    finish(settings, repeated)

    # when a batch is younger than the follow-up window, its outcomes do not count, though they are there
    hospital.send(3, cohort[3000:4500], time="2999-01-01")
    hospital.tell(3, raised)
    young = run_stage(settings, None, tmp_path)
    assert young.labelled_batches == 2
    assert "batch 3: 1,500 within the follow-up window" in (tmp_path / "report.html").read_text()


def test_a_recalibration_is_a_version_that_passes_the_gates(settings: Settings, tmp_path: Path) -> None:
    # given a stream in which risks doubled
    settings = settings.model_copy(update={"stream": "doubled"})
    hospital, cohort = Hospital(settings), exclude_not_readmittable(synthesize(16000, seed=6))[9000:]
    hospital.send(0, cohort)
    pipeline = Tracking(settings).load_pipeline("1")
    doubled = 2 * pipeline.predict_proba(cohort)[:, 1]
    hospital.tell(0, np.random.default_rng(1).random(len(cohort)) < doubled)
    watched = run_stage(settings, None, tmp_path)
    assert (watched.verdict, watched.action) == (Verdict.RECALIBRATE, Action.RECALIBRATE)
    # and the record says in data what raised the alarm
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["alarms"] == ["observed/expected"] and record["window"]["batch"] == 0
    # when the champion is calibrated anew, twice, and registered
    files = {"validation": tmp_path / "validation.parquet", "test": tmp_path / "test.parquet"}
    renewed = recalibrate(settings, labelled_batches=1, **files)
    again = recalibrate(settings, labelled_batches=1, **files)
    assert again.reused and again.parent_run_id == renewed.parent_run_id
    # and its patients are parted as the champion's were, whatever the settings say by now
    assert settings.salt != SALT
    for number, name in ((1, "validation"), (2, "test")):
        assert set(places(SALT, load_part(files[name])["patient_nbr"])) == {number}
    result = register(settings, parent_run_id=renewed.parent_run_id, card=tmp_path / "card.html", **files)
    # then it passes, its risks are right, and it knows what it is and what it has learned from
    assert result.decision is Decision.PROMOTE, result.reasons
    assert result.test_metrics["observed_expected"].value == pytest.approx(1, abs=0.2)
    version = Tracking(settings).version(result.model_version)
    assert (version.tags["recalibrates"], version.tags["labelled_batches"]) == ("1", "1")
    assert version.tags["dataset_digest"] == DATASET
    # when it serves, the batch ends as deployed
    Tracking(settings).set_alias(CHAMPION, version.version)
    assert finish(settings, watched) is Settlement.DEPLOYED
    # and what it learned from is not held against it
    hospital.send(1, cohort[:1500].assign(time_in_hospital="3"))
    assert run_stage(settings, None, tmp_path).reasons[0].startswith("Waiting for labels")
    Tracking(settings).set_alias(CHAMPION, "1")
    with pytest.raises(StateError, match="has outcomes"):
        recalibrate(settings, labelled_batches=0, **files)


def test_a_batch_that_does_not_exist_is_named_with_the_range(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(StateError) as caught:
        run_stage(settings, 9, tmp_path)
    assert "no batch 9" in caught.value.problem
    assert "0 to 3" in caught.value.remedy


def test_without_deliveries_nothing_is_judged_where_nothing_may_stand_in(settings: Settings, tmp_path: Path) -> None:
    # given a stream to which nothing was delivered, in a place where monitoring is about real deliveries only
    settings = settings.model_copy(update={"stream": "quiet", "replay": False})
    # when it is monitored, as a schedule does each night
    result = run_stage(settings, None, tmp_path)
    # then it says so, on its page too, and leaves no trace
    assert (result.batch, result.verdict, result.action) == (NO_BATCH, Verdict.STEADY, Action.NONE)
    assert "no encounters were delivered" in result.reasons[0] and "batches/quiet" in result.reasons[0]
    assert "no encounters were delivered" in (tmp_path / "report.html").read_text()
    assert finish(settings, result) is Settlement.UNCHANGED
    assert open_storage(settings.storage).keys("monitoring/quiet/") == []
    with pytest.raises(StateError, match="has no batches"):
        run_stage(settings, 0, tmp_path)
    # when encounters come, they are judged
    Hospital(settings).send(0, exclude_not_readmittable(synthesize(1000, seed=8)))
    assert run_stage(settings, None, tmp_path).batch == 0


def test_what_was_judged_of_other_data_does_not_count(settings: Settings, tmp_path: Path) -> None:
    # given a dataset and another, of other data, each with two batches that stand in
    settings = settings.model_copy(update={"stream": "replaced"})
    storage, tracking = open_storage(settings.storage), Tracking(settings)
    champion, other = tracking.by_alias(CHAMPION), "e" * 64
    assert champion is not None
    manifest = json.loads(storage.read(f"datasets/{DATASET}/manifest.json"))
    for digest in (DATASET, other):
        rows = {f"batches/{number:02d}": {"rows_sha256": digest + str(number)} for number in range(2)}
        storage.write(f"datasets/{digest}/manifest.json", json.dumps({**manifest, "parts": rows}).encode())
    for key in storage.keys(f"datasets/{DATASET}/"):
        if key.endswith(".parquet"):
            storage.write(key.replace(DATASET, other), storage.read(key))
    try:
        # when the first of both is judged, and then the data of the champion are replaced
        for number in range(2):
            assert run_stage(settings, None, tmp_path).batch == number
            finish(settings, run_stage(settings, number, tmp_path))
        tracking.tag_version(champion.version, {"dataset_digest": other})
        # then monitoring begins anew, though these have the same numbers and here even the same encounters
        again = run_stage(settings, None, tmp_path)
        assert (again.batch, again.already_handled, again.labelled_batches) == (0, False, 1)
        assert finish(settings, again) in (Settlement.UNCHANGED, Settlement.LOST)
        assert run_stage(settings, None, tmp_path).batch == 1
    finally:
        tracking.tag_version(champion.version, {"dataset_digest": DATASET})
        storage.write(f"datasets/{DATASET}/manifest.json", json.dumps(manifest).encode())


@pytest.mark.parametrize("replace_data", [True, False])
def test_other_data_than_the_champions_are_refused(settings: Settings, tmp_path: Path, replace_data: bool) -> None:
    # given settings that ask for another file
    save_csv(as_if_real(synthesize(200, seed=9)), tmp_path / "other.csv")
    asked = settings.model_copy(update={"data_source": str(tmp_path / "other.csv"), "replace_data": replace_data})
    # then neither a judgement nor a recalibration passes over that
    with pytest.raises(DataError, match="of the champion's patients"):
        run_stage(asked, None, tmp_path)
    with pytest.raises(DataError, match="of the champion's patients"):
        recalibrate(asked, labelled_batches=1, validation=tmp_path / "v", test=tmp_path / "t")


def test_without_a_champion_the_remedy_is_to_deploy(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="champion"):
        run_stage(Settings(home=tmp_path / "home"), 1, tmp_path / "out")
