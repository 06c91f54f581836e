"""Plots as inline SVG: text and colours follow the page, light or dark, and the numbers go along as a table.

Each function returns a `Plot`; the template macro `figure(plot, caption)` shows it. The same input gives the
same bytes. Colours are CSS variables with a fallback, so a plot saved on its own reads well too.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

from health_predict.core.statistics import Estimate
from health_predict.report.page import estimate, number, percent

Numbers = Sequence[float] | npt.NDArray[Any]

# matplotlib knows no CSS: these stand-ins are replaced in the finished SVG.
_INK, _LINE = "#010101", "#010102"
_SERIES = ("#010201", "#010202", "#010203", "#010204")
_CSS = {
    _INK: "currentColor",
    _LINE: "var(--line, #c8ccd0)",
    _SERIES[0]: "var(--series-1, #1d5fb8)",
    _SERIES[1]: "var(--series-2, #b0481a)",
    _SERIES[2]: "var(--series-3, #1f7a4d)",
    _SERIES[3]: "var(--series-4, #7445b0)",
}
_DASHES = ("-", "--", "-.", ":")  # series differ by more than colour
_MARKERS = ("o", "s", "^", "D")
_WIDTH = 5.0  # inches; small enough that its text can be read on a phone
_TABLE_ROWS = 24  # of a curve in the table behind it
_REFERENCE: Any = {"color": _INK, "linewidth": 1, "linestyle": (0, (2, 2))}
_EVENT: Any = {"color": _INK, "linewidth": 1, "linestyle": (0, (4, 2)), "alpha": 0.6}

_STYLE: Any = {
    "svg.hashsalt": "health-predict",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same layout on any machine
    "font.size": 9.5,
    "text.parse_math": False,  # a "$" in a level is a dollar
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Plot:
    """An SVG element, what it says in words, and the numbers behind it as formatted cells."""

    svg: str
    title: str
    description: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __html__(self) -> str:
        """What a template shows for the plot itself, without its table."""
        return self.svg


@contextmanager
def _canvas(height: float, width: float = _WIDTH) -> Iterator[tuple[Any, Any]]:
    """A figure of `width` x `height` inches and its axes in the reports' style; no state of pyplot is touched."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


