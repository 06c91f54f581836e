"""What all tests share: settings of their own, a small synthetic cohort, one trained home to copy."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pandas as pd
import pytest
from sklearn.pipeline import Pipeline

from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import Tag, Tracking
from health_predict.core.data.cohort import load_part, save_part, target, without_excluded
from health_predict.core.data.synthetic import FIRST_NUMBER
from health_predict.core.model.evaluation import Scored, f1_threshold, metrics
from health_predict.core.model.families import BASELINE, FAMILIES
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.model.selection import select
from health_predict.core.serving.compiled_model import cleared
from health_predict.settings import PREFIX, Settings
from tests.cohorts import synthesize
from tests.contracts import DIABETES, ENCOUNTER

# Nothing here may fail because a machine is slow.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

# Of the environment, what no process of a test should see: settings, coverage, and what another test's settings set.
FOREIGN = (PREFIX, "COVERAGE_PROCESS_", "MPLCONFIGDIR")
REAL_DATA = os.environ.get(f"{PREFIX}DATA_COPY", "")


# The longest files, by what they took of a processor; the first one takes as long as a third of all tests.
LONGEST = (
    "test_end_to_end",
    "test_anywhere",
    "test_killed",
    "test_compiled",
    "stages/test_rollout",
    "test_register",
    "test_in_service",
    "test_new_family",
    "stages/test_split",
    "test_processes",
    "test_ray",
    "test_hpo",
    "test_service",
    "test_bento_build",
    "test_bootstrap",
    "test_behaviour",
    "test_kind_up",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: files run side by side, and the last one to start must not be a long one.

    `make test` tells xdist to keep this order: its own begins with the files that have the most tests.
    """
    places = {name: place for place, name in enumerate(LONGEST)}

    def place(item: pytest.Item) -> int:
        file = item.path.with_suffix("").as_posix()
        return next((place for name, place in places.items() if file.endswith(name)), len(places))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def own_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting and no cluster of the person or machine that runs the tests reaches them, unless they ask for it.

    Nor does coverage reach their processes, whose imports it slows by half, but those that run what no test does, and
    the end-to-end tests', which spend their time in the cluster.
    """
    followed = any(request.node.get_closest_marker(name) for name in ("measured", "e2e"))
    foreign = (PREFIX,) if followed else FOREIGN
    for name in list(os.environ):
        if name.startswith(foreign):
            monkeypatch.delenv(name)
    if not request.node.get_closest_marker("e2e"):
        monkeypatch.setenv("KUBECONFIG", os.devnull)


@pytest.fixture(autouse=True)
def no_run_of_another_home() -> None:
    """MLflow remembers by a run's id where its files lie: in a copy of its home they lie elsewhere."""
    if known := sys.modules.get("mlflow.tracking._tracking_service.utils"):
        known._artifact_repos_cache.clear()


@pytest.fixture
def s3_endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 service of this process, with credentials for it. Services of one process share their buckets."""
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: its migrations take seconds, so they run once and every test gets a copy."""
    home = tmp_path_factory.mktemp("mlflow")
    # An experiment would remember this folder as its artifact location; the copies make their own.
    Tracking(Settings(home=home, mlflow_experiment="unused"))
    return home / "mlflow.db"


@pytest.fixture
def make_settings(tmp_path: Path, mlflow_database: Path) -> Callable[..., Settings]:
    """Settings with a fresh home that has an MLflow store."""

    def make(**values: object) -> Settings:
        settings = Settings(**{"home": tmp_path / "home", **values})  # type: ignore[arg-type]
        settings.home.mkdir(parents=True, exist_ok=True)
        if not (settings.home / "mlflow.db").exists():
            shutil.copy(mlflow_database, settings.home / "mlflow.db")
        return settings

    return make


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """Settings of this test alone."""
    return make_settings()


@pytest.fixture(scope="session")
def cohort() -> pd.DataFrame:
    """Three thousand synthetic encounters. Not to be changed in place."""
    return synthesize(3000, seed=5)


