"""The synthetic cohort looks like the real one, and injected drift is what its truth says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from health_predict.adapters.contracts import built_in, built_in_synthetic
from health_predict.core.choices import Scenario
from health_predict.core.data.cohort import target, validate, without_excluded
from health_predict.core.data.partition import patient_share
from health_predict.core.data.scenarios import GroundTruth
from health_predict.core.data.synthetic import is_synthetic
from health_predict.core.model.features import EncounterFeatures
from health_predict.errors import DataError
from tests.cohorts import inject, synthesize
from tests.contracts import AGES, COLUMNS, DIABETES, DIAGNOSES, DRUGS, NOT_READMITTABLE

ROWS, FROM_ROW = 40_000, 20_000


@pytest.fixture(scope="module")
def large() -> pd.DataFrame:
    return synthesize(ROWS, seed=11)


@pytest.fixture(scope="module")
def model(large: pd.DataFrame) -> Callable[[pd.DataFrame], float]:
    """AUC on other rows of a regression that was fitted before the drift."""
    train = without_excluded(large.iloc[:FROM_ROW], DIABETES)
    train = train[[patient_share("s", number) < 0.7 for number in train["patient_nbr"]]]
    fitted = make_pipeline(EncounterFeatures(built_in()), StandardScaler(), LogisticRegression(C=3e-4, max_iter=500))
    fitted.fit(train, target(train, DIABETES))
    known = set(train["patient_nbr"])

    def auc(rows: pd.DataFrame) -> float:
        fresh = without_excluded(rows[~rows["patient_nbr"].isin(known)], DIABETES)
        return float(roc_auc_score(target(fresh, DIABETES), fitted.predict_proba(fresh)[:, 1]))

    return auc


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 400), seed=st.integers(0, 2**32))
def test_any_size_keeps_the_contract(rows: int, seed: int) -> None:
    frame = synthesize(rows, seed)
    assert frame.shape == (rows, 50) and frame.columns.tolist() == [column.name for column in COLUMNS]
    assert validate(frame, DIABETES) == [] and frame.index.equals(pd.RangeIndex(rows))


def test_the_same_seed_gives_the_same_rows_and_another_one_others() -> None:
    assert synthesize(300, 1).equals(synthesize(300, 1))
    assert not synthesize(300, 1).equals(synthesize(300, 2))


def digest(frames: Iterable[pd.DataFrame]) -> str:
    return hashlib.sha256(
        b"".join(frame.to_csv(index=False, lineterminator="\n").encode() for frame in frames)
    ).hexdigest()


def test_the_rows_of_a_seed_stay_what_they_were() -> None:
    # a change of the generator or of its file is one of VERSION too: what was made before is made differently now
    frame = synthesize(1000, 11)
    assert digest([frame])[:16] == "a9ed34d5868141b0"
    assert digest(inject(frame, scenario, 500, 14)[0] for scenario in Scenario)[:16] == "8f715eeea2a2855d"


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="at least one"):
        synthesize(0, 1)


def test_encounters_follow_time_and_are_recognised(large: pd.DataFrame) -> None:
    numbers = large["encounter_id"].astype(np.int64)
    assert (numbers.diff().iloc[1:] > 0).all()
    assert large["encounter_id"].map(is_synthetic).all() and large["patient_nbr"].map(is_synthetic).all()
    assert not is_synthetic("443867222") and not is_synthetic("?")


def test_marginals_are_those_of_the_real_cohort(large: pd.DataFrame) -> None:
    for name, table in built_in_synthetic().columns.items():
        shares = large[name].value_counts(normalize=True)
        # what depends on the patient's history is only near
        tolerance = 0.03 if name in ("age", "race", "gender", "number_inpatient") else 0.012
        for level, amount in table.items():
            assert abs(shares.get(level, 0.0) - amount / 100_000) < tolerance, (name, level)
    assert abs((large["change"] == "Ch").mean() - 0.462) < 0.03
    assert abs((large["diabetesMed"] == "Yes").mean() - 0.770) < 0.03


def test_prevalence_repeats_and_missing_values_are_those_of_the_real_cohort(large: pd.DataFrame) -> None:
    assert abs(target(large, DIABETES).mean() - 0.112) < 0.008
    assert abs((large["readmitted"] == ">30").mean() - 0.349) < 0.015
    assert 0.24 < large["patient_nbr"].duplicated().mean() < 0.34
    assert abs((large["weight"] == "?").mean() - 0.969) < 0.01
    assert large["max_glu_serum"].eq("None").any()
    codes = pd.concat([large[name] for name in DIAGNOSES])
    assert codes.str.startswith("V").any() and codes.str.startswith("E").any()


def test_nothing_changes_over_time(large: pd.DataFrame) -> None:
    halves = np.array_split(np.arange(ROWS), 2)
    for values in (
        target(large, DIABETES),
        large["number_inpatient"].astype(int).to_numpy(),
        large["age"].map(AGES.index),
    ):
        first, second = (np.asarray(values)[half] for half in halves)
        error = np.sqrt(first.var() / len(first) + second.var() / len(second))
        assert abs(first.mean() - second.mean()) < 5 * error


def test_labels_agree_with_the_next_stay(large: pd.DataFrame) -> None:
    last = ~large["patient_nbr"].duplicated(keep="last")
    # who is not readmitted, or dead, never comes again
    gone = (large["readmitted"] == "NO") | large["discharge_disposition_id"].isin(NOT_READMITTABLE)
    assert last[gone].all()
    dead = large["discharge_disposition_id"].isin(NOT_READMITTABLE)
    assert dead.any() and (large.loc[dead, "readmitted"] == "NO").all()
    # who comes back within 30 days comes sooner than who comes back later: 28 rows a day
    position = pd.Series(np.arange(ROWS))
    gap = position.groupby(large["patient_nbr"]).shift(-1) - position
    assert gap[large["readmitted"] == "<30"].max() < 30 * 28 * 1.2
    assert gap[large["readmitted"] == ">30"].min() > 30 * 28 * 0.8


def test_patients_keep_race_and_gender_and_do_not_grow_younger(large: pd.DataFrame) -> None:
    by_patient = large.groupby("patient_nbr")
    assert (by_patient["race"].nunique() == 1).all() and (by_patient["gender"].nunique() == 1).all()
    age = large["age"].map(AGES.index)
    assert (age.groupby(large["patient_nbr"]).diff().dropna() >= 0).all()
    # and a stay shortly before counts as one of the year before
    before = large["readmitted"].groupby(large["patient_nbr"]).shift(1) == "<30"
    assert (large.loc[before, "number_inpatient"].astype(int) >= 1).all()


def test_the_label_can_be_learned_about_as_well_as_the_real_one(
    large: pd.DataFrame, model: Callable[[pd.DataFrame], float]
) -> None:
    assert 0.655 < model(large.iloc[FROM_ROW:]) < 0.71


@pytest.mark.parametrize("scenario", list(Scenario))
def test_every_scenario_keeps_the_contract_the_past_and_the_order(scenario: Scenario, large: pd.DataFrame) -> None:
    # when
    drifted, truth = inject(large, scenario, FROM_ROW, seed=3)
    # then
    assert validate(drifted, DIABETES) == [] and drifted.index.equals(large.index)
    assert drifted.iloc[:FROM_ROW].equals(large.iloc[:FROM_ROW])
    assert drifted["encounter_id"].equals(large["encounter_id"])
    assert truth.first_encounter == large["encounter_id"].iloc[FROM_ROW] and truth.rows == ROWS - FROM_ROW
    changed = (drifted != large).to_numpy().any(axis=1).sum()
    unchanged = (Scenario.NONE, Scenario.DELAYED_LABELS)
    assert truth.changed_rows == changed and (changed > 0) == (scenario not in unchanged)
    # and it is repeatable
    assert inject(large, str(scenario), FROM_ROW, seed=3)[0].equals(drifted)


def drift(large: pd.DataFrame, scenario: str) -> tuple[pd.DataFrame, pd.DataFrame, GroundTruth]:
    """The rows from where drift begins, before and after."""
    drifted, truth = inject(large, scenario, FROM_ROW, seed=3)
    return large.iloc[FROM_ROW:], drifted.iloc[FROM_ROW:], truth


def test_shifts_change_their_column_and_not_what_a_row_says_about_its_label(
    large: pd.DataFrame, model: Callable[[pd.DataFrame], float]
) -> None:
    shifts = (("age-shift", "age", "[80-90)"), ("admission-type-shift", "admission_type_id", "3"))
    for scenario, column, level in shifts:
        before, after, truth = drift(large, scenario)
        assert (after[column] == level).mean() > 1.5 * (before[column] == level).mean()
        assert abs(model(after) - model(before)) < 0.025 and truth.kind == "covariate"


@pytest.mark.parametrize(("scenario", "factor"), [("prevalence-down", 0.6), ("prevalence-up", 1.5)])
def test_prevalence_moves_and_ranking_holds(
    scenario: str, factor: float, large: pd.DataFrame, model: Callable[[pd.DataFrame], float]
) -> None:
    before, after, truth = drift(large, scenario)
    assert target(after, DIABETES).mean() / target(before, DIABETES).mean() == pytest.approx(factor, abs=0.08)
    assert abs(model(after) - model(before)) < 0.03 and truth.kind == "prior"


def test_a_concept_flip_is_silent_but_for_the_labels(
    large: pd.DataFrame, model: Callable[[pd.DataFrame], float]
) -> None:
    before, after, _ = drift(large, "concept-flip")
    assert after.drop(columns="readmitted").equals(before.drop(columns="readmitted"))
    assert target(after, DIABETES).sum() == target(before, DIABETES).sum()
    assert model(after) < 0.5
    dead = after["discharge_disposition_id"].isin(NOT_READMITTABLE)
    assert (after.loc[dead, "readmitted"] == "NO").all()


def test_missingness_switches(large: pd.DataFrame, model: Callable[[pd.DataFrame], float]) -> None:
    before, after, _ = drift(large, "missingness-switch")
    for name in ("payer_code", "medical_specialty"):
        assert ((before[name] == "?") == (after[name] != "?")).all()
    assert abs(model(after) - model(before)) < 0.025


def test_missingness_of_a_column_without_any_value_stays(large: pd.DataFrame) -> None:
    drifted, _ = inject(large.assign(payer_code="?"), Scenario.MISSINGNESS_SWITCH, FROM_ROW, seed=1)
    assert (drifted["payer_code"] == "?").all()


def test_recoding_and_caps_change_the_values_they_name(large: pd.DataFrame) -> None:
    _, recoded, _ = drift(large, "icd-recoding")
    assert not recoded["diag_1"].str.startswith(("250", "428")).any() and (recoded["diag_1"] == "249").any()
    _, capped, _ = drift(large, "capped-counts")
    assert capped["number_diagnoses"].astype(int).max() == 5 and capped["number_inpatient"].astype(int).max() == 1


def test_a_withdrawal_is_gradual(large: pd.DataFrame) -> None:
    before, after, _ = drift(large, "drug-withdrawal")
    use = [(after["metformin"].iloc[start : start + 5_000] != "No").mean() for start in range(0, 20_000, 5_000)]
    assert use == sorted(use, reverse=True) and use[-1] < 0.2 * (before["metformin"] != "No").mean()
    changed = (after != before).any(axis=1)
    given = (after.loc[changed, list(DRUGS)] != "No").any(axis=1)
    assert ((after.loc[changed, "diabetesMed"] == "Yes") == given).all()


def test_a_prior_shift_of_rows_with_one_label_changes_no_share(large: pd.DataFrame) -> None:
    drifted, _ = inject(large.assign(readmitted="NO"), Scenario.PREVALENCE_UP, FROM_ROW, seed=1)
    assert (drifted["readmitted"] == "NO").all()


def test_wrong_arguments_are_refused(large: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="use one of none, age-shift"):
        inject(large, "earthquake", 5, seed=1)
    for row in (-1, ROWS):
        with pytest.raises(DataError, match="from 0 to 39999"):
            inject(large, "none", row, seed=1)


def test_the_truth_is_plain_json(large: pd.DataFrame) -> None:
    content = json.loads(json.dumps(asdict(inject(large, "capped-counts", FROM_ROW, seed=4)[1])))
    assert content["scenario"] == "capped-counts"
    assert content["columns"] == ["num_medications", "number_inpatient", "number_diagnoses"] and content["seed"] == 4
