"""Pages: self-contained, accessible in their structure, and never with a hole."""

from __future__ import annotations

import re

import jinja2
import numpy as np
import pytest

from health_predict.report import page, plots

MACROS = '{% from "macros.html" import decision, figure, key_figures, table %}'


def render_content(content: str, **context: object) -> str:
    source = '{% extends "base.html" %}' + MACROS + "{% block content %}" + content + "{% endblock %}"
    defaults = {"title": "A title", "subtitle": "", "facts": (), "synthetic": False}
    return page._environment().from_string(source).render({**defaults, **context})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (page.number(0.67149), "0.671"),
        (page.number(20353, 0), "20,353"),
        (page.number(-0.0001), "0.000"),
        (page.number(None), "\u2013"),
        (page.number(float("nan")), "\u2013"),
        (page.percent(0.1116), "11.2\u00a0%"),
        (page.percent(None), "\u2013"),
        (page.interval((0.6431, 0.6994)), "0.643 to 0.699"),
        (page.interval(None), "\u2013"),
        (page.estimate(0.5), "0.500"),
        (page.estimate(0.671, (0.643, 0.699)), "0.671 (0.643 to 0.699)"),
        (page.signed(0.0212), "+0.021"),
        (page.signed(-0.0212), "\u22120.021"),
        (page.signed(None), "\u2013"),
    ],
)
def test_numbers_are_written_for_readers(text: str, expected: str) -> None:
    assert text == expected


def test_a_page_loads_nothing_from_elsewhere() -> None:
    # given a page with all parts
    plot = plots.bars(["a"], {"x": [1.0]}, title="t", description="d", value_label="v")
    html = render_content("{{ figure(plot) }}{{ table('Rows', ['a', 'b'], [['x', 1]]) }}", plot=plot)
    # then the only addresses are the names of XML vocabularies
    assert set(re.findall(r'(?:https?:)?//[^"\s]+', html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "<script" not in html


def test_text_of_a_user_cannot_become_markup() -> None:
    html = render_content("{{ table(c, ['h'], [[v]]) }}", c="<i>c</i>", v="<script>alert(1)</script>", title="<b>t</b>")
    assert "<script>" not in html
    assert "<b>t</b>" not in html
    assert "&lt;b&gt;t&lt;/b&gt;" in html
    assert 'aria-label="<i>' not in html


def test_a_value_that_the_page_lacks_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        page.render("drift.html", title="x")


def test_the_banner_stands_on_synthetic_data_only() -> None:
    assert 'class="banner"' in render_content("", synthetic=True)
    assert 'class="banner"' not in render_content("")


def test_structure_serves_screen_readers() -> None:
    # given a page with facts and a table
    html = render_content(
        "{{ table('Rows', ['a', 'b'], [['x', 1]]) }}{{ decision('Steady', 's', ['r'], 'good') }}"
        "{{ key_figures([('AUC', '0.67', 'note'), ('n', '1', '')]) }}",
        facts=[("Model version", "3"), ("Commit", "")],
    )
    # then it has a language, one first heading, a skip link to its target, scopes and a caption
    assert '<html lang="en">' in html
    assert html.count("<h1>") == 1
    assert 'href="#content"' in html
    assert 'id="content"' in html
    assert html.count('scope="col"') == 2
    assert html.count('scope="row"') == 1
    assert "<caption><strong>Rows</strong>" in html
    # and an empty fact is left out
    assert "Model version" in html
    assert "Commit" not in html
    assert "Not for clinical use" in html


def test_an_empty_table_says_so() -> None:
    assert "Rows: none." in render_content("{{ table('Rows', ['a'], []) }}")


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours. Source: WCAG 2.2, relative luminance."""

    def luminance(colour: str) -> float:
        full = "".join(c * 2 for c in colour[1:]) if len(colour) == 4 else colour[1:]
        parts = np.array([int(full[i : i + 2], 16) / 255 for i in (0, 2, 4)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_colours_have_enough_contrast(scheme: int) -> None:
    # given the variables of a colour scheme
    rules = re.findall(r":root \{(.*?)\}", (page.TEMPLATES / "base.html").read_text(), flags=re.S)
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", rules[scheme]))
    # then text has 4.5 to 1 and marks of plots 3 to 1
    for text, ground in [
        *((text, ground) for text in ("ink", "soft", "link") for ground in ("page", "panel")),
        *((tone, f"{tone}-page") for tone in ("good", "warn", "bad")),
        *(("ink", f"{tone}-page") for tone in ("good", "warn", "bad")),
        ("banner-ink", "banner"),
    ]:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for series in range(1, 5):
        assert contrast(colours[f"series-{series}"], colours["page"]) >= 3
