"""Order of time, splits by patient, and digests that do not depend on the machine."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_predict.core.data.cohort import read_cohort, save_csv, without_excluded
from health_predict.core.data.partition import (
    Parameters,
    Partition,
    dataset_digest,
    inputs_digest,
    partition,
    patient_share,
    rows_digest,
)
from health_predict.errors import DataError
from tests.cohorts import synthesize
from tests.contracts import DIABETES, NOT_READMITTABLE

PARAMETERS = Parameters(initial_share=0.2, future_batches=4, salt="test")
FRAME = synthesize(2_000, seed=3)


def splits(cut: Partition) -> list[pd.DataFrame]:
    return [cut.train, cut.validation, cut.test]


def ids(frame: pd.DataFrame) -> list[int]:
    return frame["encounter_id"].astype("int64").tolist()


def delivered(labelled: int, parameters: Parameters) -> pd.DataFrame:
    """The first of the file's future batches, as if they had arrived with their outcomes."""
    return pd.concat([FRAME.iloc[:0], *partition(FRAME, DIABETES, parameters).batches[:labelled]], ignore_index=True)


@settings(max_examples=25, deadline=None)
@given(
    share=st.floats(0.4, 0.9),  # fewer may leave a part without a readmission
    batches=st.integers(1, 9),
    salt=st.text(min_size=1, max_size=8),
    labelled=st.integers(0, 9),
    order=st.integers(0, 1_000),
)
def test_no_patient_is_in_two_parts_and_no_encounter_is_lost(
    share: float, batches: int, salt: str, labelled: int, order: int
) -> None:
    # given the rows in any order, and the first batches of their future, arrived
    rows = list(range(len(FRAME)))
    random.Random(order).shuffle(rows)
    labelled = min(labelled, batches)
    parameters = Parameters(share, batches, salt, labelled)
    # when
    cut = partition(FRAME.iloc[rows].reset_index(drop=True), DIABETES, parameters, delivered(labelled, parameters))
    # then patients are in one split each
    patients = [set(part["patient_nbr"]) for part in splits(cut)]
    assert not patients[0] & patients[1] and not patients[0] & patients[2] and not patients[1] & patients[2]
    # and the splits with the batches not among them hold every encounter of the cohort once
    everything = [number for part in splits(cut) for number in ids(part)]
    everything += [number for batch in cut.batches[labelled:] for number in ids(batch)]
    assert sorted(everything) == sorted(ids(without_excluded(FRAME, DIABETES)))
    # and time goes forward
    for part in (*splits(cut), *cut.batches):
        assert ids(part) == sorted(ids(part)) and part.index.equals(pd.RangeIndex(len(part)))
    last = [max(ids(part)) for part in cut.batches]
    assert last == sorted(last)
    if labelled < batches:
        assert max(max(ids(part)) for part in splits(cut)) < min(ids(cut.batches[labelled]))


def test_the_initial_share_counts_all_encounters_and_batches_are_near_equal() -> None:
    cut = partition(FRAME, DIABETES, Parameters(0.2, 7, "test"))
    assert cut.initial_rows == 400
    lost = FRAME["discharge_disposition_id"].isin(NOT_READMITTABLE)
    assert sum(cut.excluded.values()) == lost.sum() > 0
    assert max(len(batch) for batch in cut.batches) - min(len(batch) for batch in cut.batches) < 20
    assert all(batch.shape[1] == 50 for batch in cut.batches)


def test_shares_by_patient_are_70_15_15() -> None:
    shares = pd.Series([patient_share("readmission", str(number)) for number in range(20_000)])
    assert abs((shares < 0.7).mean() - 0.7) < 0.01 and abs((shares >= 0.85).mean() - 0.15) < 0.01


def test_the_hash_of_a_patient_never_changes() -> None:
    # given the definition: the first 64 bits of sha256("readmission:8222157")
    assert patient_share("readmission", "8222157") == pytest.approx(0.8165658985539853)


def test_a_patient_stays_in_the_same_part_when_batches_join() -> None:
    # given the same data, with and without arrivals
    first = partition(FRAME, DIABETES, PARAMETERS)
    later = partition(FRAME, DIABETES, dataclasses.replace(PARAMETERS, labelled_batches=3), delivered(3, PARAMETERS))
    # then
    for before, after in zip(splits(first), splits(later), strict=True):
        assert set(ids(before)) < set(ids(after))
    assert [rows_digest(batch) for batch in first.batches] == [rows_digest(batch) for batch in later.batches]


def test_digests_name_rows_order_and_parameters() -> None:
    # given
    cut = partition(FRAME, DIABETES, PARAMETERS)
    parts = {name: rows_digest(part) for name, part in cut.parts().items()}
    # then each input counts
    digests = {
        dataset_digest("a", PARAMETERS, parts),
        dataset_digest("b", PARAMETERS, parts),
        dataset_digest("a", dataclasses.replace(PARAMETERS, salt="other"), parts),
        dataset_digest("a", PARAMETERS, {**parts, "train": "0"}),
        inputs_digest("a", PARAMETERS),
        inputs_digest("a", dataclasses.replace(PARAMETERS, labelled_batches=1)),
    }
    assert len(digests) == 6
    assert len(set(parts.values())) == len(parts)
    # and a single cell, and the order
    assert rows_digest(cut.test.iloc[::-1]) != parts["test"]
    changed = cut.test.copy()
    changed.loc[0, "race"] = "Other2"
    assert rows_digest(changed) != parts["test"]


