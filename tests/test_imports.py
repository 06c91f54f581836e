"""Tests share helper modules: they import neither each other nor the benchmarks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def imported(source: str) -> Iterator[str]:
    """The names of modules that a program imports, and of what it imports from them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def refused(source: str) -> list[str]:
    """Of these, what no test may import."""
    parts = [(name, name.split(".")) for name in imported(source)]
    return [name for name, (first, *rest) in parts if first in ("benchmarks", "") or _is_a_test(first, rest)]


def _is_a_test(first: str, rest: list[str]) -> bool:
    return first == "tests" and any(part.startswith("test_") for part in rest)


def test_tests_import_neither_each_other_nor_the_benchmarks() -> None:
    found = {path.relative_to(TESTS).as_posix(): refused(path.read_text("utf-8")) for path in TESTS.rglob("*.py")}
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from benchmarks.parts import load", ["benchmarks.parts.load"]),
        ("import benchmarks.search", ["benchmarks.search"]),
        ("from tests.stages.test_rollout import first", ["tests.stages.test_rollout.first"]),
        ("def f():\n    from tests.stages import test_rollout", ["tests.stages.test_rollout"]),
        ("from .test_rollout import first", [".test_rollout.first"]),
        ("from tests.rollouts import first\nimport tests.shell\nfrom pathlib import Path", []),
    ],
)
def test_what_is_refused(source: str, expected: list[str]) -> None:
    assert refused(source) == expected
