"""hpo on a real Ray and a real MLflow."""

from __future__ import annotations

import html
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from health_predict.adapters import ray
from health_predict.adapters.tracking import Tag, Tracking
from health_predict.core.model.calibration import CalibratedClassifier
from health_predict.core.model.families import FAMILIES, choose
from health_predict.core.model.search import METRICS, FamilySearch, Trial
from health_predict.errors import StateError
from health_predict.settings import Settings
from health_predict.stages.hpo import HpoResult, hpo, search_digest
from tests.conftest import Parts
from tests.contracts import DIABETES
from tests.homes import copied

IDENTITY = {"dataset_digest": "d" * 64, "dataset_source": "synthetic"}


def run(settings: Settings, parts: Parts, tmp_path: Path) -> HpoResult:
    return hpo(
        settings, **IDENTITY, train=parts.train, validation=parts.validation, leaderboard=tmp_path / "board.html"
    )


def _settings(home: Path) -> Settings:
    return Settings(home=home, families=("LogisticRegression", "LightGBM"), trials=2, git_commit="abc")


@dataclass(frozen=True)
class Searched:
    """A home in which a search was killed after one trial, in the middle of another, and has gone on to its end."""

    settings: Settings
    tracking: Tracking
    left: str
    finished: str
    result: HpoResult
    processes: list[str]
    out: Path

    def again(self, parts: Parts) -> HpoResult:
        return run(self.settings, parts, self.out)

    def copied(self, folder: Path) -> Searched:
        """The same in another home."""
        settings = _settings(copied(self.settings.home, folder / "home"))
        return replace(self, settings=settings, tracking=Tracking(settings), out=folder)


