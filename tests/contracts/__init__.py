"""The built-in contract, and the names in it that tests need."""

from __future__ import annotations

import atexit
import tempfile
from pathlib import Path

from health_predict.adapters.contracts import FOLDER, built_in
from health_predict.core.data.contract import Kind

DIABETES = built_in()
ENCOUNTER, PATIENT, DATE = DIABETES.encounter[0], DIABETES.patient, DIABETES.date
TARGET, POSITIVE = DIABETES.outcome.column, DIABETES.outcome.positive[0]
NOT_READMITTABLE = DIABETES.exclude[0].levels
DRUGS, DIAGNOSES, AGES = DIABETES.groups[0].columns, DIABETES.names(Kind.CODE), DIABETES.by_name["age"].levels
COLUMNS, BY_NAME = DIABETES.table, DIABETES.by_name


def published_at(url: str = "", sha256: str = "") -> str:
    """Path of the built-in contract's file, with its data published at another address or with other content."""
    text = (FOLDER / "diabetes-130.yaml").read_text(encoding="utf-8")
    was = DIABETES.published
    assert was is not None
    folder = tempfile.TemporaryDirectory(prefix="contract-")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "contract.yaml"
    path.write_text(text.replace(was.url, url or was.url).replace(was.sha256, sha256 or was.sha256), encoding="utf-8")
    path.with_name(DIABETES.synthetic).write_text((FOLDER / DIABETES.synthetic).read_text(encoding="utf-8"))
    return str(path)
