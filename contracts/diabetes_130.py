"""The scores of the diabetes contract: what clinicians use today, as far as the data allow.

LACE: length of stay, acuity, comorbidity, emergency visits. Source: van Walraven et al. 2010,
doi:10.1503/cmaj.091117. HOSPITAL without haemoglobin and sodium, which the data lack. Source: Donze et al. 2013,
doi:10.1001/jamainternmed.2013.3023. Both are called "-like": comorbidity comes from three diagnoses, and visits are
those of the year before, not of six months.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

Points = npt.NDArray[np.float64]

_EMERGENCY, _NOT_PLANNED = ("1",), ("1", "2", "7")
# Points of LACE's Charlson index by ranges of ICD-9 codes, both ends included.
_COMORBIDITY: tuple[tuple[int, tuple[tuple[float, float], ...]], ...] = (
    (1, ((410, 410.99), (412, 412.99))),  # previous myocardial infarction
    (1, ((430, 438.99),)),  # cerebrovascular disease
    (1, ((440, 443.99), (785.4, 785.4))),  # peripheral vascular disease
    (1, ((250, 250.399),)),  # diabetes without complications
    (2, ((428, 428.99),)),  # congestive heart failure
    (2, ((250.4, 250.99),)),  # diabetes with end organ damage
    (2, ((490, 505.99),)),  # chronic pulmonary disease
    (2, ((571, 571.99), (582, 588.99))),  # mild liver or renal disease
    (2, ((140, 195.99), (200, 208.99))),  # any tumour
    (3, ((290, 290.99),)),  # dementia
    (3, ((710, 710.99), (714, 714.99), (725, 725.99))),  # connective tissue disease
    (4, ((42, 42.99),)),  # AIDS
    (4, ((572, 572.99),)),  # moderate or severe liver or renal disease
    (6, ((196, 199.99),)),  # metastatic solid tumour
)
_DIAGNOSES = ("diag_1", "diag_2", "diag_3")


def clinical_scores(frame: pd.DataFrame) -> Mapping[str, Points]:
    """Points of each score by name; `frame` is a cohort frame (n, columns), each array has shape (n,)."""
    return {
        "LACE-like": _lace(frame),
        "HOSPITAL-like": _hospital(frame),
    }


def _count(frame: pd.DataFrame, name: str) -> Points:
    values: Points = pd.to_numeric(frame[name]).to_numpy(np.float64)
    return values


def _lace(frame: pd.DataFrame) -> Points:
    stay = _steps(_count(frame, "time_in_hospital"), ((1, 1), (2, 2), (3, 3), (4, 4), (7, 5), (14, 7)))
    acuity = 3.0 * frame["admission_type_id"].astype(str).isin(_EMERGENCY).to_numpy()
    visits = np.minimum(_count(frame, "number_emergency"), 4)
    return stay + acuity + _comorbidity(frame) + visits


def _hospital(frame: pd.DataFrame) -> Points:
    oncology = 2.0 * frame["medical_specialty"].astype(str).str.contains("Oncology").to_numpy(bool)
    procedure = 1.0 * (_count(frame, "num_procedures") > 0)
    kind = 1.0 * frame["admission_type_id"].astype(str).isin(_NOT_PLANNED).to_numpy()
    admissions = _steps(_count(frame, "number_inpatient"), ((1, 2), (6, 5)))
    stay = _steps(_count(frame, "time_in_hospital"), ((5, 2),))
    total: Points = oncology + procedure + kind + admissions + stay
    return total


def _steps(values: Points, steps: tuple[tuple[int, int], ...]) -> Points:
    """Points of the highest step that each value reaches; 0 below the first."""
    levels: Points = np.array([0, *(points for _, points in steps)], dtype=np.float64)
    found: Points = levels.take(np.searchsorted([first for first, _ in steps], values, side="right"))
    return found


def _comorbidity(frame: pd.DataFrame) -> Points:
    total = np.zeros(len(frame))
    # V and E codes and missing ones are no numbers, and no disease of the index.
    codes = [pd.to_numeric(frame[name].astype(str), errors="coerce").to_numpy(np.float64) for name in _DIAGNOSES]
    for points, ranges in _COMORBIDITY:
        present = np.zeros(len(frame), dtype=bool)
        for first, last in ranges:
            for code in codes:
                present |= (code >= first) & (code <= last)
        total += points * present
    return np.where(total >= 4, 5.0, total)
