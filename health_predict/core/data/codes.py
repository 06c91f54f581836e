"""Systems of diagnosis codes: what a code looks like, its chapter and its category. Standard library only."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class System(StrEnum):
    """A system of codes that a column may be written in."""

    ICD9CM = "icd9cm"
    ICD10CM = "icd10cm"


@dataclass(frozen=True, slots=True)
class _Rules:
    pattern: str  # of a whole code, in words that Python, Rust (pydantic) and JSON Schema read alike
    described: str
    chapters: tuple[tuple[str, str], ...]  # first category of each chapter, in order


_RULES: Mapping[System, _Rules] = {
    # Numbers may lack leading zeros. E and V codes have the digits and the range of the system, so that ICD-10's
    # E11.9 is not taken for an external cause. Source: ICD-9-CM, tabular list of diseases, E800-E999 and V01-V91.
    System.ICD9CM: _Rules(
        r"[0-9]{1,3}(\.[0-9]{1,2})?|E[89][0-9]{2}(\.[0-9])?|V(0[1-9]|[1-8][0-9]|9[01])(\.[0-9]{1,2})?",
        "an ICD-9-CM code such as 428, 250.83, V57 or E909 (ICD-10 is not read)",
        (
            ("1", "infectious"),
            ("140", "neoplasms"),
            ("240", "endocrine"),
            ("280", "blood"),
            ("290", "mental"),
            ("320", "nervous"),
            ("390", "circulatory"),
            ("460", "respiratory"),
            ("520", "digestive"),
            ("580", "genitourinary"),
            ("630", "pregnancy"),
            ("680", "skin"),
            ("710", "musculoskeletal"),
            ("740", "congenital"),
            ("780", "symptoms"),
            ("800", "injury"),
            ("E", "external"),
            ("V", "supplementary"),
        ),
    ),
    # Source: ICD-10-CM 2025, tabular list of diseases and injuries. The third character may be A or B, the dot is
    # often left out.
    System.ICD10CM: _Rules(
        r"[A-Z][0-9][0-9AB](\.?[0-9A-Z]{1,4})?",
        "an ICD-10-CM code such as I50.9, E11.65 or Z79.4, with or without its dot",
        (
            ("A00", "infectious"),
            ("C00", "neoplasms"),
            ("D50", "blood"),
            ("E00", "endocrine"),
            ("F01", "mental"),
            ("G00", "nervous"),
            ("H00", "eye"),
            ("H60", "ear"),
            ("I00", "circulatory"),
            ("J00", "respiratory"),
            ("K00", "digestive"),
            ("L00", "skin"),
            ("M00", "musculoskeletal"),
            ("N00", "genitourinary"),
            ("O00", "pregnancy"),
            ("P00", "perinatal"),
            ("Q00", "congenital"),
            ("R00", "symptoms"),
            ("S00", "injury"),
            ("U00", "special purposes"),
            ("V00", "external"),
            ("Z00", "health services"),
        ),
    ),
}
MISSING_CHAPTER = "missing"
EXAMPLES: Mapping[System, str] = {System.ICD9CM: "428", System.ICD10CM: "I50.9"}


def pattern(system: System) -> str:
    """Regular expression of a whole code."""
    return _RULES[system].pattern


def described(system: System) -> str:
    """What a code of the system is, in words."""
    return _RULES[system].described


def category(code: str, system: System) -> str:
    """The code without what narrows it down: `250.83` is `250`, `E11.65` and `E1165` are `E11`."""
    return code.partition(".")[0] if system is System.ICD9CM else code[:3]


class Chapters:
    """The chapters of a system, from which some categories stand apart under a name of their own.

    `apart`: categories by name, such as `{"heart failure": ["428"]}`.
    """

    def __init__(self, system: System, apart: Mapping[str, Sequence[str]] | None = None) -> None:
        self.system = system
        self.apart = {name: tuple(codes) for name, codes in (apart or {}).items()}
        self._apart = {code: name for name, codes in self.apart.items() for code in codes}
        chapters = _RULES[system].chapters
        self._firsts = [_sortable(first) for first, _ in chapters]
        self._chapters = [name for _, name in chapters]
        # In the order of the codes, so that the positions of a row do not depend on how a contract is written.
        every = sorted(
            [(first, name) for (first, name) in zip(self._firsts, self._chapters, strict=True)]
            + [(_sortable(code), name) for code, name in self._apart.items()],
            key=lambda first_and_name: first_and_name[0],
        )
        self.names: tuple[str, ...] = (*dict.fromkeys(name for _, name in every), MISSING_CHAPTER)

    def of(self, code: str) -> str:
        """Chapter of a code that keeps the system's pattern; `missing` for `?`."""
        if code == "?":
            return MISSING_CHAPTER
        known = self._apart.get(category(code, self.system))
        if known is not None:
            return known
        return self._chapters[max(bisect_right(self._firsts, _sortable(code)) - 1, 0)]


def _sortable(code: str) -> tuple[str, float]:
    """Order of codes: numbers before letters, numbers by their amount, letters by their text."""
    head = code.partition(".")[0]
    if head.isdigit():
        return "", float(head)
    return head, 0.0
