"""The split stage: the same digest anywhere, reuse, repair, refusal without effects. `test_killed.py` kills it."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from health_predict.adapters import keys
from health_predict.adapters.data.batches import Batches
from health_predict.adapters.data.records import PROGRESS, Progress
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import CHAMPION, Tracking
from health_predict.core.data.cohort import load_part, save_csv, without_excluded
from health_predict.core.data.outcomes import write_outcomes
from health_predict.core.data.partition import rows_digest
from health_predict.errors import DataError, StateError
from health_predict.settings import Settings
from health_predict.stages.split import SplitResult, split
from tests.cohorts import synthesize
from tests.conftest import as_if_real
from tests.contracts import DIABETES
from tests.feed import logged

CUT = ("initial_share", "future_batches", "salt")
NAMES = ("train", "validation", "test", "batches", "profile")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "cohort.csv"
    save_csv(synthesize(1_500, seed=21), path)
    return path


def settings_of(home: Path, raw: Path, **values: object) -> Settings:
    return Settings(home=home, data_source=str(raw), **{"future_batches": 3, **values})  # type: ignore[arg-type]


def run(settings: Settings, out: Path, labelled_batches: int = 0) -> SplitResult:
    return split(settings, labelled_batches=labelled_batches, **{name: out / name for name in NAMES})


def arrive(settings: Settings, *batches: pd.DataFrame, known: int | None = None) -> list[list[str]]:
    """Let batches arrive and be judged, each a window of its own, with the outcomes of the first `known` of each.

    Gives the prediction ids of each batch.
    """
    storage, ids = open_storage(settings.storage), []
    for number, frame in enumerate(batches):
        ids.append(logged(storage, f"{number}", frame, datetime(2020, 1, 1 + number, tzinfo=UTC)))
        readmitted = frame["readmitted"] == "<30"
        file = write_outcomes({"prediction_id": ids[-1][:known]}, DIABETES, readmitted[:known])
        storage.write(keys.outcomes(settings.stream, f"{number}"), file)
        Batches(settings.model_copy(update={"window": str(len(frame))})).arrivals.collect()
    storage.write(keys.progress(settings.stream), PROGRESS.dump_json(Progress(settled=len(batches))))
    return ids


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder and its SHA-256."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass(frozen=True)
class Calm:
    """What a run left that nobody disturbed: a home and its outputs, not to be changed but in a copy."""

    home: Path
    out: Path
    result: SplitResult

    def copied(self, folder: Path) -> Path:
        """A home like it in another folder."""
        return Path(shutil.copytree(self.home, folder / "home"))


@pytest.fixture(scope="module")
def calm(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    folder = tmp_path_factory.mktemp("calm")
    return Calm(folder / "home", folder / "out", run(settings_of(folder / "home", raw), folder / "out"))


def test_a_dataset_lies_in_storage_under_its_digest(raw: Path, calm: Calm) -> None:
    storage, result = open_storage(settings_of(calm.home, raw).storage), calm.result
    sha256 = hashlib.sha256(raw.read_bytes()).hexdigest()
    folder = f"datasets/{result.dataset_digest}"
    assert storage.keys("raw/") == [f"raw/{sha256}/data.csv"]
    assert storage.read(f"raw/{sha256}/data.csv") == raw.read_bytes()
    assert result.raw_uri == storage.uri(f"raw/{sha256}/data.csv")
    assert storage.keys(folder) == [
        f"{folder}/{name}"
        for name in (
            "batches/00.parquet",
            "batches/01.parquet",
            "batches/02.parquet",
            "manifest.json",
            "profile.html",
            "test.parquet",
            "train.parquet",
            "validation.parquet",
        )
    ]
    assert not result.reused and result.dataset_source == "synthetic" and len(result.dataset_digest) == 64


def test_the_outputs_are_the_parts_the_manifest_and_the_profile(calm: Calm) -> None:
    out, result = calm.out, calm.result
    assert sorted(path.name for path in out.iterdir()) == sorted(NAMES)
    manifest = json.loads((out / "batches").read_text())
    for name in ("train", "validation", "test"):
        part = load_part(out / name)
        described = manifest["parts"][name]
        assert described["rows"] == len(part) and described["rows_sha256"] == rows_digest(part)
        assert described["positives"] == (part["readmitted"] == "<30").sum()
    assert sorted(manifest["uris"]) == ["batches/00", "batches/01", "batches/02"]
    batch = load_part(Path(manifest["uris"]["batches/02"].removeprefix("file://")))
    assert batch.shape[1] == 50 and rows_digest(batch) == manifest["parts"]["batches/02"]["rows_sha256"]
    assert {key: value for key, value in manifest.items() if key != "uris"} == result.manifest
    assert manifest["rows"] == 1_500 and manifest["initial_rows"] == 300
    kept = sum(part["rows"] for part in manifest["parts"].values())
    assert kept + sum(manifest["excluded"].values()) == 1_500
    page = (out / "profile").read_text()
    assert "Synthetic data" in page and result.dataset_digest[:12] in page


def test_the_same_input_gives_the_same_files_anywhere(raw: Path, calm: Calm, tmp_path: Path) -> None:
    second = run(settings_of(tmp_path / "elsewhere" / "b", raw), tmp_path / "out")
    assert calm.result.dataset_digest == second.dataset_digest and calm.result.manifest == second.manifest
    assert tree(calm.home / "storage") == tree(tmp_path / "elsewhere" / "b" / "storage")


def test_each_parameter_and_the_data_name_another_dataset(raw: Path, calm: Calm, tmp_path: Path) -> None:
    home = tmp_path / "home"
    other = tmp_path / "other.csv"
    save_csv(synthesize(1_500, seed=22), other)
    arrive(settings_of(home, raw), as_if_real(synthesize(50, seed=23)))
    results = [
        calm.result,
        run(settings_of(home, raw, salt="other"), tmp_path / "out"),
        run(settings_of(home, raw, initial_share=0.3), tmp_path / "out"),
        run(settings_of(home, raw, future_batches=4), tmp_path / "out"),
        run(settings_of(home, raw), tmp_path / "out", labelled_batches=1),
        run(settings_of(home, other), tmp_path / "out"),
    ]
    assert len({result.dataset_digest for result in results}) == 6
    assert not any(result.reused for result in results)


def test_the_future_of_the_file_may_arrive_and_stays_its_future(raw: Path, calm: Calm, tmp_path: Path) -> None:
    # given two of the file's future batches that arrived
    settings, first = settings_of(calm.copied(tmp_path), raw), calm.result
    folder = tmp_path / "home" / "storage" / "datasets" / first.dataset_digest
    arrive(settings, *(load_part(folder / "batches" / f"0{number}.parquet") for number in (0, 1)))
    # when they join the initial encounters
    later = run(settings, tmp_path / "out2", labelled_batches=2)
    # then each of them is counted once
    rows = {
        k: sum(result.manifest["parts"][name]["rows"] for name in NAMES[:3]) for k, result in ((0, first), (2, later))
    }
    joined = [first.manifest["parts"][f"batches/0{number}"] for number in (0, 1)]
    assert rows[2] == rows[0] + sum(part["rows"] for part in joined)
    assert [later.manifest["parts"][f"batches/0{number}"] for number in (0, 1)] == joined
    # and the manifest says where they lie
    assert [(one["batch"], one["rows"]) for one in later.manifest["arrivals"]] == [
        (number, part["rows"]) for number, part in enumerate(joined)
    ]
    assert later.manifest["arrivals"][0]["of"] == [["2020-01-01/000000", 0, joined[0]["rows"]]]
    assert "arrivals" not in first.manifest


@pytest.fixture
def continued(raw: Path, tmp_path: Path, mlflow_database: Path) -> Settings:
    """Of a shell without variables, in a home whose champion's dataset was cut in another way than the settings say."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(mlflow_database, home)
    made = run(settings_of(home, raw, initial_share=0.5, salt="its own"), tmp_path / "first")
    tracking, tags = Tracking(Settings(home=home)), {"dataset_digest": made.dataset_digest, "dataset_source": "custom"}
    tracking.set_alias(CHAMPION, tracking.register(tracking.start_search("a search", tags, {}), tags, "").version)
    return Settings(home=home, evidently="never")


