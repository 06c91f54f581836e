"""register: choice, refusal, decision, repetition."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import pytest
from mlflow.models import get_model_info

from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import CHALLENGER, CHAMPION, Tag, Tracking
from health_predict.core.data.cohort import load_part
from health_predict.core.data.partition import Parameters
from health_predict.core.model.evaluation import COMPARED
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.promotion import Decision
from health_predict.errors import StateError
from health_predict.settings import Settings
from health_predict.stages.register import EVALUATION
from tests.conftest import Parts
from tests.contracts import DIABETES
from tests.searches import LogSearch, Searches, made, run, searches

__all__ = ["made", "searches"]  # fixtures


def test_the_best_family_becomes_a_version_with_a_card(searches: Searches, parts: Parts, tmp_path: Path) -> None:
    # given a search of two families
    settings, parent = searches.settings, searches.parents["both"]
    tracking = Tracking(settings)
    before = len(tracking.versions())
    # when it is registered
    result = run(settings, parent, parts, tmp_path)
    # then the model that the search ended with was taken, and the card says why
    search = tracking.run(parent)
    assert result.family == tracking.run(search.tags[Tag.CHOSEN]).tags["family"]
    assert search.tags[Tag.REASON] in html.unescape((tmp_path / "card.html").read_text())
    # and the version carries its identity and decision
    version = tracking.version(result.model_version)
    assert version.tags["dataset_digest"] == "d" * 64
    assert version.tags["decision"] == result.decision.value
    assert float(version.tags["threshold"]) > 0
    # and its page in MLflow says why
    stored = tracking._client.get_model_version(version.name, version.version)
    assert all(f"- {reason}" in stored.description for reason in result.reasons)
    assert version.tags["dataset_source"] == "synthetic" and "SYNTHETIC DATA" in stored.description
    # and how to use the model, which decides as the version does
    assert f"mlflow.pyfunc.load_model('models:/{version.name}/{version.version}')" in stored.description
    model = get_model_info(f"models:/{version.name}/{version.version}")
    decision = json.loads((Path(urlsplit(model.artifact_path).path) / "artifacts" / "decision.json").read_text())
    assert decision["threshold"] == float(version.tags["threshold"])
    prevalence = float((load_part(parts.train)["readmitted"] == "<30").mean())
    assert decision["risk_cutoffs"] == pytest.approx([prevalence, 1.5 * prevalence, 2.5 * prevalence])
    # and the alias follows the decision
    challenger = tracking.by_alias(CHALLENGER)
    assert (challenger is not None) == (result.decision is Decision.PROMOTE)
    # and the card is an artifact, in the run and in storage, and says that the data are made up
    page = (tmp_path / "card.html").read_text()
    assert "Not for clinical use" in page
    assert "do not exist" in page
    assert open_storage(settings.storage).read(f"models/{version.version}/card.html").decode() == page
    # and the test metrics have intervals
    auc = result.test_metrics["auc"]
    assert auc.low < auc.value < auc.high
    assert tracking.run(version.run_id).metrics["test_auc"] == pytest.approx(auc.value)
    false_rate, true_rate, thresholds = result.roc
    assert len(false_rate) == len(true_rate) == len(thresholds)
    assert (false_rate[0], true_rate[-1]) == (0, 1)
    assert sum(map(sum, result.confusion)) == tracking.read_json(version.run_id, EVALUATION)["on_test"]["rows"]

    # when it runs again, the version and the decision are the same and nothing is judged twice
    again = run(settings, parent, parts, tmp_path)
    assert again == result
    assert len(tracking.versions()) == before + 1


def test_a_run_without_the_preprocessor_of_its_model_is_refused(
    searches: Searches, parts: Parts, tmp_path: Path
) -> None:
    # given a search whose best model lies beside another preprocessor
    from health_predict.adapters.tracking.connection import quiet_mlflow
    from health_predict.adapters.tracking.runs import TRUSTED_TYPES

    settings, parent = searches.settings, searches.parents["elsewhere"]
    tracking = Tracking(settings)
    before = tracking.versions()
    run_id = tracking.children(parent)[0].run_id
    other = EncounterFeatures(DIABETES, 500).fit(pd.read_parquet(parts.train))
    with quiet_mlflow().start_run(run_id=run_id):
        import mlflow

        for item in tracking._logged_models(run_id):
            if item.name == "preprocessor":
                tracking._client.delete_logged_model(item.model_id)
        mlflow.sklearn.log_model(
            other,
            name="preprocessor",
            skops_trusted_types=list(TRUSTED_TYPES),
            pip_requirements=["scikit-learn"],
        )
    # then it is refused and no version appears
    with pytest.raises(StateError, match="preprocessor"):
        run(settings, parent, parts, tmp_path)
    assert tracking.versions() == before


def test_a_search_without_the_baseline_cannot_promote(
    settings: Settings, parts: Parts, log_search: LogSearch, tmp_path: Path
) -> None:
    with pytest.raises(StateError, match="LogisticRegression"):
        run(settings, log_search(settings, "LightGBM"), parts, tmp_path)


def test_a_new_champion_means_a_new_judgement(searches: Searches, parts: Parts, tmp_path: Path) -> None:
    settings, tracking = searches.settings, Tracking(searches.settings)
    first, second = searches.results["one"], searches.results["other"]
    assert tracking.version(first.model_version).tags["decided_against"] == "none"
    # given another version that serves since
    tracking.set_alias(CHAMPION, second.model_version)
    # when the first is registered again, it is judged against that one
    again = run(settings, searches.parents["one"], parts, tmp_path)
    assert again.model_version == first.model_version
    assert tracking.version(first.model_version).tags["decided_against"] == second.model_version
    # and the champion itself is never judged against itself, nor made challenger
    tracking.delete_alias(CHALLENGER)
    run(settings, searches.parents["other"], parts, tmp_path)
    assert tracking.by_alias(CHALLENGER) is None


def test_a_version_of_the_first_data_does_not_take_the_place_of_its_successor(
    searches: Searches, parts: Parts, tmp_path: Path
) -> None:
    # given a version, and a champion that is the same model with later outcomes in it
    settings, tracking = searches.settings, Tracking(searches.settings)
    first, later = searches.results["one"], searches.results["other"]
    tracking.tag_version(later.model_version, {Tag.LABELLED_BATCHES: "3"})
    tracking.set_alias(CHAMPION, later.model_version)
    # when the first data are trained on again, then that version is found, and is asked whether it is better
    again = run(settings, searches.parents["one"], parts, tmp_path)
    assert (again.model_version, again.decision) == (first.model_version, Decision.REJECT)
    assert any("the champion has learned from later outcomes" in reason for reason in again.reasons)


def test_a_version_stands_beside_the_champion_on_the_same_rows(
    searches: Searches, parts: Parts, tmp_path: Path
) -> None:
    settings, tracking = searches.settings, Tracking(searches.settings)
    storage = open_storage(settings.storage)
    # given a champion, which had nobody to stand beside
    first = searches.results["one"]
    assert tracking.read_json(tracking.version(first.model_version).run_id, EVALUATION)["comparisons"] == []
    tracking.set_alias(CHAMPION, first.model_version)
    # when another model of the same data is registered
    second = run(settings, searches.parents["both"], parts, tmp_path)
    # then both were asked on its test rows, and the champion's figures there are those of its own card
    stored = tracking.read_json(tracking.version(second.model_version).run_id, EVALUATION)
    (beside,) = stored["comparisons"]
    assert (beside["against"], beside["rows"]) == (first.model_version, len(pd.read_parquet(parts.test)))
    assert set(beside["metrics"]) == set(COMPARED)
    for name, item in beside["metrics"].items():
        assert item["one"]["value"] == pytest.approx(second.test_metrics[name].value)
        assert item["other"]["value"] == pytest.approx(first.test_metrics[name].value)
        assert item["difference"]["value"] == pytest.approx(item["one"]["value"] - item["other"]["value"])
        assert item["difference"]["low"] <= item["difference"]["value"] <= item["difference"]["high"]
    # and the card shows it
    page = (tmp_path / "card.html").read_text()
    assert f"Beside version {first.model_version}" in page
    assert "Share flagged at the threshold" in page
    # and links the page of both, with what would change and the gates
    name = f"compare-{first.model_version}.html"
    beside_it = storage.read(f"models/{second.model_version}/{name}").decode()
    assert name in page and all(words in beside_it for words in ("On the same", "What would change", "Promotion gates"))


def test_a_version_of_other_data_stands_beside_the_champion_on_both(
    searches: Searches, parts: Parts, tmp_path: Path
) -> None:
    settings, first = searches.settings, searches.results["one"]
    tracking, storage = Tracking(settings), open_storage(settings.storage)
    # given a champion, and a challenger that was trained on another population
    tracking.set_alias(CHAMPION, first.model_version)
    others = pd.read_parquet(parts.test).head(400)
    storage.write(f"datasets/{'d' * 64}/test.parquet", others.to_parquet())
    for digest, raw in (("d" * 64, "old"), ("e" * 64, "new")):
        manifest = {"digest": digest, "raw_sha256": raw, "parameters": Parameters(0.2, 16, "s").to_json()}
        storage.write(f"datasets/{digest}/manifest.json", json.dumps(manifest).encode())
    second = run(settings, searches.parents["elsewhere"], parts, tmp_path)
    # then its figures on the population of the champion are shown beside those on its own
    stored = tracking.read_json(tracking.version(second.model_version).run_id, EVALUATION)
    own, old = stored["comparisons"]
    assert own["on"] == "the test set of this version"
    assert (old["on"], old["rows"]) == (f"the test set of version {first.model_version}", 400)
    # and no gate has asked about them
    assert len(stored["gates"]) == 6


def test_an_unfinished_search_is_refused(settings: Settings, parts: Parts, tmp_path: Path) -> None:
    parent = Tracking(settings).start_search("search", {}, {})
    with pytest.raises(StateError, match="no finished Best_ run"):
        run(settings, parent, parts, tmp_path)


def test_a_search_that_was_killed_before_its_choice_is_refused(
    searches: Searches, parts: Parts, tmp_path: Path
) -> None:
    # given a search with a best model that never ended
    settings, parent = searches.settings, searches.parents["one"]
    Tracking(settings).tag_run(parent, {Tag.CHOSEN: ""})
    with pytest.raises(StateError, match="names no model"):
        run(settings, parent, parts, tmp_path)


def test_a_champion_whose_model_was_deleted_stands_in_nobody_s_way(
    searches: Searches, parts: Parts, log_search: LogSearch, tmp_path: Path
) -> None:
    # given a champion whose files were deleted
    settings, tracking = searches.settings, Tracking(searches.settings)
    first = searches.results["one"]
    tracking.set_alias(CHAMPION, first.model_version)
    shutil.rmtree(settings.home / "mlartifacts")
    # when another version is registered, then it is judged without it
    second = run(settings, log_search(settings, "LogisticRegression"), parts, tmp_path)
    assert tracking.version(second.model_version).tags["decided_against"] == "none"
