"""A made-up table in the shape of a US hospital's extract of today: dates, measurements, flags and ICD-10-CM."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pandas as pd

FIRST_DAY = date(2024, 1, 1)
CODES = ("I50.9", "I5033", "J18.9", "A41.9", "N17.9", "E11.65", "C34.90", "K57.32", "S72.001A", "Z51.11", "F10.230")


def table(rows: int, seed: int) -> pd.DataFrame:
    """Encounters as text (rows, columns), a third of them later stays of patients seen before; 15 % come back."""
    rng = np.random.default_rng(seed)
    patients = rng.integers(0, max(1, rows * 2 // 3), rows)
    before = rng.poisson(0.8, rows)
    stay, age = rng.gamma(2, 2.2, rows).round(2), rng.normal(66, 15, rows).clip(18, 104).round(1)
    codes = rng.choice(CODES, rows)
    creatinine = rng.lognormal(0.1, 0.5, rows).round(2)
    ill = np.isin(codes, ("I50.9", "I5033", "C34.90"))
    risk = -3.6 + 0.4 * np.log1p(before) + 0.3 * np.sqrt(stay) + 1.2 * (creatinine > 1.6) + 1.3 * ill
    returned = rng.random(rows) < 1 / (1 + np.exp(-risk))
    days = np.sort(rng.integers(0, 730, rows))
    gone = rng.random(rows) < 0.03
    return pd.DataFrame(
        {
            "encounter_key": [f"E{number:07d}" for number in rng.permutation(rows)],
            "patient_key": [f"P-{number:06d}" for number in patients],
            "discharged": [(FIRST_DAY + timedelta(days=int(day))).isoformat() for day in days],
            "sex": rng.choice(["F", "M", "X"], rows, p=[0.52, 0.47, 0.01]),
            "age_years": age.astype(str),
            "disposition": np.where(gone, "Expired", rng.choice(["Home", "SNF", "Rehab"], rows, p=[0.7, 0.2, 0.1])),
            "stay_days": stay.astype(str),
            "admissions_before": before.astype(str),
            "creatinine": np.where(rng.random(rows) < 0.1, "NULL", creatinine.astype(str)),
            "sodium": np.where(rng.random(rows) < 0.2, "", rng.normal(138, 4, rows).round(1).astype(str)),
            "icu": rng.choice(["N", "Y"], rows, p=[0.9, 0.1]),
            "dialysis": rng.choice(["0", "1", ""], rows, p=[0.9, 0.05, 0.05]),
            "dx_principal": codes,
            "dx_second": np.where(rng.random(rows) < 0.3, "", rng.choice(CODES, rows)),
            "ed_visits": np.where(rng.random(rows) < 0.05, "NULL", rng.poisson(0.5, rows).astype(str)),
            "extracted_by": "report 12",
            "returned_30d": np.where(returned & ~gone, "Y", "N"),
        },
        dtype="str",
    )
