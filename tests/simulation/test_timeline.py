"""What counts as a detection: what rests on changed batches, and is not what the stream does by itself."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from health_predict.adapters.data.arrivals import PROBABILITY, TIME, VERSION
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import CHAMPION, Tracking
from health_predict.core.choices import Scenario
from health_predict.core.data.cohort import load_part, read_cohort, target
from health_predict.core.data.encounters import complete
from health_predict.core.data.outcomes import PREDICTION_ID
from health_predict.core.data.partition import Parameters
from health_predict.core.data.scenarios import GroundTruth
from health_predict.core.model.features import EncounterFeatures
from health_predict.report.timeline_report import comparison, headline, summary, timeline_page
from health_predict.settings import Settings
from health_predict.simulation.monitoring import monitoring
from health_predict.simulation.plan import Begun, Plan
from health_predict.simulation.replay import Replay, _write_batches, deliver_outcomes
from health_predict.simulation.timeline import Detection, Finding, Sign, detect, timeline
from health_predict.stages.split import split
from tests.browser import CHROMIUM, address, browser
from tests.cohorts import synthesize
from tests.contracts import DIABETES, ENCOUNTER, TARGET

KINDS = {
    "concept-flip": "concept",
    "age-shift": "covariate",
    "delayed-labels": "delay",
    "missingness-switch": "quality",
}


def simulation(*scenarios: str, from_batch: int = 2) -> Begun:
    truths = tuple(GroundTruth(Scenario(name), KINDS[name], 0, "", 1, (), 1, 0) for name in scenarios if name != "none")
    return Begun("p", scenarios, from_batch, "drift", 1, 6, 0, data={}, first_version="1", truths=truths)


def finding(batch: int, *alarms: str, judged: int | None = None, **values: object) -> Finding:
    """What is found about a batch with outcomes a batch late, quiet but for what is named."""
    usual = {"news": (), "recording": (), "waiting": (batch,), "action": "none", "outcome": "unchanged"}
    usual |= {"version_after": "1", "labelled_batches": batch, **values}
    on = (batch - 1 if batch else None) if judged is None else judged
    return Finding(batch, "retrain" if alarms else "steady", alarms, on, **usual)  # type: ignore[arg-type]


def detected(found: Begun, *findings: Finding, without: list[Finding] | None = None) -> Detection:
    return detect(found, findings, "other" if without else "", {one.batch: one for one in without} if without else None)


def test_a_verdict_on_outcomes_from_before_the_change_is_no_detection() -> None:
    # given a flip from batch 2 on, whose verdict is not steady, by the outcomes of batch 1
    found = simulation("concept-flip")
    early = [finding(0), finding(1), finding(2, "calibration slope", outcome="deployed")]
    # then nothing was detected yet, and the verdict counts as one on unchanged batches
    assert detected(found, *early).verdict == Sign(None, (), before=1, looks=2)
    # when the next one rests on outcomes of batch 2
    later = detected(found, *early, finding(3, "AUC"), finding(4, "AUC", outcome="deployed"))
    # then it is the detection, a batch after the begin; the new version of batch 2 had learned from nothing changed
    assert later.verdict == Sign(1, ("AUC",), before=1, looks=2)
    assert later.learned == 2
    # and of a flip, inputs tell nothing
    assert later.inputs is None and later.recording is None


def test_a_detection_after_some_batches_has_their_number() -> None:
    quiet = [finding(number) for number in range(5)]
    assert detected(simulation("concept-flip"), *quiet).verdict == Sign(None, (), 0, 2)
    found = detected(simulation("concept-flip"), *quiet, finding(5, "observed/expected"))
    assert found.verdict == Sign(3, ("observed/expected",), before=0, looks=2)


def test_what_stood_before_the_change_and_goes_on_is_no_detection() -> None:
    # given an alarm that nothing was done about, by outcomes from before a change, and its evidence grows
    stands = [finding(1, "calibration slope"), finding(2, "calibration slope"), finding(3, "calibration slope")]
    found = simulation("concept-flip")
    assert detected(found, *stands).verdict == Sign(None, (), before=2, looks=2)
    # then another alarm is a detection, and so is the same one about a version that came into service meanwhile
    assert detected(found, *stands[:2], finding(3, "calibration slope", "AUC")).verdict == Sign(1, ("AUC",), 2, 2)
    renewed = [stands[0], finding(2, "calibration slope", outcome="deployed"), stands[2]]
    assert detected(found, *renewed).verdict == Sign(1, ("calibration slope",), 2, 2)


def test_changed_inputs_are_seen_in_the_rows_of_their_first_batch() -> None:
    # given inputs that differ before a shift, and more of them at its begin
    found = simulation("age-shift")
    looks = [finding(0, news=("age", "payer_code")), finding(1, news=("payer_code",)), finding(2, news=("age",))]
    # then only what is new there counts
    assert detected(found, *looks).inputs == Sign(0, ("age",), before=2, looks=2)
    assert detected(found, *looks[:2], finding(2, news=("payer_code",))).inputs == Sign(None, (), 2, 2)
    # and so for how they are recorded
    changed = [*looks[:2], finding(2, recording=("medical_specialty",))]
    assert detected(found, *changed).recording == Sign(0, ("medical_specialty",), 0, 2)


def test_what_the_stream_does_by_itself_is_left_out() -> None:
    # given the same stream without the scenario, in which the AUC falls in batch 3 and the inputs differ in batch 2
    own = [finding(number) for number in range(2)]
    without = [*own, finding(2, news=("payer_code",)), finding(3, "AUC"), finding(4)]
    found = simulation("age-shift")
    # when the one with it finds the same, then no detection is left
    assert detected(found, *without, without=without).verdict == Sign(None, (), 0, 2)
    assert detected(found, *without, without=without).inputs == Sign(None, (), 0, 2)
    # and when it finds more, that is one
    more = [*own, finding(2, news=("payer_code", "age")), finding(3, "AUC"), finding(4, "observed/expected")]
    seen = detected(found, *more, without=without)
    assert (seen.inputs, seen.verdict) == (Sign(0, ("age",), 0, 2), Sign(2, ("observed/expected",), 0, 2))
    assert seen.compared_with == "other"


def test_late_outcomes_are_seen_as_what_is_waited_for_and_in_nothing_else() -> None:
    # given outcomes that take longer from batch 2 on: those of batch 2 are missed after batch 3
    found = simulation("delayed-labels")
    looks = [finding(0), finding(1), finding(2, "AUC", news=("age",)), finding(3, waiting=(2, 3), judged=1)]
    # then what else was found is the stream's own
    seen = detected(found, *looks)
    assert (seen.inputs, seen.recording, seen.verdict) == (None, None, None)
    assert seen.waited == 1
    assert detected(found, *looks[:3]).waited is None


def moments(*aucs: float, deployed: dict[int, str] | None = None, lost: int = -1) -> list[dict[str, object]]:
    """Batches with these AUCs, each ten hundredths wide; after some of them another version serves."""
    return [
        {
            "batch": number,
            "auc": {"value": auc, "low": auc - 0.05, "high": auc + 0.05},
            "action": (deployed or {}).get(number, "none"),
            "outcome": "deployed" if number in (deployed or {}) else "lost" if number == lost else "unchanged",
        }
        for number, auc in enumerate(aucs)
    ]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            moments(0.67, 0.39, 0.4, 0.66, 0.66, deployed={2: "retrain"}),
            "The AUC fell from 0.67 to 0.39 in batch 1; retrained after batch 2; 0.66 since.",
        ),
        (moments(0.67, 0.65), "The AUC stayed between 0.65 and 0.67; the model was not changed."),
        (
            moments(0.67, 0.4, lost=1),
            "The AUC fell from 0.67 to 0.40 in batch 1; the model was not changed: 1 challenger lost.",
        ),
        (moments(0.67, deployed={0: "recalibrate"}), "The AUC is 0.67 in batch 0; recalibrated after batch 0."),
        (moments(), "No batch has an AUC yet."),
    ],
)
def test_the_headline_tells_the_story(found: list[dict[str, object]], said: str) -> None:
    assert headline(found) == said


def test_a_change_that_does_not_begin_is_said_not_to() -> None:
    found = {"moments": [], "policy": "drift", "delay": 1, "detection": asdict(detected(simulation("age-shift")))}
    assert summary(found) == ["age-shift begins with batch 2, after the last one of this simulation"]


class Played:
    """Simulations whose batches are scored in here instead of over HTTP; everything after that is the real thing."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.parts = {name: folder / name for name in ("train", "validation", "test", "batches", "profile")}

    def train(self) -> str:
        """A champion that ranks well and whose risks are too low."""
        data = split(self.settings, labelled_batches=0, **self.parts)
        train = load_part(self.parts["train"])
        steps = [("features", EncounterFeatures(DIABETES)), ("estimator", LogisticRegression(C=0.01, max_iter=1000))]
        pipeline = Pipeline(steps).fit(train, target(train, DIABETES))
        pipeline.named_steps["estimator"].intercept_ -= 0.5
        tracking = Tracking(self.settings)
        tags = {"dataset_digest": data.dataset_digest, "dataset_source": "custom", "git_commit": "abc"}
        tags |= {"family": "LogisticRegression"}
        parent = tracking.start_search("search", tags, {})
        run = tracking.log_best(parent, "LogisticRegression", pipeline, tags, {"threshold": "0.15"}, {}, {})
        version = tracking.register(run, {**tags, "threshold": "0.15"}, "for the test").version
        tracking.set_alias(CHAMPION, version)
        return version

    def play(self, plan: Plan, version: str) -> Replay:
        changes = {"stream": plan.stream, "policy": plan.policy, "follow_up_days": 0.0, "evidently": "never"}
        settings = self.settings.model_copy(update=changes)
        storage, pipeline = open_storage(settings.storage), Tracking(settings).load_pipeline(version)
        parameters = Parameters(settings.initial_share, settings.future_batches, settings.salt)
        truths = _write_batches(settings, plan, read_cohort(Path(settings.data_source), DIABETES), parameters)
        data = {"raw_sha256": "the same", "parameters": parameters.to_json()}
        begun = Begun(**asdict(plan), data=data, first_version=version, truths=truths)
        found = Replay(begun, settings, False)
        for number in range(plan.batches):
            frame = found.batch(number)
            meta = {
                PREDICTION_ID: [str(uuid.uuid5(uuid.NAMESPACE_OID, f"{plan.name}-{row}")) for row in frame[ENCOUNTER]],
                TIME: datetime.now(UTC).isoformat(timespec="microseconds"),
                VERSION: version,
                PROBABILITY: [repr(score) for score in pipeline.predict_proba(frame)[:, 1].tolist()],
            }
            Batches(settings).arrivals.land(complete(frame.drop(columns=[TARGET]), DIABETES, "a batch").assign(**meta))
            deliver_outcomes(found, number)
            monitoring(settings.model_copy(update={"window": str(len(frame))}))
        begun.write(storage)
        return found


