"""The plan of a simulation, the drift that it injects, and its timeline. It runs whole in `test_end_to_end.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest

from health_predict.adapters.storage import open_storage
from health_predict.core.data.cohort import load_part, read_cohort
from health_predict.core.data.partition import Parameters, batch_bounds, partition
from health_predict.core.statistics import Estimate
from health_predict.errors import SettingsError
from health_predict.report.timeline_report import timeline_page
from health_predict.settings import Settings
from health_predict.simulation.plan import Begun, Plan, begun
from health_predict.simulation.replay import _write_batches, begin
from health_predict.simulation.timeline import Detection, Moment, Sign, Timeline
from tests.contracts import DIABETES

PLAN = Plan("p", ("age-shift", "prevalence-up"), from_batch=2, policy="drift", delay=1, batches=4, seed=0)


def test_outcomes_are_due_after_the_delay() -> None:
    assert [PLAN.due(number) for number in range(4)] == [1, 2, 3, 4]
    late = replace(PLAN, scenarios=("delayed-labels",))
    assert [late.due(number) for number in range(4)] == [1, 2, 6, 7]


def test_two_drifts_begin_with_their_batch(
    cohort: pd.DataFrame, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    # given a file in no order
    file = tmp_path / "cohort.csv"
    cohort.sample(frac=1, random_state=0).to_csv(file, index=False)
    settings, parameters = make_settings(), Parameters(0.2, 4, "s")
    storage = open_storage(settings.storage)
    # when the batches are prepared that will be sent, twice, with drift injected
    truths = _write_batches(settings, PLAN, read_cohort(file, DIABETES), parameters)
    keys = storage.keys("simulations/p/batches/")
    written = [storage.read(key) for key in keys]
    assert _write_batches(settings, PLAN, read_cohort(file, DIABETES), parameters) == truths
    # then both are known, the same comes of it, and what comes before the batch is as it was
    assert [str(truth.scenario) for truth in truths] == ["age-shift", "prevalence-up"]
    assert {truth.from_row for truth in truths} == {batch_bounds(len(cohort), parameters)[2]}
    assert [storage.read(key) for key in keys] == written and len(keys) == PLAN.batches
    before = partition(cohort, DIABETES, parameters).batches
    after = [load_part(settings.home / "storage" / key) for key in keys]
    assert after[1].equals(before[1])
    old = [(batch["age"] > "[70").mean() for batch in (before[2], after[2])]
    assert old[1] > old[0] + 0.2
    # and what was done to them can be told again from the record of the simulation
    made = Begun(**asdict(PLAN), data={}, first_version="1", truths=truths)
    made.write(storage)
    assert begun(storage, PLAN.name) == made and made.plan == PLAN


def test_a_plan_that_does_not_fit_is_refused(
    cohort: pd.DataFrame, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    file = tmp_path / "cohort.csv"
    cohort.to_csv(file, index=False)
    with pytest.raises(SettingsError, match="do not fit"):
        begin(make_settings(future_batches=3, data_source=str(file)), PLAN)


@pytest.mark.parametrize("scenarios", [(), ("concept-flip",)])
def test_the_timeline_tells_what_happened(scenarios: tuple[str, ...]) -> None:
    # given two batches, of which the first led to a new version
    one = Moment(
        batch=0,
        verdict="retrain",
        alarms=("AUC",),
        judged=0,
        news=("payer_code",),
        recording=(),
        waiting=(),
        action="retrain",
        outcome="deployed",
        version_after="2",
        labelled_batches=1,
        rows=1000,
        positives=110,
        served_by="1",
        auc=Estimate(0.66, 0.64, 0.68),
        observed_expected=Estimate(1.2, 1.1, 1.3),
        reasons=("Discrimination fell: <badly>.",),
        input_alarm=True,
        quality=("payer_code",),
    )
    other = replace(one, batch=1, served_by="2", verdict="steady", alarms=(), action="none", outcome="unchanged")
    seen = Sign(0, ("AUC",), 0, 0)
    detection = Detection(scenarios, ("concept",), 0, None, None, seen, None, 2, "")
    found = Timeline("s", "drift", 1, False, "1", (one, other), detection if scenarios else None, 1, 0, 0)
    # when
    html = timeline_page(asdict(found), DIABETES.outcome)
    # then
    assert html.count("<svg") == 3
    assert "retrain: version 2" in html
    assert "&lt;badly&gt;" in html
    assert ("drift begins" in html) is bool(scenarios)
    assert ("in its first batch" in html) is bool(scenarios)
