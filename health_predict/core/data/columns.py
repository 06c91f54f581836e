"""The 50 columns of the Diabetes 130-US hospitals data, as plain tables.

One source for the data contract (`cohort`), the row encoder, the HTTP body and the synthetic cohort.
Standard library only: the prediction service imports it.

Source of names, levels and code meanings: Strack et al. 2014, doi:10.1155/2014/781670, and `IDS_mapping.csv`
of UCI dataset 296, doi:10.24432/C5230J.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum

MISSING = "?"
TARGET = "readmitted"
POSITIVE = "<30"
NEGATIVE = "NO"  # of somebody of whom no more is known than that he did not come back within 30 days
PATIENT = "patient_nbr"
ENCOUNTER = "encounter_id"
DATE = "discharge_date"
DISCHARGE = "discharge_disposition_id"

MAXIMUM_NUMBER = 10**18 - 1  # of an identifier: fits 64 bits
MAXIMUM_CODE = 999  # of `admission_type_id` and its like
MAXIMUM_TEXT = 100  # characters of a level that is free
# What is written for a missing value by mistake, in any case: `str(None)`, pandas, R, SQL.
WORDS_FOR_MISSING = frozenset({"nan", "none", "null", "na", "n/a", "<na>", "nat", "missing"})


class Kind(StrEnum):
    """How a column's values are read."""

    IDENTIFIER = "identifier"  # a positive integer that names an encounter or a patient; never a feature
    COUNT = "count"  # an integer between `minimum` and `maximum`
    LEVEL = "level"  # one of `levels` and nothing else
    OPEN_LEVEL = "open level"  # usually one of `levels`; a new one is scored and counted
    ICD9 = "icd9"  # a diagnosis code
    DATE = "date"  # a day, which orders encounters; never a feature
    OUTCOME = "outcome"  # the label


# What a whole text of a kind looks like, in words that Python, Rust (pydantic) and JSON Schema read alike.
# A file, the service and the registered model all read by these.
_PATTERNS = {
    Kind.IDENTIFIER: "[1-9][0-9]{0,17}",  # fits 64 bits
    Kind.COUNT: "0|[1-9][0-9]{0,8}",
    Kind.DATE: "[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    # Numbers may lack leading zeros. E and V codes have the digits and the range of ICD-9-CM, so that ICD-10's E11.9,
    # which is diabetes, is not taken for an injury. Source: ICD-9-CM, E800-E999 and V01-V91.
    Kind.ICD9: r"[0-9]{1,3}(\.[0-9]{1,2})?|E[89][0-9]{2}(\.[0-9])?|V(0[1-9]|[1-8][0-9]|9[01])(\.[0-9]{1,2})?",
}
_CODE = "[1-9][0-9]{0,2}"
# Without outer blanks and control characters, each by its number: what a blank is differs from one language to another.
_CONTROL = r"\x00-\x1f\x7f-\x9f"
_BLANK = r"\x20\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_TEXT = rf"[^{_CONTROL}{_BLANK}]([^{_CONTROL}]*[^{_CONTROL}{_BLANK}])?"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name in the file and in a request, and what it may hold."""

    name: str
    kind: Kind
    description: str
    levels: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = 0
    nullable: bool = False  # `?` in the file; null, `?` or absent in a request

    @property
    def is_feature(self) -> bool:
        """Whether a prediction may use it."""
        return self.kind not in (Kind.IDENTIFIER, Kind.DATE, Kind.OUTCOME)

    @property
    def is_code(self) -> bool:
        """Whether the levels are numbers, which a client may write with or without quotes."""
        return self.kind is Kind.OPEN_LEVEL and bool(self.levels) and self.levels[0].isdigit()

    @property
    def described(self) -> str:
        """What a cell may hold unless it is missing, in words."""
        if self.kind is Kind.IDENTIFIER:
            return "a positive whole number of at most 18 digits"
        if self.kind is Kind.DATE:
            return "a day as YYYY-MM-DD"
        if self.kind is Kind.COUNT:
            return f"a whole number from {self.minimum} to {self.maximum}"
        if self.kind in (Kind.LEVEL, Kind.OUTCOME):
            return f"one of {', '.join(self.levels)}"
        if self.kind is Kind.ICD9:
            return "an ICD-9 code such as 250.83, V57 or E909 (ICD-10 is not read)"
        if self.is_code:
            return f"a code from 1 to {MAXIMUM_CODE}, as a whole number or as its digits"
        return f"text of 1 to {MAXIMUM_TEXT} characters without outer blanks"

    @property
    def allowed(self) -> str:
        """What a request may hold, in words."""
        return f"{self.described}; null, ? or absent when unknown" if self.nullable else self.described

    @property
    def pattern(self) -> str:
        """Regular expression of a whole text that is not missing; empty where levels alone say what is allowed."""
        if self.kind is Kind.OPEN_LEVEL:
            return _CODE if self.is_code else _TEXT
        return _PATTERNS.get(self.kind, "")

    def holds(self, text: str) -> bool:
        """Whether a value may be this text, wherever it stands: in a file, in a request, before a registered model."""
        if text == MISSING:
            return self.nullable
        if not self.pattern:
            return text in self.levels
        if not re.fullmatch(self.pattern, text):
            return False
        if self.kind is Kind.COUNT:
            return self.minimum <= int(text) <= self.maximum
        if self.kind is Kind.DATE:
            return _is_day(text)
        if self.kind is Kind.OPEN_LEVEL and not self.is_code:
            return len(text) <= MAXIMUM_TEXT and text.lower() not in WORDS_FOR_MISSING
        return True


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _id_levels(*codes: int) -> tuple[str, ...]:
    return tuple(str(code) for code in codes)


