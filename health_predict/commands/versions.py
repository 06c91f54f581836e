"""`health-predict versions`, `compare`, `approve`, `refuse`, `rollback`: people and the versions of the model."""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from health_predict.commands.operate import AsJson, On
from health_predict.commands.pipeline import run_anywhere
from health_predict.commands.progress import console_of, working
from health_predict.errors import SettingsError, StateError
from health_predict.settings import Settings, settings_on

if TYPE_CHECKING:
    from health_predict.adapters.tracking import Tracking
    from health_predict.operations.versions import VersionRecord

Version = Annotated[str, typer.Argument(help="Number of the model version")]
By = Annotated[str | None, typer.Option("--by", help="Who says so; else the name of the user", show_default=False)]
Why = Annotated[str, typer.Option("--why", help="The reason, which is kept with the version")]


def versions(on: On = None, as_json: AsJson = False) -> None:
    """All versions of the model, newest first: what became of each, why, and when it served."""
    console = console_of(as_json)
    with working(console, "asking the registry"):
        from health_predict.operations.versions import versions as ask  # with MLflow: seconds

        found = ask(settings_on(on))
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found]))
    elif not found:
        console.print("no version yet: `health-predict demo`")
    else:
        _print_versions(console, found)


def _print_versions(console: Console, found: list[VersionRecord]) -> None:
    from health_predict.adapters.tracking.history import Interval

    table = Table(box=None, pad_edge=False)
    for heading in ("version", "model"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what became of it", overflow="fold")
    for one in found:
        auc = "" if one.auc is None else f"\nAUC {one.auc:.3f}"
        served = [f"served {Interval(*interval)} UTC" for interval in one.served]
        failed = one.reasons if one.decision == "reject" else ()  # of what passed, the card has them
        lines = [one.state, *served, *(f"- {reason}" for reason in failed)]
        table.add_row(one.version, escape(f"{one.family}{auc}"), escape("\n".join(lines)))
    console.print(table)


def compare(
    version: Annotated[str, typer.Argument(help="Model version; none: the challenger", show_default=False)] = "",
    against: Annotated[
        str, typer.Argument(help="The version that it is compared with; none: the champion", show_default=False)
    ] = "",
    on: On = None,
    as_json: AsJson = False,
) -> None:
    """Two versions on the same rows: which is better, and what would change. Writes a page, too."""
    console = console_of(as_json)
    with working(console, "scoring the same rows by both"):
        from health_predict.adapters.tracking import CHALLENGER, Tracking
        from health_predict.stages.compare import compare as run

        settings = settings_on(on)
        tracking = Tracking(settings)
        if not version:
            challenger = tracking.by_alias(CHALLENGER)
            if challenger is None:
                raise StateError(
                    "there is no challenger to compare with the champion",
                    "name two versions: `health-predict versions` lists them",
                )
            version = challenger.version
        against = against or tracking.champion().version
        if version == against:
            raise SettingsError(f"version {version} would be compared with itself", "name another version")
        found = run(settings, version, against)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _print_comparison(console, found)


def _print_comparison(console: Console, found: dict[str, Any]) -> None:
    from health_predict.commands.operate import beside
    from health_predict.report.compare_page import finding

    console.print(finding(found), markup=False)
    for one in found["on_test"]:
        console.print(beside(found["version"], one))
    changes = found["on_arrivals"] or found["on_test"][0]["changes"]
    title = "decisions about the newest arrivals" if found["on_arrivals"] else "decisions on the test set"
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("encounters", "newly flagged", "no longer", "decided otherwise"):
        table.add_column(heading, justify="right")
    for one in changes:
        name = f"{one['attribute']}: {one['level']}" if one["level"] else one["attribute"]
        counts = (f"{one[key]:,}" for key in ("rows", "newly_flagged", "no_longer_flagged"))
        table.add_row(escape(name), *counts, f"{one['share']:.1%}")
    console.print(table)
    console.print(f"\npage: {found['page']}", markup=False)


def approve(version: Version, by: By = None, why: Why = "", on: On = None) -> None:
    """Approve a version that waits, and bring it into service by the deployment pipeline."""
    _deploy(settings_on(on), version, approved_by=_name(by), approval_why=why)


def refuse(
    version: Version,
    why: Annotated[str, typer.Option("--why", help="The reason, which is kept with the version")],
    by: By = None,
    on: On = None,
) -> None:
    """Refuse a version that waits: what serves stays."""
    console = console_of()
    with working(console, "asking the registry"):
        from health_predict.adapters.storage import open_storage
        from health_predict.adapters.tracking import Tracking
        from health_predict.stages.approval import refuse as run

        settings = settings_on(on)
        tracking = Tracking(settings)
        storage = open_storage(settings.storage, settings.s3_endpoint_url)
        run(tracking, storage, tracking.version(version), _name(by), why)
    console.print(f"version {version} is refused: what serves stays", markup=False)


def rollback(
    version: Annotated[
        str, typer.Argument(help="Version to bring back; none: the one that served before", show_default=False)
    ] = "",
    release: Annotated[bool, typer.Option("--release", help="Let new versions come into service again")] = False,
    by: By = None,
    why: Why = "",
    on: On = None,
) -> None:
    """Bring an earlier version back and pin it: new ones wait for approval until `rollback --release`."""
    settings, console = settings_on(on), console_of()
    with working(console, "asking the registry"):
        from health_predict.adapters.tracking import Tracking
        from health_predict.adapters.tracking.history import pin
        from health_predict.adapters.tracking.history import release as remove

        tracking = Tracking(settings)
        if release:
            removed = remove(tracking)
        else:
            version = version or _before(tracking)
            pin(tracking, tracking.version(version).version, _name(by), why)  # first: nothing comes between
    if release:
        said = f"version {removed.version} is pinned no longer" if removed else "no version was pinned"
        console.print(said, markup=False)
        return
    _deploy(settings, version)
    console.print(
        f"version {version} is pinned: new versions wait for approval until `health-predict rollback --release`",
        markup=False,
    )


def _before(tracking: Tracking) -> str:
    """The version that a rollback without a name brings back. Raises StateError when there is none."""
    from health_predict.adapters.tracking import CHAMPION
    from health_predict.adapters.tracking.history import pinned, served_before

    champion, pin = tracking.by_alias(CHAMPION), pinned(tracking)
    if pin is not None:  # one that was killed goes on; the same once more changes nothing
        return pin.version
    before = served_before(tracking.versions(), champion)
    if before is None:
        raise StateError(
            "no other version has served: there is nothing to go back to",
            "`health-predict versions` lists them; `health-predict rollback VERSION` names one",
        )
    return before.version


def _deploy(settings: Settings, version: str, **said: str) -> None:
    run_anywhere(settings, "deployment", {"model_version": version, **said}, console_of())


def _name(by: str | None) -> str:
    """Who gives the command. Raises SettingsError when this machine knows no name."""
    try:
        return by or getpass.getuser()
    except (OSError, KeyError):
        raise SettingsError("this machine knows no name of its user", "say who you are with --by") from None


def mount(app: typer.Typer) -> None:
    """Add these commands to an application."""
    for command in (versions, compare, approve, refuse, rollback):
        app.command()(command)
