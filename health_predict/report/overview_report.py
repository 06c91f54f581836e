"""The overview of a model version: its decision, its figures, and where each report about it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from health_predict.report.comparison import LABELS, comparison_tables
from health_predict.report.page import number, render

_FIGURES = ("auc", "average_precision", "observed_expected", "sensitivity_top20")
_TONES = {"promote": ("Promoted", "good"), "reject": ("Rejected", "bad")}


@dataclass(frozen=True, slots=True)
class Link:
    """A report: `file` beside the overview, empty when it was not made."""

    title: str
    about: str
    file: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """A batch that monitoring judged, and how it ended."""

    number: int
    version: str
    verdict: str
    action: str
    outcome: str
    reason: str
    file: str


@dataclass(frozen=True, slots=True)
class Member:
    """A version of the registered model. `compared` is its AUC less that of another one, on the same rows."""

    version: str
    family: str
    stage: str
    decision: str
    recalibrates: str
    compared: str


def overview_page(
    *,
    version: str,
    tags: Mapping[str, str],
    serves: bool,
    evaluation: Mapping[str, Any] | None,
    links: Sequence[Link],
    batches: Sequence[Judged],
    family: Sequence[Member],
) -> str:
    """HTML page; `evaluation` is what `register` stored, None for a version it did not make."""
    word, tone = _TONES.get(tags.get("decision", ""), ("Not judged", "warn"))
    tested = evaluation["on_test"] if evaluation else None
    return render(
        "overview.html",
        title=f"Model version {version}",
        subtitle=f"{tags.get('family', 'Unknown family')}, {'serving now' if serves else 'not serving'}",
        facts=[
            ("Stage", tags.get("stage", "")),
            ("Run", tags.get("run_id", "")),
            ("Dataset", tags.get("dataset_digest", "")[:12]),
            ("Source", tags.get("dataset_source", "")),
            ("Commit", tags.get("git_commit", "")[:12]),
            ("Bento", tags.get("bento_tag", "")),
        ],
        synthetic=tags.get("dataset_source") == "synthetic",
        word=word,
        tone=tone,
        reasons=list(evaluation["reasons"]) if evaluation else [],
        figures=[
            (LABELS[name], number(item["value"]), f"95 % interval {number(item['low'])} to {number(item['high'])}")
            for name in _FIGURES
            if tested and (item := tested["metrics"].get(name))
        ],
        rows=tested["rows"] if tested else 0,
        positives=tested["positives"] if tested else 0,
        versions=comparison_tables(version, evaluation) if evaluation else [],
        links=links,
        batches=batches,
        family=[
            [
                f"{one.version} (this one)" if one.version == version else one.version,
                f"{one.family}, version {one.recalibrates} recalibrated" if one.recalibrates else one.family,
                one.stage,
                one.decision,
                one.compared,
            ]
            for one in sorted(family, key=lambda one: -int(one.version))
        ],
    )
