"""The documentation states what the code does."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from docs.generate_reference import pages

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_reference_is_what_the_code_says() -> None:
    made = pages()
    for name in [name for name in sys.modules if name.partition(".")[0] == "readmission_service"]:
        del sys.modules[name]  # the tests of the service load that of a Bento
    for page, text in made.items():
        assert page.read_text() == text, f"{page.name} is stale: run `make reference` and commit"
        assert str(ROOT) not in text
    assert {page for page in PAGES if page.parent.name == "reference"} == set(made)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_named_in_the_text_exist(page: Path) -> None:
    folders = "health_predict|components|pipelines|bentos|tests|benchmarks|docs"
    for name in re.findall(rf"`((?:{folders})/[\w/.]+\.(?:py|md|yaml))`", page.read_text()):
        assert (ROOT / name).exists(), name


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / "README.md").read_text(), re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target
