"""What a hospital with a table of its own is told before anything runs.

One such table goes the whole way by the demo, in `test_anywhere.py`, another in `pipelines/test_compiled.py`.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from health_predict.adapters.contracts import FOLDER
from health_predict.core.data.contract_file import read_contract
from tests.own_table import contract_for, health_registry, modern_extract
from tests.shell import Shell

BUILT_IN = (FOLDER / "diabetes-130.yaml").read_text(encoding="utf-8")


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
    frame["bed_of_return"] = ["B1" if returned == "1" else "no bed" for returned in frame["returned"]]
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