def test_what_continues_the_champions_dataset_is_cut_as_that_was(continued: Settings, tmp_path: Path) -> None:
    # given a batch that has arrived and has labels by now
    arrive(continued, as_if_real(synthesize(50, seed=76)))
    # when nothing else is said
    parameters = run(continued, tmp_path / "out", labelled_batches=1).manifest["parameters"]
    assert [parameters[name] for name in CUT] == [0.5, 3, "its own"] and parameters["labelled_batches"] == 1
    # then what is given to this very run counts all the same, what the settings say in general does not
    settings = continued.model_copy(update={"salt": "given", "future_batches": 7})
    files = {name: tmp_path / "out" / name for name in NAMES}
    parameters = split(settings, labelled_batches=1, given=["salt"], **files).manifest["parameters"]  # type: ignore[arg-type]
    assert [parameters[name] for name in CUT] == [0.5, 3, "given"]
    # and a training from the beginning is cut as the settings say
    parameters = run(settings, tmp_path / "out").manifest["parameters"]
    assert [parameters[name] for name in CUT] == [0.2, 7, "given"]


def test_what_arrived_is_learned_from_once_its_outcome_is_known(continued: Settings, tmp_path: Path) -> None:
    # given two batches of other patients that the endpoint scored, of whom some outcomes are known
    patients = as_if_real(synthesize(600, seed=77))
    ids = arrive(continued, patients[:300], patients[300:].reset_index(drop=True), known=280)
    first = json.loads((tmp_path / "first" / "batches").read_text())
    # when the champion's dataset is continued with both
    result = run(continued, tmp_path / "out", labelled_batches=2)
    # then they are what joins the initial encounters: those whose outcome is known, with it
    kept = without_excluded(pd.concat([patients[:280], patients[300:580]]), DIABETES)
    parts = pd.concat([load_part(tmp_path / "out" / name) for name in NAMES[:3]])
    joined = parts[parts["encounter_id"].isin(patients["encounter_id"])]
    assert sorted(joined["encounter_id"]) == sorted(kept["encounter_id"])
    assert len(parts) - len(joined) == sum(first["parts"][name]["rows"] for name in NAMES[:3])
    assert set(joined.loc[joined["readmitted"] == "<30", "encounter_id"]) == set(
        kept.loc[kept["readmitted"] == "<30", "encounter_id"]
    )
    assert sum(one["rows"] for one in result.manifest["arrivals"]) == len(kept)
    # and the same again is the same dataset, with another outcome it is another
    assert run(continued, tmp_path / "out", labelled_batches=2).reused
    storage = open_storage(continued.storage)
    storage.write(
        keys.outcomes(continued.stream, "late"), write_outcomes({"prediction_id": ids[0][280:]}, DIABETES, [1] * 20)
    )
    Batches(continued).arrivals.collect()
    assert run(continued, tmp_path / "out", labelled_batches=2).dataset_digest != result.dataset_digest
    # and a stream may be longer than the future of the file
    assert run(continued, tmp_path / "out", labelled_batches=10).manifest["parameters"]["labelled_batches"] == 10


