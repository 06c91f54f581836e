"""Plots: valid SVG with a name, the same bytes each time, and their numbers beside them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest

from health_predict.core.statistics import Estimate
from health_predict.report import plots

RANDOM = np.random.default_rng(3)
RISK = RANDOM.beta(2, 14, 800)
OTHER_RISK = np.clip(RISK + RANDOM.normal(0, 0.03, 800), 0.001, 0.999)
OUTCOMES = (RANDOM.random(800) < RISK).astype(int)
MODELS = {"XGBoost": RISK, "Logistic regression": OTHER_RISK}
D = "What the plot says."

MAKERS: dict[str, Callable[[], plots.Plot]] = {
    "line": lambda: plots.line(
        [1, 2, 3],
        {"static": [0.67, 0.66, np.nan], "retrained": [0.67, 0.68, 0.69]},
        title="AUC <by> batch",
        description=D,
        x_label="batch",
        y_label="AUC",
        bands={"static": ([0.6, 0.6, np.nan], [0.7, 0.7, np.nan])},
        references={"validation": 0.66},
    ),
    "line of labels": lambda: plots.line(
        [f"batch {i}" for i in range(20)],
        {"AUC": np.linspace(0.6, 0.7, 20)},
        title="t",
        description=D,
        x_label="x",
        y_label="y",
    ),
    "bars": lambda: plots.bars(
        ["payer_code", "$a_1$", "<b>"],
        {"missing": [0.4, 0.1, 0.2]},
        title="Missing values",
        description=D,
        value_label="missing",
        share=True,
        label_heading="Column",
    ),
    "interval_dots": lambda: plots.interval_dots(
        ["all", "80 and over"],
        [Estimate(0.67, 0.65, 0.69), Estimate(0.61, np.nan, np.nan)],
        title="AUC by group",
        description=D,
        value_label="AUC",
        reference=0.67,
        reference_label="all",
    ),
    "roc": lambda: plots.roc(OUTCOMES, RISK, description=D, threshold=0.2),
    "precision_recall": lambda: plots.precision_recall(OUTCOMES, RISK, description=D, threshold=0.2),
    "calibration": lambda: plots.calibration(OUTCOMES, RISK, description=D),
    "histogram": lambda: plots.histogram(MODELS, title="Risk", description=D, x_label="risk"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_plot_is_one_named_element_with_its_numbers(name: str) -> None:
    # when it is drawn, without a warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot = MAKERS[name]()
    # then it is well-formed, responsive, named, and its ids are its own
    root = ElementTree.fromstring(plot.svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("viewBox")
    assert "height" not in root.attrib
    assert root[0].text == plot.title
    assert root[1].text == D
    ids = re.findall(r' id="([^"]+)"', plot.svg)
    assert len(ids) == len(set(ids))
    assert set((root.get("aria-labelledby") or "").split()) <= set(ids)
    assert all(used in ids for used in re.findall(r"url\(#([^)]+)\)", plot.svg))
    # and colours follow the page
    assert "#0101" not in plot.svg
    assert "#0102" not in plot.svg
    assert "currentColor" in plot.svg
    assert "<style" not in plot.svg
    # and the numbers are there
    assert plot.rows
    assert all(len(row) == len(plot.columns) for row in plot.rows)
    assert plot.__html__() == plot.svg


@pytest.mark.parametrize("name", ["line", "roc"])
def test_the_same_input_gives_the_same_bytes(name: str) -> None:
    assert MAKERS[name]().svg == MAKERS[name]().svg


def test_plots_leave_pyplot_and_its_settings_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    MAKERS["bars"]()
    assert dict(matplotlib.rcParams) == before


def test_values_are_written_as_a_reader_expects() -> None:
    assert MAKERS["bars"]().rows[0] == ("payer_code", "40.0\u00a0%")
    assert MAKERS["interval_dots"]().rows == (("all", "0.670 (0.650 to 0.690)"), ("80 and over", "0.610"))
    assert MAKERS["line"]().rows[2] == ("3", "\u2013", "0.690")
