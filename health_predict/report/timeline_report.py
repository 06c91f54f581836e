"""The timeline of a simulation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from health_predict.core.data.contract import Outcome
from health_predict.report import plots
from health_predict.report.page import ABSENT, number, render


def timeline_page(found: Mapping[str, Any], outcome: Outcome) -> str:
    """HTML page of `simulation.timeline.Timeline` as a plain structure; `outcome` has the words."""
    moments: Sequence[Mapping[str, Any]] = found["moments"]
    detection: Mapping[str, Any] | None = found["detection"]
    marks = _marks(moments, detection)
    return render(
        "timeline.html",
        found=found,
        outcome=outcome,
        synthetic=found["synthetic"],
        headline=headline(moments),
        auc_plot=_metric(moments, marks, "auc", "AUC", {}, 3),
        calibration_plot=_metric(
            moments, marks, "observed_expected", "observed / expected", {"risks are right": 1.0}, 2
        ),
        versions_plot=_versions(moments, marks),
        detection=_detection(found),
        comparison=comparison(found) if detection else ("", ""),
    )


_DONE = {"retrain": "retrained", "recalibrate": "recalibrated"}


def headline(moments: Sequence[Mapping[str, Any]]) -> str:
    """What the AUC did, what was changed, and the AUC since.

    `The AUC fell from 0.67 to 0.39 in batch 1; retrained after batch 2; 0.66 since.`
    """
    known = [one for one in moments if math.isfinite(one["auc"]["value"])]
    if not known:
        return "No batch has an AUC yet."
    values = [one["auc"]["value"] for one in known]
    first = known[0]["auc"]
    fell = next((at for at, one in enumerate(known) if one["auc"]["high"] < first["low"]), 0)
    if fell:
        before, after = number(values[fell - 1], 2), number(values[fell], 2)
        said = [f"The AUC fell from {before} to {after} in batch {known[fell]['batch']}"]
    elif len(known) == 1:
        said = [f"The AUC is {number(values[0], 2)} in batch {known[0]['batch']}"]
    else:
        said = [f"The AUC stayed between {number(min(values), 2)} and {number(max(values), 2)}"]
    changed = [one for one in moments if one["outcome"] == "deployed"]
    if not changed:
        lost = sum(one["outcome"] == "lost" for one in moments)
        why = f": {lost} challenger{'s' if lost > 1 else ''} lost" if lost else ""
        return f"{said[0]}; the model was not changed{why}."
    said += [f"{_DONE.get(one['action'], one['action'])} after batch {one['batch']}" for one in changed[-2:]]
    if len(changed) > 2:
        said[1:1] = [f"{len(changed)} new versions, the last ones"]
    since = [one["auc"]["value"] for one in known if one["batch"] > changed[-1]["batch"]]
    if since:
        said.append(f"{number(sum(since) / len(since), 2)} since")
    return "; ".join(said) + "."


def _marks(moments: Sequence[Mapping[str, Any]], detection: Mapping[str, Any] | None) -> list[tuple[float, str]]:
    # A batch is served before its verdict: a new version serves the one after it.
    marks = [(one["batch"] + 0.5, f"version {one['version_after']}") for one in moments if one["outcome"] == "deployed"]
    if detection and detection["from_batch"] < len(moments):
        marks.append((detection["from_batch"] - 0.5, "drift begins"))
    return sorted(marks)


def _metric(
    moments: Sequence[Mapping[str, Any]],
    marks: Sequence[tuple[float, str]],
    name: str,
    label: str,
    references: Mapping[str, float],
    digits: int,
) -> plots.Plot:
    values = [one[name]["value"] for one in moments]
    return plots.line(
        [one["batch"] for one in moments],
        {label: values},
        title=f"{label[0].upper()}{label[1:]} by batch",
        description=f"{label} of each batch as it was served, from {number(min(values, default=0.0), digits)} to "
        f"{number(max(values, default=0.0), digits)}, with 95 % intervals.",
        x_label="batch",
        y_label=label,
        bands={label: ([one[name]["low"] for one in moments], [one[name]["high"] for one in moments])},
        references=references,
        marks=marks,
        digits=digits,
    )


def _versions(moments: Sequence[Mapping[str, Any]], marks: Sequence[tuple[float, str]]) -> plots.Plot:
    spans: dict[str, tuple[float, float]] = {}
    for one in moments:
        for version in one["served_by"].split(", "):
            begin, _ = spans.get(version, (one["batch"] - 0.5, 0.0))
            spans[version] = (begin, one["batch"] + 0.5)
    labels = {version: f"version {version}" for version in spans}
    return plots.spans(
        list(labels.values()),
        list(spans.values()),
        title="Versions in service",
        description="Which version answered which batches: "
        + "; ".join(
            f"{labels[version]} from {begin + 0.5:g} to {end - 0.5:g}" for version, (begin, end) in spans.items()
        ),
        x_label="batch",
        label_heading="Version",
        marks=marks,
    )


NOT_ASKED = "not asked"
_SIGNS = (
    ("inputs", "The inputs differ from the batch before"),
    ("recording", "Their recording changed since the batch before"),
    ("verdict", "The verdict is not steady"),
)


def _detection(found: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Question, delay, what was found, and how often on unchanged batches; no rows where nothing was changed."""
    detection = found["detection"]
    if detection is None or detection["from_batch"] >= len(found["moments"]):
        return []
    rows = []
    for name, question in _SIGNS:
        sign = detection[name]
        if sign is None:
            rows.append((question, NOT_ASKED, "the scenario leaves this alone", ABSENT))
        else:
            looks = f"in {sign['before']} of {sign['looks']}" if sign["looks"] else ABSENT
            rows.append((question, _delay(sign["delay"]), ", ".join(sign["what"]) or ABSENT, looks))
    late = "delay" in detection["kinds"]
    if late:
        rows.append(("Outcomes are waited for that came sooner before", _delay(detection["waited"]), ABSENT, ABSENT))
    if not late or len(detection["kinds"]) > 1:
        rows.append(
            ("A new version serves that learned from changed batches", _delay(detection["learned"]), ABSENT, ABSENT)
        )
    return rows


