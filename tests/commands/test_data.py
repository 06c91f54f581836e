"""`health-predict data`: fetch, check, add, outcomes, profile, synthesize."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from health_predict.adapters.data.arrivals import Added
from health_predict.commands.data import app
from health_predict.core.data.cohort import read_cohort, save_csv, validate
from health_predict.core.data.encounters import Refusal
from health_predict.errors import DataError
from health_predict.operations import feed
from tests.contracts import DIABETES


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEALTH_PREDICT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


@pytest.fixture
def file(cohort: pd.DataFrame, tmp_path: Path) -> Path:
    save_csv(cohort, tmp_path / "cohort.csv")
    return tmp_path / "cohort.csv"


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def error_of(result: Result) -> DataError:
    assert isinstance(result.exception, DataError)
    return result.exception


class TestCheck:
    def test_a_good_file_is_counted(self, file: Path) -> None:
        result = invoke("check", file)
        assert result.exit_code == 0 and "3,000 encounters" in result.stdout and "no violation" in result.stdout

    def test_every_violation_is_listed_with_line_column_and_remedy(self, cohort: pd.DataFrame, file: Path) -> None:
        # given
        bad = cohort.copy()
        bad.loc[4, "age"], bad.loc[8, "num_procedures"] = "[200-210)", "many"
        save_csv(bad, file)
        # when
        result = invoke("check", file)
        # then
        assert result.exit_code == 3 and "2 violations" in result.stdout
        for words in (("6", "age", "[200-210)", "[90-100)"), ("10", "num_procedures", "'many'", "from 0 to 20")):
            assert any(all(word in line for word in words) for line in result.stdout.splitlines())

    def test_json_carries_the_same(self, cohort: pd.DataFrame, file: Path) -> None:
        save_csv(cohort.assign(gender="F"), file)
        result = invoke("check", file, "--json")
        content = json.loads(result.stdout)
        assert result.exit_code == 3 and content["encounters"] == 3_000 and len(content["violations"]) == 3_000
        assert set(content["violations"][0]) == {"row", "column", "value", "rule", "problem", "remedy"}
        assert json.loads(invoke("check", file.with_name("cohort.csv"), "--json").stdout)["file"] == str(file)

    def test_what_is_wrong_in_many_lines_is_said_once(self, cohort: pd.DataFrame, file: Path) -> None:
        bad = cohort.assign(gender="F")
        bad.loc[7, "gender"] = "M"
        save_csv(bad, file)
        first, second, last = invoke("check", file).stdout.splitlines()
        assert first.startswith("lines 2, 3, 4, 5, 6 and 2,994 more, gender: 'F' is not allowed -> give one of Female")
        assert second.startswith("line 9, gender: 'M' is not allowed") and last.startswith("3,000 violations")

    def test_a_file_that_pandas_read_and_wrote_is_told_in_a_line_for_each_column(
        self, cohort: pd.DataFrame, file: Path
    ) -> None:
        pd.read_csv(file).to_csv(file, index=False)
        *found, _ = invoke("check", file).stdout.splitlines()
        assert ["the cell is empty" in line and "keep_default_na=False" in line for line in found] == [True, True]

    @pytest.mark.parametrize("word", ["nan", "NaN", "None", "NULL", "NA", "<NA>", "N/A", "null", "missing"])
    def test_a_word_for_missing_is_no_level(self, word: str, cohort: pd.DataFrame, file: Path) -> None:
        save_csv(cohort.assign(race=word), file)
        result = invoke("check", file)
        assert result.exit_code == 3 and f"race: '{word}' is a word for missing -> give" in result.stdout
        assert "or ? when it is missing" in result.stdout

    def test_one_violation_is_not_many(self, cohort: pd.DataFrame, file: Path) -> None:
        bad = cohort.copy()
        bad.loc[0, "age"] = "old"
        save_csv(bad, file)
        assert "1 violation of" in invoke("check", file).stdout

    def test_encounters_to_be_scored_need_no_label(self, cohort: pd.DataFrame, file: Path) -> None:
        save_csv(cohort.drop(columns="readmitted"), file)
        assert "readmitted" in str(error_of(invoke("check", file)))
        assert invoke("check", file, "--unlabelled").exit_code == 0

    def test_training_data_need_a_positive_label(self, cohort: pd.DataFrame, file: Path) -> None:
        save_csv(cohort.assign(readmitted="NO"), file)
        assert "readmitted <30" in str(error_of(invoke("check", file)))
        assert invoke("check", file, "--unlabelled").exit_code == 0

    def test_training_data_must_be_enough(
        self, cohort: pd.DataFrame, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # given
        save_csv(cohort.head(400), file)
        monkeypatch.setenv("HEALTH_PREDICT_INITIAL_SHARE", "0.02")
        # when
        error = error_of(invoke("check", file))
        # then
        assert "400 encounters" in error.problem and "too few" in error.problem
        assert "HEALTH_PREDICT_INITIAL_SHARE=0." in error.remedy
        assert invoke("check", file, "--unlabelled").exit_code == 0

    def test_what_cannot_be_read_is_an_error_of_its_own(self, tmp_path: Path, home: Path) -> None:
        assert "does not exist" in str(error_of(invoke("check", tmp_path / "none.csv")))
        (tmp_path / "page.csv").write_text("<html></html>")
        assert "web page" in str(error_of(invoke("check", tmp_path / "page.csv")))
        assert not home.exists()


class TestFetch:
    def test_it_says_where_and_what(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HEALTH_PREDICT_DATA_SOURCE", str(file))
        result = invoke("fetch")
        assert result.exit_code == 0 and str(file) in result.stdout and "source synthetic" in result.stdout

    def test_json_is_alone_on_standard_output(self, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HEALTH_PREDICT_DATA_SOURCE", str(real_data))
        content = json.loads(invoke("fetch", "--json").stdout)
        assert (
            content["source"] == "uci"
            and DIABETES.published
            and content["sha256"] == DIABETES.published.sha256
            and Path(content["path"]).is_file()
        )


class TestAdd:
    ADDED = Added(28, 0, (), "")

    @pytest.fixture
    def result(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Added, int]]:
        """What comes of the next files."""
        results: list[tuple[Added, int]] = []
        monkeypatch.setattr(feed, "add_encounters", lambda settings, file: results.pop(0))
        return results

    def test_it_says_what_came_of_a_file(self, result: list[tuple[Added, int]]) -> None:
        # given a file with outcomes, one without, one that was added before, and one with two wrong rows
        wrong = (
            Refusal("age", "must be one of [0-10)", 7, (5, 6, 7, 8, 9)),
            Refusal("diag_1", "must be a code", 1, (9,)),
        )
        result += [
            (self.ADDED, 28),
            (self.ADDED, 0),
            (replace(self.ADDED, before=True), 0),
            (replace(self.ADDED, before=True), 28),
            (replace(self.ADDED, quarantined=8, refusals=wrong, report="file:///report.json"), 0),
            (replace(self.ADDED, rows=0, quarantined=8, refusals=wrong, report="file:///report.json"), 0),
        ]
        said = [invoke("add", "a.csv") for _ in range(len(result))]
        # then
        assert said[0].output == "a.csv: 28 encounters added, 28 outcomes delivered\n"
        assert said[1].output == "a.csv: 28 encounters added\n"
        assert said[2].output == "a.csv: was added before, nothing changes\n"
        assert said[3].output == "a.csv: was added before; 28 outcomes delivered\n"
        assert said[4].output.splitlines()[1:] == [
            "  lines 5, 6, 7, 8, 9 and 2 more, age: must be one of [0-10)",
            "  line 9, diag_1: must be a code",
            "  8 rows set aside: file:///report.json",
        ]
        # and only a file of which nothing arrived is a failure
        assert [one.exit_code for one in said] == [0, 0, 0, 0, 0, 3]

    def test_json_carries_the_same(self, result: list[tuple[Added, int]]) -> None:
        result.append((self.ADDED, 5))
        found = json.loads(invoke("add", "a.csv", "--json").output)
        assert (found["rows"], found["outcomes"], found["before"], found["refusals"]) == (28, 5, False, [])

    def test_outcomes_wait_for_the_next_monitoring(self, tmp_path: Path, home: Path) -> None:
        (tmp_path / "known.csv").write_text("patient_nbr,discharge_date,readmitted\n7,2026-01-05,1\n")
        said = invoke("outcomes", tmp_path / "known.csv")
        assert "1 outcome by patient_nbr, discharge_date, matched by the next monitoring" in said.output
        assert len([*(home / "storage" / "outcomes").glob("*-known.csv")]) == 1
        # and a file that is none is refused at once
        (tmp_path / "known.csv").write_text("patient_nbr,readmitted\n7,1\n")
        assert "has the columns" in error_of(invoke("outcomes", tmp_path / "known.csv")).problem


class TestProfile:
    def test_a_file_gets_its_page(self, file: Path, tmp_path: Path) -> None:
        result = invoke("profile", file, "--out", tmp_path / "out" / "profile.html")
        assert result.exit_code == 0 and str(tmp_path / "out" / "profile.html") in result.stdout
        assert "Data profile" in (tmp_path / "out" / "profile.html").read_text()

    def test_by_default_it_is_the_data_of_the_settings(
        self, file: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HEALTH_PREDICT_DATA_SOURCE", str(file))
        assert invoke("profile").exit_code == 0 and (home / "data-profile.html").is_file()

    def test_a_bad_file_gets_none(self, cohort: pd.DataFrame, file: Path, tmp_path: Path) -> None:
        save_csv(cohort.assign(age="old"), file)
        error_of(invoke("profile", file, "--out", tmp_path / "profile.html"))
        assert not (tmp_path / "profile.html").exists()


class TestSynthesize:
    def test_the_same_seed_gives_the_same_file(self, tmp_path: Path) -> None:
        for name in ("a.csv", "b.csv"):
            assert invoke("synthesize", "--rows", 300, "--seed", 4, "--out", tmp_path / name).exit_code == 0
        assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
        assert validate(read_cohort(tmp_path / "a.csv", DIABETES), DIABETES) == []
        assert not (tmp_path / "a.truth.json").exists()

    @pytest.mark.parametrize(("words", "row"), [([], 150), (["--from-row", 0], 0), (["--from-row", 299], 299)])
    def test_drift_comes_with_its_truth(self, words: list[object], row: int, tmp_path: Path) -> None:
        out = tmp_path / "drifted.csv"
        result = invoke("synthesize", "--rows", 300, "--scenario", "capped-counts", *words, "--out", out)
        truth = json.loads((tmp_path / "drifted.truth.json").read_text())
        assert result.exit_code == 0 and truth["scenario"] == "capped-counts" and truth["from_row"] == row
        assert read_cohort(out, DIABETES)["number_inpatient"].astype(int).iloc[row:].max() <= 1

    def test_wrong_arguments_write_nothing(self, tmp_path: Path) -> None:
        out = tmp_path / "x.csv"
        assert invoke("synthesize", "--scenario", "flood", "--out", out).exit_code == 2
        assert invoke("synthesize", "--rows", 0, "--out", out).exit_code == 2
        error_of(invoke("synthesize", "--rows", 9, "--scenario", "none", "--from-row", 9, "--out", out))
        assert list(tmp_path.iterdir()) == []
