"""The documentation states what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from health_predict.cli import app
from health_predict.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def settings_table() -> str:
    """The table of docs/reference.md; print it with `python -m tests.test_docs` after a setting changed."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = getattr(field.default, "value", field.default)
        shown = "" if default in ("", ()) else f"`{default}`"
        rows.append(f"| `{PREFIX}{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


def test_every_setting_is_in_the_reference() -> None:
    assert settings_table() in REFERENCE, "run `python -m tests.test_docs` and paste"


def test_every_command_is_in_the_reference() -> None:
    command = get_command(app)
    names = set()
    for name, found in command.commands.items():  # type: ignore[attr-defined]
        names |= {f"{name} {inner}" for inner in getattr(found, "commands", {})} or {name}
    missing = {name for name in names if f"`{name}" not in REFERENCE}
    assert not missing


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


if __name__ == "__main__":
    print(settings_table())
