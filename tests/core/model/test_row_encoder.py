"""One encounter to one row: the same numbers as a whole column at a time."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from health_predict.core.model.features import EncounterFeatures
from health_predict.core.model.row_encoder import RowEncoder
from tests.contracts import DIABETES


@pytest.fixture(scope="module")
def features(cohort: pd.DataFrame) -> EncounterFeatures:
    return EncounterFeatures(DIABETES).fit(cohort)


def encounter(cohort: pd.DataFrame, row: int, **changes: str | int | None) -> dict[str, str | int | None]:
    return {**{column.name: str(cohort[column.name].iloc[row]) for column in DIABETES.features}, **changes}


def test_rows_are_those_of_the_transformer(cohort: pd.DataFrame, features: EncounterFeatures) -> None:
    # given the matrix of the training side
    expected = features.transform(cohort.head(300))
    # when each encounter is encoded by itself
    rows = np.stack([features.encoder_.encode(encounter(cohort, row))[0] for row in range(300)])
    # then not one bit differs
    assert rows.dtype == np.float32
    assert (rows.view(np.uint32) == expected.view(np.uint32)).all()


def test_numbers_and_their_digits_are_the_same_value(cohort: pd.DataFrame, features: EncounterFeatures) -> None:
    as_text = encounter(cohort, 0)
    as_numbers = {
        **as_text,
        "number_inpatient": int(str(as_text["number_inpatient"])),
        "admission_type_id": int(str(as_text["admission_type_id"])),
    }
    assert (features.encoder_.encode(as_text)[0] == features.encoder_.encode(as_numbers)[0]).all()


def test_null_and_absent_are_missing(cohort: pd.DataFrame, features: EncounterFeatures) -> None:
    missing = encounter(cohort, 0, weight="?", race="?")
    null = encounter(cohort, 0, weight=None, race=None)
    absent = {name: value for name, value in missing.items() if name not in ("weight", "race")}
    expected, _ = features.encoder_.encode(missing)
    assert (features.encoder_.encode(null)[0] == expected).all()
    assert (features.encoder_.encode(absent)[0] == expected).all()


def test_unseen_values_are_scored_and_named(cohort: pd.DataFrame, features: EncounterFeatures) -> None:
    row, unseen = features.encoder_.encode(encounter(cohort, 0, medical_specialty="Astrology", diag_1="999.99"))
    assert unseen == ["medical_specialty", "diag_1"]
    assert np.isfinite(row).all()


def test_an_unseen_diagnosis_counts_as_its_chapter(cohort: pd.DataFrame, features: EncounterFeatures) -> None:
    names = list(features.encoder_.names)
    row, _ = features.encoder_.encode(encounter(cohort, 0, diag_1="401.98"))
    assert row[names.index("diag_1 chapter=circulatory")] == 1


def test_json_keeps_every_number(cohort: pd.DataFrame, features: EncounterFeatures) -> None:
    # given the tables as text, as a Bento holds them
    text = json.dumps(features.encoder_.to_json(), sort_keys=True)
    # when they are read again
    again = RowEncoder.from_json(json.loads(text))
    # then they are the same, and so is their text
    for row in range(50):
        assert (again.encode(encounter(cohort, row))[0] == features.encoder_.encode(encounter(cohort, row))[0]).all()
    assert json.dumps(again.to_json(), sort_keys=True) == text


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 99"):
        RowEncoder.from_json({"format": 99, "names": [], "tables": []})