def _delay(batches: int | None) -> str:
    if batches is None:
        return "never"
    return "in its first batch" if batches == 0 else f"{batches} batch{'es' if batches > 1 else ''} later"


def comparison(found: Mapping[str, Any]) -> tuple[str, str]:
    """How far findings are told apart from the stream's own drift, and the command that does so; empty where none.

    `found` is a `Timeline` as a plain structure, of a scenario.
    """
    other = found["detection"]["compared_with"]
    if other:
        return (
            f"Compared with simulation {other}, the same stream without the scenario: what that one found in the same "
            "batch is not counted.",
            "",
        )
    return (
        "A stream may drift by itself, as the real one does, so a finding may be its own; only what stood before is "
        "not counted. To have it told apart, simulate the same without the scenario, then this once more:",
        f"health-predict simulate --batches {len(found['moments'])} --policy {found['policy']} "
        f"--delay {found['delay']}",
    )


def summary(found: Mapping[str, Any]) -> list[str]:
    """When the change was seen, in lines for a terminal; none where nothing was injected."""
    detection = found["detection"]
    if detection is None:
        return []
    scenario = " and ".join(detection["scenarios"])
    rows = _detection(found)
    if not rows:
        return [f"{scenario} begins with batch {detection['from_batch']}, after the last one of this simulation"]
    lines = [f"{scenario} from batch {detection['from_batch']} on:"]
    for question, when, what, looks in rows:
        if when == NOT_ASKED:
            continue
        more = [one for one in (what, f"on unchanged batches {looks}" if looks != ABSENT else ABSENT) if one != ABSENT]
        lines.append(f"  {question}: {when}" + (f" ({'; '.join(more)})" if more else ""))
    text, command = comparison(found)
    return [*lines, text, *([f"  {command}"] if command else [])]
