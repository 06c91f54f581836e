"""Families and their search spaces."""

from __future__ import annotations

import numpy as np
import pytest

from health_predict.core.model.families import BASELINE, FAMILIES, Choice, Range, choose, draws, named
from health_predict.errors import SettingsError, StateError
from tests.documented_family import documented_family


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    matrix = random.random((400, 6)).astype(np.float32)
    return matrix, (random.random(400) < 0.1 + 0.5 * matrix[:, 0]).astype(np.int8)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_learns_and_repeats(name: str, rows: tuple[np.ndarray, np.ndarray]) -> None:
    family = FAMILIES[name]
    one = family.fit(family.first, *rows, seed=3).predict_proba(rows[0])
    two = family.fit(family.first, *rows, seed=3).predict_proba(rows[0])
    assert one.shape == (400, 2)
    np.testing.assert_array_equal(one, two)
    assert np.corrcoef(one[:, 1], rows[0][:, 0])[0, 1] > 0.2


def test_a_watched_booster_predicts_with_its_trial_s_threads(
    rows: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightgbm

    # given a booster that tells how it is asked
    asked: list[object] = []
    predict = lightgbm.Booster.predict
    monkeypatch.setattr(
        lightgbm.Booster,
        "predict",
        lambda self, *given, **named: asked.append(named.get("num_threads")) or predict(self, *given, **named),
    )
    family = FAMILIES["LightGBM"]
    found = []
    family.fit(
        {**family.first, "n_estimators": 8},
        *rows,
        seed=3,
        threads=1,
        shares=(0.5, 1),
        watch=lambda rounds, score: found.append(score(rows[0])),
    )
    assert asked == [1, 1]
    assert [len(scores) for scores in found] == [400, 400]


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_stay_inside_the_space_and_do_not_depend_on_their_number(name: str) -> None:
    family = FAMILIES[name]
    many = draws(family, 33, seed=1)
    assert many[0] == dict(family.first)
    assert len(many) == 33
    assert many[:9] == draws(family, 9, seed=1)
    assert many[1:] != draws(family, 33, seed=2)[1:]
    for point in many:
        assert set(point) == set(family.space)
        for parameter, value in point.items():
            dimension = family.space[parameter]
            if isinstance(dimension, Choice):
                assert value in dimension.options
            else:
                assert dimension.low <= value <= dimension.high
                assert isinstance(value, int) == dimension.integer or parameter in ("min_child_weight", "reg_lambda")


def test_parameters_come_back_from_text_as_they_were() -> None:
    for family in FAMILIES.values():
        for point in draws(family, 9, seed=1):
            assert family.parsed({name: str(value) for name, value in point.items()}) == point


def test_whole_numbers_may_come_back_as_floats(rows: tuple[np.ndarray, np.ndarray]) -> None:
    # given parameters as KFP and search libraries hand them back
    family = FAMILIES["RandomForest"]
    point = {**family.first, "min_samples_leaf": 10.0, "max_depth": 24.0}
    assert family.fit(point, *rows, seed=1).get_params()["max_depth"] == 24


def test_the_baseline_works_on_raw_positions(rows: tuple[np.ndarray, np.ndarray]) -> None:
    # given positions of very different scale, one of them constant
    matrix = rows[0] * np.array([1, 1000, 1, 1, 0, 1], dtype=np.float32)
    model = FAMILIES[BASELINE].fit({"C": 0.01}, matrix, rows[1], seed=0)
    # then the fitted model is a plain one whose scores average to the prevalence
    assert model.predict_proba(matrix)[:, 1].mean() == pytest.approx(rows[1].mean(), abs=1e-3)


def test_an_unknown_family_is_refused() -> None:
    assert [family.name for family in choose(())] == list(FAMILIES)
    assert [family.name for family in choose(("XGBoost",))] == ["XGBoost"]
    with pytest.raises(SettingsError, match="CatBoost"):
        choose(("CatBoost",))
    assert named("XGBoost") is FAMILIES["XGBoost"]
    with pytest.raises(StateError, match="CatBoost"):
        named("CatBoost")
    assert Range(1, 2) != Choice((1, 2))


def test_the_documented_example_is_a_family(rows: tuple[np.ndarray, np.ndarray]) -> None:
    family = documented_family()
    seen: list[int] = []
    # when it is fitted and watched
    model = family.fit(family.first, *rows, seed=1, shares=(0.25, 0.5), watch=lambda done, score: seen.append(done))
    # then it told of itself on the way, and is the model of a fit that nobody watches
    assert seen == [50, 100]
    plain = family.fit(family.first, *rows, seed=1)
    np.testing.assert_allclose(model.predict_proba(rows[0]), plain.predict_proba(rows[0]), atol=1e-9)
