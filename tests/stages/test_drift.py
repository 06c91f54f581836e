"""The drift stage against a real MLflow store and folder storage."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from health_predict.adapters import keys
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import CHAMPION, Tracking
from health_predict.core.data.cohort import load_part, save_csv, save_part, target, without_excluded
from health_predict.core.data.outcomes import write_outcomes
from health_predict.core.data.partition import Parameters, places
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.monitoring.drift import Verdict
from health_predict.core.monitoring.policy import Action, Settlement
from health_predict.core.promotion import Decision
from health_predict.errors import DataError, StateError, UnreachableError
from health_predict.settings import Profile, Settings
from health_predict.stages.drift import NO_BATCH, DriftResult, _Model, drift
from health_predict.stages.recalibrate import recalibrate
from health_predict.stages.register import register
from health_predict.stages.settle import settle
from tests.cohorts import synthesize
from tests.conftest import as_if_real
from tests.contracts import DIABETES
from tests.feed import logged

DATASET = "d" * 64
SALT = "of the champion's dataset"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Settings:
    """A store with a champion and its dataset. Windows are by count: `Hospital` sets it."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(mlflow_database, home / "mlflow.db")
    settings = Settings(home=home, git_commit="abc", evidently="never")
    storage = open_storage(settings.storage)
    cohort = without_excluded(synthesize(9000, seed=2), DIABETES)
    parts = {"train": cohort[:3000], "validation": cohort[3000:4000], "test": cohort[3000:4000]}
    for name, frame in parts.items():
        file = home / "part.parquet"
        save_part(frame.reset_index(drop=True), file)
        storage.upload(file, f"datasets/{DATASET}/{name}.parquet")
    manifest = {"raw_sha256": "a" * 64, "source": "synthetic", "parameters": Parameters(0.4, 4, SALT).to_json()}
    storage.write(f"datasets/{DATASET}/manifest.json", json.dumps(manifest).encode())
    train: pd.DataFrame = parts["train"].reset_index(drop=True)
    estimator = LogisticRegression(C=0.01, max_iter=1000)
    pipeline = Pipeline([("features", EncounterFeatures(DIABETES)), ("estimator", estimator)])
    pipeline.fit(train, target(train, DIABETES))
    tracking = Tracking(settings)
    tags = {"dataset_digest": DATASET, "dataset_source": "synthetic", "git_commit": "abc"}
    tags["family"] = "LogisticRegression"
    parent = tracking.start_search("search", tags, {})
    run = tracking.log_best(parent, "LogisticRegression", pipeline, tags, {"threshold": "0.15"}, {}, {})
    version = tracking.register(run, {**tags, "threshold": "0.15"}, "for the test")
    tracking.set_alias(CHAMPION, version.version)
    return settings


def run_stage(settings: Settings, folder: Path, run_id: str = "") -> DriftResult:
    return drift(
        settings,
        run_id=run_id,
        report=folder / "report.html",
        evidently=folder / "evidently.html",
        metrics=folder / "metrics.json",
    )


def finish(settings: Settings, result: DriftResult) -> Settlement:
    return settle(settings, batch=result.batch, batch_digest=result.batch_digest)


class Hospital:
    """Sends batches through a pretended endpoint, each a window of its own, on a day that counts as now."""

    def __init__(self, settings: Settings, stream: str, **values: object) -> None:
        self.settings = settings.model_copy(update={"stream": stream, **values})
        self.storage = open_storage(settings.storage)
        self.ids: list[list[str]] = []
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def send(self, frame: pd.DataFrame, probability: float = 0.1, version: str = "9") -> None:
        """Also sets what the next look takes for a window."""
        name = f"predictions-{self.settings.stream}-{len(self.ids)}"
        self.ids.append(logged(self.storage, name, frame, self.now, probability=probability, version=version))
        self.settings = self.settings.model_copy(update={"window": str(len(frame))})

    def tell(self, batch: int, readmitted: npt.ArrayLike) -> None:
        file = write_outcomes({"prediction_id": self.ids[batch]}, DIABETES, readmitted)
        self.storage.write(keys.outcomes(self.settings.stream, f"{self.settings.stream}-{batch}"), file)

    def look(self, folder: Path) -> DriftResult:
        return run_stage(self.settings.model_copy(update={"as_of": self.now}), folder)

    def later(self, days: int) -> None:
        self.now += timedelta(days=days)


