"""A hospital's own table, the whole way: draft a contract, edit it, train, deploy, ask, and judge what came later."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path

import pandas as pd
import pytest

from health_predict.adapters.contracts import FOLDER
from health_predict.core.data.cohort import training_cohort
from health_predict.core.data.contract import Contract
from health_predict.core.data.contract_file import read_contract
from tests.own_table import Table, health_registry, modern_extract
from tests.shell import Shell, last_line

BUILT_IN = (FOLDER / "diabetes-130.yaml").read_text(encoding="utf-8")
OF_THE_BUILT_IN_TABLE = re.compile("diabet|insulin|A1C|readmitted|discharge_disposition|metformin", re.IGNORECASE)


@pytest.fixture(params=[health_registry, modern_extract], ids=["health registry", "ICD-10 extract"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Table:
    make: Callable[[Path], Table] = request.param
    return make(tmp_path)


@pytest.fixture
def shell(tmp_path: Path, table: Table) -> Iterator[Shell]:
    shell = Shell(tmp_path, **table.settings, FAMILIES='["LogisticRegression", "RandomForest"]')
    try:
        yield shell
    finally:
        shell.ask("down")
        for process in shell.processes():
            process.kill()


def contract_for(shell: Shell, table: Table) -> Contract:
    """The contract that a person makes of the draft, checked with the file."""
    shell.ask("contract", "draft", str(table.file), "--out", "drafted.yaml")
    text = (shell.folder / "drafted.yaml").read_text(encoding="utf-8")
    for old, new in table.edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (shell.folder / "mine.yaml").write_text(text, encoding="utf-8")
    assert "no violation" in shell.ask("contract", "check", "mine.yaml", str(table.file))
    return read_contract(text, "mine.yaml")


def later_files(shell: Shell, table: Table, contract: Contract) -> tuple[str, str]:
    """Encounters as they come in later, under new numbers, and their outcomes."""
    labelled, _ = training_cohort(table.file, contract)
    later = labelled.tail(1500).reset_index(drop=True)
    if contract.date:
        later[contract.date] = [(date(2026, 10, 5) + timedelta(days=at % 7)).isoformat() for at in range(len(later))]
    positive = later[contract.outcome.column].isin(contract.outcome.positive).astype(int)
    named = later[[*contract.encounter]].assign(**{contract.outcome.column: positive})
    written = later.drop(columns=contract.outcome.column).replace("?", contract.missing[0])
    written.to_csv(shell.folder / "later.csv", index=False)
    named.to_csv(shell.folder / "outcomes.csv", index=False)
    return "later.csv", "outcomes.csv"


def test_a_table_of_ones_own_goes_the_whole_way(shell: Shell, table: Table) -> None:
    # given a contract that was drafted and edited
    contract = contract_for(shell, table)
    # when the demo runs with it
    said = shell.run("demo", CONTRACT="mine.yaml", DATA_SOURCE=table.file)
    assert f"{contract.outcome.happened}" in said and '"risk_group"' in said
    # then a later shell without the variable knows the contract, and scores a file over HTTP
    later, outcomes = later_files(shell, table, contract)
    result = last_line(shell.ask("predict", later, "--out", "scored.csv", "--json"))
    scored = pd.read_csv(shell.folder / "scored.csv")
    assert result["encounters"] == len(scored) == 1500 and {*contract.encounter} < {*scored.columns}
    assert 0 < scored["probability_score"].mean() < 0.6
    # and what arrived is a window that is judged when its outcomes are known
    shell.ask("data", "add", later, AS_OF="2026-10-11T12:00Z")
    shell.ask("data", "outcomes", outcomes, AS_OF="2026-10-11T12:00Z")
    window = {"AS_OF": "2027-11-30T12:00Z", "WINDOW": "week" if contract.date else "1500", "POLICY": "never"}
    judged = shell.run("pipeline", "run", "monitoring", **window)
    assert "verdict" in judged
    assert shell.json("status")["monitored"] == 1
    # and no page and no answer speaks of another table
    shell.ask("report", "build", "--to", "pages")
    shell.ask("contract", "show")
    pages = [*(shell.folder / "pages").rglob("*.html"), *shell.home.rglob("*.html")]
    assert len(pages) > 5
    for page in pages:
        text = re.sub(r"<style>.*?</style>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not OF_THE_BUILT_IN_TABLE.search(text), (page, OF_THE_BUILT_IN_TABLE.search(text))
    assert table.event in "".join(page.read_text(encoding="utf-8") for page in pages)


def test_too_few_are_refused_with_the_share_that_would_do(tmp_path: Path) -> None:
    # given the health registry, of which a hundredth trains
    table = health_registry(tmp_path)
    shell = Shell(tmp_path, INITIAL_SHARE=0.01, FUTURE_BATCHES=2)
    contract_for(Shell(tmp_path, INITIAL_SHARE=0.6, FUTURE_BATCHES=2), table)
    said = shell.ask("contract", "check", "mine.yaml", str(table.file), code=3)
    assert "are too few" in said and "set HEALTH_PREDICT_INITIAL_SHARE=0.05" in said


def test_a_column_that_gives_the_outcome_away_is_named(tmp_path: Path) -> None:
    # given an extract with a column that is known only afterwards
    table = modern_extract(tmp_path)
    frame = pd.read_csv(table.file, dtype=str, keep_default_na=False)
    frame["bed_of_return"] = ["B1" if returned == "Y" else "no bed" for returned in frame["returned_30d"]]
    frame.to_csv(table.file, index=False)
    shell = Shell(tmp_path, **table.settings)
    shell.ask("contract", "draft", str(table.file), "--out", "drafted.yaml")
    said = shell.ask("contract", "check", "drafted.yaml", str(table.file), code=3)
    assert "given away by bed_of_return" in said


def test_two_contracts_share_no_storage(tmp_path: Path) -> None:
    # given a home that is used for the built-in contract
    table = modern_extract(tmp_path)
    shell = Shell(tmp_path, **table.settings)
    contract_for(shell, table)
    storage = shell.home / "storage"
    storage.mkdir(parents=True)
    (storage / "contract").write_text("5" * 64)
    (storage / "contracts").mkdir()
    (storage / "contracts" / f"{'5' * 64}.json").write_bytes(read_contract(BUILT_IN, "built in").to_json())
    said = shell.run("pipeline", "run", "training", code=4, CONTRACT="mine.yaml", DATA_SOURCE=table.file)
    assert "is used for the contract diabetes-130" in said and "another HEALTH_PREDICT_HOME" in said
