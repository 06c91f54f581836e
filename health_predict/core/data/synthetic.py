"""A synthetic cohort that looks like the real one, and drift with a known truth injected into any cohort.

No row is copied: values are drawn from the tables in `marginals`, histories and labels from a small simulation of
patients who come, leave and come back. Encounters and patients have numbers above `FIRST_NUMBER`, which no real
one has, so that generated rows are recognised wherever they turn up.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.choices import Scenario
from health_predict.core.data import marginals
from health_predict.core.data.columns import (
    AGES,
    COLUMNS,
    DIAGNOSES,
    DRUGS,
    ENCOUNTER,
    MISSING,
    NOT_READMITTABLE,
    PATIENT,
    POSITIVE,
    TARGET,
    icd9_chapter,
)
from health_predict.errors import DataError

VERSION = 1  # of the generator: changes when the same seed gives other rows
FIRST_NUMBER = 9_000_000_000
REAL_SIZE = 101_766  # encounters of the real cohort

_DAYS_PER_YEAR = 365.25
_ROWS_PER_DAY = 28.0  # 101,766 encounters in ten years
_SHORTEST_SPAN = 400.0  # days; a small cohort is spread out so that its patients have time to come back
_BURN_IN = 1600.0  # days before the first row, so that histories are as long at the start as at the end

# Log-odds of `<30`. Rounded from the shares in the real cohort; `_STRENGTH` sets how well the label can be learned.
_INTERCEPT = -2.57
_STRENGTH = 1.15
_INPATIENT = (0.0, 0.50, 0.85, 1.05, 1.25, 1.60, 1.75)  # by stays in the year before; the last for more
_EMERGENCY = (0.0, 0.25, 0.45, 0.60)
_AGE = dict(zip(AGES, (-1.2, -0.6, 0.25, 0.0, -0.05, -0.15, 0.0, 0.08, 0.12, 0.02), strict=True))
_RACE = {MISSING: -0.25, "Other": -0.10, "AfricanAmerican": 0.03}
_EFFECTS: dict[str, dict[str, float]] = {
    "discharge_disposition_id": {
        "1": -0.15, "2": 0.50, "3": 0.35, "4": 0.20, "5": 0.75, "6": 0.20, "7": 0.35, "15": 1.2, "18": 0.15,
        "22": 1.10, "28": 1.50,
    },
    "admission_type_id": {"1": 0.05, "3": -0.08},
    "medical_specialty": {
        "Cardiology": -0.25, "Nephrology": 0.25, "Oncology": 0.35, "ObstetricsandGynecology": -0.5, "Radiologist": -0.2,
        "Orthopedics-Reconstructive": -0.35, "Surgery-Cardiovascular/Thoracic": -0.4, "Surgery-Vascular": 0.2,
    },
    "A1Cresult": {"Norm": -0.12, ">7": -0.1, ">8": -0.15},
    "insulin": {"Down": 0.20, "Up": 0.14, "No": -0.10},
    "metformin": {"Steady": -0.12, "Up": -0.20},
}  # fmt: skip
_CHAPTER_EFFECTS: dict[str, dict[str, float]] = {
    "diag_1": {
        "diabetes": 0.15, "symptoms": -0.30, "pregnancy": -0.60, "supplementary": 0.35, "musculoskeletal": -0.20,
        "blood": 0.15,
    },
    "diag_2": {"neoplasms": 0.40, "skin": 0.20, "pregnancy": -0.4},
    "diag_3": {"neoplasms": 0.30, "genitourinary": 0.22, "skin": 0.20, "pregnancy": -0.4},
}  # fmt: skip
# Log-odds of `>30` among those who do not come back within 30 days.
_LATER_INTERCEPT = -0.585
_LATER_STRENGTH = 0.6

_SEEN_AGAIN = 0.76  # share of readmissions that are encounters of this cohort
_MEAN_GAP = 560.0  # days between a stay and a readmission later than 30 days, beyond those 30
_OUTSIDE = 0.55  # how much of the in-patient history lies outside this cohort

# Loadings on one factor (how ill) for counts of the stay, on another (how frail) for counts of the year before.
_ILLNESS = {
    "time_in_hospital": 0.70,
    "num_lab_procedures": 0.45,
    "num_procedures": 0.35,
    "num_medications": 0.70,
    "number_diagnoses": 0.38,
}
_FRAILTY = {"number_outpatient": 0.40, "number_emergency": 0.50, "number_inpatient": 0.45}


def is_synthetic(encounter_id: str) -> bool:
    """Whether an encounter has a number of the synthetic cohort."""
    return encounter_id.isdigit() and int(encounter_id) >= FIRST_NUMBER


def synthesize(rows: int, seed: int) -> pd.DataFrame:
    """A cohort frame of shape (rows, 50), in order of time and `encounter_id`; the same for the same arguments.

    Like the real cohort: its marginals, 11.2 % readmitted within 30 days, 30 % of the rows later stays of patients
    seen before (in a large cohort), nobody readmitted after death. A label agrees with the patient's next stay: it
    lies within 30 days after `<30`, later after `>30`, and there is none after `NO`. The distributions do not
    change over time. Raises DataError when rows < 1.
    """
    if rows < 1:
        raise DataError(f"a cohort of {rows} rows cannot be made", "ask for at least one row")
    rng = np.random.default_rng(seed)
    span = max(rows / _ROWS_PER_DAY, _SHORTEST_SPAN)
    before = round(rows * _BURN_IN / span)
    total = before + rows
    columns = _stays(rng, total)
    days = np.sort(rng.random(total)) * span * total / rows
    patients = _histories(rng, columns, days)
    columns[PATIENT] = _patient_numbers(rng, patients)
    columns[ENCOUNTER] = FIRST_NUMBER + np.cumsum(rng.integers(1, 9_000, total))
    kept = slice(before, None)
    return pd.DataFrame({column.name: pd.Series(columns[column.name][kept]).astype(str) for column in COLUMNS})


def _stays(rng: np.random.Generator, size: int) -> dict[str, npt.NDArray[Any]]:
    """All columns that do not depend on who the patient is, and first drafts of those that do."""
    columns: dict[str, npt.NDArray[Any]] = {}
    for name, table in marginals.LEVELS.items():
        if name != "age":
            columns[name] = _draw(rng.random(size), table)
    illness, frailty = rng.standard_normal((2, size))
    for loadings, factor in ((_ILLNESS, illness), (_FRAILTY, frailty)):
        for name, loading in loadings.items():
            columns[name] = _draw(_correlated(rng, factor, loading), marginals.COUNTS[name]).astype(np.int64)
    columns["age"] = _draw(_correlated(rng, illness, 0.15), {level: marginals.LEVELS["age"][level] for level in AGES})
    for name, table in marginals.DIAGNOSES.items():
        columns[name] = _draw(rng.random(size), {code: n for code, n in table.items() if code != MISSING})
    columns["diag_1"][rng.random(size) < marginals.DIAGNOSES["diag_1"][MISSING] / 100_000] = MISSING
    columns["diag_2"][columns["number_diagnoses"] < 2] = MISSING
    columns["diag_3"][columns["number_diagnoses"] < 3] = MISSING
    for drug in DRUGS:
        given, up, down = marginals.DRUGS.get(drug, (0, 0, 0))
        columns[drug] = _draw(
            rng.random(size), {"No": 100_000 - given, "Steady": given - up - down, "Up": up, "Down": down}
        )
    columns["diabetesMed"], columns["change"] = _drug_summary(columns)
    return columns


def _draw(uniform: npt.NDArray[np.float64], table: marginals.Table) -> npt.NDArray[Any]:
    bounds = np.cumsum(np.array(list(table.values()), dtype=np.float64))
    places = np.searchsorted(bounds, uniform * bounds[-1], side="right")
    values: npt.NDArray[Any] = np.array(list(table), dtype=object)[np.minimum(places, len(table) - 1)]
    return values


def _correlated(rng: np.random.Generator, factor: npt.NDArray[np.float64], loading: float) -> npt.NDArray[np.float64]:
    # One-factor Gaussian copula.
    from scipy.special import ndtr

    noise = rng.standard_normal(len(factor))
    uniform: npt.NDArray[np.float64] = ndtr(loading * factor + np.sqrt(1 - loading**2) * noise)
    return uniform


def _drug_summary(columns: dict[str, npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """`diabetesMed` and `change` as the drugs say: any drug; a dose changed or drugs combined."""
    given = sum((columns[drug] != "No").astype(np.int64) for drug in DRUGS)
    changed = sum(np.isin(columns[drug], ("Up", "Down")).astype(np.int64) for drug in DRUGS)
    medicated = np.where(np.asarray(given) > 0, "Yes", "No").astype(object)
    change = np.where((np.asarray(changed) > 0) | (np.asarray(given) > 1), "Ch", "No").astype(object)
    return medicated, change


def _risk(columns: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """Log-odds of `<30` from what does not depend on the patient's identity, without intercept and strength."""
    risk = 0.055 * (np.minimum(columns["time_in_hospital"], 9) - 4.3)
    risk = risk + 0.05 * (columns["number_diagnoses"] - 7.4) + 0.006 * (columns["num_medications"] - 16)
    risk += np.array(_EMERGENCY)[np.minimum(columns["number_emergency"], len(_EMERGENCY) - 1)]
    for name, effects in _EFFECTS.items():
        risk += _effect(columns[name], effects)
    for name, effects in _CHAPTER_EFFECTS.items():
        chapters = {code: effects.get(icd9_chapter(code), 0.0) for code in marginals.DIAGNOSES[name]}
        risk += _effect(columns[name], chapters)
    return np.asarray(risk, dtype=np.float64)


