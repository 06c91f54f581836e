"""Points of the clinical scores, by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from health_predict.adapters.contracts import built_in
from health_predict.contracts.diabetes_130 import clinical_scores

HEALTHY = {
    **built_in().example,
    "time_in_hospital": 1,
    "admission_type_id": "3",
    "number_emergency": 0,
    "number_inpatient": 0,
    "num_procedures": 0,
    "medical_specialty": "?",
    "diag_1": "V57",
    "diag_2": "?",
    "diag_3": "E909",
}


@pytest.mark.parametrize(
    ("changes", "lace", "hospital"),
    [
        ({}, 1, 0),
        ({"time_in_hospital": 6}, 4, 2),
        ({"time_in_hospital": 14}, 7, 2),
        ({"admission_type_id": "1"}, 4, 1),
        ({"admission_type_id": "2"}, 1, 1),
        ({"number_emergency": 9}, 5, 0),
        ({"number_inpatient": 5}, 1, 2),
        ({"number_inpatient": 6}, 1, 5),
        ({"num_procedures": 2, "medical_specialty": "Hematology/Oncology"}, 1, 3),
        ({"diag_1": "428", "diag_3": "428.1"}, 3, 0),  # one disease, though coded twice
        ({"diag_1": "250.02"}, 2, 0),
        ({"diag_1": "250.6"}, 3, 0),
        ({"diag_1": "428", "diag_2": "496"}, 6, 0),  # 4 and more count as 5
        ({"diag_1": "197"}, 6, 0),
    ],
)
def test_points(changes: dict[str, object], lace: int, hospital: int) -> None:
    found = clinical_scores(pd.DataFrame([{**HEALTHY, **changes}]))
    assert (found["LACE-like"][0], found["HOSPITAL-like"][0]) == (lace, hospital)