@pytest.fixture(scope="module")
def cohort() -> pd.DataFrame:
    return synthesize(9_000, seed=21)


@pytest.mark.slow
def test_a_flip_is_credited_to_the_first_outcomes_that_show_it(
    cohort: pd.DataFrame, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    # given a model whose risks are too low, and a stream whose truth is reversed from batch 1 on
    file = tmp_path / "cohort.csv"
    cohort.to_csv(file, index=False)
    settings = make_settings(data_source=str(file), initial_share=0.4, future_batches=3, git_commit="abc")
    played = Played(settings, tmp_path)
    version = played.train()
    plan = Plan("flip", ("concept-flip",), from_batch=1, policy="never", delay=1, batches=3, seed=0)
    # when it is watched, with outcomes a batch late
    flipped = played.play(plan, version)
    found = timeline(flipped)
    # then the verdict after batch 1 is not steady, by the outcomes of batch 0, and that is no detection
    assert [one.judged for one in found.moments] == [None, 0, 1]
    assert [one.verdict for one in found.moments] == ["steady", "recalibrate", "retrain"]
    assert found.detection is not None and found.detection.verdict is not None
    assert (found.detection.verdict.delay, found.detection.inputs) == (1, None)
    assert "AUC" in found.detection.verdict.what and "observed/expected" not in found.detection.verdict.what
    assert (found.detection.verdict.before, found.detection.verdict.looks) == (1, 1)
    # and the page and the terminal say so, and that the stream may drift by itself
    plain = json.loads(json.dumps(asdict(found)))
    page = timeline_page(plain, DIABETES.outcome)
    assert "in its first batch" not in page and "1 batch later" in page and "in 1 of 1" in page
    assert "may drift by itself" in page and "health-predict simulate --batches 3 --policy never --delay 1" in page
    assert any("The verdict is not steady: 1 batch later (" in line for line in summary(plain))
    # and the page is fit to be shown at any width, with its headline
    if CHROMIUM:
        (played.folder / "timeline.html").write_text(page)
        with browser() as chromium:
            said = headline(plain["moments"])
            assert "The AUC" in said and not chromium.problems(address(played.folder / "timeline.html"), text=said)

    # when the same stream was watched without the scenario, which `none` is too
    calm = played.play(replace(plan, name="calm", scenarios=("none",)), version)
    assert timeline(calm).detection is None
    # then the two are compared
    compared = timeline(flipped)
    assert compared.detection is not None and compared.detection.compared_with == "calm"
    assert compared.detection.verdict is not None and compared.detection.verdict.delay == 1
    assert comparison(json.loads(json.dumps(asdict(compared))))[0].startswith("Compared with simulation calm")
    # but not with one of other data, policy or model
    for change in ({"policy": "drift"}, {"delay": 0}, {"first_version": "9"}):
        key = "simulations/calm/plan.json"
        storage = open_storage(settings.storage)
        known = storage.read(key)
        storage.write(key, json.dumps({**json.loads(known), **change}).encode())
        other = timeline(flipped).detection
        assert other is not None and other.compared_with == ""
        storage.write(key, known)
