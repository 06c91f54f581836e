"""The timeline of a simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from health_predict.report import plots
from health_predict.report.page import estimate, number, percent, render


def timeline_page(found: Mapping[str, Any]) -> str:
    """HTML page of `simulation.timeline.Timeline` as a plain structure."""
    moments: Sequence[Mapping[str, Any]] = found["moments"]
    detection: Mapping[str, Any] | None = found["detection"]
    marks = _marks(moments, detection)
    changes = found["retrainings"] + found["recalibrations"]
    scenario = " and ".join(detection["scenarios"]) if detection else "the stream as it is"
    return render(
        "timeline.html",
        title=f"Simulation {found['name']}",
        subtitle=f"{len(moments)} batches, policy {found['policy']}, {scenario}",
        synthetic=found["synthetic"],
        facts=[
            ("Policy", found["policy"]),
            ("Outcomes known after", f"{found['delay']} {'batch' if found['delay'] == 1 else 'batches'}"),
            ("First version", found["first_version"]),
        ],
        key=[
            ("Batches", str(len(moments)), f"{sum(one['rows'] for one in moments):,} encounters"),
            ("New versions", str(changes), f"{found['retrainings']} trained, {found['recalibrations']} recalibrated"),
            ("Challengers that lost", str(found["lost"]), "everything stayed as it was"),
            ("Mean AUC", number(_mean(moments, "auc")), "of the predictions as they were served"),
            ("Mean observed / expected", number(_mean(moments, "observed_expected"), 2), "1 is right"),
        ],
        auc_plot=_metric(moments, marks, "auc", "AUC", {}, 3),
        calibration_plot=_metric(
            moments, marks, "observed_expected", "observed / expected", {"risks are right": 1.0}, 2
        ),
        versions_plot=_versions(found, moments, marks),
        detection=_detection(detection),
        batches=[
            [
                str(one["batch"]),
                one["served_by"],
                f"{one['rows']:,}",
                percent(one["readmitted"] / one["rows"]) if one["rows"] else "",
                _estimate(one["auc"], 3),
                _estimate(one["observed_expected"], 2),
                _inputs(one),
                one["verdict"],
                _followed(one),
            ]
            for one in moments
        ],
        reasons=[(one["batch"], one["verdict"], one["reasons"]) for one in moments],
    )


def _estimate(item: Mapping[str, float], digits: int) -> str:
    return estimate(item["value"], (item["low"], item["high"]), digits)


def _mean(moments: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return sum(one[name]["value"] for one in moments) / len(moments) if moments else None


def _inputs(one: Mapping[str, Any]) -> str:
    said = "new" if one["input_news"] else "differ" if one["input_alarm"] else "alike"
    return f"{said}; recording of {', '.join(one['quality'][:3])}" if one["quality"] else said


def _followed(one: Mapping[str, Any]) -> str:
    if one["outcome"] == "deployed":
        return f"{one['action']}: version {one['version_after']} serves"
    if one["outcome"] == "lost":
        return f"{one['action']}: the challenger lost"
    return "nothing" if one["outcome"] == "unchanged" else str(one["outcome"])


def _marks(moments: Sequence[Mapping[str, Any]], detection: Mapping[str, Any] | None) -> list[tuple[float, str]]:
    # A batch is served before its verdict: a new version serves the one after it.
    marks = [
        (one["batch"] + 0.5, f"{one['action']}: version {one['version_after']}")
        for one in moments
        if one["outcome"] == "deployed"
    ]
    if detection and detection["scenarios"] != ("none",) and moments and detection["from_batch"] <= len(moments) - 1:
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


def _versions(
    found: Mapping[str, Any], moments: Sequence[Mapping[str, Any]], marks: Sequence[tuple[float, str]]
) -> plots.Plot:
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


def _detection(detection: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if detection is None:
        return []

    def delay(value: int | None) -> str:
        if value is None:
            return "never"
        return "in its first batch" if value == 0 else f"{value} batch{'es' if value > 1 else ''} later"

    return [
        ("Scenario", " and ".join(detection["scenarios"])),
        ("Kind", ", ".join(detection["kinds"])),
        ("Begins with batch", str(detection["from_batch"])),
        ("Inputs differ from the batch before", delay(detection["inputs"])),
        ("A new change of recording is named", delay(detection["quality"])),
        ("The verdict is not steady", delay(detection["verdict"])),
        ("A new version serves", delay(detection["action"])),
        ("Verdicts other than steady before it", str(detection["false_verdicts"])),
    ]