def _effect(values: npt.NDArray[Any], effects: dict[str, float]) -> npt.NDArray[np.float64]:
    codes, distinct = pd.factorize(values)
    return np.array([effects.get(str(value), 0.0) for value in distinct])[codes]


@dataclass(slots=True)
class _Patient:
    number: int
    race: str
    gender: str
    age: str
    stays: list[float]  # days of admission in this cohort
    deadline: float = np.inf  # the next stay must come by this day


def _histories(
    rng: np.random.Generator, columns: dict[str, npt.NDArray[Any]], days: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Who comes on which day, in place: race, gender, age, in-patient history and label; gives patient indexes.

    Row by row in order of time, since a label decides when the patient returns, and a return what the next label is.
    """
    size = len(days)
    fixed = _risk(columns).tolist()
    draws = rng.random((6, size)).tolist()
    gaps = rng.exponential(_MEAN_GAP, size).tolist()
    races, genders, ages = columns["race"].tolist(), columns["gender"].tolist(), columns["age"].tolist()
    inpatient = columns["number_inpatient"].tolist()
    dead = np.isin(columns["discharge_disposition_id"], NOT_READMITTABLE).tolist()
    labels: list[str] = []
    patients: list[int] = []
    expected: list[tuple[float, int, _Patient]] = []
    for row, day in enumerate(days.tolist()):
        patient = None
        while expected and expected[0][0] <= day and patient is None:
            due = heapq.heappop(expected)[2]
            patient = due if day <= due.deadline else None  # too late: the stay was in another hospital
        outside = inpatient[row] if draws[0][row] < _OUTSIDE else 0
        if patient is None:
            patient = _Patient(row, races[row], genders[row], ages[row], [])
        else:
            if draws[1][row] < (day - patient.stays[-1]) / _DAYS_PER_YEAR / 10:
                patient.age = AGES[min(AGES.index(patient.age) + 1, len(AGES) - 1)]
        patient.stays = [stay for stay in patient.stays if stay > day - _DAYS_PER_YEAR]
        inpatient[row] = outside + len(patient.stays)
        races[row], genders[row], ages[row] = patient.race, patient.gender, patient.age
        patients.append(patient.number)
        patient.stays.append(day)
        if dead[row]:
            labels.append("NO")
            continue
        risk = fixed[row] + _INPATIENT[min(inpatient[row], len(_INPATIENT) - 1)]
        risk = _STRENGTH * (risk + _AGE[patient.age] + _RACE.get(patient.race, 0.0))
        if draws[2][row] < _probability(_INTERCEPT + risk):
            label, due_day, patient.deadline = POSITIVE, day + 1 + 27 * draws[3][row], day + 30
        elif draws[4][row] < _probability(_LATER_INTERCEPT + _LATER_STRENGTH * risk):
            label, due_day, patient.deadline = ">30", day + 31 + gaps[row], np.inf
        else:
            labels.append("NO")
            continue
        labels.append(label)
        if draws[5][row] < _SEEN_AGAIN:
            heapq.heappush(expected, (due_day, row, patient))
    for name, values in (("race", races), ("gender", genders), ("age", ages), (TARGET, labels)):
        columns[name] = np.array(values, dtype=object)
    columns["number_inpatient"] = np.array(inpatient, dtype=np.int64)
    return np.array(patients, dtype=np.int64)


def _probability(log_odds: float) -> float:
    return float(1 / (1 + np.exp(-log_odds)))


def _patient_numbers(rng: np.random.Generator, patients: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    # Shuffled, so that a number says nothing about time.
    return FIRST_NUMBER + 37 * (1 + rng.permutation(len(patients)))[patients]


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """What `inject` did, to judge a monitor by.

    `kind` is what a statistician calls it: none, covariate, quality, prior, concept or delay. `first_encounter` is the
    `encounter_id` at row `from_row` (from 0), where the change begins.
    """

    scenario: Scenario
    kind: str
    from_row: int
    first_encounter: str
    rows: int  # in the changed part
    columns: tuple[str, ...]  # changed directly
    changed_rows: int  # that differ in any column from the row that stood there before
    seed: int


# What each scenario changes directly, and its kind.
_KINDS: dict[Scenario, tuple[str, tuple[str, ...]]] = {
    Scenario.NONE: ("none", ()),
    Scenario.AGE_SHIFT: ("covariate", ("age",)),
    Scenario.ADMISSION_TYPE_SHIFT: ("covariate", ("admission_type_id",)),
    Scenario.MISSINGNESS_SWITCH: ("quality", ("payer_code", "medical_specialty")),
    Scenario.ICD_RECODING: ("quality", DIAGNOSES),
    Scenario.CAPPED_COUNTS: ("quality", ("num_medications", "number_inpatient", "number_diagnoses")),
    Scenario.PREVALENCE_DOWN: ("prior", (TARGET,)),
    Scenario.PREVALENCE_UP: ("prior", (TARGET,)),
    Scenario.CONCEPT_FLIP: ("concept", (TARGET,)),
    Scenario.DELAYED_LABELS: ("delay", ()),
    Scenario.DRUG_WITHDRAWAL: ("covariate", ("metformin", "rosiglitazone", "insulin", "change", "diabetesMed")),
}
_OLDER = dict(zip(AGES, (0.3, 0.3, 0.3, 0.3, 0.3, 0.4, 0.6, 1.2, 3.0, 4.0), strict=True))
_PLANNED = {"1": 0.4, "2": 1.0, "3": 3.0}
_PREVALENCE = {Scenario.PREVALENCE_DOWN: 0.6, Scenario.PREVALENCE_UP: 1.5}
_CAPS = {"num_medications": 10, "number_inpatient": 1, "number_diagnoses": 5}


def inject(frame: pd.DataFrame, scenario: Scenario | str, from_row: int, seed: int) -> tuple[pd.DataFrame, GroundTruth]:
    """A copy of a labelled cohort frame in order of time whose rows from `from_row` on have drifted, and the truth.

    Encounter numbers, their order and the number of rows stay. Shifts of age, admission type and prevalence draw
    rows anew from the changed part with weights, so that what a row says about its label stays as it was; a second
    copy of a row becomes a patient of its own. `concept-flip` gives the labels of the riskiest encounters (by
    in-patient history and discharge) to the safest and leaves everything else, so the labels no longer agree with
    the patients' next stays. Raises DataError for an unknown scenario or a row outside the frame.
    """
    try:
        scenario = Scenario(scenario)
    except ValueError:
        raise DataError(f"scenario {scenario!r} is unknown", f"use one of {', '.join(Scenario)}") from None
    if not 0 <= from_row < len(frame):
        raise DataError(
            f"drift cannot begin at row {from_row} of {len(frame)}", f"give a row from 0 to {len(frame) - 1}"
        )
    rng = np.random.default_rng(seed)
    old = frame.iloc[from_row:].reset_index(drop=True)
    new = _drifted(rng, frame, old, scenario)
    changed = (new.to_numpy(dtype=object) != old.to_numpy(dtype=object)).any(axis=1)
    kind, columns = _KINDS[scenario]
    truth = GroundTruth(
        scenario, kind, from_row, str(old[ENCOUNTER].iloc[0]), len(old), columns, int(changed.sum()), seed
    )
    return pd.concat([frame.iloc[:from_row], new], ignore_index=True), truth


def _drifted(rng: np.random.Generator, frame: pd.DataFrame, old: pd.DataFrame, scenario: Scenario) -> pd.DataFrame:
    match scenario:
        case Scenario.NONE | Scenario.DELAYED_LABELS:  # the outcomes come later, as they are
            return old.copy()
        case Scenario.AGE_SHIFT:
            return _redrawn(rng, frame, old, np.asarray(old["age"].map(_OLDER), dtype=np.float64))
        case Scenario.ADMISSION_TYPE_SHIFT:
            weights = old["admission_type_id"].map(lambda level: _PLANNED.get(level, 1.0))
            return _redrawn(rng, frame, old, np.asarray(weights, dtype=np.float64))
        case Scenario.PREVALENCE_DOWN | Scenario.PREVALENCE_UP:
            return _redrawn(rng, frame, old, _prior_weights(old, _PREVALENCE[scenario]))
        case Scenario.MISSINGNESS_SWITCH:
            return _switched(rng, frame, old)
        case Scenario.ICD_RECODING:
            return old.assign(**{name: old[name].map(_recoded) for name in DIAGNOSES})
        case Scenario.CAPPED_COUNTS:
            counts = {name: old[name].astype(np.int64) for name in _CAPS}
            return old.assign(**{name: counts[name].clip(upper=cap).astype(str) for name, cap in _CAPS.items()})
        case Scenario.CONCEPT_FLIP:
            return _flipped(rng, old)
        case Scenario.DRUG_WITHDRAWAL:
            return _withdrawn(rng, old)


def _redrawn(
    rng: np.random.Generator, frame: pd.DataFrame, old: pd.DataFrame, weights: npt.NDArray[np.float64]
) -> pd.DataFrame:
    drawn = np.sort(rng.choice(len(old), len(old), p=weights / weights.sum()))
    new = old.iloc[drawn].reset_index(drop=True)
    again = np.append(False, drawn[1:] == drawn[:-1])
    patients = new[PATIENT].astype(np.int64).to_numpy(copy=True)
    patients[again] = frame[PATIENT].astype(np.int64).max() + 1 + np.arange(again.sum())
    return new.assign(**{PATIENT: pd.Series(patients).astype(str), ENCOUNTER: old[ENCOUNTER]})


def _prior_weights(old: pd.DataFrame, factor: float) -> npt.NDArray[np.float64]:
    positive = (old[TARGET] == POSITIVE).to_numpy()
    share = float(positive.mean())
    wanted = min(factor * share, 0.95)
    if not 0 < share < 1:
        return np.ones(len(old))
    return np.where(positive, wanted / share, (1 - wanted) / (1 - share)).astype(np.float64)


def _switched(rng: np.random.Generator, frame: pd.DataFrame, old: pd.DataFrame) -> pd.DataFrame:
    """What was recorded is missing, and the other way round, with levels as often as they were recorded."""
    new = old.copy()
    for name in _KINDS[Scenario.MISSINGNESS_SWITCH][1]:
        recorded = frame.loc[frame[name] != MISSING, name].to_numpy(dtype=object)
        fill = rng.choice(recorded, len(old)) if recorded.size else np.full(len(old), MISSING, dtype=object)
        new[name] = pd.Series(np.where(old[name] == MISSING, fill, MISSING)).astype(str)
    return new


def _recoded(code: str) -> str:
    """Another coding guideline: diabetes as secondary (249), heart and lung disease by symptom, no decimals."""
    if code == MISSING:
        return code
    match icd9_chapter(code):
        case "diabetes":
            return "249"
        case "circulatory":
            return "785"
        case "respiratory":
            return "786"
        case _:
            return code.partition(".")[0]


def _flipped(rng: np.random.Generator, old: pd.DataFrame) -> pd.DataFrame:
    able = np.flatnonzero(~old["discharge_disposition_id"].isin(NOT_READMITTABLE).to_numpy())
    rows = old.iloc[able]
    positive = (rows[TARGET] == POSITIVE).to_numpy(dtype=np.float64)
    stays = rows["number_inpatient"].astype(np.int64).clip(upper=6).to_numpy()
    # Observed log-odds of the two strongest columns, added up; shrunk, so that rare levels do not lead.
    risk = np.zeros(len(rows))
    for values in (stays, rows["discharge_disposition_id"].to_numpy()):
        codes, _ = pd.factorize(values)
        sums, sizes = np.bincount(codes, positive), np.bincount(codes)
        share = (sums + 20 * positive.mean() + 1e-9) / (sizes + 20)
        risk += np.log(share / (1 - share + 1e-9))[codes]
    order = np.lexsort((rng.random(len(rows)), risk))
    labels = old[TARGET].to_numpy(dtype=object, copy=True)
    labels[able[order]] = rows[TARGET].to_numpy(dtype=object)[order[::-1]]
    return old.assign(**{TARGET: pd.Series(labels).astype(str)})


def _withdrawn(rng: np.random.Generator, old: pd.DataFrame) -> pd.DataFrame:
    """Two drugs leave the market: their use falls to nothing in a straight line, and insulin takes their place."""
    gone = rng.random(len(old)) < (np.arange(len(old)) + 1) / len(old)
    columns = {name: old[name].to_numpy(dtype=object, copy=True) for name in DRUGS}
    taken = gone & ((columns["metformin"] != "No") | (columns["rosiglitazone"] != "No"))
    for name in ("metformin", "rosiglitazone"):
        columns[name][taken] = "No"
    columns["insulin"][taken & (columns["insulin"] == "No")] = "Steady"
    medicated, change = _drug_summary(columns)
    new = {name: columns[name] for name in ("metformin", "rosiglitazone", "insulin")}
    for name, values in (("diabetesMed", medicated), ("change", change)):
        new[name] = np.where(taken, values, old[name].to_numpy(dtype=object))
    return old.assign(**{name: pd.Series(values).astype(str) for name, values in new.items()})