@pytest.fixture(scope="module")
def searched(parts: Parts, mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Not to be changed but in a copy."""
    out = tmp_path_factory.mktemp("searched")
    settings = _settings(out / "home")
    settings.home.mkdir()
    shutil.copy(mlflow_database, settings.home / "mlflow.db")
    tracking = Tracking(settings)
    digest = search_digest(settings, DIABETES, IDENTITY["dataset_digest"], choose(settings.families))
    tags = {"search_digest": digest, **IDENTITY, "git_commit": "abc"}
    left = tracking.start_search("search", tags, {"seed": settings.seed})
    first = FAMILIES["LogisticRegression"].first
    tags = {"family": "LogisticRegression", "trial": "0", "stopped_early": "false"}
    finished = tracking.log_trial(
        left, "LogisticRegression-000", tags, first, {**dict.fromkeys(METRICS, 0.99), "seconds": 1.0}
    )
    tracking._create_child(left, "LightGBM-000", {"family": "LightGBM"}, "trial")
    result = run(settings, parts, out)
    return Searched(settings, tracking, left, finished, result, [*children().values()], out)


def test_a_search_is_logged_whole(searched: Searched) -> None:
    tracking, result = searched.tracking, searched.result
    # then it went on where it was: the same parent, the finished trial as it is
    assert result.parent_run_id == searched.left
    assert tracking.run(searched.finished).metrics["auc"] == 0.99
    # and there is one child a trial and one Best_ run a family, and nothing is left running
    found = tracking.children(result.parent_run_id)
    assert sorted(child.name for child in found) == [
        "Best_LightGBM_Model",
        "Best_LogisticRegression_Model",
        "LightGBM-000",
        "LightGBM-001",
        "LogisticRegression-000",
        "LogisticRegression-001",
    ]
    assert {child.status for child in found} == {"FINISHED"}
    assert tracking.runs("attributes.status = 'RUNNING'") == []
    # and a Best_ run says what it is and holds model and preprocessor
    best = next(child for child in found if child.name == "Best_LogisticRegression_Model")
    assert best.tags["baseline"] == "true"
    assert best.params["trial"] == "0"
    assert {name: best.tags[name] for name in ("family", "git_commit", "dataset_digest", "stage")} == {
        "family": "LogisticRegression",
        "git_commit": "abc",
        "dataset_digest": "d" * 64,
        "stage": "hpo",
    }
    assert 0.4 < best.metrics["validation_auc"] < 0.9
    assert tracking.preprocessor_matches(best.run_id, tracking.load_run_pipeline(best.run_id))
    # and its risks passed through a map that was fitted out of fold
    estimator = tracking.load_run_pipeline(best.run_id).named_steps["estimator"]
    assert isinstance(estimator, CalibratedClassifier)
    assert (estimator.intercept, estimator.slope) != (0.0, 1.0)
    # and the search says which model it ended with, and why, as its page does
    search = tracking.run(searched.left)
    assert search.tags[Tag.CHOSEN] in {child.run_id for child in found if child.tags["role"] == "best"}
    assert html.escape(search.tags[Tag.REASON], quote=False) in (searched.out / "board.html").read_text()
    # and a family that grows in rounds has a learning curve
    grown = next(child for child in found if child.name == "Best_LightGBM_Model")
    curve = tracking.curve(grown.run_id, "curve_validation_auc")
    assert len(curve) == 8
    assert curve[-1] == (int(grown.params["n_estimators"]), pytest.approx(grown.metrics["validation_auc"], abs=1e-9))
    # and all of them say on their pages in MLflow that nobody real stands behind them
    everything = [tracking.run(searched.left), *found]
    assert {child.tags["role"] for child in everything} == {"search", "trial", "best"}
    noted = [child for child in everything if child.run_id != searched.finished]
    assert all("SYNTHETIC DATA" in child.tags["mlflow.note.content"] for child in noted)
    # and the page shows every trial
    page = (searched.out / "board.html").read_text()
    assert all(child.name in page for child in found if child.tags["role"] == "trial")
    # and no process of Ray is left
    assert not [name for name in searched.processes if "ray" in name and "forkserver" not in name]


def test_a_search_is_done_once(searched: Searched, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    # when it runs again, nothing new is made, and Ray does not start
    tracking, result = searched.tracking, searched.result
    found = tracking.children(result.parent_run_id)
    page_of_the_search = (searched.out / "board.html").read_bytes()
    monkeypatch.setattr(ray, "search", None)
    again = searched.again(parts)
    assert (again.parent_run_id, again.reused) == (result.parent_run_id, True)
    assert again.best_metrics == result.best_metrics
    assert (searched.out / "board.html").read_bytes() == page_of_the_search
    assert len(tracking.children(result.parent_run_id)) == len(found)


def test_a_search_whose_files_are_gone_is_searched_again(
    searched: Searched, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(*arguments: object, **values: object) -> None:
        raise StateError("it searches", "")

    copy = searched.copied(tmp_path)
    shutil.rmtree(copy.settings.home / "mlartifacts")
    monkeypatch.setattr(ray, "search", search)
    with pytest.raises(StateError, match="it searches"):
        copy.again(parts)


def test_a_search_that_was_killed_among_its_winners_goes_on_there(
    searched: Searched, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a search whose winners were logged before it was killed
    copy, result = searched.copied(tmp_path), searched.result
    tracking = copy.tracking
    tracking.end_search(result.parent_run_id, {}, "FAILED")
    before = {child.run_id for child in tracking.children(result.parent_run_id)}

    # when it runs again, for which no trial is left
    def nothing_left(searches: Sequence[FamilySearch], *_: object, **__: object) -> list[Trial]:
        assert ray.Points(searches, seconds=0).suggest("one") == ray.Searcher.FINISHED
        return [trial for one in searches for trial in one.ended.values()]

    monkeypatch.setattr(ray, "search", nothing_left)
    again = copy.again(parts)

    # then it ends as it would have, and nothing is logged twice
    assert (again.parent_run_id, again.reused) == (result.parent_run_id, False)
    assert again.best_metrics == result.best_metrics
    assert {child.run_id for child in tracking.children(result.parent_run_id)} == before


def test_the_search_digest_changes_with_what_matters(make_settings: Callable[..., Settings]) -> None:
    families = choose(())
    base = search_digest(make_settings(), DIABETES, "d", families)
    assert base == search_digest(make_settings(serving_port=4000), DIABETES, "d", families)
    others = {
        search_digest(make_settings(), DIABETES, "e", families),
        search_digest(make_settings(trials=7), DIABETES, "d", families),
        search_digest(make_settings(seed=1), DIABETES, "d", families),
        search_digest(make_settings(search_concurrency=3), DIABETES, "d", families),
        search_digest(make_settings(), DIABETES, "d", choose(("XGBoost",))),
    }
    assert len(others | {base}) == 6


def children() -> dict[int, str]:
    """Command lines of all processes below this one."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found[process.pid] = " ".join(process.cmdline())
    return found
