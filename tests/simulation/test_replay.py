"""The plan of a simulation, the drift that it injects, and its timeline. It runs whole in `test_end_to_end.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from health_predict.commands.simulate import PolicyName
from health_predict.core.cohort import read_cohort
from health_predict.core.errors import SettingsError
from health_predict.core.partition import Parameters, batch_bounds, partition
from health_predict.core.policy import Policy
from health_predict.report.timeline_report import timeline_page
from health_predict.settings import Settings
from health_predict.simulation.replay import Plan, _with_drift, begin

PLAN = Plan("p", ("age-shift", "prevalence-up"), from_batch=2, policy="drift", delay=1, batches=4, seed=0)


def test_the_command_knows_every_policy() -> None:
    assert [one.value for one in PolicyName] == [one.value for one in Policy]


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
    settings = make_settings(data_source=str(file), future_batches=4)
    # when drift is injected, twice
    drifted, truths = _with_drift(settings, PLAN)
    again, same = _with_drift(settings, PLAN)
    # then both are known, it is done once, and what comes before the batch is as it was
    assert [str(truth.scenario) for truth in truths] == ["age-shift", "prevalence-up"]
    assert (again, same) == (drifted, truths)
    assert {truth.from_row for truth in truths} == {batch_bounds(len(cohort), Parameters(0.2, 4, "s"))[2]}
    parameters = Parameters(0.2, 4, settings.salt)
    before, after = partition(cohort, parameters), partition(read_cohort(Path(drifted.data_source)), parameters)
    assert after.train.equals(before.train)
    assert after.batches[1].equals(before.batches[1])
    old = [(batch["age"] > "[70").mean() for batch in (before.batches[2], after.batches[2])]
    assert old[1] > old[0] + 0.2


def test_a_plan_that_does_not_fit_is_refused(make_settings: Callable[..., Settings]) -> None:
    with pytest.raises(SettingsError, match="do not fit"):
        begin(make_settings(future_batches=3), PLAN)


@pytest.mark.parametrize("scenarios", [(), ("concept-flip",)])
def test_the_timeline_tells_what_happened(scenarios: tuple[str, ...]) -> None:
    # given two batches, of which the first led to a new version
    estimate = {"value": 0.66, "low": 0.64, "high": 0.68}
    one = {
        "batch": 0,
        "rows": 1000,
        "readmitted": 110,
        "served_by": "1",
        "auc": estimate,
        "observed_expected": {"value": 1.2, "low": 1.1, "high": 1.3},
        "verdict": "retrain",
        "action": "retrain",
        "outcome": "deployed",
        "reasons": ["Discrimination fell: <badly>."],
        "input_alarm": True,
        "input_news": True,
        "quality": ["payer_code"],
        "version_after": "2",
        "labelled_batches": 1,
    }
    other = {**one, "batch": 1, "served_by": "2", "verdict": "steady", "action": "none", "outcome": "unchanged"}
    detection = {"scenarios": scenarios, "kinds": ("concept",), "from_batch": 0, "false_verdicts": 0}
    detection |= {"inputs": None, "quality": None, "verdict": 0, "action": 2}
    # when
    html = timeline_page(
        {
            "name": "s",
            "policy": "drift",
            "delay": 1,
            "synthetic": False,
            "first_version": "1",
            "moments": [one, other],
            "detection": detection if scenarios else None,
            "retrainings": 1,
            "recalibrations": 0,
            "lost": 0,
        }
    )
    # then
    assert html.count("<svg") == 3
    assert "retrain: version 2" in html
    assert "&lt;badly&gt;" in html
    assert ("drift begins" in html) is bool(scenarios)
    assert ("in its first batch" in html) is bool(scenarios)
