"""Pages as a browser shows them: what is wrong with one at the width of a phone and of a desk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="skipped: no Chromium (Debian: apt-get install chromium)")
WIDTHS = (360, 1400)
SERIOUS = ("serious", "critical")


class Browser:
    """A headless Chromium."""

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium

    @contextmanager
    def visit(self, url: str) -> Iterator[Any]:
        """Playwright's page of an address, which may be used."""
        page = self._chromium.new_page()
        try:
            page.goto(url, wait_until="load")
            yield page
        finally:
            page.close()

    def problems(self, url: str, *, own: str = "", text: str, accessible: bool = True) -> list[str]:
        """What is wrong with a page: console errors, requests to elsewhere, overflow, missing text, barriers.

        `own` is the address that the page may ask for more; a page of a file asks for nothing.
        """
        from axe_playwright_python.sync_playwright import Axe

        found: list[str] = []
        page = self._chromium.new_page(viewport={"width": WIDTHS[0], "height": 800})
        page.on("console", lambda said: found.append(f"console: {said.text}") if said.type == "error" else None)
        page.on("pageerror", lambda error: found.append(f"script: {error}"))
        page.on(
            "request",
            lambda request: (
                found.append(f"asks for {request.url}")
                if not request.url.startswith((url, "data:", *((own,) if own else ())))
                else None
            ),
        )
        try:
            page.goto(url, wait_until="load")
            if text not in page.inner_text("body"):
                found.append(f"does not say {text!r}")
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 800})
                wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                if wide > 0:
                    found.append(f"is {wide} px too wide for {width} px")
            if accessible:
                found += [
                    f"{item['id']}: {item['help']}, {len(item['nodes'])} times, first {item['nodes'][0]['html'][:120]}"
                    for item in Axe().run(page).response["violations"]
                    if item["impact"] in SERIOUS
                ]
        finally:
            page.close()
        return found


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium of this machine; nothing is downloaded."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield Browser(chromium)
        finally:
            chromium.close()


def address(file: Path) -> str:
    """URL of a file."""
    return file.resolve().as_uri()
