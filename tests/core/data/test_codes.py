"""Systems of codes: chapters and categories."""

from __future__ import annotations

import pytest

from health_predict.core.data.codes import Chapters, System, category


@pytest.mark.parametrize(
    ("code", "chapter"),
    [
        ("1", "infectious"), ("139.8", "infectious"), ("250.83", "diabetes"), ("249.9", "endocrine"),
        ("251", "endocrine"), ("428", "circulatory"), ("999.9", "injury"), ("E909", "external"),
        ("V57", "supplementary"), ("?", "missing"), ("001", "infectious"),
    ],
)  # fmt: skip
def test_chapters_of_icd_9(code: str, chapter: str) -> None:
    assert Chapters(System.ICD9CM, {"diabetes": ["250"]}).of(code) == chapter


@pytest.mark.parametrize(
    ("code", "chapter"),
    [
        ("A00.0", "infectious"), ("B99.9", "infectious"), ("C7A.1", "neoplasms"), ("D49.9", "neoplasms"),
        ("D50.9", "blood"), ("E11.65", "diabetes"), ("E1165", "diabetes"), ("E78.5", "endocrine"),
        ("H59.8", "eye"), ("H60.0", "ear"), ("I50.9", "circulatory"), ("O9A.2", "pregnancy"),
        ("T88.9", "injury"), ("U07.1", "special purposes"), ("W19", "external"), ("Z79.4", "health services"),
        ("?", "missing"),
    ],
)  # fmt: skip
def test_chapters_of_icd_10(code: str, chapter: str) -> None:
    assert Chapters(System.ICD10CM, {"diabetes": ["E10", "E11"]}).of(code) == chapter


def test_every_chapter_has_a_name_of_its_own_and_missing_comes_last() -> None:
    for system in System:
        names = Chapters(system).names
        assert len(set(names)) == len(names) and names[-1] == "missing"


def test_a_category_is_a_code_without_what_narrows_it_down() -> None:
    assert category("250.83", System.ICD9CM) == "250" and category("V57.1", System.ICD9CM) == "V57"
    assert category("E11.65", System.ICD10CM) == category("E1165", System.ICD10CM) == "E11"
