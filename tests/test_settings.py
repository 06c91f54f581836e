"""Settings: the environment, profiles, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import make_url

from health_predict.adapters.storage import open_storage
from health_predict.errors import SettingsError
from health_predict.settings import Profile, ServingTarget, Settings, load_settings, settings_on


def test_defaults_need_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert settings.home == tmp_path / ".health-predict"
    assert settings.storage == f"file://{tmp_path}/.health-predict/storage"
    assert settings.tracking_uri == f"sqlite+pysqlite:///{tmp_path}/.health-predict/mlflow.db"
    assert settings.registry == f"oci:{tmp_path}/.health-predict/images"


def test_explicit_values_beat_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEALTH_PREDICT_TRIALS", "9")
    assert load_settings().trials == 9
    assert load_settings(trials=4).trials == 4


def test_a_profile_sets_defaults_that_the_environment_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEALTH_PREDICT_PROFILE", "kind")
    assert load_settings().serving_target is ServingTarget.KUBERNETES
    monkeypatch.setenv("HEALTH_PREDICT_SERVING_TARGET", "process")
    assert load_settings().serving_target is ServingTarget.PROCESS


@pytest.mark.parametrize("place", [Profile.KIND, Profile.AWS])
def test_the_settings_of_a_place_are_valid(monkeypatch: pytest.MonkeyPatch, place: Profile) -> None:
    # given the settings that the pods of a place get
    overlay = Path(__file__).parents[1] / "k8s" / "overlays" / place.value / "settings.env"
    for name, value in (line.split("=", 1) for line in overlay.read_text().splitlines()):
        monkeypatch.setenv(name, value)
    # then none of them is unknown, and a command from outside looks at the same stream in the same windows
    inside = load_settings()
    monkeypatch.undo()
    assert [getattr(settings_on(place), name) for name in ("stream", "window", "time_zone")] == [
        getattr(inside, name) for name in ("stream", "window", "time_zone")
    ]


def test_a_day_given_as_now_begins_where_the_hospital_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEALTH_PREDICT_TIME_ZONE", "Europe/Berlin")
    assert settings_on(None, datetime(2026, 2, 1)).now == datetime(2026, 1, 31, 23, tzinfo=UTC)
    # and one with a zone stays what it is; without one, now is now
    given = datetime(2026, 2, 1, tzinfo=UTC)
    assert settings_on(None, given).now == given
    assert abs(settings_on(None).now - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_wrong_parameter_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(trials="many")
    assert "parameter trials" in caught.value.problem and "parameter" in caught.value.remedy
    assert load_settings(trials="4", initial_share="0.5").trials == 4


def test_settings_survive_the_way_to_a_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = Settings(home=tmp_path, families=("XGBoost", "LightGBM"), trials=2, serving_port=4000)
    for name, value in given.environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == given
    assert "HEALTH_PREDICT_SEED" not in given.environment()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HEALTH_PREDICT_TRAILS", "3", "did you mean HEALTH_PREDICT_TRIALS"),
        ("HEALTH_PREDICT_TRIALS", "many", "HEALTH_PREDICT_TRIALS"),
        ("HEALTH_PREDICT_INITIAL_SHARE", "1.5", "less than 1"),
        ("HEALTH_PREDICT_SERVING_PORT", "99999", "65535"),
        ("HEALTH_PREDICT_REGISTERED_MODEL", "it's", "pattern"),
        ("HEALTH_PREDICT_REGISTERED_MODEL", "a/b", "pattern"),
        ("HEALTH_PREDICT_WINDOW", "fortnight", "HEALTH_PREDICT_WINDOW"),
        ("HEALTH_PREDICT_WINDOW", "0", "HEALTH_PREDICT_WINDOW"),
        ("HEALTH_PREDICT_TIME_ZONE", "Mars/Olympus", "no time zone Mars/Olympus"),
        ("HEALTH_PREDICT_AS_OF", "2026-02-01T00:00:00", "timezone"),
        ("HEALTH_PREDICT_REPLAY", "false", "unknown setting"),
        ("HEALTH_PREDICT_PROFILE", "moon", "'local', 'kind' or 'aws'"),
        ("HEALTH_PREDICT_FAMILIES", "XGBoost", "JSON"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert words in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().trials = 3  # type: ignore[misc]


def test_every_path_of_a_home_survives_in_its_addresses(tmp_path: Path) -> None:
    # given a folder whose name holds what means something in an address
    home = tmp_path / "a b%20?#&;'@ü"
    settings = Settings(home=home)
    # then whoever reads the address finds the file
    assert make_url(settings.tracking_uri).database == str(home / "mlflow.db")
    assert open_storage(settings.storage).uri("x") == (home / "storage" / "x").as_uri()
