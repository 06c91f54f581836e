"""Plots as inline SVG: text and colours follow the page, light or dark, and the numbers go along as a table.

Each function returns a `Plot`; the template macro `figure(plot, caption)` shows it. The same input gives the
same bytes. Colours are CSS variables with a fallback, so a plot saved on its own reads well too.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

from health_predict.report.page import number, percent

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
_WIDTH = 5.3  # inches; small enough that its text can be read on a phone
_TABLE_ROWS = 24  # of a curve in the table behind it

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
    "axes.unicode_minus": True,
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
    "path.simplify": True,
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
    body = document[document.index("<svg") :]
    head_end = body.index(">") + 1
    head, body = body[:head_end], body[head_end:]
    view_box = re.search(r'viewBox="([^"]+)"', head)
    assert view_box is not None
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    # A style element would apply to the whole page; its two lines stand on the root instead.
    body = re.sub(r"<style type=\"text/css\">.*?</style>", "", body, flags=re.S)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r"<defs>\s*</defs>", "", body)
    # Fonts come from the page.
    body = re.sub(r"font-family:[^;\"]*;?", "", body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    for stand_in, css in _CSS.items():
        body = body.replace(stand_in, css)
    name = "p" + hashlib.sha256((title + description + body).encode()).hexdigest()[:10]
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"\n\s*", "\n", body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view_box[1]}" width="100%" role="img" aria-labelledby="{name}-t {name}-d" '
        f'font-family="system-ui, DejaVu Sans, sans-serif" stroke-linejoin="round" stroke-linecap="butt">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>{body.strip()}'
    )


def _decorate(axes: Any, x_label: str, y_label: str, grid: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis=grid)
    axes.tick_params(length=0)


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


def line(
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
    y_range: tuple[float, float] | None = None,
    digits: int = 3,
) -> Plot:
    """Series over a common x (numbers or labels), with intervals as bands and horizontal reference lines.

    `bands` maps a series' name to its lower and upper bounds; NaN leaves a gap. `marks` are vertical lines: place on
    the x axis and what happened there.
    """
    bands = bands or {}
    with _canvas(3.2) as (figure, axes):
        for (name, values), (colour, dash, marker) in zip(series.items(), _styles(), strict=False):
            if name in bands:
                axes.fill_between(x, *bands[name], color=colour, alpha=0.16, linewidth=0)
            few = marker if len(x) <= 40 else None
            axes.plot(x, values, color=colour, linestyle=dash, marker=few, markersize=4, label=name)
        for name, value in (references or {}).items():
            axes.axhline(value, color=_INK, linewidth=1, linestyle=(0, (2, 2)))
            axes.annotate(name, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8.5)
        for place, name in marks:
            axes.axvline(place, color=_INK, linewidth=1, linestyle=(0, (4, 2)), alpha=0.6)
            axes.annotate(
                name,
                (place, 1),
                xycoords=("data", "axes fraction"),
                xytext=(2, -2),
                textcoords="offset points",
                rotation=90,
                va="top",
                fontsize=8,
            )
        if y_range:
            axes.set_ylim(*y_range)
        if len(x) and isinstance(x[0], str) and len(x) > 8:
            axes.set_xticks(range(0, len(x), -(-len(x) // 8)))
        elif len(x) and not isinstance(x[0], str) and np.equal(np.mod(np.asarray(x, dtype=float), 1), 0).all():
            axes.xaxis.get_major_locator().set_params(integer=True)
        _decorate(axes, x_label, y_label, "y")
        _legend(figure, axes)
        rows = [
            [str(x[i]), *(_with_band(values[i], bands.get(name), i, digits) for name, values in series.items())]
            for i in _thin(len(x), 200)
        ]
        return _plot(figure, title, description, [x_label, *series], rows)


def _with_band(value: float, band: tuple[Numbers, Numbers] | None, at: int, digits: int) -> str:
    text = number(float(value), digits)
    if band is None or not np.isfinite(band[0][at]):
        return text
    return f"{text} ({number(float(band[0][at]), digits)} to {number(float(band[1][at]), digits)})"


def bars(
    labels: Sequence[str],
    series: Mapping[str, Numbers],
    *,
    title: str,
    description: str,
    value_label: str,
    share: bool = False,
    label_heading: str = "",
    digits: int = 3,
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
            [label, *(percent(v[i]) if share else number(float(v[i]), digits) for v in series.values())]
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
            axes.axvline(place, color=_INK, linewidth=1, linestyle=(0, (4, 2)), alpha=0.6)
        axes.set_yticks(places, list(labels))
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _decorate(axes, x_label, "", "x")
        rows = [[label, f"{begin:g}", f"{end:g}"] for label, (begin, end) in zip(labels, bounds, strict=True)]
        return _plot(figure, title, description, [label_heading, "from", "to"], rows)


def interval_dots(
    labels: Sequence[str],
    values: Numbers,
    low: Numbers,
    high: Numbers,
    *,
    title: str,
    description: str,
    value_label: str,
    reference: float | None = None,
    reference_label: str = "",
    label_heading: str = "",
    digits: int = 3,
) -> Plot:
    """A point with its interval for each label, the first on top; NaN bounds draw the point alone."""
    with _canvas(0.9 + max(2, len(labels)) * 0.26) as (figure, axes):
        places = np.arange(len(labels))
        axes.hlines(places, low, high, color=_SERIES[0], linewidth=2, alpha=0.55)
        axes.plot(values, places, "o", color=_SERIES[0], markersize=5)
        if reference is not None:
            axes.axvline(reference, color=_INK, linewidth=1, linestyle=(0, (2, 2)))
            if reference_label:
                axes.annotate(
                    reference_label,
                    (reference, 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(3, 2),
                    textcoords="offset points",
                    fontsize=8.5,
                    annotation_clip=False,
                )
        axes.set_yticks(places, list(labels))
        axes.set_ylim(len(labels) - 0.4, -0.6)
        _decorate(axes, value_label, "", "x")
        rows = [[label, _with_band(float(values[i]), (low, high), i, digits)] for i, label in enumerate(labels)]
        return _plot(figure, title, description, [label_heading, f"{value_label} (interval)"], rows)


def scatter(
    points: Mapping[str, Sequence[tuple[float, float]]],
    *,
    hollow: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    digits: int = 3,
) -> Plot:
    """Groups of (x, y) points, x on a log scale; `hollow` ones belong to the same groups and are drawn as rings."""
    with _canvas(3.2) as (figure, axes):
        rows = []
        for (name, group), (colour, _, marker) in zip(points.items(), _styles(), strict=False):
            rings = hollow.get(name, ())
            axes.scatter(*zip(*group, strict=True), color=colour, marker=marker, s=22, label=name) if group else None
            if rings:
                axes.scatter(*zip(*rings, strict=True), facecolors="none", edgecolors=colour, marker=marker, s=22)
            rows += [[name, number(x, 1), number(y, digits)] for x, y in sorted([*group, *rings])]
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        _decorate(axes, x_label, y_label, "both")
        _legend(figure, axes)
        return _plot(figure, title, description, ["", x_label, y_label], rows)


def roc(
    outcomes: npt.ArrayLike,
    probabilities: Mapping[str, npt.NDArray[Any]],
    *,
    title: str = "ROC curve",
    description: str,
    threshold: float | None = None,
) -> Plot:
    """ROC curves of models on the same rows; the first one's operating point is marked when `threshold` is given."""
    from sklearn.metrics import roc_auc_score, roc_curve

    truth = np.asarray(outcomes).astype(bool)
    rows: list[list[str]] = []
    with _canvas(4.4, 4.9) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=1, linestyle=(0, (2, 2)))
        for (name, scores), (colour, dash, _) in zip(probabilities.items(), _styles(), strict=False):
            false_rate, true_rate, _ = roc_curve(truth, scores)
            keep = _thin(len(false_rate), 250)
            label = f"{name} (AUC {number(float(roc_auc_score(truth, scores)))})"
            axes.plot(false_rate[keep], true_rate[keep], color=colour, linestyle=dash, label=label)
            rows += [
                [name, number(float(false_rate[i])), number(float(true_rate[i]))]
                for i in _thin(len(false_rate), _TABLE_ROWS)
            ]
        if threshold is not None:
            flagged = next(iter(probabilities.values())) >= threshold
            point = (float(flagged[~truth].mean()), float(flagged[truth].mean()))
            axes.plot(*point, "o", color=_INK, markersize=6)
            axes.annotate(f"threshold {number(threshold)}", point, xytext=(7, -10), textcoords="offset points")
        _unit_square(axes, "1 \u2212 specificity", "sensitivity")
        _inside_legend(axes, "lower right")
        return _plot(figure, title, description, ["Model", "1 \u2212 specificity", "Sensitivity"], rows)


