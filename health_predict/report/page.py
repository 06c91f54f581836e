"""Self-contained HTML pages from the templates beside this module.

Every page extends `base.html`, which needs `title` and takes `subtitle`, `facts` (pairs of label and value for
the line under the title) and `synthetic` (shows the banner that the data are not real). Nothing is loaded from
elsewhere, so a page can be mailed, printed and opened years later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
ABSENT = "\u2013"  # what a table shows where there is no value


def number(value: float | None, digits: int = 3) -> str:
    """A number with fixed decimals and a thousands separator: `0.671`, `20,353` (digits=0)."""
    if value is None or not math.isfinite(value):
        return ABSENT
    text = f"{value:,.{digits}f}"
    return text[1:] if text.startswith("-") and not text.strip("-0.,") else text  # no "-0.000"


def percent(value: float | None, digits: int = 1) -> str:
    """A share between 0 and 1 as a percentage: `11.2 %`, with a space that does not break."""
    return ABSENT if value is None or not math.isfinite(value) else f"{number(value * 100, digits)}\u00a0%"


def interval(bounds: Sequence[float] | None, digits: int = 3) -> str:
    """Two bounds: `0.643 to 0.699`."""
    return ABSENT if bounds is None else f"{number(bounds[0], digits)} to {number(bounds[1], digits)}"


def estimate(value: float | None, bounds: Sequence[float] | None = None, digits: int = 3) -> str:
    """A value with its interval: `0.671 (0.643 to 0.699)`; the value alone when there is no interval."""
    return number(value, digits) if bounds is None else f"{number(value, digits)} ({interval(bounds, digits)})"


def rounded(text: str) -> str:
    """A parameter as it was stored, a number with three digits that count: `0.0278`, `hist`."""
    try:
        value = float(text)
    except ValueError:
        return text
    return text if value.is_integer() else f"{value:.3g}"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign: `+0.021`, `-0.004` (with a real minus sign)."""
    if value is None or not math.isfinite(value):
        return ABSENT
    text = number(value, digits)
    return text.replace("-", "\u2212") if text.startswith("-") else f"+{text}"


def difference(item: Mapping[str, float], digits: int = 3) -> str:
    """A paired difference with its interval: `+0.012 (-0.003 to 0.027)`."""
    value, low, high = (signed(item[name], digits) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def capital(text: str) -> str:
    """With a capital letter at its begin, as a heading has it; the rest stays."""
    return text[:1].upper() + text[1:]


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from health_predict.adapters.tracking import Tag

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in (number, percent, interval, estimate, rounded, signed, difference, capital):
        environment.filters[name.__name__] = name
    environment.globals["Tag"] = Tag
    return environment


def render(template: str, /, **context: Any) -> str:
    """The page of a template of this package.

    A value that the template names and the context lacks raises jinja2.UndefinedError: a report with a hole is
    a defect.
    """
    defaults: dict[str, Any] = {"subtitle": "", "facts": (), "synthetic": False}
    html: str = _environment().get_template(template).render({**defaults, **context})
    return html