def test_who_has_no_patient_is_never_learned_from(continued: Settings, tmp_path: Path) -> None:
    # given a batch in which somebody is not known
    patients = as_if_real(synthesize(300, seed=78))
    patients.loc[:99, "patient_nbr"] = "?"
    arrive(continued, patients)
    # when
    run(continued, tmp_path / "out", labelled_batches=1)
    # then the others are learned from
    parts = pd.concat([load_part(tmp_path / "out" / name) for name in NAMES[:3]])
    assert not (parts["patient_nbr"] == "?").any()
    known = without_excluded(patients[100:], DIABETES)
    assert set(known["encounter_id"]) <= set(parts["encounter_id"])
    assert not set(patients["encounter_id"][:100]) & set(parts["encounter_id"])


@pytest.mark.parametrize("labelled_batches", [-1, 1, 4])
def test_arrivals_without_outcomes_are_waited_for(continued: Settings, tmp_path: Path, labelled_batches: int) -> None:
    arrive(continued, as_if_real(synthesize(5, seed=1)), known=0)
    with pytest.raises(StateError, match="has outcomes") as caught:
        run(continued, tmp_path / "out", labelled_batches=labelled_batches)
    assert "health-predict status" in caught.value.remedy


def test_a_repeat_reads_what_lies_in_storage(raw: Path, calm: Calm, tmp_path: Path) -> None:
    # given
    files = tree(calm.home)
    # when
    again = run(settings_of(calm.home, raw), tmp_path / "out")
    # then
    assert again.reused and again.dataset_digest == calm.result.dataset_digest
    assert tree(tmp_path / "out") == tree(calm.out) and tree(calm.home) == files