def precision_recall(
    outcomes: npt.ArrayLike,
    probabilities: Mapping[str, npt.NDArray[Any]],
    *,
    title: str = "Precision-recall curve",
    description: str,
    threshold: float | None = None,
) -> Plot:
    """Positive predictive value over sensitivity; the dashed line is the prevalence, what guessing gives."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    truth = np.asarray(outcomes).astype(bool)
    rows: list[list[str]] = []
    with _canvas(4.4, 4.9) as (figure, axes):
        axes.axhline(float(truth.mean()), color=_INK, linewidth=1, linestyle=(0, (2, 2)))
        for (name, scores), (colour, dash, _) in zip(probabilities.items(), _styles(), strict=False):
            precision, recall, _ = precision_recall_curve(truth, scores)
            keep = _thin(len(recall), 250)
            label = f"{name} (AP {number(float(average_precision_score(truth, scores)))})"
            axes.plot(recall[keep], precision[keep], color=colour, linestyle=dash, label=label)
            rows += [
                [name, number(float(recall[i])), number(float(precision[i]))] for i in _thin(len(recall), _TABLE_ROWS)
            ]
        if threshold is not None:
            flagged = next(iter(probabilities.values())) >= threshold
            if flagged.any():
                point = (float(flagged[truth].mean()), float(truth[flagged].mean()))
                axes.plot(*point, "o", color=_INK, markersize=6)
                axes.annotate(f"threshold {number(threshold)}", point, xytext=(7, 5), textcoords="offset points")
        _unit_square(axes, "sensitivity (recall)", "positive predictive value (precision)")
        _inside_legend(axes, "upper right")
        return _plot(figure, title, description, ["Model", "Sensitivity", "Positive predictive value"], rows)


def calibration(
    outcomes: npt.ArrayLike,
    probabilities: Mapping[str, npt.NDArray[Any]],
    *,
    title: str = "Calibration",
    description: str,
    groups: int = 10,
) -> Plot:
    """Observed share against mean prediction in groups of equal size, with 95 % Wilson intervals.

    Interval: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    truth = np.asarray(outcomes).astype(float)
    rows: list[list[str]] = []
    top = 0.0
    with _canvas(4.4, 4.9) as (figure, axes):
        for (name, scores), (colour, dash, marker) in zip(probabilities.items(), _styles(), strict=False):
            parts = [part for part in np.array_split(np.argsort(scores, kind="stable"), groups) if part.size]
            predicted = np.array([scores[part].mean() for part in parts])
            observed = np.array([truth[part].mean() for part in parts])
            low, high = _wilson(observed, np.array([part.size for part in parts]))
            axes.vlines(predicted, low, high, color=colour, linewidth=2, alpha=0.45)
            axes.plot(predicted, observed, color=colour, linestyle=dash, marker=marker, markersize=4.5, label=name)
            top = max(top, float(high.max()), float(predicted.max()))
            rows += [
                [
                    name,
                    f"{part.size:,}",
                    percent(predicted[i]),
                    percent(observed[i]),
                    f"{percent(low[i])} to {percent(high[i])}",
                ]
                for i, part in enumerate(parts)
            ]
        top = min(1.0, top * 1.06)
        axes.plot([0, top], [0, top], color=_INK, linewidth=1, linestyle=(0, (2, 2)))
        _unit_square(axes, "predicted probability", "observed share", top)
        _inside_legend(axes, "upper left")
        return _plot(figure, title, description, ["Model", "Encounters", "Predicted", "Observed", "Interval"], rows)


