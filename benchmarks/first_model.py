"""Does monitoring condemn what the gates have just passed? The first model beside its first window of outcomes.

For each of eight salts of the patient split: split, hpo and register as a first training runs them, then the question
that monitoring asks of the first batch with outcomes, of the chosen model as it is and without its calibration.

Takes the raw data of the settings, the real ones by default.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from benchmarks.parts import results
from benchmarks.parts.cohorts import DIABETES
from health_predict.adapters.tracking import Tracking
from health_predict.core.data.cohort import load_part, target
from health_predict.core.model.calibration import uncalibrated
from health_predict.core.monitoring.performance import Calibration, LabelledWindow, assess_calibration
from health_predict.settings import load_settings
from health_predict.stages.hpo import hpo
from health_predict.stages.register import register
from health_predict.stages.split import split

SALTS = ("readmission", *(f"salt-{number}" for number in range(1, 8)))


def main() -> None:
    """Train and judge with every salt, print the table and the counts."""
    logging.disable(logging.WARNING)
    print(
        f"{'salt':<12} {'family':<20} {'decision':<9} {'slope':<20} {'alarm':<6} {'without map':<20} alarm", flush=True
    )
    promoted = alarms = raw_alarms = 0
    for salt in SALTS:
        with tempfile.TemporaryDirectory(prefix="bench-first-model-") as folder:
            family, decision, found, raw = first_window(salt, Path(folder))
        promoted += decision == "promote"
        alarms += found.slope_over.off
        raw_alarms += raw.slope_over.off
        print(
            f"{salt:<12} {family:<20} {decision:<9} {slope(found):<20} {found.slope_over.off!s:<6} {slope(raw):<20} "
            f"{raw.slope_over.off}",
            flush=True,
        )
    counts = {"salts": len(SALTS), "promoted": promoted, "slope_alarms": alarms, "slope_alarms_without_map": raw_alarms}
    results.save("first_model", counts)


def first_window(salt: str, home: Path) -> tuple[str, str, Calibration, Calibration]:
    """Family and decision of a first training, and its first window of outcomes with and without the calibration."""
    settings = load_settings(home=home, salt=salt)
    files = {name: home / f"{name}.parquet" for name in ("train", "validation", "test", "batches", "profile")}
    data = split(settings, labelled_batches=0, given=(), **files)
    search = hpo(
        settings,
        dataset_digest=data.dataset_digest,
        dataset_source=data.dataset_source,
        train=files["train"],
        validation=files["validation"],
        leaderboard=home / "leaderboard.html",
    )
    registered = register(
        settings,
        parent_run_id=search.parent_run_id,
        validation=files["validation"],
        test=files["test"],
        card=home / "card.html",
    )
    batch = load_part(home / f"storage/datasets/{data.dataset_digest}/batches/00.parquet")
    outcomes = target(batch, DIABETES).astype(float)
    features, estimator = (step for _, step in Tracking(settings).load_pipeline(registered.model_version).steps)
    rows = features.transform(batch)
    found, raw = (
        assess_calibration([LabelledWindow.of(outcomes, model.predict_proba(rows)[:, 1].astype(float))])
        for model in (estimator, uncalibrated(estimator))
    )
    return registered.family, registered.decision.value, found, raw


def slope(found: Calibration) -> str:
    """The slope with its interval."""
    return found.slope.words(2)


if __name__ == "__main__":
    main()
