"""A second contract, in the shape of a modern extract, and encounters of nobody that keep it."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pandas as pd

from health_predict.core.data.contract_file import read_contract

TEXT = """
format: 1
name: modern
title: Adults who are back within 30 days
description: Made up for tests
missing: ["", "NULL"]
encounter: [visit]
patient: person
order: left
date: left
outcome:
  {column: back, levels: ["0", "1"], positive: ["1"], negative: "0",
   event: return, events: returns, happened: back within 30 days}
exclude:
  - {column: went, levels: [morgue], reason: died}
single_predictor: stays
subgroups:
  - column: sex
  - {column: age, bounds: [45, 65, 80]}
  - {column: creatinine, bounds: [1.2, 2.5]}
groups:
  - {columns: [opioid, diuretic], counts: {drugs taken: [same, more, less], drugs changed: [more, less]}}
columns:
  visit: {description: The stay, kind: identifier}
  person: {description: The patient, kind: identifier}
  left: {description: Day of leaving, kind: date}
  sex: {description: Sex as recorded, kind: level, levels: [F, M]}
  age: {description: Age, kind: count, minimum: 18, maximum: 110, unit: years}
  triage: {description: Urgency, kind: level, ordered: true, nullable: true, levels: ["1", "2", "3", "4", "5"]}
  went: {description: Where the patient went, kind: open level, levels: [home, nursing, morgue], nullable: true}
  ward: {description: Ward, kind: open level, nullable: true}
  stays:
    {description: Stays before, kind: count, minimum: 0, maximum: 60, nullable: true, logarithm: true, steps: [1, 3]}
  creatinine: {description: Last creatinine, kind: number, minimum: 0, maximum: 30, unit: mg/dL, nullable: true}
  temperature: {description: Highest temperature, kind: number, minimum: 30, maximum: 43.5, unit: "°C"}
  balance: {description: Fluid balance, kind: number, minimum: -20000, maximum: 20000, unit: mL, nullable: true}
  intensive: {description: Whether in intensive care, kind: flag, levels: [No, Yes]}
  smoker: {description: Whether the patient smokes, kind: flag, levels: ["0", "1"], nullable: true}
  first: {description: Main diagnosis, kind: code, system: icd10cm, apart: {heart failure: [I50]}}
  second: {description: Other diagnosis, kind: code, system: icd10cm, nullable: true}
  opioid: {description: Opioid, kind: level, levels: &doses [none, same, more, less]}
  diuretic: {description: Diuretic, kind: level, levels: *doses}
example:
  {sex: F, age: "71", triage: "2", went: home, ward: 4B, stays: "2", creatinine: "1.35", temperature: "37.9",
   balance: "-450", intensive: No, smoker: "1", first: I50.9, second: E11.65, opioid: none, diuretic: more}
"""
CONTRACT = read_contract(TEXT, "modern.yaml")
CODES = (
    *("I50.9", "I50.22", "E11.65", "E119", "J18.9", "N17.9"),
    *("A41.9", "C34.90", "K92.2", "S72.001A", "Z79.4", "R07.9"),
)
EVIDENT = (-3.8, 0.9, 1.3, 2.5)
"""Effects by which a small model is better than any single column."""
NAMES = {"left": "discharged", "first": "dx_first", "second": "dx_second", "back": "returned"}
"""Of a file's columns, the names that are not those of the contract."""


def encounters(
    rows: int, seed: int = 0, effects: tuple[float, float, float, float] = (-3.2, 0.6, 0.5, 0.7)
) -> pd.DataFrame:
    """A labelled cohort frame. The log-odds of a return: a constant, by earlier stay, log creatinine, heart failure."""
    random = np.random.default_rng(seed)
    stays = random.poisson(0.9, rows)
    creatinine = np.round(random.lognormal(0.2, 0.5, rows), 2)
    first = random.choice(CODES, rows)
    known = np.stack([np.ones(rows), np.minimum(stays, 4), np.log(creatinine), first == "I50.9"])
    risk = 1 / (1 + np.exp(-np.asarray(effects) @ known))
    begin = date(2023, 1, 1)

    def of(*levels: str) -> np.ndarray:
        return random.choice(levels, rows)

    def mostly(values: object, share: float = 0.15) -> np.ndarray:
        return np.where(random.random(rows) < share, "?", np.asarray(values).astype(str))

    return pd.DataFrame(
        {
            "visit": [f"v{number:06d}" for number in range(rows)],
            "person": [f"p{number}" for number in random.integers(0, max(1, rows * 2 // 3), rows)],
            "left": [(begin + timedelta(days=number * 700 // rows)).isoformat() for number in range(rows)],
            "sex": of("F", "M"),
            "age": random.integers(18, 100, rows).astype(str),
            "triage": mostly(of("1", "2", "3", "4")),  # nobody has 5
            "went": mostly(of("home", "nursing", "hotel"), 0.05),
            "ward": mostly([f"{number}B" for number in random.integers(1, 9, rows)]),
            "stays": mostly(stays),
            "creatinine": mostly(creatinine),
            "temperature": np.round(random.normal(37.2, 0.7, rows), 1).astype(str),
            "balance": mostly(random.integers(-3000, 3000, rows) / 2),
            "intensive": of("No", "No", "Yes"),
            "smoker": mostly(of("0", "1"), 0.4),
            "first": first,
            "second": mostly(random.choice(CODES, rows), 0.3),
            "opioid": of("none", "none", "same", "more"),
            "diuretic": of("none", "same", "less"),
            "back": (random.random(rows) < risk).astype(int).astype(str),
        },
        dtype="str",
    )


def extract(rows: int, seed: int = 0) -> pd.DataFrame:
    """The same as a hospital's file would have it: with telling names, and nothing or `NULL` for what is missing."""
    frame = (
        encounters(rows, seed, EVIDENT)
        .replace("?", "NULL")
        .replace({"smoker": {"NULL": ""}, "creatinine": {"NULL": ""}})
    )
    frame = frame.replace({name: {"none": "no"} for name in ("opioid", "diuretic")}).assign(extracted_by="report 12")
    return frame.rename(columns=NAMES)