def _wilson(share: npt.NDArray[Any], size: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    z = 1.959964
    centre = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z * np.sqrt(share * (1 - share) / size + z * z / (4 * size * size)) / (1 + z * z / size)
    # Rounding must not push a bound past the share itself when that is 0 or 1.
    return np.minimum(np.maximum(centre - half, 0), share), np.maximum(np.minimum(centre + half, 1), share)


def histogram(
    values: Mapping[str, npt.NDArray[Any]],
    *,
    title: str,
    description: str,
    x_label: str,
    bins: int = 30,
    value_range: tuple[float, float] | None = None,
    marks: Mapping[str, float] | None = None,
) -> Plot:
    """Share of rows by value, one outline a series on common bins; `marks` are vertical lines with a name."""
    finite = {name: np.asarray(v, dtype=float)[np.isfinite(np.asarray(v, dtype=float))] for name, v in values.items()}
    pooled = np.concatenate([*finite.values(), np.zeros(0)])
    edges = np.histogram_bin_edges(pooled, bins=bins, range=value_range)
    shares = {name: np.histogram(v, bins=edges)[0] / max(1, v.size) for name, v in finite.items()}
    with _canvas(3.1) as (figure, axes):
        for (name, share), (colour, dash, _) in zip(shares.items(), _styles(), strict=False):
            axes.stairs(share, edges, color=colour, fill=True, alpha=0.16)
            axes.stairs(share, edges, color=colour, linestyle=dash, linewidth=1.6, label=name)
        for name, value in (marks or {}).items():
            axes.axvline(value, color=_INK, linewidth=1, linestyle=(0, (2, 2)))
            axes.annotate(
                name,
                (value, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -9),
                textcoords="offset points",
                fontsize=8.5,
            )
        axes.yaxis.set_major_formatter(lambda value, _: f"{value * 100:g} %")
        _decorate(axes, x_label, "share of rows", "y")
        _legend(figure, axes)
        rows = [
            [f"{edges[i]:.4g} to {edges[i + 1]:.4g}", *(percent(float(share[i])) for share in shares.values())]
            for i in range(len(edges) - 1)
        ]
        return _plot(figure, title, description, [x_label, *shares], rows)


def _unit_square(axes: Any, x_label: str, y_label: str, top: float = 1.0) -> None:
    axes.set_xlim(-0.01 * top, top)
    axes.set_ylim(-0.01 * top, top * 1.01)
    _decorate(axes, x_label, y_label, "both")


def _inside_legend(axes: Any, place: str) -> None:
    axes.legend(loc=place, fontsize=9)
