"""`health-predict backup` and `restore`: a cluster's databases to its bucket and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from health_predict.adapters.notifications import delivered
from health_predict.commands.operate import AsJson, On
from health_predict.commands.progress import console_of, working
from health_predict.settings import settings_on


def backup(on: On = None, as_json: AsJson = False) -> None:
    """Dump the cluster's databases into its bucket. A CronJob does the same every night."""
    from health_predict.operations.backup import backup as run

    console, settings = console_of(as_json), settings_on(on)
    with delivered(settings), working(console, "dumping the databases"):
        made = run(settings)
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in made]))
    else:
        console.print("\n".join(item.uri for item in made), markup=False)


def restore(
    name: Annotated[str, typer.Argument(help="Which backup; none: list them, newest first")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
    on: On = None,
) -> None:
    """Put a backup in place of what its database holds now; MLflow or the pipelines are away for that time."""
    from health_predict.operations.backup import backups
    from health_predict.operations.backup import restore as run

    settings = settings_on(on)
    console = console_of()
    if not name:
        console.print("\n".join(item.name for item in backups(settings)), markup=False)
        return
    if not yes:
        typer.confirm(f"replace what the database holds now by {name}?", abort=True)
    with working(console, f"restoring {escape(name)}"):
        run(settings, name)
    console.print(f"restored {name}", markup=False)
