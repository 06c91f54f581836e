"""`health-predict serve`, `down`, `status`, `lineage`, `doctor`: the endpoint and what stands behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from health_predict.adapters.contracts import contract_of
from health_predict.adapters.files import write_file
from health_predict.adapters.notifications import delivered
from health_predict.adapters.serving.target import open_target
from health_predict.commands.progress import console_of, say_source, working
from health_predict.errors import StateError, UnreachableError
from health_predict.settings import Profile, settings_on

if TYPE_CHECKING:
    from health_predict.operations.status import Arrived, Status

On = Annotated[
    Profile | None, typer.Option("--on", help="Where: local, kind or aws; else HEALTH_PREDICT_PROFILE says it")
]
AsOf = Annotated[
    datetime | None,
    typer.Option("--as-of", help="What counts as now, such as 2026-02-01: for trying out what time brings"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON")]
FAILED = 1
PUSH_SECONDS = 10.0
_SHOWN_METRICS = ("auc", "average_precision", "f1", "brier", "calibration_slope", "observed_expected")
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def serve(
    logs: Annotated[bool, typer.Option("--logs", help="Only print where the endpoint's log lies")] = False,
    on: On = None,
    as_json: AsJson = False,
) -> None:
    """Bring the champion up at the stable port, in the background; `health-predict down` ends it."""
    settings = settings_on(on)
    if logs:
        typer.echo(settings.home / "serving" / "serving.log")
        return
    console = console_of(as_json)
    with delivered(settings), working(console, "starting the champion"):
        from health_predict.adapters.tracking import Tracking  # with MLflow: seconds
        from health_predict.stages.rollout import serve as roll_out

        champion = Tracking(settings).champion()
        result = roll_out(settings, champion)
    if as_json:
        typer.echo(json.dumps({"outcome": result.outcome.value, "model_version": champion.version, "url": result.url}))
    else:
        console.print(f"version {champion.version} answers at {result.url} ({result.outcome.value})")


def down(on: On = None) -> None:
    """Stop the endpoint; requests under way are answered. Nothing happens when it is down."""
    target = open_target(settings_on(on))
    console = console_of()
    with working(console, "waiting for the requests under way"):
        stopped = target.stop()
    console.print("the endpoint is down" if stopped else "nothing was running")


def status(on: On = None, as_of: AsOf = None, as_json: AsJson = False) -> None:
    """Which model serves, since when, its metrics, the last drift verdict, and what is waiting."""
    console = console_of(as_json)
    with working(console, "asking the endpoint, the registry and the storage"):
        from health_predict.operations.status import status as ask  # with pandas and MLflow: seconds

        settings = settings_on(on, as_of)
        found = ask(settings)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        _print_status(console, found, contract_of(settings).outcome.happened)


def _print_status(console: Console, found: Status, happened: str) -> None:
    from health_predict.core.statistics import Estimate
    from health_predict.report.comparison import LABELS

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def row(label: str, value: str) -> None:
        table.add_row(label, escape(value))

    if serving := found.serving:
        row("serving", f"version {serving.model_version} at {found.url}")
        row("since", f"{serving.since}, {serving.restarts} restarts, {', '.join(serving.workers)}")
        row("image", serving.image_uri)
    else:
        row("serving", "nothing")
    row("champion", f"version {found.champion} ({found.family})" if found.champion else "none")
    if found.data:
        row("data", found.data)
    if found.on_test:
        row("on its test set", f"{found.on_test['rows']:,} encounters, {found.on_test['positives']:,} {happened}")
        for name in (name for name in _SHOWN_METRICS if name in found.on_test["metrics"]):
            row(f"  {LABELS[name]}", str(Estimate(**found.on_test["metrics"][name])))
    if found.drift is not None:
        # The first reason is the strongest; the report has them all.
        row("drift", f"{found.drift.verdict} in batch {found.drift.batch}: {next(iter(found.drift.reasons), '')}")
        row("  report", found.drift.report)
    else:
        row("drift", "no batch was monitored yet")
    row("arrivals", _arrivals(found.arrivals))
    row("outcomes", _outcomes(found.arrivals.outcomes))
    row("judged", f"{found.monitored} of {found.batches} batches")
    row("waiting", "\n".join(found.waiting) or "nothing")
    console.print(table)
    for one in found.comparisons:
        console.print(beside(found.champion, one))
    say_source(console, "synthetic" if found.synthetic else "")


def _arrivals(arrived: Arrived) -> str:
    said = f"{arrived.total:,}, of these {arrived.open:,} in the open window" if arrived.total else "none yet"
    for count, what in (
        (arrived.without_patient, "without a patient, never learned from"),
        (arrived.repeated, "repeated and left out"),
        (arrived.quarantined, "set aside"),
    ):
        said += f"; {count:,} {what}" if count else ""
    return said


def _outcomes(counts: Mapping[str, Any]) -> str:
    said = f"{counts['taken']:,} known"
    for name in ("late", "repeated", "contradicting", "unknown"):
        what = "for nobody in a batch yet" if name == "unknown" else name
        said += f"; {counts[name]:,} {what}" if counts[name] else ""
    return said


def beside(version: str, found: Mapping[str, Any]) -> Table:
    """A version beside another on the same rows, as `register` stored it."""
    from health_predict.report.comparison import LABELS
    from health_predict.report.page import difference

    title = f"beside version {found['against']}, on {found['rows']:,} encounters: {found['on']}"
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("")
    for heading in (f"version {version}", f"version {found['against']}", "difference"):
        table.add_column(heading, justify="right")
    for name, item in found["metrics"].items():
        values = (f"{item[side]['value']:.3f}" for side in ("one", "other"))
        table.add_row(LABELS[name], *values, difference(item["difference"]))
    return table


def lineage(on: On = None, as_json: AsJson = False) -> None:
    """From the serving process back to data and commit; each link verified. A broken link gives exit code 4."""
    console = console_of(as_json)
    with working(console, "verifying every link"):
        from health_predict.operations.lineage import lineage as trace  # with MLflow and pandas: seconds

        links = trace(settings_on(on))
    broken = [link for link in links if link.problem]
    if as_json:
        typer.echo(json.dumps({"intact": not broken, "links": [asdict(link) for link in links]}))
    else:
        table = Table("", "link", box=None, pad_edge=False)
        table.add_column("identity", overflow="fold")  # what is cut off cannot be copied
        table.add_column("verified by", overflow="fold")
        for link in links:
            mark = "[red]broken[/red]" if link.problem else "[green]ok[/green]"
            table.add_row(mark, link.name, escape(link.identity), escape(link.problem or link.evidence))
        console.print(table)
    if broken:
        raise StateError(f"broken link: {broken[0].name}: {broken[0].problem}", broken[0].remedy)


def metrics(
    out: Annotated[
        Path | None, typer.Option(help="File to write, whole, for node_exporter's textfile collector (*.prom)")
    ] = None,
    push: Annotated[str, typer.Option(help="Pushgateway to send them to, such as http://127.0.0.1:9091")] = "",
    on: On = None,
) -> None:
    """The loop in Prometheus' text format: what arrived, was judged and waits. The endpoint has metrics of its own."""
    with working(console_of(as_json=True), "asking the registry and the storage"):
        from prometheus_client import generate_latest, push_to_gateway

        from health_predict.operations.metrics import loop_metrics  # with pandas and MLflow: seconds

        found = loop_metrics(settings_on(on))
    if out:
        write_file(out, generate_latest(found).decode(), "name another file with --out")
    if push:
        try:
            push_to_gateway(push, job="health-predict", registry=found, timeout=PUSH_SECONDS)
        except (OSError, ValueError) as error:
            raise UnreachableError(f"the Pushgateway {push} took nothing: {error}", "check its address") from None
    if not out and not push:
        typer.echo(generate_latest(found).decode(), nl=False)


def doctor(on: On = None, as_json: AsJson = False) -> None:
    """What is installed, reachable, writable and free, each with a remedy. Exit code 1 when something fails."""
    console = console_of(as_json)
    with working(console, "examining") as shown:
        from health_predict.operations.doctor import Health
        from health_predict.operations.doctor import doctor as examine

        checks = list(examine(settings_on(on), lambda name: shown.update(f"examining: {name}")))
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks]))
    else:
        table = Table("", "check", box=None, pad_edge=False)
        table.add_column("finding", overflow="fold")  # what is cut off cannot be read
        table.add_column("remedy", overflow="fold")
        for check in checks:
            mark = Text(check.health, _COLOURS[check.health])
            table.add_row(mark, check.name, escape(check.finding), escape(check.remedy))
        console.print(table)
    if any(check.health is Health.FAIL for check in checks):
        raise typer.Exit(FAILED)


def mount(app: typer.Typer) -> None:
    """Add these commands to an application."""
    for command in (serve, down, status, metrics, lineage, doctor):
        app.command()(command)
