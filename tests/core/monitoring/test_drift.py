"""Drift: false alarms, power, the separation of the three questions, and what the findings say."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from pydantic import TypeAdapter

from health_predict.core.data.cohort import target
from health_predict.core.data.contract import MISSING
from health_predict.core.monitoring.drift import Alarm, DriftFindings, DriftReference, ReasonKind, Verdict, assess
from health_predict.core.monitoring.input_drift import InputReference, QualityKind, psi
from health_predict.core.monitoring.performance import (
    Calibration,
    Discrimination,
    LabelledWindow,
    assess_calibration,
    assess_discrimination,
    evidence,
    threshold,
)
from health_predict.core.monitoring.refit import LabelledRows, refit_gain
from health_predict.core.statistics import calibration_line, delong, observed_expected, paired_auc
from tests.cohorts import synthesize
from tests.contracts import DIABETES

Floats = npt.NDArray[np.float64]


def risks(frame: pd.DataFrame) -> Floats:
    """A simple model: the risk grows with earlier in-patient stays and with age."""
    stays = np.minimum(frame["number_inpatient"].astype(int), 5).to_numpy()
    age = frame["age"].str.extract(r"\[(\d+)", expand=False).astype(int).to_numpy()
    return np.asarray(1 / (1 + np.exp(3.4 - 0.7 * stays - 0.012 * age)), dtype=np.float64)


def outcomes_of(risk: Floats, seed: int) -> Floats:
    return (np.random.default_rng(seed).random(len(risk)) < risk).astype(np.float64)


@pytest.fixture(scope="module")
def cohort() -> pd.DataFrame:
    return synthesize(16_000, seed=1)


@pytest.fixture(scope="module")
def reference(cohort: pd.DataFrame) -> DriftReference:
    training, validation = cohort[:10_000], cohort[10_000:13_000]
    risk = risks(validation)
    return DriftReference.fit(training, DIABETES, outcomes_of(risk, 1), risk)


@pytest.fixture()
def batch(cohort: pd.DataFrame) -> pd.DataFrame:
    return cohort[13_000:15_500].reset_index(drop=True)


def judge(reference: DriftReference, frame: pd.DataFrame, truth: Floats, **keywords: object) -> DriftFindings:
    return assess(reference, frame, risks(frame), outcomes_of(truth, 7), **keywords)  # type: ignore[arg-type]


def test_a_batch_like_the_reference_is_steady(reference: DriftReference, batch: pd.DataFrame) -> None:
    findings = judge(reference, batch, risks(batch))
    assert findings.verdict is Verdict.STEADY
    assert not findings.inputs.alarm
    assert not findings.inputs.quality
    assert findings.labelled == findings.rows == len(batch)
    assert {group.attribute for group in findings.subgroups} == {"gender", "race", "age"}


@pytest.mark.parametrize("rows", [500, 2000, 5000])
def test_clean_resamples_alarm_in_at_most_three_of_a_hundred(
    reference: DriftReference, cohort: pd.DataFrame, rows: int
) -> None:
    random = np.random.default_rng(rows)
    draws = 100
    alarms = sum(
        reference.inputs.compare(cohort[:10_000].iloc[random.integers(0, 10_000, rows)], DIABETES).alarm
        for _ in range(draws)
    )
    assert alarms <= 3


def older(frame: pd.DataFrame) -> pd.DataFrame:
    weights = np.where(frame["age"].isin(["[80-90)", "[90-100)"]), 2.0, 1.0)
    return frame.sample(2000, weights=weights, replace=True, random_state=2).reset_index(drop=True)


def without_specialty(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(medical_specialty=MISSING)


def capped(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(number_diagnoses=frame["number_diagnoses"].astype(int).clip(upper=6).astype(str))


def recoded(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(diag_1=frame["diag_1"].where(~frame["diag_1"].str.startswith("4"), "E999"))


def withdrawn(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(insulin="No")


@pytest.mark.parametrize(
    ("shift", "column"),
    [
        (older, "age"),
        (without_specialty, "medical_specialty"),
        (capped, "number_diagnoses"),
        (recoded, "diag_1"),
        (withdrawn, "insulin"),
    ],
)
def test_input_shifts_are_found_and_are_no_reason_to_change_the_model(
    reference: DriftReference, batch: pd.DataFrame, shift: Callable[[pd.DataFrame], pd.DataFrame], column: str
) -> None:
    # given a batch whose inputs shifted while the risk of each encounter is still what the model says
    shifted = shift(batch)
    # when
    findings = judge(reference, shifted, risks(shifted))
    # then
    assert findings.inputs.alarm
    assert findings.inputs.columns[0].column == column
    assert findings.verdict is Verdict.STEADY
    assert any(column in reason.sentence for reason in findings.reasons)


def test_a_switch_to_missing_is_a_question_about_recording(reference: DriftReference, batch: pd.DataFrame) -> None:
    findings = judge(reference, without_specialty(batch), risks(batch))
    assert [(item.kind, item.column) for item in findings.inputs.quality] == [
        (QualityKind.MISSING, "medical_specialty")
    ]
    # and the column shows nothing where it is recorded
    assert findings.inputs.columns[0].z_recorded == 0


def test_new_and_vanished_levels_are_named(reference: DriftReference, batch: pd.DataFrame) -> None:
    # given a hospital that calls one specialty differently, and capped counts
    changed = batch.assign(race=batch["race"].replace({"AfricanAmerican": "Black"}))
    kinds = {(item.kind, item.column) for item in reference.inputs.compare(changed, DIABETES).quality}
    assert kinds == {(QualityKind.NEW, "race"), (QualityKind.VANISHED, "race")}
    # and every sentence names the level
    sentences = " ".join(item.sentence for item in reference.inputs.compare(changed, DIABETES).quality)
    assert "Black" in sentences
    assert "AfricanAmerican" in sentences


def test_a_level_that_all_but_vanished_or_appeared_is_named_with_its_shares(
    reference: DriftReference, batch: pd.DataFrame
) -> None:
    # given a common level of which two encounters are left, a rare one that became common, and rare codes that are gone
    place = batch["discharge_disposition_id"].copy()
    common = place.index[place == "3"]
    place.loc[common[2:]] = "22"
    rare = batch["diag_1"].map(lambda code: DIABETES.by_name["diag_1"].chapters.of(code) == "digestive")
    changed = batch.assign(
        discharge_disposition_id=place,
        admission_type_id=batch["admission_type_id"].mask(batch.index % 4 == 0, "8"),
        diag_1=batch["diag_1"].mask(rare, "428"),
    )
    # when
    found = {(item.column, item.level): item for item in reference.inputs.compare(changed, DIABETES).quality}
    # then each is asked about, and the other levels are not
    gone = found["discharge_disposition_id", "3"]
    assert gone.kind is QualityKind.VANISHED
    assert gone.before == pytest.approx(0.137, abs=0.02) and gone.after == 2 / len(batch)
    assert (
        f"skilled nursing (3) hardly occurs any more (2 of {len(batch):,} encounters); it was {gone.before:.1%}"
        in gone.sentence
    )
    grown = found["admission_type_id", "8"]
    assert grown.kind is QualityKind.APPEARED
    assert grown.before < 0.01 and grown.after == pytest.approx(0.25, abs=0.01)
    assert (
        "not mapped (8) hardly occurred before" in grown.sentence
        and f"{grown.after:.1%} of the batch" in grown.sentence
    )
    assert found["diag_1", "other digestive codes"].kind is QualityKind.VANISHED
    assert len(found) == 3
    # and the report says so
    said = judge(reference, changed, risks(changed)).reasons
    assert any(
        "recording of admission_type_id, discharge_disposition_id, diag_1 changed" in one.sentence for one in said
    )


def test_levels_of_a_column_that_is_no_longer_recorded_are_not_asked_about_one_by_one(
    reference: DriftReference, batch: pd.DataFrame
) -> None:
    changed = batch.assign(medical_specialty=batch["medical_specialty"].mask(batch.index % 50 > 0, MISSING))
    assert [item.kind for item in reference.inputs.compare(changed, DIABETES).quality] == [QualityKind.MISSING]


@pytest.mark.parametrize("rows", [200, 2000])
def test_clean_resamples_raise_no_question(reference: DriftReference, cohort: pd.DataFrame, rows: int) -> None:
    random = np.random.default_rng(rows)
    for _ in range(60):
        assert reference.inputs.compare(cohort[:10_000].iloc[random.integers(0, 10_000, rows)], DIABETES).quality == ()


@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_a_changed_prevalence_asks_for_recalibration(
    reference: DriftReference, batch: pd.DataFrame, factor: float
) -> None:
    findings = judge(reference, batch, risks(batch) * factor)
    assert findings.verdict is Verdict.RECALIBRATE
    assert findings.calibration is not None
    assert findings.calibration.ratio.value == pytest.approx(factor, abs=0.15)
    assert "a ratio of" in " ".join(map(str, findings.reasons))


def test_a_model_that_no_longer_ranks_asks_for_retraining(reference: DriftReference, batch: pd.DataFrame) -> None:
    # given outcomes that have nothing to do with the predicted risk, at the same prevalence
    findings = judge(reference, batch, np.full(len(batch), risks(batch).mean()))
    assert findings.verdict is Verdict.RETRAIN
    assert findings.discrimination is not None
    assert findings.discrimination.fell
    assert not findings.inputs.alarm


def test_a_collapsed_slope_asks_for_retraining_even_when_validation_is_too_small_to_compare(
    cohort: pd.DataFrame, batch: pd.DataFrame
) -> None:
    # given a validation set with very few readmissions, and a batch whose risks have levelled out
    risk = risks(cohort[:300])
    reference = DriftReference.fit(cohort[:3000], DIABETES, outcomes_of(risk, 1), risk, draws=100)
    findings = judge(reference, batch, np.full(len(batch), risks(batch).mean()))
    assert findings.discrimination is not None
    assert findings.calibration is not None
    assert findings.calibration.collapsed
    assert findings.verdict is Verdict.RETRAIN
    # and while retraining waits for its turn, no recalibration is tried that could only fail
    assert findings.calibration.broken
    assert not findings.calibration.mendable


def test_broken_calibration_on_other_patients_asks_for_recalibration_first(
    reference: DriftReference, batch: pd.DataFrame
) -> None:
    # given a batch of sicker patients, whose risk is lower than the model says
    stays = batch["number_inpatient"].astype(int) + np.random.default_rng(3).integers(0, 3, len(batch))
    sicker = batch.assign(number_inpatient=stays.astype(str))
    findings = judge(reference, sicker, risks(sicker) * 0.7)
    assert findings.scores.moved
    assert findings.verdict is Verdict.RECALIBRATE
    assert any(reason.kind is ReasonKind.SCORES for reason in findings.reasons)


def test_without_labels_the_verdict_waits_and_says_so(reference: DriftReference, batch: pd.DataFrame) -> None:
    # given shifted inputs, and no outcomes, or a few only
    shifted = capped(batch)
    few = np.where(np.arange(len(batch)) < 50, outcomes_of(risks(batch), 1), np.nan)
    for labels in (None, few):
        findings = assess(reference, shifted, risks(shifted), labels)
        # then
        assert findings.inputs.alarm
        assert findings.verdict is Verdict.STEADY
        assert findings.reasons[0].kind is ReasonKind.WAITING
        assert findings.calibration is None
        assert findings.window is None
        assert "auc" not in findings.metrics()


def window(rows: int = 5_000, **values: float | None) -> LabelledWindow:
    """A batch as a good model leaves it, but for some values."""
    events = rows * 0.11
    usual = {"intercept": 0.0, "slope": 1.0, "slope_error": 0.065, "auc": 0.68, "auc_variance": 0.013**2}
    return LabelledWindow(rows, round(events), **{"expected": events, "variance": 0.87 * events, **usual, **values})  # type: ignore[arg-type]


def calibration(windows: list[LabelledWindow]) -> Calibration:
    return assess_calibration(windows)


def discrimination(windows: list[LabelledWindow]) -> Discrimination:
    reference = window(20_000, auc_variance=0.006**2)
    return assess_discrimination(reference, windows)


def test_slow_changes_show_in_accumulated_batches() -> None:
    # given batches whose AUC, observed over expected, and slope are each a little off
    cases = [
        (window(auc=0.647), lambda windows: discrimination(windows).fell),
        (window(gain=0.012, gain_error=0.004), lambda windows: discrimination(windows).outdated),
        (window(expected=610.0), lambda windows: calibration(windows).broken),
        (window(slope=0.72), lambda windows: calibration(windows).broken),
    ]
    for off, alarmed in cases:
        # then one is not enough, four are, and quiet batches before them take nothing away
        assert not alarmed([off])
        assert alarmed([off] * 4)
        assert alarmed([window(gain=0.0, gain_error=0.004)] * 30 + [off] * 4)
    found = discrimination([window(auc=0.647)] * 4)
    assert found.accumulated.value == pytest.approx(0.647)
    assert "over 4 labelled batches" in found.sentence()


@pytest.mark.parametrize(
    ("off", "alarms", "first"),
    [
        # the ratio of the newest batch is 1.05 (0.98 to 1.12): what is off is the slope
        (
            {"expected": 523.8, "slope": 1.61, "slope_error": 0.11},
            [Alarm.SLOPE],
            "The calibration slope is off: 1.61 (1.3",
        ),
        (
            {"expected": 400.0},
            [Alarm.RATIO],
            "Observed over expected is off: 550 readmissions were observed and 400 ex",
        ),
        ({"expected": 400.0, "slope": 0.6}, [Alarm.RATIO, Alarm.SLOPE], "Observed over expected is off: 550 readm"),
    ],
    ids=["slope", "ratio", "both"],
)
def test_the_sentence_names_what_is_off_first(off: dict[str, float], alarms: list[Alarm], first: str) -> None:
    # given a batch in which one question about calibration raises the alarm, or both
    found = calibration([window(**off)])
    # when
    said = found.sentence("readmissions")
    # then only what is off is called so, and structure and words agree
    assert said.startswith(first), said
    assert [found.ratio_over.off, found.slope_over.off] == [Alarm.RATIO in alarms, Alarm.SLOPE in alarms]
    assert said.count(" is off") == len(alarms) and said.count(" is not surely off") == 2 - len(alarms)
    assert "together" not in said


@pytest.mark.parametrize(
    ("off", "name"), [({"expected": 500.0}, "Observed over expected"), ({"slope": 0.75}, "The calibration slope")]
)
def test_evidence_of_several_batches_is_said_when_the_newest_alone_does_not_show_it(
    off: dict[str, float], name: str
) -> None:
    # given quiet batches, then four that are each a little off
    found = calibration([window()] * 5 + [window(**off)] * 4)
    over = found.ratio_over if "expected" in off else found.slope_over
    # then the figure of those four is told, not of all or of the last
    assert over.off and not over.at_once and over.windows == 4
    value = 550 / 500 if "expected" in off else 0.75
    assert over.estimate.value == pytest.approx(value) and over.estimate.high - over.estimate.low < 0.3
    assert found.sentence("readmissions").startswith(f"{name} is off: {over.estimate.words(2)} over the last 4")
    assert "in the newest alone" in found.sentence("readmissions")


def test_looking_at_every_batch_does_not_add_up_to_false_alarms() -> None:
    # given 200 streams of 100 batches in which the truth lies exactly at the tolerance, the worst case
    random = np.random.default_rng(4)
    alarms = 0
    for stream in random.standard_normal((200, 100)):
        start = 0
        for batch in range(100):
            if evidence(stream[max(start, batch - 30) : batch + 1].tolist()) >= threshold(0.01):
                alarms, start = alarms + 1, batch + 1
    # then about one batch in a hundred alarms, as a single test at this level would
    assert 0.005 <= alarms / 20_000 <= 0.015


def test_a_refit_sees_what_the_model_does_not_know(cohort: pd.DataFrame) -> None:
    # given a model that knows all, and one for which the newer patients' in-patient history is turned around
    rows = cohort[:6_000].reset_index(drop=True)
    risk = risks(rows)
    flipped = risks(rows.assign(number_inpatient=(5 - np.minimum(rows["number_inpatient"].astype(int), 5)).astype(str)))
    labels = outcomes_of(risk, 9)

    def parts(scores: Floats) -> list[LabelledRows]:
        return [LabelledRows(rows[i : i + 2000], scores[i : i + 2000], labels[i : i + 2000]) for i in (0, 2000, 4000)]

    # when a refit on two batches is tried on the third
    good = refit_gain(parts(risk)[:2], parts(risk)[2], DIABETES)
    wrong = refit_gain(parts(flipped)[:2], parts(flipped)[2], DIABETES)
    # then it gains nothing over the first, and surely over the second
    assert good is not None
    assert wrong is not None
    assert abs(good[0]) < 3 * good[1]
    assert wrong[0] > 0.1
    assert wrong[0] > 5 * wrong[1]
    # and what is too little to learn from is said to be so
    assert refit_gain([], parts(risk)[2], DIABETES) is None


def test_an_outdated_model_asks_for_retraining(reference: DriftReference, batch: pd.DataFrame) -> None:
    # given a model that is calibrated and ranks as on validation, while a refit does surely better
    history = [window(gain=0.04, gain_error=0.003)] * 2
    earlier = [LabelledRows(batch, risks(batch), outcomes_of(risks(batch), 3))]
    findings = assess(reference, batch, risks(batch), outcomes_of(risks(batch), 7), history=history, earlier=earlier)
    assert findings.verdict is Verdict.RETRAIN
    assert any(reason.kind is ReasonKind.REFIT for reason in findings.reasons)
    assert "refit_gain" in findings.metrics()


def test_a_lasting_shift_is_no_news_against_the_batch_before(reference: DriftReference, batch: pd.DataFrame) -> None:
    shifted = capped(batch)
    rolling = InputReference.fit(shifted[:1500], DIABETES, draws=200)
    findings = judge(reference, shifted[1500:], risks(shifted[1500:]), rolling=rolling)
    assert findings.inputs.alarm
    assert findings.rolling is not None
    assert not findings.rolling.alarm
    assert any("nothing new" in reason.sentence for reason in findings.reasons)
    # and the first batch of the shift is news
    first = judge(reference, shifted, risks(shifted), rolling=InputReference.fit(batch, DIABETES, draws=200))
    assert any("the change goes on" in reason.sentence for reason in first.reasons)


def test_reference_and_findings_survive_json(reference: DriftReference, batch: pd.DataFrame) -> None:
    adapter = TypeAdapter(DriftReference)
    again = adapter.validate_python(json.loads(adapter.dump_json(reference)))
    assert again == reference
    shifted = recoded(batch)
    findings = judge(reference, shifted, risks(shifted))
    assert judge(again, shifted, risks(shifted)) == findings
    plain = json.loads(json.dumps(asdict(findings), allow_nan=False))
    assert plain["verdict"] == findings.verdict
    assert set(findings.metrics()) >= {"observed_expected", "auc", "auc_accumulated", "input_largest_z", "score_psi"}


def test_fitting_again_gives_the_same_reference(cohort: pd.DataFrame) -> None:
    one, two = (InputReference.fit(cohort[:1000], DIABETES, draws=100) for _ in range(2))
    assert one == two


def test_a_batch_costs_little_and_warns_of_nothing(reference: DriftReference, cohort: pd.DataFrame) -> None:
    frame = pd.concat([cohort[11_000:]] * 2, ignore_index=True)[:5_088]
    risk = risks(frame)
    labels = target(frame, DIABETES).astype(np.float64)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assess(reference, frame, risk, labels)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("scores", [np.full(400, 0.1), np.zeros(400), np.ones(400)], ids=["constant", "zero", "one"])
def test_degenerate_scores_give_findings_not_errors(
    reference: DriftReference, batch: pd.DataFrame, scores: Floats
) -> None:
    labels = (np.arange(400) % 5 == 0).astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        findings = assess(reference, batch[:400], scores, labels)
    json.dumps(asdict(findings), allow_nan=False)
    assert findings.verdict is Verdict.RETRAIN


def test_inputs_that_do_not_fit_together_are_refused(reference: DriftReference, batch: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        assess(reference, batch, np.zeros(3), None)
    with pytest.raises(ValueError, match="empty"):
        assess(reference, batch[:0], np.zeros(0), None)


# The formulas, against independent computations


def test_delong_agrees_with_pairs_and_with_the_bootstrap() -> None:
    random = np.random.default_rng(5)
    scores = np.round(random.random(400), 2)  # with ties
    labels = (random.random(400) < 0.1 + 0.3 * scores).astype(np.float64)
    auc, variance = delong(labels, scores)
    positive, negative = scores[labels == 1], scores[labels == 0]
    pairs = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    assert auc == pytest.approx(pairs, abs=1e-12)
    resampled = [delong(labels[i], scores[i])[0] for i in (random.integers(0, 400, 400) for _ in range(400))]
    assert variance**0.5 == pytest.approx(np.std(resampled), rel=0.15)
    # and so does the difference of two scores on the same rows
    other = scores + 0.3 * random.random(400)
    difference, error = paired_auc(labels, scores, other)
    assert difference == pytest.approx(delong(labels, other)[0] - auc, abs=1e-12)
    resampled = [
        paired_auc(labels[i], scores[i], other[i])[0] for i in (random.integers(0, 400, 400) for _ in range(400))
    ]
    assert error == pytest.approx(np.std(resampled), rel=0.15)
    with pytest.raises(ValueError, match="both outcomes"):
        delong(np.zeros(5), np.arange(5.0))


def test_the_calibration_line_is_a_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(6)
    logit = random.normal(-2, 0.8, 3000)
    scores = 1 / (1 + np.exp(-logit))
    labels = (random.random(3000) < 1 / (1 + np.exp(-(0.4 + 0.7 * logit)))).astype(np.float64)
    intercept, slope, error = calibration_line(labels, scores)
    model = LogisticRegression(C=1e10, tol=1e-10, max_iter=1000).fit(logit[:, None], labels)
    assert slope == pytest.approx(model.coef_[0, 0], abs=1e-4)
    assert abs(slope - 0.7) < 3 * error
    # calibration in the large makes observed and expected equal
    assert (1 / (1 + np.exp(-(logit + intercept)))).sum() == pytest.approx(labels.sum(), abs=1e-6)


def test_observed_expected_covers_one_as_often_as_it_says() -> None:
    random = np.random.default_rng(8)
    scores = random.beta(2, 14, 1000)
    covered = 0
    for _ in range(400):
        found = observed_expected((random.random(1000) < scores).astype(np.float64), scores)
        covered += found.low <= 1 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_psi_of_known_shares() -> None:
    assert psi(np.array([0.5, 0.5]), np.array([0.5, 0.5])) == 0
    assert psi(np.array([0.5, 0.5]), np.array([0.25, 0.75])) == pytest.approx(0.25 * np.log(2) + 0.25 * np.log(1.5))
    assert np.isfinite(psi(np.array([1.0, 0.0]), np.array([0.0, 1.0])))