def test_batches_are_judged_in_turn_each_once(settings: Settings, tmp_path: Path) -> None:
    # given two batches that were served by the champion
    hospital, cohort = Hospital(settings, "turns"), without_excluded(synthesize(6000, seed=3), DIABETES)
    hospital.send(cohort[:1200], version="1")
    hospital.send(cohort[1200:2400], version="1")
    # when what is due is asked for
    first = hospital.look(tmp_path / "one")
    # then it is the first one, there is a verdict with reasons and figures, and there are three whole files
    assert (first.batch, first.labelled_batches) == (0, 0)
    assert first.verdict in Verdict
    assert np.isfinite(list(first.metrics.values())).all()
    html = (tmp_path / "one" / "report.html").read_text()
    assert "Synthetic data" in html
    assert "Drift report, batch 0" in html
    record = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert record["verdict"] == first.verdict
    assert record["batch_digest"] == first.batch_digest
    assert "Not made" in (tmp_path / "one" / "evidently.html").read_text()

    # when the process dies before the look is settled
    again = hospital.look(tmp_path / "two")
    # then the next run begins with what was decided
    assert again == first
    assert (tmp_path / "two" / "report.html").read_text() == html

    # when it is settled, twice
    assert finish(hospital.settings, first) == finish(hospital.settings, first) == Settlement.UNCHANGED
    # when the next one has its turn, it knows its predecessor
    second = hospital.look(tmp_path / "four")
    findings = json.loads((tmp_path / "four" / "metrics.json").read_text())["findings"]
    assert second.batch == 1
    assert findings["rolling"] is not None
    finish(hospital.settings, second)
    # then nothing is due, and the page says what is waited for
    none = hospital.look(tmp_path / "seven")
    assert (none.batch, finish(hospital.settings, none)) == (NO_BATCH, Settlement.UNCHANGED)
    assert "No batch waits" in (tmp_path / "seven" / "report.html").read_text()


