"""`make screenshots`: the pictures of README and docs, from what this checkout's home holds.

Run `make demo` before, and `health-predict simulate` for the timeline. Needs a Chromium of the machine. The recording
runs `make demo` once more, from nothing, in a folder of its own; `--no-recording` leaves it out.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
COMMAND = (sys.executable, "-m", "health_predict.cli")
WIDTH, HEIGHT = 1200, 820
COLUMNS = 110
ROWS = 28  # of the recording's window
# Rich's measures of a cell in an SVG, and what is around the text.
CELL, LINE, MARGIN, BAR = 12.2, 24.4, 10.0, 40.0
# A pause of the recording lasts so much of the real one, and no longer than this; the end stays for a while.
PACE, LONGEST_PAUSE, END = 0.3, 0.7, 8.0
ANSI_CURSOR = re.compile(r"\x1b\[\?25[lh]")
FONTS = "'Fira Code', 'JetBrains Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"

sys.path.insert(0, str(ROOT))
from health_predict.adapters.dataset import fetch  # noqa: E402
from health_predict.adapters.target import open_target  # noqa: E402
from health_predict.operations.overview import build_overview  # noqa: E402
from health_predict.settings import load_settings  # noqa: E402
from tests.browser import CHROMIUM  # noqa: E402


class Terminal:
    """What a terminal shows, as an SVG that needs nothing from elsewhere: fonts are those of the reader."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = Console(record=True, width=COLUMNS, file=io.StringIO())
        self.rows = 0

    def print(self, line: Text) -> None:
        """Add a line, over as many rows as it needs."""
        for row in line.wrap(self._console, COLUMNS):
            self._console.print(row, no_wrap=True, overflow="crop")
            self.rows += 1

    def svg(self, visible: int, name: str, shown: Iterable[tuple[float, int]] = ()) -> str:
        """The picture, `visible` rows high. `shown` has rows by the seconds at which they are there: an animation.

        Rows that are not there yet lie below a cover, and the text moves up as it does in a terminal. Who wants no
        motion sees the end.
        """
        width, height = COLUMNS * CELL + 2 * MARGIN, visible * LINE + BAR + MARGIN
        end = f"translateY({-max(0, self.rows - visible) * LINE:.1f}px)"
        frames = _frames(list(shown), visible) if shown else ""
        form = f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">
