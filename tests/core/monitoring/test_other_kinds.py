"""Drift of numbers, flags, what may be missing, and ICD-10."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter

from health_predict.core.data.cohort import target
from health_predict.core.monitoring.drift import DriftReference, assess
from health_predict.core.monitoring.input_drift import InputFindings, InputReference, QualityKind
from health_predict.core.monitoring.refit import LabelledRows, refit_gain
from tests.modern import CONTRACT, encounters

ROWS = 4000


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return encounters(ROWS)


@pytest.fixture(scope="module")
def reference(frame: pd.DataFrame) -> InputReference:
    return InputReference.fit(frame, CONTRACT, draws=200)


@pytest.fixture
def batch() -> pd.DataFrame:
    return encounters(1500, seed=1)


def alarmed(found: InputFindings) -> set[str]:
    return {column.column for column in found.columns if column.alarm}


def test_a_batch_like_the_reference_is_quiet(reference: InputReference, batch: pd.DataFrame) -> None:
    found = reference.compare(batch, CONTRACT)
    assert not found.alarm and not found.quality


def test_a_number_that_moved_is_named_with_where_it_went(reference: InputReference, batch: pd.DataFrame) -> None:
    warmer = batch.assign(temperature=(batch["temperature"].astype(float) + 0.5).round(1).astype(str))
    found = reference.compare(warmer, CONTRACT)
    assert alarmed(found) == {"temperature"}
    (column,) = [column for column in found.columns if column.alarm]
    assert all(move.cell.startswith(("up to ", "over ")) for move in column.moves)


def test_how_a_number_is_written_does_not_matter(reference: InputReference, batch: pd.DataFrame) -> None:
    written = batch.assign(
        temperature=[f"{float(value):.6f}" for value in batch["temperature"]],
        balance=[value if value == "?" else f"{float(value):g}" for value in batch["balance"]],
    )
    assert reference.compare(written, CONTRACT) == reference.compare(batch, CONTRACT)


def test_missing_numbers_and_counts_are_a_cell_of_their_own(reference: InputReference, batch: pd.DataFrame) -> None:
    gone = batch.assign(creatinine="?", stays=np.where(np.arange(len(batch)) % 2, "?", batch["stays"]))
    found = reference.compare(gone, CONTRACT)
    assert alarmed(found) == {"creatinine", "stays"}
    assert {(one.kind, one.column) for one in found.quality} == {
        (QualityKind.MISSING, "creatinine"),
        (QualityKind.MISSING, "stays"),
    }


def test_a_reference_without_any_value_takes_what_comes(frame: pd.DataFrame, batch: pd.DataFrame) -> None:
    found = InputReference.fit(frame.assign(creatinine="?"), CONTRACT, draws=50).compare(batch, CONTRACT)
    assert "creatinine" in alarmed(found)
    assert {one.kind for one in found.quality if one.column == "creatinine"} == {QualityKind.MISSING, QualityKind.NEW}


def test_codes_of_icd_10_are_pooled_by_chapter(frame: pd.DataFrame, batch: pd.DataFrame) -> None:
    # given rare codes of one chapter, of which other ones come
    rare = [f"K{number}.{number % 7}" for number in range(20, 95)]
    some = np.arange(ROWS) % 10 == 0
    before = frame.assign(first=np.where(some, np.resize(rare, ROWS), frame["first"]))
    later = np.arange(len(batch)) % 10 == 0
    after = batch.assign(first=np.where(later, np.resize([f"{code}1" for code in rare], len(batch)), batch["first"]))
    reference = InputReference.fit(before, CONTRACT, draws=200)
    (cells,) = [one for one in reference.cells if one.column == "first"]
    assert "other digestive codes" in cells.names
    assert "first" not in alarmed(reference.compare(after, CONTRACT))


def test_a_flag_that_turned_is_found(reference: InputReference, batch: pd.DataFrame) -> None:
    turned = batch.assign(intensive=batch["intensive"].map({"No": "Yes", "Yes": "No"}))
    assert alarmed(reference.compare(turned, CONTRACT)) == {"intensive"}


def test_the_whole_verdict_speaks_of_this_outcome(frame: pd.DataFrame, batch: pd.DataFrame) -> None:
    # given the true risks on validation, and a batch whose outcomes are half as many
    outcomes = target(frame, CONTRACT).astype(np.float64)
    scores = np.where(outcomes > 0, 0.3, 0.05) + np.random.default_rng(0).uniform(0, 0.2, len(outcomes))
    reference = DriftReference.fit(frame, CONTRACT, outcomes, scores, draws=100)
    found = assess(reference, batch, scores[: len(batch)], outcomes[: len(batch)])
    said = " ".join(reason.sentence for reason in found.reasons)
    assert "returns were observed" in said and "readmission" not in said
    assert {group.attribute for group in found.subgroups} == {"sex", "age", "creatinine"}
    waiting = assess(reference, batch, scores[: len(batch)], None)
    assert waiting.reasons[0].sentence.startswith("Waiting for labels: 0 returns are known")
    # and it is the same from storage
    adapter = TypeAdapter(DriftReference)
    again = adapter.validate_python(json.loads(adapter.dump_json(reference, exclude_defaults=True)))
    assert again == reference and assess(again, batch, scores[: len(batch)], outcomes[: len(batch)]) == found


def test_a_refit_reads_the_same_kinds(frame: pd.DataFrame) -> None:
    labels, flat = target(frame, CONTRACT).astype(np.float64), np.full(ROWS, 0.1)
    flat += np.random.default_rng(0).uniform(0, 0.01, ROWS)
    early, late = slice(0, 3000), slice(3000, ROWS)
    gain = refit_gain(
        [LabelledRows(frame[early], flat[early], labels[early])],
        LabelledRows(frame[late], flat[late], labels[late]),
        CONTRACT,
    )
    assert gain is not None and gain[0] > 0.05
