"""Which raw data a run reads: the champion's, unless it is told otherwise or real patients replace synthetic ones."""

from __future__ import annotations

import hashlib
import logging
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from health_predict.adapters import keys
from health_predict.adapters.contracts import built_in_synthetic
from health_predict.adapters.data import dataset
from health_predict.adapters.data.dataset import RawData
from health_predict.adapters.data.raw_data import champion_origin, raw_data, refuse_other_data
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import CHAMPION, Tracking
from health_predict.core.data.cohort import save_csv
from health_predict.core.data.sources import Source
from health_predict.errors import DataError, StateError, UnreachableError
from health_predict.settings import Settings
from health_predict.stages.split import split
from tests.cohorts import synthesize
from tests.conftest import as_if_real
from tests.contracts import published_at
from tests.homes import copied

MakeSettings = Callable[..., Settings]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """UCI's address leads to a port on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        contract = published_at(f"http://127.0.0.1:{free.getsockname()[1]}/data.zip")
        monkeypatch.setenv("HEALTH_PREDICT_CONTRACT", contract)
    monkeypatch.setattr(dataset, "synthetic_of", lambda *_: built_in_synthetic().model_copy(update={"rows": 500}))


@dataclass(frozen=True)
class Files:
    """Small files as a user has them."""

    mine: Path
    other: Path
    made_up: Path
    also_made_up: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    found = Files(*(folder / f"{name}.csv" for name in ("mine", "other", "made-up", "also-made-up")))
    for seed, path in enumerate((found.mine, found.other)):
        save_csv(as_if_real(synthesize(3000, seed=seed)), path)
    for seed, path in enumerate((found.made_up, found.also_made_up)):
        save_csv(synthesize(3000, seed=seed + 2), path)
    return found


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def crown(settings: Settings, file: Path, folder: Path) -> None:
    """A champion that was trained on a file, which `split` brought to storage."""
    names = ("train", "validation", "test", "batches", "profile")
    told = settings.model_copy(update={"data_source": str(file), "future_batches": 3})
    made = split(told, labelled_batches=0, **{name: folder / name for name in names})  # type: ignore[arg-type]
    tags = {"dataset_digest": made.dataset_digest, "dataset_source": made.dataset_source}
    tracking = Tracking(settings)
    version = tracking.register(tracking.start_search("a search", tags, {}), tags, "")
    tracking.set_alias(CHAMPION, version.version)


@pytest.fixture(scope="module")
def crowned(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path, files: Files) -> dict[str, Path]:
    """A home whose champion stands on real patients, and one whose on synthetic ones, to copy."""
    homes = {}
    for name in ("mine", "made_up"):
        homes[name] = tmp_path_factory.mktemp(name) / "home"
        homes[name].mkdir()
        shutil.copy(mlflow_database, homes[name])
        crown(Settings(home=homes[name]), getattr(files, name), homes[name].parent)
    return homes


@pytest.fixture
def settings(crowned: dict[str, Path], tmp_path: Path) -> Settings:
    """Of a shell without variables, in a home whose champion stands on real patients."""
    return Settings(home=copied(crowned["mine"], tmp_path / "home"))


@pytest.fixture
def on_synthetic(crowned: dict[str, Path], tmp_path: Path) -> Settings:
    """The same with a champion of synthetic patients."""
    return Settings(home=copied(crowned["made_up"], tmp_path / "home"))


def ask(settings: Settings, **values: Any) -> RawData:
    """What a run reads; the settings of a stage and its arguments."""
    given = {name: values.pop(name) for name in ("continues", "stand_in") if name in values}
    asked = settings.model_copy(
        update={name: str(value) if name != "replace_data" else value for name, value in values.items()}
    )
    return raw_data(asked, champion_origin(asked), **given)


class TestWithoutAChampion:
    def test_the_question_makes_no_registry(self, tmp_path: Path, files: Files) -> None:
        settings = Settings(home=tmp_path / "home", data_source=str(files.mine))
        assert ask(settings).path == files.mine and not settings.home.exists()

    @pytest.mark.parametrize("profile", ["local", "kind", "aws"])
    def test_nothing_stands_in_for_an_unreachable_uci_in_a_pipeline(
        self, profile: str, make_settings: MakeSettings, tmp_path: Path
    ) -> None:
        # given the settings of a task, here or in a cluster, in which no source is named
        place = make_settings()
        settings = Settings(
            profile=profile,  # type: ignore[arg-type]
            home=place.home,
            storage_uri=place.storage,
            mlflow_tracking_uri=place.tracking_uri,
        )
        # when the data are split, then the run ends with both ways out, and nothing is trained on anybody made up
        names = ("train", "validation", "test", "batches", "profile")
        with pytest.raises(UnreachableError, match="does not answer") as caught:
            split(settings, labelled_batches=0, **{name: tmp_path / name for name in names})  # type: ignore[arg-type]
        assert "DATA_SOURCE=synthetic" in caught.value.remedy and "data_source=" in caught.value.remedy
        assert open_storage(place.storage).keys("") == []

    def test_the_demo_may_stand_on_synthetic_ones(self, make_settings: MakeSettings) -> None:
        assert ask(make_settings(), stand_in=True).source == Source.SYNTHETIC


class TestWithAChampion:
    @pytest.mark.parametrize("continues", [True, False])
    @pytest.mark.parametrize("stand_in", [True, False])
    def test_a_run_that_names_nothing_reads_its_data_from_storage(
        self, settings: Settings, files: Files, continues: bool, stand_in: bool
    ) -> None:
        # given no source, no network, and settings that know a copy of UCI's file
        found = ask(settings, continues=continues, stand_in=stand_in, data_copy=files.other)
        # then it is the champion's file, byte for byte
        assert found.sha256 == sha256(files.mine) and found.path.read_bytes() == files.mine.read_bytes()
        assert found.source == Source.CUSTOM

    def test_the_same_file_under_any_name_is_no_other(self, settings: Settings, files: Files, tmp_path: Path) -> None:
        (tmp_path / "moved.csv").write_bytes(files.mine.read_bytes())
        for continues in (True, False):
            assert ask(settings, continues=continues, data_source=tmp_path / "moved.csv").sha256 == sha256(files.mine)
        refuse_other_data(
            settings.model_copy(update={"data_source": str(tmp_path / "moved.csv")}), champion_origin(settings)
        )

    def test_other_data_are_refused_until_told(
        self, settings: Settings, files: Files, caplog: pytest.LogCaptureFixture
    ) -> None:
        # when others are asked for, then both are named, with the way on
        with pytest.raises(DataError) as caught:
            ask(settings, data_source=files.other)
        for word in ("custom data", sha256(files.mine)[:12], sha256(files.other)[:12]):
            assert word in caught.value.problem
        for word in ("--replace-data", "HEALTH_PREDICT_REPLACE_DATA=1", "-p replace_data=true"):
            assert word in caught.value.remedy
        # when it is told, then they are taken, and that is said
        with caplog.at_level(logging.WARNING):
            assert ask(settings, data_source=files.other, replace_data=True).sha256 == sha256(files.other)
        assert "as told" in caplog.text

    @pytest.mark.parametrize("replace_data", [True, False])
    def test_what_continues_the_champion_takes_no_other_data(
        self, settings: Settings, files: Files, replace_data: bool
    ) -> None:
        asked = {"data_source": files.other, "replace_data": replace_data}
        with pytest.raises(DataError, match="of the champion's patients") as caught:
            ask(settings, continues=True, **asked)
        assert "pipeline run readmission --replace-data" in caught.value.remedy
        # nor does what judges it
        with pytest.raises(DataError, match="of the champion's patients"):
            refuse_other_data(settings.model_copy(update={"data_source": str(files.other)}), champion_origin(settings))

    @pytest.mark.parametrize("replace_data", [True, False])
    def test_synthetic_patients_never_take_the_place_of_real_ones(
        self, settings: Settings, files: Files, replace_data: bool
    ) -> None:
        for source in (files.made_up, "synthetic"):
            with pytest.raises(DataError, match="never take the place of real ones") as caught:
                ask(settings, data_source=source, replace_data=replace_data)
            assert "HEALTH_PREDICT_HOME" in caught.value.remedy

    @pytest.mark.parametrize("damage", ["no more", "damaged"])
    def test_a_loss_is_named_and_mended_by_the_same_file(
        self, settings: Settings, files: Files, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        # given raw data that are gone or cut
        stored = settings.home / "storage" / keys.raw(sha256(files.mine))
        stored.write_bytes(stored.read_bytes()[:-70]) if damage == "damaged" else stored.unlink()
        # when they are needed, then nothing is taken in their place
        with pytest.raises(StateError, match=damage) as caught:
            ask(settings)
        assert "the same file" in caught.value.remedy
        # when that file is named, then storage has it again
        assert ask(settings, data_source=files.mine).sha256 == sha256(files.mine)
        assert stored.read_bytes() == files.mine.read_bytes()
        assert ask(settings).sha256 == sha256(files.mine)

    def test_a_champion_whose_data_nobody_knows_is_not_continued(self, settings: Settings, files: Files) -> None:
        # given a manifest that is lost
        next((settings.home / "storage").glob("datasets/*/manifest.json")).unlink()
        # then nothing is taken unasked, and what is asked for has to be told
        with pytest.raises(StateError, match="no manifest"):
            ask(settings)
        with pytest.raises(DataError, match="were asked for"):
            ask(settings, data_source=files.mine)
        with pytest.raises(DataError, match="never take the place"):
            ask(settings, data_source=files.made_up, replace_data=True)
        assert ask(settings, data_source=files.mine, replace_data=True).sha256 == sha256(files.mine)


class TestWithASyntheticChampion:
    def test_real_ones_take_its_place_unasked_when_they_are_at_hand(
        self, on_synthetic: Settings, files: Files, caplog: pytest.LogCaptureFixture
    ) -> None:
        # given a copy of what UCI has
        contract = published_at(sha256=sha256(files.mine))
        with caplog.at_level(logging.WARNING):
            assert ask(on_synthetic, data_copy=files.mine, contract=contract).source == "uci"
        assert "real patients take its place" in caplog.text
        # then not for what goes on with the labelled batches of the synthetic ones
        assert ask(on_synthetic, data_copy=files.mine, contract=contract, continues=True).sha256 == sha256(
            files.made_up
        )

    def test_without_them_it_goes_on_and_says_so(
        self, on_synthetic: Settings, files: Files, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            assert ask(on_synthetic).sha256 == sha256(files.made_up)
        assert "synthetic data" in caplog.text and "no real data are at hand" in caplog.text

    def test_real_ones_that_are_named_need_not_be_told_twice(
        self, on_synthetic: Settings, files: Files, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            assert ask(on_synthetic, data_source=files.mine).sha256 == sha256(files.mine)
        assert "take the place of synthetic ones" in caplog.text

    def test_other_synthetic_ones_are_other_data(self, on_synthetic: Settings, files: Files) -> None:
        with pytest.raises(DataError, match="were asked for"):
            ask(on_synthetic, data_source=files.also_made_up)
        told = ask(on_synthetic, data_source=files.also_made_up, replace_data=True)
        assert told.sha256 == sha256(files.also_made_up)
