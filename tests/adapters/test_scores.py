"""A contract's plug-in is found, and its single predictor stands beside it."""

from __future__ import annotations

import pandas as pd
import pytest

from health_predict.adapters.contracts import built_in
from health_predict.adapters.scores import clinical_scores
from health_predict.errors import SettingsError

FRAME = pd.DataFrame([built_in().example, {**built_in().example, "number_inpatient": "5"}])


def test_the_plug_in_gives_its_scores_and_the_library_the_single_predictor() -> None:
    found = clinical_scores(built_in(), FRAME)
    assert list(found) == ["LACE-like", "HOSPITAL-like", "number_inpatient alone"]
    assert found["number_inpatient alone"].tolist() == [2.0, 5.0]


def test_a_contract_without_scores_has_the_single_predictor_alone() -> None:
    # given
    other = built_in().model_copy(update={"scores": "", "single_predictor": "time_in_hospital"})
    # when
    found = clinical_scores(other, FRAME)
    # then
    assert list(found) == ["time_in_hospital alone"] and found["time_in_hospital alone"].tolist() == [6.0, 6.0]


def test_scores_that_are_not_installed_are_named_with_what_is() -> None:
    other = built_in().model_copy(update={"scores": "sepsis"})
    with pytest.raises(SettingsError, match=r"sepsis, which are not installed \(diabetes-130\) -> install the package"):
        clinical_scores(other, FRAME)
