"""Four weeks of made-up encounters with dates, and their outcomes, as files for docs/monitoring.md.

    .venv/bin/python docs/examples/month.py FOLDER

In these weeks the truth is reversed: who was in hospital often before comes back seldom.
"""

from __future__ import annotations

import sys
from datetime import date, timedelta
from pathlib import Path

import numpy as np

from health_predict.adapters.contracts import built_in, built_in_synthetic
from health_predict.core.data.cohort import save_csv, without_excluded
from health_predict.core.data.outcomes import write_outcomes
from health_predict.core.data.synthetic import synthesize

FIRST_MONDAY, WEEKS, A_WEEK = date(2026, 10, 5), 4, 1250


def main(folder: Path) -> None:
    """Write week-1.csv to week-4.csv and outcomes-1.csv to outcomes-4.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(5)
    contract = built_in()
    cohort = without_excluded(synthesize(contract, built_in_synthetic(), 6000, seed=5), contract)
    cohort = cohort.drop(columns="readmitted")
    risk = np.where(cohort["number_inpatient"].astype(int) > 0, 0.02, 0.2)
    readmitted = random.random(len(cohort)) < risk
    for week in range(WEEKS):
        rows = slice(week * A_WEEK, (week + 1) * A_WEEK)
        encounters = cohort[rows]
        days = [FIRST_MONDAY + timedelta(days=7 * week + at % 7) for at in range(len(encounters))]
        save_csv(
            encounters.assign(**{"discharge_date": [day.isoformat() for day in days]}), folder / f"week-{week + 1}.csv"
        )
        outcomes = write_outcomes({"encounter_id": encounters["encounter_id"]}, contract, readmitted[rows])
        (folder / f"outcomes-{week + 1}.csv").write_bytes(outcomes)
    print(f"{WEEKS} weeks of {A_WEEK:,} encounters in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
