"""`make screenshots`: the pictures of README and docs, from what this checkout's home holds.

Run `make demo` before, and `health-predict simulate` for the timeline. Needs a Chromium of the machine.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
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

sys.path.insert(0, str(ROOT))
from health_predict.adapters.target import open_target  # noqa: E402
from health_predict.operations.overview import build_overview  # noqa: E402
from health_predict.settings import load_settings  # noqa: E402
from tests.browser import CHROMIUM  # noqa: E402


def terminal(name: str, *arguments: str) -> None:
    """The output of a command as an SVG."""
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
    done = subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True, check=True)
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.assemble(("$ ", "green"), f"health-predict {' '.join(arguments)}"))
    console.print(Text.from_ansi(done.stdout.replace(str(ROOT), "...")))
    (IMAGES / f"{name}.svg").write_text(console.export_svg(title="health-predict"))


def picture(page: Page, url: str, name: str, heading: str = "") -> None:
    """A page from one of its headings on, as a PNG."""
    page.goto(url, wait_until="load")
    top = page.get_by_role("heading", name=heading).first.bounding_box() if heading else None
    place = {"x": 0.0, "y": max(0.0, top["y"] - 16) if top else 0.0, "width": float(WIDTH), "height": float(HEIGHT)}
    page.screenshot(path=str(IMAGES / f"{name}.png"), full_page=True, clip=place)  # type: ignore[arg-type]


def main() -> None:
    """Take all pictures that the home has material for."""
    settings = load_settings()
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