FILES = ("train.parquet", "batches/01.parquet", "profile.html", "manifest.json", "index")


@pytest.mark.parametrize(
    ("name", "damage"), [*((name, damage) for name in FILES for damage in ("gone", "cut")), ("raw", "gone")]
)
def test_a_dataset_that_is_not_whole_is_made_again(
    name: str, damage: str, raw: Path, calm: Calm, tmp_path: Path
) -> None:
    # given
    settings, result = settings_of(calm.copied(tmp_path), raw), calm.result
    storage = tmp_path / "home" / "storage"
    whole = tree(storage)
    file = {
        "raw": next(storage.glob("raw/*/*")),
        "index": next(storage.glob("datasets/by-inputs/*")),
    }.get(name, storage / "datasets" / result.dataset_digest / name)
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:30])
    # when
    again = run(settings, tmp_path / "out")
    # then
    assert not again.reused and again.dataset_digest == result.dataset_digest
    assert tree(storage) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda frame: frame.assign(age="[200-210)"), "1,500 violations", id="levels"),
        pytest.param(lambda frame: frame.drop(columns="race"), "lacks race", id="columns"),
        pytest.param(lambda frame: frame.assign(readmitted="NO"), "readmitted <30", id="no positive label"),
        pytest.param(lambda frame: pd.concat([frame, frame[:1]]), "must occur once", id="duplicate"),
        pytest.param(lambda frame: frame[:12], "too few|'<30'", id="too few"),
    ],
)
def test_bad_data_are_refused_without_any_effect(change: object, message: str, raw: Path, tmp_path: Path) -> None:
    # given
    bad = tmp_path / "bad.csv"
    save_csv(change(pd.read_csv(raw, dtype=str, keep_default_na=False)), bad)  # type: ignore[operator]
    # when
    with pytest.raises(DataError, match=message):
        run(settings_of(tmp_path / "home", bad), tmp_path / "out")
    # then
    assert not (tmp_path / "home").exists() and not (tmp_path / "out").exists()


def test_s3_takes_the_same_files_as_a_folder(raw: Path, calm: Calm, tmp_path: Path, s3_endpoint: str) -> None:
    import boto3

    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket="hospital")
    bucket = settings_of(tmp_path / "s3", raw, storage_uri="s3://hospital/data", s3_endpoint_url=s3_endpoint)
    # when
    first, again = run(bucket, tmp_path / "out"), run(bucket, tmp_path / "out")
    # then
    assert again.reused and first.dataset_digest == calm.result.dataset_digest
    assert first.raw_uri.startswith("s3://hospital/data/raw/")
    assert open_storage("s3://hospital/data", s3_endpoint).keys("") == sorted(tree(calm.home / "storage"))


@pytest.mark.slow
def test_the_real_data_split_in_seconds_to_the_documented_parts(real_data: Path, tmp_path: Path) -> None:
    # when
    settings = Settings(home=tmp_path / "home", data_source=str(real_data))
    began = time.process_time()
    result = run(settings, tmp_path / "out")
    first = time.process_time() - began
    began = time.process_time()
    again = run(settings, tmp_path / "out")
    # then
    assert first < 30 and time.process_time() - began < 5 and again.reused  # usually 5 and 0.1
    assert result.dataset_source == "uci" and result.manifest["initial_rows"] == 20_353
    parts = result.manifest["parts"]
    assert [parts[name]["rows"] for name in ("train", "validation", "test")] == [13_991, 3_059, 2_922]
    assert len([name for name in parts if name.startswith("batches/")]) == 16
    excluded = {"11": 1642, "13": 399, "14": 372, "19": 8, "20": 2}
    assert result.manifest["excluded"] == {
        f"discharge_disposition_id {code}": count for code, count in excluded.items()
    }
    assert "Synthetic data" not in (tmp_path / "out" / "profile").read_text()