<title>{self._title}</title>
<style>
text {{{{ font: 20px {FONTS}; white-space: pre }}}}
.scroll {{{{ transform: {end} }}}}
.cover {{{{ transform: translateY({self.rows * LINE:.1f}px) }}}}
{frames}
{{styles}}
</style>
<defs><clipPath id="{name}-window"><rect width="{width:.0f}" height="{visible * LINE:.1f}"/></clipPath>{{lines}}</defs>
<rect width="{width:.0f}" height="{height:.0f}" rx="8" fill="#292929"/>
<g transform="translate(22 20)"><circle r="6" fill="#ff5f57"/><circle cx="20" r="6" fill="#febc2e"/>
<circle cx="40" r="6" fill="#28c840"/></g>
<text x="{width / 2:.0f}" y="26" fill="#c5c8c6" text-anchor="middle">{self._title}</text>
<g transform="translate({MARGIN:.0f} {BAR:.0f})"><g clip-path="url(#{name}-window)"><g class="scroll">
{{backgrounds}}{{matrix}}
<rect class="cover" width="{width:.0f}" height="{self.rows * LINE:.0f}" fill="#292929"/></g></g></g>
<rect x="8" y="{height - MARGIN - 2:.1f}" width="{width - 16:.0f}" height="4" fill="#292929"/>
</svg>
"""
        return self._console.export_svg(title=self._title, code_format=form, unique_id=name)


def _frames(shown: list[tuple[float, int]], visible: int) -> str:
    """Both animations: what moves the text up, and what uncovers it."""
    seconds = shown[-1][0] + END
    scroll, cover = [], []
    for at, rows in shown:
        percent = f"{100 * at / seconds:.2f}%"
        scroll.append(f"{percent} {{{{ transform: translateY({-max(0, rows - visible) * LINE:.1f}px) }}}}")
        cover.append(f"{percent} {{{{ transform: translateY({rows * LINE:.1f}px) }}}}")
    moving = "\n".join(
        f"@keyframes {name} {{{{ {' '.join([*frames, '100% ' + frames[-1].partition(' ')[2]])} }}}}\n"
        f".{name} {{{{ animation: {name} {seconds:.1f}s step-end infinite }}}}"
        for name, frames in (("scroll", scroll), ("cover", cover))
    )
    return f"@media (prefers-reduced-motion: no-preference) {{{{\n{moving}\n}}}}"


def prompt(command: str) -> Text:
    """A line as somebody typed it."""
    return Text.assemble(("$ ", "green"), command)


def terminal(name: str, *arguments: str) -> None:
    """The output of a command as an SVG."""
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
    done = subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True, check=True)
    shown = Terminal(f"health-predict {' '.join(arguments)}")
    shown.print(prompt(f"health-predict {' '.join(arguments)}"))
    for line in done.stdout.replace(str(ROOT), "...").splitlines():
        shown.print(Text.from_ansi(line.rstrip()))
    (IMAGES / f"{name}.svg").write_text(shown.svg(shown.rows, name))


def record(command: list[str], environment: Mapping[str, str]) -> list[tuple[float, str]]:
    """The lines that a command prints, each with its second."""
    shown = {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(COLUMNS), "PYTHONUNBUFFERED": "1"}
    begin, lines = time.monotonic(), []
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **shown, **environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.monotonic() - begin, ANSI_CURSOR.sub("", line.rstrip("\n"))))
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return lines


def play(name: str, command: str, lines: list[tuple[float, str]]) -> None:
    """A recorded command as an animated SVG, its pauses shortened."""
    film = Terminal(command)
    film.print(prompt(command))
    now, before, shown = 0.0, 0.0, [(0.0, film.rows)]
    for at, line in lines:
        now += max(0.03, min(LONGEST_PAUSE, PACE * (at - before)))
        before = at
        film.print(Text.from_ansi(line))
        shown.append((now, film.rows))
    (IMAGES / f"{name}.svg").write_text(film.svg(ROWS, name, shown))


def recording(raw: Path) -> None:
    """`make demo` from nothing, on data that are here already."""
    with TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
        free.close()
        environment = {
            "HEALTH_PREDICT_HOME": f"{folder}/.health-predict",
            "HEALTH_PREDICT_SERVING_PORT": port,
            "HEALTH_PREDICT_DATA_SOURCE": str(raw),
        }
        lines = record(["make", "--no-print-directory", "demo"], environment)
        subprocess.run([*COMMAND, "down"], env={**os.environ, **environment}, stdout=subprocess.DEVNULL, check=True)
    play("demo", "make demo", [(at, line.replace(folder, "...").replace(f":{port}", ":3000")) for at, line in lines])


def picture(page: Page, url: str, name: str, heading: str = "") -> None:
    """A page from one of its headings on, as a PNG."""
    page.goto(url, wait_until="load")
    top = page.get_by_role("heading", name=heading).first.bounding_box() if heading else None
    place = {"x": 0.0, "y": max(0.0, top["y"] - 16) if top else 0.0, "width": float(WIDTH), "height": float(HEIGHT)}
    page.screenshot(path=str(IMAGES / f"{name}.png"), full_page=True, clip=place)  # type: ignore[arg-type]


def main() -> None:
    """Take all pictures that the home has material for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-recording", action="store_true")
    settings = load_settings()
    if not parser.parse_args().no_recording:
        recording(fetch(settings, Console()).path)
    for name in ("status", "lineage"):
        terminal(name, name)
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        overview = build_overview(settings, folder=Path(folder))
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        picture(page, overview.as_uri(), "overview")
        picture(page, (overview.parent / "card.html").as_uri(), "card", "Performance")
        picture(page, f"{open_target(settings).url}/", "service")
        for timeline in sorted(overview.parent.glob("simulation-*.html"))[-1:]:
            picture(page, timeline.as_uri(), "timeline")
        chromium.close()


if __name__ == "__main__":
    main()
