"""What features make of kinds that the built-in table lacks: numbers, flags, what may be missing, ICD-10."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pandas as pd
import pytest

from health_predict.core.data.values import Value
from health_predict.core.model.evaluation import single_predictor, subgroup_levels
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.model.row_encoder import RowEncoder
from tests.modern import CONTRACT, encounters

EXAMPLE = CONTRACT.request


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return encounters(2000)


@pytest.fixture(scope="module")
def fitted(frame: pd.DataFrame) -> EncounterFeatures:
    return EncounterFeatures(CONTRACT, minimum_rows=30).fit(frame)


def row(fitted: EncounterFeatures, **changes: Value) -> dict[str, float]:
    values, _ = fitted.encoder_.encode({**EXAMPLE, **changes})
    return dict(zip(fitted.encoder_.names, values.tolist(), strict=True))


def median(frame: pd.DataFrame, name: str) -> float:
    return float(frame.loc[frame[name] != "?", name].astype(float).quantile(interpolation="lower"))


def test_columns_rows_and_batches_give_the_same_numbers(fitted: EncounterFeatures, frame: pd.DataFrame) -> None:
    matrix = fitted.transform(frame)
    alone = np.stack([fitted.encoder_.encode(one)[0] for one in frame.to_dict("records")])
    together, unseen = fitted.encoder_.encode_columns([frame[one.column].tolist() for one in fitted.encoder_.tables])
    assert (matrix.view(np.uint32) == alone.view(np.uint32)).all()
    assert (matrix.view(np.uint32) == together.view(np.uint32)).all()
    assert unseen == {}


@pytest.mark.parametrize("value", [36.6, "36.6", "36.60", 36.60])
def test_a_number_is_its_float32_however_it_is_written(fitted: EncounterFeatures, value: Value) -> None:
    assert row(fitted, temperature=value)["temperature"] == float(np.float32(36.6))


def test_a_number_may_be_negative_whole_or_new(fitted: EncounterFeatures) -> None:
    for value in (-1234.5, -7, 0, "12.25"):
        values, unseen = fitted.encoder_.encode({**EXAMPLE, "balance": value})
        assert values[fitted.encoder_.names.index("balance")] == float(value)
        assert "balance" not in unseen


@pytest.mark.parametrize("name", ["creatinine", "balance"])
@pytest.mark.parametrize("absent", [None, "?"])
def test_a_missing_number_is_marked_and_stands_at_the_median(
    fitted: EncounterFeatures, frame: pd.DataFrame, name: str, absent: Value
) -> None:
    assert row(fitted)[f"{name} missing"] == 0
    found = row(fitted, **{name: absent})
    assert found[f"{name} missing"] == 1
    assert found[name] == float(np.float32(median(frame, name)))


def test_a_missing_count_is_marked_and_stands_at_the_median(fitted: EncounterFeatures, frame: pd.DataFrame) -> None:
    found, there = row(fitted, stays=None), row(fitted, stays=int(median(frame, "stays")))
    assert (found.pop("stays missing"), there.pop("stays missing")) == (1, 0)
    assert found == there


def test_a_flag_has_two_levels_and_says_when_it_is_missing(fitted: EncounterFeatures) -> None:
    assert {name for name in fitted.encoder_.names if name.startswith("intensive")} == {"intensive=No", "intensive=Yes"}
    assert row(fitted, intensive="Yes")["intensive=Yes"] == 1
    assert (row(fitted, smoker="1")["smoker=1"], row(fitted, smoker=None)["smoker=?"]) == (1, 1)


def test_levels_in_order_have_their_place_though_nobody_had_them(fitted: EncounterFeatures) -> None:
    places = [row(fitted, triage=level)["triage"] for level in ("1", "2", 3, "4", "5")]
    assert places == [0, 1, 2, 3, 4]
    assert row(fitted, triage=None)["triage=?"] == 1


def test_codes_of_icd_10_mark_their_chapter_and_category(fitted: EncounterFeatures) -> None:
    with_dot, without = row(fitted, second="E11.65"), row(fitted, second="E119")
    for found in (with_dot, without):
        assert found["second chapter=endocrine"] == found["diagnosis=E11"] == 1
    # and what one column counts apart is of its chapter in another
    assert row(fitted, first="I50.9")["first chapter=heart failure"] == 1
    assert row(fitted, second="I50.9")["second chapter=circulatory"] == 1


def test_what_is_counted_together_follows_the_contract(fitted: EncounterFeatures) -> None:
    found = row(fitted, opioid="same", diuretic="less")
    assert (found["drugs taken"], found["drugs changed"]) == (2, 1)


def test_tables_and_contract_survive_saving(fitted: EncounterFeatures, frame: pd.DataFrame) -> None:
    again: EncounterFeatures = pickle.loads(pickle.dumps(fitted))
    assert again.contract == CONTRACT
    text = json.dumps(fitted.encoder_.to_json(), sort_keys=True)
    assert json.dumps(RowEncoder.from_json(json.loads(text)).to_json(), sort_keys=True) == text
    np.testing.assert_array_equal(again.transform(frame), fitted.transform(frame))


def test_a_column_without_any_value_is_no_position(frame: pd.DataFrame) -> None:
    # given numbers and counts that training never had
    fitted = EncounterFeatures(CONTRACT).fit(frame.assign(creatinine="?", stays="?"))
    # then they change nothing when they come
    assert row(fitted, creatinine=3.5, stays=7) == row(fitted, creatinine=None, stays=None)


def test_groups_of_numbers_and_counts_go_by_their_bounds(frame: pd.DataFrame) -> None:
    found = subgroup_levels(frame, CONTRACT)
    names = {attribute: [name for one, name in found if one == attribute] for attribute, _ in found}
    assert names["age"] == ["under 45", "45 to 64", "65 to 79", "80 and over"]
    assert names["creatinine"] == ["unknown", "under 1.2", "1.2 to under 2.5", "2.5 and over"]
    age = frame["age"].astype(int)
    np.testing.assert_array_equal(found["age", "45 to 64"], (age >= 45) & (age < 65))
    masks = [mask for (attribute, _), mask in found.items() if attribute == "creatinine"]
    assert (np.sum(masks, axis=0) == 1).all()


def test_the_single_predictor_ranks_a_missing_value_by_the_median(frame: pd.DataFrame) -> None:
    values, missing = single_predictor(frame, CONTRACT), (frame["stays"] == "?").to_numpy()
    assert missing.any() and (values[missing] == np.median(values[~missing])).all()
    assert not single_predictor(frame.assign(stays="?"), CONTRACT).any()
