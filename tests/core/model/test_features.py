"""Feature engineering: what a position means, and that columns and rows give the same numbers."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

from health_predict.core.model.features import EncounterFeatures
from health_predict.errors import StateError
from tests.contracts import DIABETES

EXAMPLE = DIABETES.request


@pytest.fixture(scope="module")
def fitted(cohort: pd.DataFrame) -> EncounterFeatures:
    return EncounterFeatures(DIABETES).fit(cohort)


def row(fitted: EncounterFeatures, **changes: str | int | None) -> dict[str, float]:
    values, _ = fitted.encoder_.encode({**EXAMPLE, **changes})
    return dict(zip(fitted.encoder_.names, values.tolist(), strict=True))


def test_columns_and_rows_give_the_same_numbers(fitted: EncounterFeatures, cohort: pd.DataFrame) -> None:
    # given a matrix made column by column
    matrix = fitted.transform(cohort)
    # then every row encoded alone is the same, bit by bit
    for position, encounter in enumerate(cohort.head(300).to_dict("records")):
        alone, _ = fitted.encoder_.encode(encounter)
        np.testing.assert_array_equal(alone, matrix[position])


def test_matrix_is_dense_float32_without_constant_positions(fitted: EncounterFeatures, cohort: pd.DataFrame) -> None:
    matrix = fitted.transform(cohort)
    assert matrix.dtype == np.float32
    assert matrix.shape == (len(cohort), len(fitted.get_feature_names_out()))
    assert np.isfinite(matrix).all()
    assert (matrix.min(axis=0) < matrix.max(axis=0)).all()


def test_identifiers_and_the_outcome_have_no_influence(fitted: EncounterFeatures, cohort: pd.DataFrame) -> None:
    # given the same encounters of other patients with other outcomes
    other = cohort.assign(encounter_id="1", patient_nbr="2", readmitted="<30")
    # then nothing changes, and the columns need not be there at all
    np.testing.assert_array_equal(fitted.transform(other), fitted.transform(cohort))
    only_features = cohort[[column.name for column in DIABETES.features]]
    np.testing.assert_array_equal(fitted.transform(only_features), fitted.transform(cohort))


def test_visits_are_logarithmic_and_stepped(fitted: EncounterFeatures) -> None:
    few, many = row(fitted, number_inpatient=1), row(fitted, number_inpatient=3)
    assert few["number_inpatient"] == pytest.approx(np.log1p(1))
    assert many["number_inpatient"] == pytest.approx(np.log1p(3))
    assert (few["number_inpatient>=1"], few["number_inpatient>=2"]) == (1, 0)
    assert (many["number_inpatient>=2"], many["number_inpatient>=3"]) == (1, 1)


def test_drugs_are_counted_as_given_and_as_changed(fitted: EncounterFeatures) -> None:
    assert row(fitted, metformin="No", insulin="No")["drugs given"] == 0
    changed = row(fitted, metformin="Steady", insulin="Down")
    assert (changed["drugs given"], changed["drugs changed"]) == (2, 1)


def test_a_code_of_a_known_disease_counts_as_that_disease(fitted: EncounterFeatures) -> None:
    # given a decimal that training never had
    encoded, unseen = fitted.encoder_.encode({**EXAMPLE, "diag_1": "428.99"})
    # then its chapter is marked and the column is reported as unseen
    names = dict(zip(fitted.encoder_.names, encoded.tolist(), strict=True))
    assert names["diag_1 chapter=circulatory"] == 1
    assert unseen == ["diag_1"]


def test_an_unseen_level_joins_the_rare_ones(fitted: EncounterFeatures) -> None:
    encoded, unseen = fitted.encoder_.encode({**EXAMPLE, "medical_specialty": "Astrology"})
    assert unseen == ["medical_specialty"]
    assert np.isfinite(encoded).all()


def test_it_learns_from_training_rows_only(cohort: pd.DataFrame) -> None:
    # given tables fitted on the first rows, and the same rows with others appended
    first = EncounterFeatures(DIABETES).fit(cohort.head(1500))
    # when other rows are transformed
    before = first.encoder_.to_json()
    first.transform(cohort.tail(1500))
    # then the tables stay
    assert first.encoder_.to_json() == before


def test_it_survives_saving(fitted: EncounterFeatures, cohort: pd.DataFrame) -> None:
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(cohort), fitted.transform(cohort))


def test_what_is_saved_is_text_and_one_without_a_contract_is_refused(fitted: EncounterFeatures) -> None:
    # given what is saved: a contract and tables as text
    state = fitted.__getstate__()
    assert isinstance(state["contract"], str)
    assert isinstance(state["encoder_"], str)
    # when a model of an earlier version is loaded, then it is said what to do
    with pytest.raises(StateError, match=r"earlier version.*train again"):
        EncounterFeatures(DIABETES).__setstate__({"minimum_rows": 100, "encoder_": state["encoder_"]})


def test_an_absent_column_is_named(fitted: EncounterFeatures, cohort: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="'age' is absent"):
        fitted.transform(cohort.drop(columns="age"))
