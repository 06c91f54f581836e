"""The keys of storage are made in one module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from health_predict.adapters import keys

ROOT = Path(keys.__file__).parents[2]
CODE = ("health_predict", "components", "pipelines", "bentos", "benchmarks")
# Not keys: the name of a part begins so.
OTHERS = {("health_predict/core/data/partition.py", "batches/")}


def literals(source: str) -> Iterator[str]:
    """The string literals of a program; of a formatted one those between its values, each by itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def spelled(source: str) -> list[str]:
    """The literals that begin as a key does."""
    begins = {found[0] for text in literals(Path(keys.__file__).read_text()) if (found := re.match(r"[a-z]+/", text))}
    return [text for text in literals(source) if text.startswith(tuple(begins))]


def test_a_key_that_is_spelled_is_found() -> None:
    assert spelled('storage.read(f"datasets/{digest}/manifest.json")') == ["datasets/"]
    assert spelled('for key in storage.keys("predictions/"): folder = "here/raw/"') == ["predictions/"]
    assert spelled('run = f"runs:/{run_id}/model"') == []


def test_no_other_module_spells_a_key() -> None:
    files = [file for folder in CODE for file in (ROOT / folder).rglob("*.py") if file != Path(keys.__file__)]
    assert len(files) > 100
    found = {(file.relative_to(ROOT).as_posix(), text) for file in files for text in spelled(file.read_text())}
    assert found - OTHERS == set()
