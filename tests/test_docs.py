"""The documentation states what the code does."""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.text import Text
from typer.main import get_command

from docs.generate_reference import pages
from docs.terminal import Terminal
from health_predict.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_reference_is_what_the_code_says() -> None:
    made = pages()
    for page, text in made.items():
        assert page.read_text() == text, f"{page.name} is stale: run `make reference` and commit"
        assert str(ROOT) not in text
    assert {page for page in PAGES if page.parent.name == "reference"} <= set(made)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = re.sub("`[^`]*`", "", page.read_text())  # a pattern may look like a link
    for target in re.findall(r"\]\((?!https?://)([^)]+)", text):
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_named_in_the_text_exist(page: Path) -> None:
    folders = "health_predict|components|contracts|pipelines|bentos|tests|benchmarks|docs"
    for name in re.findall(rf"`((?:{folders})/[\w/.]+\.(?:py|md|yaml))`", page.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_make_targets_in_the_text_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z][a-z-]+)", page.read_text(), re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target


def said(page: Path) -> Iterator[list[str]]:
    """The words of each `health-predict` command of a page, after the program's name."""
    text = page.read_text().replace("\\\n", " ")
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for line in [*blocks.splitlines(), *re.findall(r"`(health-predict [^`\n]+)`", prose)]:
        for part in re.split(r"\s(?:\||;|&&)\s", line):
            if "health-predict " not in part:
                continue
            words = [word for word in shlex.split(part, comments=True) if not re.match(r"[A-Z_]+=", word)]
            if words and words[0].rpartition("/")[2] == "health-predict":
                yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_in_the_text_exist_with_their_options(page: Path) -> None:
    for words in said(page):
        command, rest = get_command(app), list(words)
        while rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]
        known = {option for item in command.params for option in (*item.opts, *item.secondary_opts)} | {"--help"}
        given = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert given <= known, f"health-predict {' '.join(words)}"
        assert not getattr(command, "commands", {}) or not rest or rest[0].startswith(("-", "<")), words


def test_a_recording_is_small_complete_and_still_for_who_wants_no_motion() -> None:
    # given three lines, one of them wider than the window
    film = Terminal("make demo", 20)
    shown = []
    for second, line in enumerate(("one", "two <&> {three} four five six seven", "eight")):
        film.print(Text(line))
        shown.append((float(second), film.rows))
    # when
    picture = film.svg(2, "film", shown)
    # then every row is there, and without an animation the last two are seen
    texts = "".join(ElementTree.fromstring(picture).itertext()).replace("\xa0", " ")
    assert all(word in texts for word in ("one", "two <&> {three}", "seven", "eight"))
    style, _, animation = picture.partition("@media (prefers-reduced-motion: no-preference)")
    assert film.rows == 4 and "translateY(-48.8px)" in style and "@keyframes" not in style
    assert animation.count("@keyframes") == 2
    # and the committed ones ask for nothing from elsewhere
    for file in (ROOT / "docs" / "images").glob("*.svg"):
        text = file.read_text()
        assert len(text) < 100_000 and not re.search(r"url\([^#]|@import|href=", text), file.name