DRUGS: tuple[str, ...] = (
    "metformin",
    "repaglinide",
    "nateglinide",
    "chlorpropamide",
    "glimepiride",
    "acetohexamide",
    "glipizide",
    "glyburide",
    "tolbutamide",
    "pioglitazone",
    "rosiglitazone",
    "acarbose",
    "miglitol",
    "troglitazone",
    "tolazamide",
    "examide",
    "citoglipton",
    "insulin",
    "glyburide-metformin",
    "glipizide-metformin",
    "glimepiride-pioglitazone",
    "metformin-rosiglitazone",
    "metformin-pioglitazone",
)
DRUG_LEVELS = ("No", "Steady", "Up", "Down")
AGES = tuple(f"[{low}-{low + 10})" for low in range(0, 100, 10))
DIAGNOSES = ("diag_1", "diag_2", "diag_3")

# Died or went to hospice: they cannot come back, so they are not patients to score.
NOT_READMITTABLE = _id_levels(11, 13, 14, 19, 20, 21)

COLUMNS: tuple[Column, ...] = (
    Column(ENCOUNTER, Kind.IDENTIFIER, "Unique number of the hospital stay"),
    Column(PATIENT, Kind.IDENTIFIER, "Unique number of the patient"),
    Column(
        "race",
        Kind.OPEN_LEVEL,
        "Race as recorded",
        ("Caucasian", "AfricanAmerican", "Hispanic", "Asian", "Other"),
        nullable=True,
    ),
    Column("gender", Kind.LEVEL, "Gender as recorded", ("Female", "Male", "Unknown/Invalid")),
    Column("age", Kind.LEVEL, "Age in ten-year intervals", AGES),
    Column(
        "weight",
        Kind.LEVEL,
        "Weight in pounds, by interval",
        ("[0-25)", "[25-50)", "[50-75)", "[75-100)", "[100-125)", "[125-150)", "[150-175)", "[175-200)", ">200"),
        nullable=True,
    ),
    Column(
        "admission_type_id",
        Kind.OPEN_LEVEL,
        "Type of admission: 1 emergency, 2 urgent, 3 elective, 4 newborn, 7 trauma, 5, 6 and 8 unknown",
        _id_levels(*range(1, 9)),
    ),
    Column(
        DISCHARGE,
        Kind.OPEN_LEVEL,
        "Where the patient went: 1 home, 3 skilled nursing, 6 home with service, 18 unknown, and others",
        _id_levels(*range(1, 31)),
    ),
    Column(
        "admission_source_id",
        Kind.OPEN_LEVEL,
        "Where the patient came from: 1 physician referral, 7 emergency room, 17 unknown, and others",
        _id_levels(*range(1, 27)),
    ),
    Column("time_in_hospital", Kind.COUNT, "Length of stay in days", minimum=1, maximum=14),
    Column(
        "payer_code",
        Kind.OPEN_LEVEL,
        "Who pays, as a code",
        ("BC", "CH", "CM", "CP", "DM", "FR", "HM", "MC", "MD", "MP", "OG", "OT", "PO", "SI", "SP", "UN", "WC"),
        nullable=True,
    ),
    Column("medical_specialty", Kind.OPEN_LEVEL, "Specialty of the admitting physician", nullable=True),
    Column("num_lab_procedures", Kind.COUNT, "Laboratory tests during the stay", maximum=200),
    Column("num_procedures", Kind.COUNT, "Procedures other than laboratory tests", maximum=20),
    Column("num_medications", Kind.COUNT, "Distinct drugs given during the stay", maximum=150),
    Column("number_outpatient", Kind.COUNT, "Outpatient visits in the year before", maximum=200),
    Column("number_emergency", Kind.COUNT, "Emergency visits in the year before", maximum=200),
    Column("number_inpatient", Kind.COUNT, "In-patient stays in the year before", maximum=100),
    Column("diag_1", Kind.ICD9, "Primary diagnosis, ICD-9", nullable=True),
    Column("diag_2", Kind.ICD9, "Secondary diagnosis, ICD-9", nullable=True),
    Column("diag_3", Kind.ICD9, "Further diagnosis, ICD-9", nullable=True),
    Column("number_diagnoses", Kind.COUNT, "Diagnoses entered for the stay", minimum=1, maximum=30),
    Column(
        "max_glu_serum",
        Kind.LEVEL,
        "Highest serum glucose in mg/dL; None means not measured",
        ("None", "Norm", ">200", ">300"),
    ),
    Column("A1Cresult", Kind.LEVEL, "Result of HbA1c in %; None means not measured", ("None", "Norm", ">7", ">8")),
    *(Column(drug, Kind.LEVEL, f"Whether {drug} was given, and how its dose changed", DRUG_LEVELS) for drug in DRUGS),
    Column("change", Kind.LEVEL, "Whether any diabetes drug was changed", ("No", "Ch")),
    Column("diabetesMed", Kind.LEVEL, "Whether any diabetes drug was given", ("No", "Yes")),
    Column(TARGET, Kind.OUTCOME, "Days to readmission", (POSITIVE, ">30", "NO")),
)
BY_NAME: dict[str, Column] = {column.name: column for column in COLUMNS}
FEATURES: tuple[Column, ...] = tuple(column for column in COLUMNS if column.is_feature)
# What an arrival may say of itself beside its features: who it is about, and when. The published file has no dates.
IDENTIFIERS: tuple[Column, ...] = (
    replace(BY_NAME[ENCOUNTER], nullable=True),
    replace(BY_NAME[PATIENT], nullable=True),
    Column(DATE, Kind.DATE, "Day of discharge", nullable=True),
)