def _plot(figure: Any, title: str, description: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Plot:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = _inline(buffer.getvalue().decode(), title, description)
    return Plot(svg, title, description, tuple(columns), tuple(tuple(row) for row in rows))


def _inline(document: str, title: str, description: str) -> str:
    """matplotlib's document as an element for a page: responsive, named, with ids of its own."""
    view_box = document.partition('viewBox="')[2].partition('"')[0]
    # What stands before it is a style element, which would apply to the whole page.
    body = document[document.index('<g id="figure_1">') :]
    body = re.sub(r"<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r"font-family:[^;\"]*;?", "", body)  # fonts come from the page
    for stand_in, css in _CSS.items():
        body = body.replace(stand_in, css)
    name = "p" + hashlib.sha256((title + description + body).encode()).hexdigest()[:10]
    body = re.sub(r' id="([^"]*)"', rf' id="{name}-\1"', body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view_box}" width="100%" role="img" aria-labelledby="{name}-t {name}-d" '
        f'font-family="system-ui, DejaVu Sans, sans-serif" stroke-linejoin="round" stroke-linecap="butt">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>{body.strip()}'
    )


def _decorate(axes: Any, x_label: str, y_label: str, grid: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis=grid)
    axes.tick_params(length=0)


def _note(axes: Any, text: str, x: float, offset: tuple[float, float], **style: Any) -> None:
    """A small text at the top of the axes, beside a vertical line at x."""
    where = {"xycoords": ("data", "axes fraction"), "xytext": offset, "textcoords": "offset points"}
    axes.annotate(text, (x, 1), fontsize=8.5, **where, **style)


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        # Above the axes, where it never covers a point.
        widest = max(len(label) for label in labels)
        columns = max(1, min(len(labels), 60 // (widest + 6)))
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=9)


def _styles() -> Any:
    return cycle(zip(_SERIES, _DASHES, _MARKERS, strict=True))


def _thin(length: int, most: int) -> npt.NDArray[np.int64]:
    """At most `most` positions of a long curve, both ends among them."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(np.int64))


def line(  # each parameter is a part of the picture
    x: Sequence[float] | Sequence[str],
    series: Mapping[str, Numbers],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    bands: Mapping[str, tuple[Numbers, Numbers]] | None = None,
    references: Mapping[str, float] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    digits: int = 3,
    share: bool = False,
) -> Plot:
    """Series over a common x (numbers or labels), with intervals as bands and horizontal reference lines.

    `bands` maps a series' name to its lower and upper bounds; NaN leaves a gap. `marks` are vertical lines: place on
    the x axis and what happened there, in a word or two: they stand above the plot. `share`: values are percentages.
    """
    bands = bands or {}
    with _canvas(3.2) as (figure, axes):
        for (name, values), (colour, dash, marker) in zip(series.items(), _styles(), strict=False):
            if name in bands:
                axes.fill_between(x, *bands[name], color=colour, alpha=0.16, linewidth=0)
            few = marker if len(x) <= 40 else None
            axes.plot(x, values, color=colour, linestyle=dash, marker=few, markersize=4, label=name)
        for name, value in (references or {}).items():
            axes.axhline(value, **_REFERENCE)
            where: Any = {"xycoords": ("axes fraction", "data"), "xytext": (4, 0), "textcoords": "offset points"}
            # Beside the axes, where no line crosses it.
            axes.annotate(name.replace(" ", "\n", 1), (1, value), ha="left", va="center", fontsize=8.5, **where)
        _marks(axes, marks)
        if share:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value * 100:g} %")
        if len(x) and isinstance(x[0], str) and len(x) > 10:
            step = 2 if len(x) <= 20 else -(-len(x) // 10)
            axes.set_xticks([0, *range(1 + step, len(x), step)])
        elif len(x) and not isinstance(x[0], str) and np.equal(np.mod(np.asarray(x, dtype=float), 1), 0).all():
            axes.xaxis.get_major_locator().set_params(integer=True)
        _decorate(axes, x_label, y_label, "y")
        _legend(figure, axes)
        alone = np.full(len(x), np.nan)
        bounds = [(values, *bands.get(name, (alone, alone))) for name, values in series.items()]
        rows = [
            [str(x[i]), *(_estimate(values[i], low[i], high[i], digits, share) for values, low, high in bounds)]
            for i in _thin(len(x), 200)
        ]
        return _plot(figure, title, description, [x_label, *series], rows)


def _marks(axes: Any, marks: Sequence[tuple[float, str]]) -> None:
    """Vertical lines with their words above the axes, on a row of their own where they would touch."""
    low, high = axes.get_xlim()
    ends: list[float] = []  # where the words of each row end, in points from the left
    for place, name in sorted(marks):
        axes.axvline(place, **_EVENT)
        begin, width = (place - low) / (high - low) * 72 * _WIDTH * 0.85, 4.6 * len(name) + 6
        row = next((row for row, end in enumerate(ends) if begin >= end), len(ends))
        ends[row:] = [begin + width, *ends[row + 1 :]]
        _note(axes, name, place, (1, 3 + 11 * row), annotation_clip=False, ha="left", va="bottom")


def _estimate(value: float, low: float, high: float, digits: int, share: bool = False) -> str:
    if share:
        return f"{percent(value)} ({percent(low)} to {percent(high)})" if np.isfinite(low) else percent(value)
    return estimate(value, (low, high) if np.isfinite(low) else None, digits)


def bars(
    labels: Sequence[str],
    series: Mapping[str, Numbers],
    *,
    title: str,
    description: str,
    value_label: str,
    share: bool = False,
    label_heading: str = "",
) -> Plot:
    """Horizontal bars, one a label and series, the first label on top. `share`: values are printed in percent."""
    count = max(1, len(series))
    with _canvas(0.9 + max(2, len(labels)) * (0.12 + 0.2 * count)) as (figure, axes):
        places = np.arange(len(labels), dtype=float)
        height = 0.76 / count
        for i, ((name, values), (colour, _, _)) in enumerate(zip(series.items(), _styles(), strict=False)):
            at = places + (i - (count - 1) / 2) * height
            axes.barh(at, np.asarray(values, dtype=float), height * 0.92, color=colour, label=name)
        axes.set_yticks(places, list(labels))
        axes.invert_yaxis()
        if share:
            axes.xaxis.set_major_formatter(lambda value, _: f"{value * 100:g} %")
        _decorate(axes, value_label, "", "x")
        axes.margins(y=0.02)
        _legend(figure, axes)
        rows = [
            [label, *(percent(v[i]) if share else number(v[i]) for v in series.values())]
            for i, label in enumerate(labels)
        ]
        return _plot(figure, title, description, [label_heading, *series], rows)


def spans(
    labels: Sequence[str],
    bounds: Sequence[tuple[float, float]],
    *,
    title: str,
    description: str,
    x_label: str,
    label_heading: str,
    marks: Sequence[tuple[float, str]] = (),
) -> Plot:
    """A horizontal bar from begin to end for each label, the first on top. `marks` as in `line`."""
    with _canvas(0.9 + max(2, len(labels)) * 0.26) as (figure, axes):
        places = np.arange(len(labels))
        begins = np.array([begin for begin, _ in bounds])
        axes.barh(places, np.array([end for _, end in bounds]) - begins, 0.6, left=begins, color=_SERIES[0])
        for place, _ in marks:
            axes.axvline(place, **_EVENT)
        axes.set_yticks(places, list(labels))
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _decorate(axes, x_label, "", "x")
        rows = [[label, f"{begin:g}", f"{end:g}"] for label, (begin, end) in zip(labels, bounds, strict=True)]
        return _plot(figure, title, description, [label_heading, "from", "to"], rows)


def interval_dots(  # each parameter is a part of the picture
    labels: Sequence[str],
    values: Sequence[Estimate],
    *,
    title: str,
    description: str,
    value_label: str,
    reference: float,
    reference_label: str = "",
    label_heading: str = "",
    digits: int = 3,
) -> Plot:
    """A point with its interval for each label, the first on top; NaN bounds draw the point alone."""
    with _canvas(0.9 + max(2, len(labels)) * 0.26) as (figure, axes):
        places = np.arange(len(labels))
        low, high = [one.low for one in values], [one.high for one in values]
        axes.hlines(places, low, high, color=_SERIES[0], linewidth=2, alpha=0.55)
        axes.plot([one.value for one in values], places, "o", color=_SERIES[0], markersize=5)
        axes.axvline(reference, **_REFERENCE)
        _note(axes, reference_label, reference, (3, 2), annotation_clip=False)
        axes.set_yticks(places, list(labels))
        axes.set_ylim(len(labels) - 0.4, -0.6)
        _decorate(axes, value_label, "", "x")
        cells = [_estimate(one.value, one.low, one.high, digits) for one in values]
        rows = [list(row) for row in zip(labels, cells, strict=True)]
        return _plot(figure, title, description, [label_heading, f"{value_label} (interval)"], rows)


def scatter(
    points: Mapping[str, Sequence[tuple[float, float]]],
    *,
    hollow: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    description: str,
    x_label: str,
    y_label: str,
) -> Plot:
    """Groups of (x, y) points, x on a log scale; `hollow` ones belong to the same groups and are drawn as rings."""
    with _canvas(3.2) as (figure, axes):
        rows = []
        for (name, group), (colour, _, marker) in zip(points.items(), _styles(), strict=False):
            rings = hollow.get(name, ())
            axes.scatter(*zip(*group, strict=True), color=colour, marker=marker, s=22, label=name) if group else None
            if rings:
                axes.scatter(*zip(*rings, strict=True), facecolors="none", edgecolors=colour, marker=marker, s=22)
            rows += [[name, number(x, 1), number(y)] for x, y in sorted([*group, *rings])]
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        # Within one decade only the minor ticks are left; at 1, 2 and 5 they have room.
        axes.xaxis.get_minor_locator().set_params(subs=(2.0, 5.0))
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
        axes.tick_params(which="minor", length=0)
        _decorate(axes, x_label, y_label, "both")
        _legend(figure, axes)
        return _plot(figure, title, description, ["", x_label, y_label], rows)


def roc(outcomes: npt.ArrayLike, scores: npt.NDArray[Any], *, description: str, threshold: float) -> Plot:
    """ROC curve with the operating point at `threshold`; outcomes and scores have shape (n,)."""
    from sklearn.metrics import roc_curve

    truth = np.asarray(outcomes).astype(bool)
    false_rate, true_rate, _ = roc_curve(truth, scores)
    flagged = scores >= threshold
    with _square("1 \u2212 specificity", "sensitivity") as (figure, axes):
        axes.plot([0, 1], [0, 1], **_REFERENCE)
        rows = _curve(axes, false_rate, true_rate)
        _operating_point(axes, threshold, flagged[~truth].mean(), flagged[truth].mean())
        return _plot(figure, "ROC curve", description, ["1 \u2212 specificity", "Sensitivity"], rows)


def precision_recall(outcomes: npt.ArrayLike, scores: npt.NDArray[Any], *, description: str, threshold: float) -> Plot:
    """Positive predictive value over sensitivity; the dashed line is the prevalence, what guessing gives."""
    from sklearn.metrics import precision_recall_curve

    truth = np.asarray(outcomes).astype(bool)
    precision, recall, _ = precision_recall_curve(truth, scores)
    flagged = scores >= threshold
    with _square("sensitivity (recall)", "positive predictive value (precision)") as (figure, axes):
        axes.axhline(truth.mean(), **_REFERENCE)
        rows = _curve(axes, recall, precision)
        if flagged.any():
            _operating_point(axes, threshold, flagged[truth].mean(), truth[flagged].mean())
        columns = ["Sensitivity", "Positive predictive value"]
        return _plot(figure, "Precision-recall curve", description, columns, rows)


def _curve(axes: Any, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> list[list[str]]:
    keep = _thin(len(x), 250)
    axes.plot(x[keep], y[keep], color=_SERIES[0])
    return [[number(x[i]), number(y[i])] for i in _thin(len(x), _TABLE_ROWS)]


def _operating_point(axes: Any, threshold: float, x: float, y: float) -> None:
    axes.plot(x, y, "o", color=_INK, markersize=6)
    axes.annotate(f"threshold {number(threshold)}", (x, y), xytext=(7, 5), textcoords="offset points")


def calibration(outcomes: npt.ArrayLike, scores: npt.NDArray[Any], *, description: str) -> Plot:
    """Observed share against mean prediction in ten groups of equal size, with 95 % Wilson intervals; shapes (n,)."""
    from scipy.stats import binomtest

    truth = np.asarray(outcomes).astype(int)
    parts = [part for part in np.array_split(np.argsort(scores, kind="stable"), 10) if part.size]
    predicted = np.array([scores[part].mean() for part in parts])
    observed = np.array([truth[part].mean() for part in parts])
    bounds = [binomtest(int(truth[part].sum()), part.size).proportion_ci(method="wilson") for part in parts]
    low, high = np.array([(bound.low, bound.high) for bound in bounds]).T
    top = min(1.0, max(high.max(), predicted.max()) * 1.06)
    with _square("predicted probability", "observed share", top) as (figure, axes):
        axes.vlines(predicted, low, high, color=_SERIES[0], linewidth=2, alpha=0.45)
        axes.plot(predicted, observed, color=_SERIES[0], marker="o", markersize=4.5)
        axes.plot([0, top], [0, top], **_REFERENCE)
        rows = [
            [f"{part.size:,}", percent(predicted[i]), percent(observed[i]), f"{percent(low[i])} to {percent(high[i])}"]
            for i, part in enumerate(parts)
        ]
        return _plot(figure, "Calibration", description, ["Encounters", "Predicted", "Observed", "Interval"], rows)


@contextmanager
def _square(x_label: str, y_label: str, top: float = 1.0) -> Iterator[tuple[Any, Any]]:
    """A canvas whose axes both go from 0 to `top`."""
    with _canvas(4.4, 4.9) as (figure, axes):
        axes.set_xlim(-0.01 * top, top)
        axes.set_ylim(-0.01 * top, top * 1.01)
        _decorate(axes, x_label, y_label, "both")
        yield figure, axes


def histogram(values: Mapping[str, npt.NDArray[Any]], *, title: str, description: str, x_label: str) -> Plot:
    """Share of rows by value, one outline a series on common bins."""
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins=30)
    shares = {name: np.histogram(v, bins=edges)[0] / max(1, v.size) for name, v in values.items()}
    with _canvas(3.1) as (figure, axes):
        for (name, share), (colour, dash, _) in zip(shares.items(), _styles(), strict=False):
            axes.stairs(share, edges, color=colour, fill=True, alpha=0.16)
            axes.stairs(share, edges, color=colour, linestyle=dash, linewidth=1.6, label=name)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value * 100:g} %")
        _decorate(axes, x_label, "share of rows", "y")
        _legend(figure, axes)
        rows = [
            [f"{low:.4g} to {high:.4g}", *(percent(share[i]) for share in shares.values())]
            for i, (low, high) in enumerate(itertools.pairwise(edges))
        ]
        return _plot(figure, title, description, [x_label, *shares], rows)