def test_outcomes_are_judged_when_they_have_matured(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given two batches of a stream of its own
    hospital, cohort = Hospital(settings, "late"), without_excluded(synthesize(6000, seed=4), DIABETES)
    raised = np.random.default_rng(0).random(1500) < 0.35
    hospital.send(cohort[:1500])
    hospital.send(cohort[1500:3000])
    # when they are looked at as they come, with outcomes that came before their time
    hospital.tell(0, raised)
    early = hospital.look(tmp_path)
    # then inputs are judged, performance is not, and the report says what is waited for
    assert (early.batch, early.verdict, early.labelled_batches) == (0, Verdict.STEADY, 0)
    assert "batch 0: 1,500 within the follow-up window" in (tmp_path / "report.html").read_text()
    assert "auc" not in early.metrics
    finish(hospital.settings, early)
    hospital.later(31)
    # when the first has matured, it is judged with the look at the second
    scored: list[int] = []
    scores = _Model.scores
    monkeypatch.setattr(_Model, "scores", lambda model, frame: (scored.append(len(frame)), scores(model, frame))[1])
    second = hospital.look(tmp_path)
    assert sorted(scored) == [1000, 1500, 1500]  # validation and both batches, each once
    assert (second.batch, second.labelled_batches) == (1, 1)
    assert second.metrics["observed_expected"] > 2
    assert second.verdict is not Verdict.STEADY and second.action is not Action.NONE
    assert second.reasons[0].startswith("By the outcomes of batch 0")
    assert "batch 1: 1,500 without an outcome" in (tmp_path / "report.html").read_text()
    # when the challenger loses, everything stays, and the loss is remembered
    assert finish(hospital.settings, second) is Settlement.LOST
    # when the outcomes of the second come and nothing else, they are judged by themselves, once
    hospital.tell(1, raised)
    alone = hospital.look(tmp_path)
    assert (alone.batch, alone.labelled_batches) == (1, 2)
    assert alone.batch_digest != second.batch_digest
    assert json.loads((tmp_path / "metrics.json").read_text())["outcomes_alone"]
    assert not any("The inputs" in reason for reason in alone.reasons)
    assert json.loads((tmp_path / "metrics.json").read_text())["findings"]["discrimination"]["windows"] == 2
    finish(hospital.settings, alone)
    assert hospital.look(tmp_path).batch == NO_BATCH


def test_two_runs_of_a_cluster_end_as_one_after_the_other(settings: Settings, tmp_path: Path) -> None:
    # given the same batches in two streams, the second of which two runs watch, by schedule and by hand
    cohort = without_excluded(synthesize(4000, seed=12), DIABETES)
    alone, both = (Hospital(settings, name, profile=Profile.KIND) for name in ("alone", "both"))
    for hospital in (alone, both):  # one after the other: whoever looks takes in what is logged
        hospital.send(cohort[:1200])
        hospital.send(cohort[1200:2400])
        for _ in range(2) if hospital is alone else ():
            finish(hospital.settings, hospital.look(tmp_path))
    watched = both.settings.model_copy(update={"as_of": both.now})
    first = run_stage(watched, tmp_path, "schedule")
    # when the second begins in the middle of the first, then it ends with the reason and has changed nothing
    before = {key: both.storage.read(key) for key in both.storage.keys("")}
    with pytest.raises(UnreachableError, match="schedule, has been at work"):
        run_stage(watched, tmp_path, "hand")
    assert {key: both.storage.read(key) for key in both.storage.keys("")} == before
    settle(watched, batch=first.batch, batch_digest=first.batch_digest, run_id="schedule")
    # when it is started again, then all is as if there had never been two
    second = run_stage(watched, tmp_path, "hand")
    settle(watched, batch=second.batch, batch_digest=second.batch_digest, run_id="hand")
    assert Batches(both.settings).progress() == Batches(alone.settings).progress()
    assert not both.storage.exists(keys.turn("both"))


def test_outcomes_that_never_come_are_not_waited_for_for_ever(settings: Settings, tmp_path: Path) -> None:
    # given a batch without outcomes, and one with, long after
    hospital, cohort = Hospital(settings, "lapsed"), without_excluded(synthesize(4000, seed=5), DIABETES)
    hospital.send(cohort[:1000])
    first = hospital.look(tmp_path)
    finish(hospital.settings, first)
    hospital.later(200)
    hospital.send(cohort[1000:2000])
    hospital.tell(1, np.arange(1000) % 10 == 0)
    hospital.now += timedelta(days=31)
    # when the second is judged
    second = hospital.look(tmp_path)
    # then the first does not stand in the way of learning from it, and is asked for no more
    assert (second.batch, second.labelled_batches) == (1, 2)
    finish(hospital.settings, second)
    assert Batches(hospital.settings).progress().lapsed == (0,)
    assert Batches(hospital.settings).learnable(2) == [1]


def test_a_recalibration_is_a_version_that_passes_the_gates(settings: Settings, tmp_path: Path) -> None:
    # given a stream in which risks doubled
    hospital = Hospital(settings, "doubled", follow_up_days=0.0)
    cohort = without_excluded(synthesize(16000, seed=6), DIABETES)[9000:]
    hospital.send(cohort)
    pipeline = Tracking(settings).load_pipeline("1")
    doubled = 2 * pipeline.predict_proba(cohort)[:, 1]
    hospital.tell(0, np.random.default_rng(1).random(len(cohort)) < doubled)
    watched = hospital.look(tmp_path)
    assert (watched.verdict, watched.action) == (Verdict.RECALIBRATE, Action.RECALIBRATE)
    # and the record says in data what raised the alarm
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["alarms"] == ["observed/expected"] and [one["batch"] for one in record["windows"]] == [0]
    # when the champion is calibrated anew, twice, and registered
    settings = hospital.settings
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
    assert json.loads(version.tags["calibrated_on"]) == ["doubled", [0]]
    assert version.tags["dataset_digest"] == DATASET
    # when it serves, the batch ends as deployed
    Tracking(settings).set_alias(CHAMPION, version.version)
    assert finish(settings, watched) is Settlement.DEPLOYED
    # and what it learned from is not held against it
    hospital.send(cohort[:1500].assign(time_in_hospital="3", encounter_id=[str(number) for number in range(1, 1501)]))
    assert hospital.look(tmp_path).reasons[0].startswith("Waiting for labels")
    Tracking(settings).set_alias(CHAMPION, "1")
    with pytest.raises(StateError, match="has outcomes"):
        recalibrate(settings, labelled_batches=0, **files)


def test_where_nothing_arrived_nothing_is_judged(settings: Settings, tmp_path: Path) -> None:
    # given a stream in which nothing arrived
    hospital = Hospital(settings, "quiet")
    # when it is monitored, as a schedule does each night
    result = hospital.look(tmp_path)
    # then it says so, on its page too, and leaves no trace
    assert (result.batch, result.verdict, result.action) == (NO_BATCH, Verdict.STEADY, Action.NONE)
    assert "no encounters have arrived in stream quiet" in result.reasons[0]
    assert "no encounters have arrived" in (tmp_path / "report.html").read_text()
    assert finish(hospital.settings, result) is Settlement.UNCHANGED
    assert open_storage(settings.storage).keys("monitoring/quiet/") == []
    # when encounters come, they are judged
    hospital.send(without_excluded(synthesize(1000, seed=8), DIABETES))
    assert hospital.look(tmp_path).batch == 0


@pytest.mark.parametrize("replace_data", [True, False])
def test_other_data_than_the_champions_are_refused(settings: Settings, tmp_path: Path, replace_data: bool) -> None:
    # given settings that ask for another file
    save_csv(as_if_real(synthesize(200, seed=9)), tmp_path / "other.csv")
    asked = settings.model_copy(update={"data_source": str(tmp_path / "other.csv"), "replace_data": replace_data})
    # then neither a judgement nor a recalibration passes over that
    with pytest.raises(DataError, match="of the champion's patients"):
        run_stage(asked, tmp_path)
    with pytest.raises(DataError, match="of the champion's patients"):
        recalibrate(asked, labelled_batches=1, validation=tmp_path / "v", test=tmp_path / "t")


def test_without_a_champion_the_remedy_is_to_deploy(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="champion"):
        run_stage(Settings(home=tmp_path / "home"), tmp_path / "out")
