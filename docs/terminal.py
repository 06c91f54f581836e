"""What a terminal shows, as an SVG: still, or as an animation of how it came about."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

# Rich's measures of a cell in an SVG, and what is around the text.
CELL, LINE, MARGIN, BAR = 12.2, 24.4, 10.0, 40.0
END = 8.0  # seconds for which the last picture of an animation stays
FONTS = "'Fira Code', 'JetBrains Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"
BACKGROUND = "#292929"


class Terminal:
    """What a terminal shows, as an SVG that needs nothing from elsewhere: fonts are those of the reader."""

    def __init__(self, title: str, columns: int) -> None:
        self._title = title
        self._columns = columns
        self._console = Console(record=True, width=columns, file=io.StringIO())
        self.rows = 0

    def print(self, line: Text) -> None:
        """Add a line, over as many rows as it needs."""
        for row in line.wrap(self._console, self._columns):
            self._console.print(row, no_wrap=True, overflow="crop")
            self.rows += 1

    def svg(self, visible: int, name: str, shown: Iterable[tuple[float, int]] = ()) -> str:
        """The picture, `visible` rows high. `shown` has rows by the seconds at which they are there: an animation.

        Rows that are not there yet lie below a cover, and the text moves up as it does in a terminal. Who wants no
        motion sees the end.
        """
        width, height = self._columns * CELL + 2 * MARGIN, visible * LINE + BAR + MARGIN
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
<rect width="{width:.0f}" height="{height:.0f}" rx="8" fill="{BACKGROUND}"/>
<g transform="translate(22 20)"><circle r="6" fill="#ff5f57"/><circle cx="20" r="6" fill="#febc2e"/>
<circle cx="40" r="6" fill="#28c840"/></g>
<text x="{width / 2:.0f}" y="26" fill="#c5c8c6" text-anchor="middle">{self._title}</text>
<g transform="translate({MARGIN:.0f} {BAR:.0f})"><g clip-path="url(#{name}-window)"><g class="scroll">
{{backgrounds}}{{matrix}}
<rect class="cover" width="{width:.0f}" height="{self.rows * LINE:.0f}" fill="{BACKGROUND}"/></g></g></g>
<rect x="8" y="{height - MARGIN - 0.6:.1f}" width="{width - 16:.0f}" height="4" fill="{BACKGROUND}"/>
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
