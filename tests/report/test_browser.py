"""The browser that examines pages finds what is wrong with one."""

from __future__ import annotations

from pathlib import Path

from tests.browser import address, browser, needs_chromium


@needs_chromium
def test_what_is_wrong_with_a_page_is_named(tmp_path: Path) -> None:
    # given a page with one fault of each kind
    (tmp_path / "bad.html").write_text(
        "<html><title>bad</title><body><img src='http://127.0.0.1:9/x.png'><div style='width:2000px'>wide</div>"
        "<script>console.error('oops'); throw new Error('broken')</script></body></html>"
    )
    # when
    with browser() as chromium:
        found = "\n".join(chromium.problems(address(tmp_path / "bad.html"), text="not there"))
    # then
    for words in ("console: oops", "script: broken", "asks for http://127.0.0.1:9/x.png", "does not say", "too wide"):
        assert words in found
    assert "image-alt" in found and "html-has-lang" in found