def as_if_real(cohort: pd.DataFrame) -> pd.DataFrame:
    """A synthetic cohort whose encounters have numbers below those by which such ones are known."""
    numbers = cohort[ENCOUNTER].astype("int64") - FIRST_NUMBER
    return cohort.assign(**{ENCOUNTER: numbers.astype(str)})


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real file, where one was named."""
    if not REAL_DATA or not Path(REAL_DATA).is_file():
        pytest.skip("skipped: no copy of the real data (HEALTH_PREDICT_DATA_COPY names none)")
    return Path(REAL_DATA)


def environment_in(folder: Path) -> Path:
    """The interpreter of a virtual environment like this one in another folder."""
    (folder / "bin").mkdir(parents=True)
    for name in ("python", "python3"):
        (folder / "bin" / name).symlink_to(sys.executable)
    (folder / "bin" / "uv").symlink_to(Path(sysconfig.get_path("scripts")) / "uv")
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    (folder / "pyvenv.cfg").write_bytes((Path(sys.prefix) / "pyvenv.cfg").read_bytes())
    return folder / "bin" / "python3"


@pytest.fixture
def awkward(tmp_path: Path) -> Path:
    """The interpreter of a virtual environment like this one, in a folder of all that its name may hold.

    That is all but a colon and a slash.
    """
    return environment_in(tmp_path / "a b  !\"#$%&'()*+,;<=>?@[\\]^`{|}~ü")


@dataclass(frozen=True)
class Parts:
    """A partitioned cohort as files."""

    train: Path
    validation: Path
    test: Path


@pytest.fixture(scope="session")
def parts(cohort: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """The small cohort by patient, as `split` would leave it."""
    folder = tmp_path_factory.mktemp("parts")
    kept = without_excluded(cohort, DIABETES)
    hashed = kept["patient_nbr"].map(lambda number: zlib.crc32(number.encode()) % 100)
    files = {}
    for name, low, high in (("train", 0, 60), ("validation", 60, 80), ("test", 80, 100)):
        files[name] = folder / f"{name}.parquet"
        save_part(kept[(hashed >= low) & (hashed < high)].reset_index(drop=True), files[name])
    return Parts(**files)


@pytest.fixture(scope="session")
def log_search(parts: Parts) -> Callable[..., str]:
    """Logs a finished search of some families without Ray; gives its parent run."""

    def log(
        settings: Settings,
        *names: str,
        preprocessor: EncounterFeatures | None = None,
        source: str = "custom",
        dataset: str = "d" * 64,
    ) -> str:
        tracking, storage = Tracking(settings), open_storage(settings.storage)
        if not storage.exists(f"datasets/{dataset}/train.parquet"):
            storage.upload(parts.train, f"datasets/{dataset}/train.parquet")
        train, validation = load_part(parts.train), load_part(parts.validation)
        features = preprocessor or EncounterFeatures(DIABETES).fit(train)
        tags = {"search_digest": "s", "dataset_digest": dataset, "dataset_source": source, "git_commit": "c" * 40}
        parent = tracking.start_search("search", tags, {"trials": 1, "seed": 1})
        models, runs = {}, {}
        for name in names:
            family = FAMILIES[name]
            small = {"n_estimators": 60} if "n_estimators" in {**family.fixed, **family.first} else {}
            estimator = family.fit(
                {**family.first, **small}, features.transform(train), target(train, DIABETES), seed=1
            )
            pipeline = Pipeline([("features", features), ("estimator", estimator)])
            scores = pipeline.predict_proba(validation)[:, 1].astype(float)
            threshold = cleared(f1_threshold(target(validation, DIABETES), scores), pipeline, validation)
            found = metrics(target(validation, DIABETES), scores, threshold)
            models[name] = Scored(scores, threshold)
            runs[name] = tracking.log_best(
                parent,
                name,
                pipeline,
                {**tags, "family": name, "baseline": str(name == BASELINE).lower()},
                {"threshold": repr(threshold), "trial": 0},
                {f"validation_{key}": value for key, value in found.items()},
                {},
            )
        selection = select(target(validation, DIABETES), models, validation["patient_nbr"], resamples=100)
        tracking.tag_run(parent, {Tag.CHOSEN: runs[selection.family], Tag.REASON: selection.reason})
        tracking.end_search(parent, {})
        return parent

    return log