# A made-up encounter as a request's body, for documentation and first tries.
EXAMPLE: dict[str, str | int | None] = {
    "race": "Caucasian",
    "gender": "Female",
    "age": "[70-80)",
    "weight": None,
    "admission_type_id": 1,
    "discharge_disposition_id": 3,
    "admission_source_id": 7,
    "time_in_hospital": 6,
    "payer_code": "MC",
    "medical_specialty": "InternalMedicine",
    "num_lab_procedures": 52,
    "num_procedures": 1,
    "num_medications": 18,
    "number_outpatient": 0,
    "number_emergency": 1,
    "number_inpatient": 2,
    "diag_1": "428",
    "diag_2": "250.02",
    "diag_3": "401",
    "number_diagnoses": 9,
    "max_glu_serum": "None",
    "A1Cresult": ">8",
    **dict.fromkeys(DRUGS, "No"),
    "metformin": "Steady",
    "insulin": "Up",
    "change": "Ch",
    "diabetesMed": "Yes",
}

# First code of each chapter, in order. Source: ICD-9-CM, tabular list of diseases.
_CHAPTERS: tuple[tuple[float, str], ...] = (
    (1, "infectious"),
    (140, "neoplasms"),
    (240, "endocrine"),
    (250, "diabetes"),
    (251, "endocrine"),
    (280, "blood"),
    (290, "mental"),
    (320, "nervous"),
    (390, "circulatory"),
    (460, "respiratory"),
    (520, "digestive"),
    (580, "genitourinary"),
    (630, "pregnancy"),
    (680, "skin"),
    (710, "musculoskeletal"),
    (740, "congenital"),
    (780, "symptoms"),
    (800, "injury"),
)
ICD9_CHAPTERS: tuple[str, ...] = (*dict.fromkeys(name for _, name in _CHAPTERS), "external", "supplementary", "missing")


def icd9_chapter(code: str) -> str:
    """Chapter of an ICD-9 code such as `250.83`, `V57` or `E909`; `missing` for `?`.

    Diabetes (250) stands apart from its chapter. Raises ValueError for text that is no code.
    """
    if code == MISSING:
        return "missing"
    if code[0] == "V":
        return "supplementary"
    if code[0] == "E":
        return "external"
    chapter = bisect_right(_CHAPTERS, float(code), key=lambda first_and_name: first_and_name[0])
    return _CHAPTERS[max(chapter - 1, 0)][1]


def icd9_category(code: str) -> str:
    """The code without its decimals: `250.83` is `250`."""
    return code.partition(".")[0]
