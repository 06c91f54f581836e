"""Files of encounters and of outcomes, as people bring them to the door."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from health_predict.adapters.data.arrivals import Arrivals
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.outcome_files import outcomes_of
from health_predict.adapters.tracking import Tracking
from health_predict.core.data.cohort import without_excluded
from health_predict.core.data.outcomes import PREDICTION_ID
from health_predict.errors import DataError, StateError
from health_predict.operations.feed import add_encounters, add_outcomes
from health_predict.settings import Settings
from tests.cohorts import synthesize
from tests.contracts import DIABETES, ENCOUNTER, TARGET

FRAME = without_excluded(synthesize(60, seed=9), DIABETES).head(30).reset_index(drop=True)


class Model:
    """Takes everybody for a tenth."""

    def predict_proba(self, frame: pd.DataFrame) -> Any:
        return np.tile([0.9, 0.1], (len(frame), 1))


@pytest.fixture
def hospital(settings: Settings, champion: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a home with a champion, where thirty arrivals make a batch."""
    monkeypatch.setattr(Tracking, "load_pipeline", lambda self, version: Model())
    return settings.model_copy(update={"window": "30"})


def known(settings: Settings) -> dict[str, int]:
    """The outcomes of the first batch by number of the encounter, once all was taken in."""
    arrivals = Arrivals(settings)
    arrivals.collect()
    identity = arrivals.identity(0)
    numbers = dict(zip(identity[PREDICTION_ID], identity[ENCOUNTER], strict=True))
    return {numbers[one]: value for one, value in outcomes_of(arrivals.storage, settings.stream, 0).items()}


Write = Callable[[pd.DataFrame, Path], object]
WAYS: dict[str, Write] = {
    "csv": lambda frame, file: frame.to_csv(file, index=False),
    "packed": lambda frame, file: frame.to_csv(file, index=False, compression="gzip"),
    "nulls": lambda frame, file: frame.replace("?", np.nan).to_csv(file, index=False),
    "parquet": lambda frame, file: frame.to_parquet(file),
    "typed": lambda frame, file: (
        frame.replace("?", None).astype({ENCOUNTER: "int64", "num_medications": "float64"}).to_parquet(file)
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_file_arrives_with_its_outcomes(hospital: Settings, tmp_path: Path, way: str) -> None:
    # given the same encounters in any kind of file
    file = tmp_path / "file"
    WAYS[way](FRAME, file)
    # when they are added, and added again
    added, outcomes = add_encounters(hospital, file)
    assert (added.rows, added.quarantined, added.before, outcomes) == (30, 0, False, 30), added.refusals
    again, none = add_encounters(hospital, file)
    assert (again.before, none) == (True, 0)
    # then they are there once, scored by the champion, with what became of them
    assert known(hospital) == dict(zip(FRAME[ENCOUNTER], (FRAME[TARGET] == "<30").astype(int), strict=True))
    batch = Batches(hospital).batch(0)
    assert batch.frame.equals(FRAME[batch.frame.columns])
    assert {*batch.scores} == {0.1} and {*batch.versions} == {"1"}
    assert Arrivals(hospital).state().outcomes.repeated == 0


def test_an_outcome_that_is_not_known_yet_is_none(hospital: Settings, tmp_path: Path) -> None:
    # given a file in which some outcomes are open, and some are as in a file of outcomes
    outcomes: list[object] = [*["1"] * 5, *["0"] * 5, *[None] * 10, *["<30"] * 5, *[">30"] * 5]
    file = tmp_path / "first.csv"
    FRAME.assign(**{TARGET: outcomes}).to_csv(file, index=False)
    # when it is added
    assert add_encounters(hospital, file)[1] == 20
    # then only the others are known
    found = known(hospital)
    expected = [1] * 5 + [0] * 5 + [None] * 10 + [1] * 5 + [0] * 5
    assert [found.get(number) for number in FRAME[ENCOUNTER]] == expected
    # when the same encounters come again with all of them, then those arrive too
    FRAME.assign(**{TARGET: ["1" if one is None else one for one in outcomes]}).to_csv(file, index=False)
    again, count = add_encounters(hospital, file)
    assert (again.before, count) == (True, 30)
    assert sum(known(hospital).values()) == 20
    assert Arrivals(hospital).state().arrived == 30


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: frame.assign(readmitted=["NO", "yes", *["NO"] * 28]), "line 3 is no outcome"),
        (lambda frame: frame.drop(columns=ENCOUNTER), "no encounter_id"),
        (lambda frame: frame.drop(columns="age"), "lacks age"),
        (lambda frame: frame.assign(shoe_size=41), "unknown shoe_size"),
    ],
)
def test_a_file_that_is_none_changes_nothing(
    hospital: Settings, tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], words: str
) -> None:
    change(FRAME).to_csv(tmp_path / "wrong.csv", index=False)
    with pytest.raises(DataError, match=words):
        add_encounters(hospital, tmp_path / "wrong.csv")
    assert Arrivals(hospital).at_door() == []
    assert Arrivals(hospital).storage.keys("outcomes/") == []


def test_what_breaks_the_contract_is_set_aside(hospital: Settings, tmp_path: Path) -> None:
    # given two wrong rows among thirty
    frame = FRAME.copy()
    frame.loc[3, "age"], frame.loc[4, "diag_1"] = "old", "E11.9"
    frame.to_csv(tmp_path / "file.csv", index=False)
    # when
    added, _ = add_encounters(hospital, tmp_path / "file.csv")
    # then the others arrive, and the report names column, rule and line
    assert (added.rows, added.quarantined) == (28, 2)
    assert [(one.column, one.lines) for one in added.refusals] == [("age", (5,)), ("diag_1", (6,))]
    assert Path(added.report.removeprefix("file://")).is_file()
    # and they are counted, once
    add_encounters(hospital, tmp_path / "file.csv")
    state = Arrivals(hospital).collect()
    assert (state.arrived, state.quarantined) == (28, 2)
    assert Arrivals(hospital).collect().quarantined == 2


def test_outcomes_are_taken_once(hospital: Settings, tmp_path: Path) -> None:
    # given encounters without outcomes
    FRAME.drop(columns=TARGET).to_csv(tmp_path / "file.csv", index=False)
    assert add_encounters(hospital, tmp_path / "file.csv")[1] == 0
    # when a file of outcomes is left at the door twice
    rows = [f"{number},1" for number in FRAME[ENCOUNTER][:4]]
    (tmp_path / "known.csv").write_text("\n".join(["encounter_id,readmitted", *rows, "999,0"]))
    for _ in range(2):
        left = add_outcomes(hospital, tmp_path / "known.csv")
        assert (left.outcomes, left.key) == (5, "encounter_id")
    # then each outcome is known, and the one of nobody is counted
    assert sum(known(hospital).values()) == 4
    assert Arrivals(hospital).state().unknown == 1
    # and other files are refused at once
    (tmp_path / "known.csv").write_text("name,readmitted\nJane,1\n")
    with pytest.raises(DataError, match="columns name"):
        add_outcomes(hospital, tmp_path / "known.csv")
    with pytest.raises(DataError, match="cannot be read"):
        add_outcomes(hospital, tmp_path / "none.csv")


def test_without_a_champion_nothing_is_scored(settings: Settings, tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "file.csv", index=False)
    with pytest.raises(StateError, match="champion"):
        add_encounters(settings, tmp_path / "file.csv")
