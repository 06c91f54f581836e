"""The names of tags are declared once."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import health_predict
from health_predict.adapters.tracking import Tag

LIBRARY = Path(health_predict.__path__[0])
TEMPLATES = LIBRARY / "report" / "templates"


def is_tags(node: ast.expr) -> bool:
    """Whether an expression is `tags` or an attribute of that name."""
    return (isinstance(node, ast.Name) and node.id == "tags") or (
        isinstance(node, ast.Attribute) and node.attr == "tags"
    )


def spelled(source: str) -> Iterator[str]:
    """The literals by which a program looks into tags: `tags["..."]`, `tags.get("...")`, `"..." in tags`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Subscript(value=value, slice=ast.Constant(value=str(name))) if is_tags(value):
                yield name
            case ast.Call(func=ast.Attribute(value=value), args=[ast.Constant(value=str(name)), *_]) if is_tags(value):
                yield name
            case ast.Compare(left=ast.Constant(value=str(name)), comparators=[value]) if is_tags(value):
                yield name


def test_a_tag_that_is_spelled_is_found() -> None:
    source = 'version.tags["family"], f"{run.tags.get(\'role\')}", "stage" not in tags, tags[Tag.FAMILY], "a" in {}'
    assert sorted(spelled(source)) == ["family", "role", "stage"]


def test_no_program_and_no_page_spells_a_tag() -> None:
    programs = list(LIBRARY.rglob("*.py"))
    assert len(programs) > 100
    assert {(file.name, name) for file in programs for name in spelled(file.read_text())} == set()
    names = "|".join(Tag)
    for page in TEMPLATES.glob("*.html"):
        assert re.findall(rf"""\btags(?:\.|\[["']|\.get\(["'])(?:{names})\b""", page.read_text()) == [], page.name
