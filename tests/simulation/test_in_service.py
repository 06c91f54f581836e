"""What served before a simulation serves again after it, with real Bentos, whatever is killed in between."""

from __future__ import annotations

from typing import Any

import pytest

from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.records import BatchDecision, Progress, SettledBatch
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import CHALLENGER
from health_predict.commands.simulate import _put_back_on_failure
from health_predict.core.monitoring.policy import Action, Settlement
from health_predict.operations.status import status
from health_predict.simulation.in_service import put_back, remember, under_way, version_of
from health_predict.simulation.plan import Begun, begun
from tests.rollouts import Built, down, first, original, shared

__all__ = ["down", "first", "original", "shared"]  # fixtures
pytestmark = pytest.mark.slow


def simulated(built: Built, name: str, version: str, **decision: Any) -> Begun:
    """A simulation that has begun with version 1 and come to `version` after its first batch, or is at it."""
    storage = open_storage(built.settings.storage)
    made = Begun(name, ("concept-flip",), 0, "drift", 1, 2, 0, data={}, first_version="1")
    made.write(storage)
    assert begun(storage, name) == made
    batches = Batches(built.settings.model_copy(update={"stream": made.stream}))
    if decision:
        batches.decide(BatchDecision(batch=0, batch_digest="abc", dataset_digest="d", **decision))
    else:
        record = SettledBatch(
            batch=0, batch_digest="abc", outcome=Settlement.DEPLOYED, version_before="1", version_after=version
        )
        batches.settle(record, Progress(settled=1, last=record.key))
    return made


def test_what_served_before_serves_again(first: Built) -> None:
    # given a simulation that begins while version 1 serves, and brings version 2 into service
    assert remember(first.settings, "one")
    first.rollout("2")
    first.tracking.set_alias(CHALLENGER, "2")
    simulated(first, "one", "2")
    assert any("brings back version 1" in item for item in status(first.settings).waiting)
    # when it is killed, goes on, and another one begins while its model serves
    assert not remember(first.settings, "one")
    assert not remember(first.settings, "another")
    # then what is to be put back stays what served before the first of them
    before = under_way(first.settings)
    assert before is not None and (before.simulation, before.version, before.running) == ("another", "1", True)
    simulated(first, "another", "2")
    # when it ends, then version 1 serves and is champion, and no model of a simulation is offered as a challenger
    assert put_back(first.settings) == "version 1, which served before, serves again"
    assert first.served() == first.champion() == "1" and first.stage("1") == "Production"
    assert first.tracking.by_alias(CHALLENGER) is None
    # and once more changes nothing
    active = first.target.active()
    assert put_back(first.settings) == "" and first.target.active() == active


@pytest.mark.parametrize("keep", [False, True])
def test_a_simulation_that_is_interrupted_leaves_what_served_before(first: Built, keep: bool) -> None:
    # given a simulation whose model serves
    with pytest.raises(KeyboardInterrupt), _put_back_on_failure(first.settings, keep):
        remember(first.settings, "stopped")
        first.rollout("2")
        simulated(first, "stopped", "2")
        # when somebody stops it
        raise KeyboardInterrupt
    # then what served before serves again, unless the simulation's model is wanted
    assert first.served() == first.champion() == ("2" if keep else "1")
    put_back(first.settings)


def test_what_somebody_has_rolled_out_since_stays(first: Built) -> None:
    # given a killed simulation whose model was version 1, and version 2 that somebody deployed afterwards
    remember(first.settings, "killed")
    simulated(first, "killed", "1")
    first.rollout("2")
    # then that one stays when some command of a simulation ends, and is what the next simulation puts back
    assert put_back(first.settings) == "" and first.served() == "2"
    remember(first.settings, "next")
    before = under_way(first.settings)
    assert before is not None and before.version == "2"
    put_back(first.settings)


def test_a_model_may_be_kept_with_the_way_back_told(first: Built) -> None:
    remember(first.settings, "kept")
    first.rollout("2")
    simulated(first, "kept", "2")
    said = put_back(first.settings, keep=True)
    assert first.served() == first.champion() == "2"
    assert "version 2 of this simulation serves on" in said
    assert "`health-predict pipeline run deployment -p model_version=1`" in said
    assert under_way(first.settings) is None


def test_the_champion_comes_back_where_nothing_ran(first: Built) -> None:
    # given a champion whose endpoint was down
    first.target.stop()
    remember(first.settings, "down")
    first.rollout("2")
    simulated(first, "down", "2")
    # then it is champion again, and how to end what serves is said
    assert "`health-predict down` stops it" in put_back(first.settings)
    assert first.served() == first.champion() == "1"


def test_where_nothing_was_nothing_comes_back(down: Built) -> None:
    # given neither an endpoint nor a champion
    remember(down.settings, "alone")
    down.rollout("1")
    simulated(down, "alone", "1")
    # when the simulation fails and goes on, then it is still known that nothing served before
    assert "nothing served before" in put_back(down.settings, ended=False)
    remember(down.settings, "alone")
    before = under_way(down.settings)
    assert before is not None and before.version == ""
    said = put_back(down.settings)
    assert said == "nothing served before: version 1 of this simulation serves on, `health-predict down` stops it"
    assert down.served() == "1" and under_way(down.settings) is None


def test_a_half_done_step_is_repeated_from_where_it_began(first: Built) -> None:
    # given a simulation killed between the rollout of version 2 and the end of its batch
    remember(first.settings, "half")
    found = simulated(first, "half", "", action=Action.RETRAIN, model_version="1")
    first.rollout("2")
    # then it goes on from version 1, and version 2 is known as its own
    assert version_of(first.settings, found) == ("1", True)
    assert put_back(first.settings) == "version 1, which served before, serves again"
