"""`make screenshots`: the pictures of README and docs, from what this checkout's home holds.

Run `make demo` before, and `health-predict simulate` for the timeline. Needs a Chromium of the machine. The recording
runs `make demo` once more, from nothing, in a folder of its own; `--no-recording` leaves it out.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
COMMAND = (sys.executable, "-m", "health_predict")
WIDTH, HEIGHT = 1200, 820
COLUMNS = 110
# A pause of the recording lasts so much of the real one, and no longer than this.
PACE, LONGEST_PAUSE = 0.3, 0.7
ROWS = 28  # of its window
# Colours as on a terminal, but every line stays, as where nobody watches.
COLOURED = {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(COLUMNS), "PYTHONUNBUFFERED": "1"}
ANSI_CURSOR = re.compile(r"\x1b\[\?25[lh]")

sys.path.insert(0, str(ROOT))
from docs.terminal import Terminal, prompt  # noqa: E402
from health_predict.adapters.data.dataset import fetch  # noqa: E402
from health_predict.adapters.serving.target import open_target  # noqa: E402
from health_predict.operations.overview import build_overview  # noqa: E402
from health_predict.settings import load_settings  # noqa: E402
from tests.browser import CHROMIUM  # noqa: E402


def shortened(line: str, folder: str) -> str:
    """A line without the path of a folder; the columns after it stay where they are."""
    before, found, after = line.partition(folder)
    if not found:
        return line
    return f"{before}...{re.sub(r'  +', lambda gap: gap[0] + ' ' * (len(folder) - 3), after, count=1)}"


def terminal(name: str, *arguments: str) -> None:
    """The output of a command as an SVG."""
    done = subprocess.run(
        [*COMMAND, *arguments], env={**os.environ, **COLOURED}, capture_output=True, text=True, check=True
    )
    shown = Terminal(f"health-predict {' '.join(arguments)}", COLUMNS)
    shown.print(prompt(f"health-predict {' '.join(arguments)}"))
    for line in ANSI_CURSOR.sub("", done.stdout).splitlines():
        shown.print(Text.from_ansi(shortened(line, str(ROOT)).rstrip()))
    (IMAGES / f"{name}.svg").write_text(shown.svg(shown.rows, name))


def record(command: list[str], environment: Mapping[str, str]) -> list[tuple[float, str]]:
    """The lines that a command prints, each with its second."""
    begin, lines = time.monotonic(), []
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **COLOURED, **environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.monotonic() - begin, ANSI_CURSOR.sub("", line.rstrip("\n"))))
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return lines


def play(name: str, command: str, lines: list[tuple[float, str]]) -> None:
    """A recorded command as an animated SVG, its pauses shortened."""
    film = Terminal(command, COLUMNS)
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
    for path in (folder, str(ROOT)):
        lines = [(at, line.replace(path, "...")) for at, line in lines]
    play("demo", "make demo", [(at, line.replace(f":{port}", ":3000")) for at, line in lines])


def picture(page: Page, url: str, name: str, heading: str = "") -> None:
    """A page from one of its headings on, as a PNG."""
    page.goto(url, wait_until="load")
    top = page.get_by_role("heading", name=heading).first.bounding_box() if heading else None
    place = {"x": 0.0, "y": max(0.0, top["y"] - 16) if top else 0.0, "width": float(WIDTH), "height": float(HEIGHT)}
    page.screenshot(path=str(IMAGES / f"{name}.png"), full_page=True, clip=place)  # type: ignore[arg-type]


def mlflow(page: Page) -> None:
    """The runs of the experiment in MLflow, the search's own above its trials."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*COMMAND, "mlflow-ui", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pages:
        assert pages.stdout is not None
        try:
            (url,) = next(found for line in pages.stdout if (found := re.findall(r"MLflow's pages: (\S+)", line)))
            page.goto(url, wait_until="load")
            search = page.get_by_role("link", name="Search of").first
            search.wait_for(timeout=60_000)
            page.get_by_role("button", name="Close").last.click()  # of its assistant
            # Before its name stands what shows its trials, too.
            search.click(position={"x": -32, "y": 8}, force=True)
            page.get_by_role("link", name="Best_").first.wait_for(timeout=60_000)
            page.screenshot(path=str(IMAGES / "mlflow.png"))
        finally:
            pages.send_signal(signal.SIGINT)


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
            picture(page, timeline.as_uri(), "timeline", "Does the model rank patients?")
        mlflow(page)
        chromium.close()


if __name__ == "__main__":
    main()