def test_the_digest_of_rows_depends_on_text_alone() -> None:
    frame = pd.DataFrame({"a": ["1", "?"], "b": ["x", "None"]})
    digests = {rows_digest(frame), rows_digest(frame.astype(object)), rows_digest(frame.astype("string[python]"))}
    assert digests == {hashlib.sha256(b"a\x1fb\x1e1\x1fx\x1e?\x1fNone\x1e").hexdigest()}


def test_what_arrived_joins_once_and_as_it_is_known_by_now() -> None:
    # given arrivals: one of the file's initial encounters with another outcome, two without a number, and a new one
    initial = partition(FRAME, DIABETES, PARAMETERS).train
    known = initial.head(1).assign(readmitted="<30" if initial["readmitted"][0] != "<30" else "NO")
    new = FRAME.tail(3).assign(patient_nbr=["1", "2", "3"], encounter_id=["?", "?", "999999999"])
    arrived = pd.concat([known, new], ignore_index=True)
    # when
    cut = partition(FRAME, DIABETES, dataclasses.replace(PARAMETERS, labelled_batches=1), arrived)
    # then each is there once, with the outcome that is known by now
    everything = pd.concat(splits(cut))
    assert len(everything) == sum(map(len, splits(partition(FRAME, DIABETES, PARAMETERS)))) + len(
        without_excluded(new, DIABETES)
    )
    [outcome] = everything.loc[everything["encounter_id"] == known["encounter_id"][0], "readmitted"]
    assert outcome == known["readmitted"][0]


FEW = {
    "rows": (FRAME.iloc[:60], "validation has . of the 2 patients with a readmission"),
    "positives": (FRAME.assign(readmitted=["<30", *["NO"] * 1999]), "of the 5 patients with a readmission"),
    "negatives": (FRAME.assign(readmitted=["NO", *["<30"] * 1999]), "of the 5 patients without a readmission"),
    "patients": (FRAME.assign(patient_nbr="1"), r"\(patients: 1\) are too few: train"),
    "time": (FRAME.iloc[:160], "nothing is left for batches/"),
}


@pytest.mark.parametrize(("frame", "reason"), FEW.values(), ids=FEW)
def test_too_few_of_a_kind_are_refused(frame: pd.DataFrame, reason: str) -> None:
    batches = 80 if "batches" in reason else 4
    with pytest.raises(DataError, match=reason) as caught:
        partition(frame, DIABETES, Parameters(0.55 if batches > 4 else 0.05, batches, "test"))
    # then how many would do is said
    assert "40 patients of either outcome among the first" in caught.value.remedy
    assert ("FUTURE_BATCHES lower" in caught.value.remedy) == (batches > 4)


def test_a_cohort_of_which_nobody_can_come_back_is_refused() -> None:
    with pytest.raises(DataError, match=r"all 2,000 encounters are excluded .*died or went to hospice"):
        partition(FRAME.assign(discharge_disposition_id="11"), DIABETES, PARAMETERS)


def test_the_share_that_would_do_is_named() -> None:
    # given initial encounters that are too few, of a cohort that is not
    with pytest.raises(DataError, match="too few") as caught:
        partition(FRAME, DIABETES, dataclasses.replace(PARAMETERS, initial_share=0.02))
    named = re.search(r"HEALTH_PREDICT_INITIAL_SHARE=([0-9.]+)", caught.value.remedy)
    # then it is true
    assert named and partition(FRAME, DIABETES, dataclasses.replace(PARAMETERS, initial_share=float(named[1])))


def test_a_window_that_is_too_small_is_named() -> None:
    with pytest.raises(DataError, match="too few") as caught:
        partition(FRAME, DIABETES, dataclasses.replace(PARAMETERS, window=20))
    assert "HEALTH_PREDICT_TRAINING_WINDOW" in caught.value.remedy


def test_the_real_data_are_cut_as_documented(real_data: Path) -> None:
    cut = partition(read_cohort(real_data, DIABETES), DIABETES, Parameters(0.2, 16, "readmission"))
    assert cut.initial_rows == 20_353
    assert [len(part) for part in splits(cut)] == [13_991, 3_059, 2_922]
    assert rows_digest(cut.train) == "a0599bca327993f2db6e8c31dcb1bb30f7effdb9e13f02ffcb3592ab898e0318"


def test_a_trip_through_csv_changes_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    save_csv(FRAME, path)
    assert rows_digest(read_cohort(path, DIABETES)) == rows_digest(FRAME)


def test_a_window_keeps_the_newest_labelled_encounters(cohort: pd.DataFrame) -> None:
    # given the same labelled batches, with and without a window
    arrived = pd.concat(partition(cohort, DIABETES, Parameters(0.5, 4, "s")).batches[:2], ignore_index=True)
    whole = partition(cohort, DIABETES, Parameters(0.5, 4, "s", labelled_batches=2), arrived)
    windowed = partition(cohort, DIABETES, Parameters(0.5, 4, "s", labelled_batches=2, window=800), arrived)
    # then the newest encounters are left, each in the part where it was
    for name in ("train", "validation", "test"):
        part, newest = getattr(whole, name), getattr(windowed, name)
        assert 0 < len(newest) < len(part)
        assert newest.equals(part.tail(len(newest)).reset_index(drop=True))
    # and a dataset without a window keeps its name
    assert "window" not in Parameters(0.5, 4, "s").to_json()
    for parameters in (Parameters(0.5, 4, "s"), Parameters(0.5, 4, "s", 2, 800)):
        assert Parameters.from_json(parameters.to_json()) == parameters
