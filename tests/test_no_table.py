"""Nothing in the library knows the columns of the built-in table: they stand in its contract."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts import DIABETES

ROOT = Path(__file__).parents[1]
FOLDERS = ("health_predict", "bentos", "components", "pipelines")
WORDS = re.compile("diabet|insulin|A1C", re.IGNORECASE)


def files() -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    return [path for path in found if path.suffix in (".py", ".html", ".md")]


def literals(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_no_text_in_the_code_is_a_column_of_the_built_in_table() -> None:
    columns = set(DIABETES.by_name)
    named = {
        (str(path.relative_to(ROOT)), text)
        for path in files()
        if path.suffix == ".py"
        for text in literals(path)
        if text in columns
    }
    assert named == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_word_of_the_built_in_table_stands_in_the_code(folder: str) -> None:
    found = {
        str(path.relative_to(ROOT)): WORDS.findall(path.read_text(encoding="utf-8"))
        for path in files()
        if path.is_relative_to(ROOT / folder) and WORDS.search(path.read_text(encoding="utf-8"))
    }
    assert found == {}
