"""`health-predict notify`: whether those who are told can be reached, and what they have not got."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from health_predict.commands.operate import AsJson, On
from health_predict.commands.progress import console_of, working
from health_predict.errors import SettingsError, UnreachableError
from health_predict.settings import settings_on

app = typer.Typer(no_args_is_help=True, help="Messages about what happens, to the addresses of HEALTH_PREDICT_NOTIFY.")


@app.command()
def test(on: On = None, as_json: AsJson = False) -> None:
    """Send each address a test message and say whether it took it. Exit code 5 when one did not."""
    settings = settings_on(on)
    if not settings.notify:
        raise SettingsError(
            "nobody is to be told anything", """set HEALTH_PREDICT_NOTIFY, such as '["mailto://user:password@host"]'"""
        )
    with working(console_of(as_json), "sending"):
        from health_predict.adapters.notifications import try_out

        found = try_out(settings)
    if as_json:
        typer.echo(json.dumps([{"address": address, "taken": taken} for address, taken in found]))
    else:
        for address, taken in found:
            typer.echo(f"{'ok     ' if taken else 'failed '} {address}")
    if failed := [address for address, taken in found if not taken]:
        raise UnreachableError(
            f"{', '.join(failed)} did not take the message",
            "check the address (https://github.com/caronc/apprise/wiki) and that its service answers from here",
        )


@app.command("list")
def list_(on: On = None, as_json: AsJson = False) -> None:
    """The messages that not every address has taken, oldest first; the next command or run that ends sends them."""
    from health_predict.adapters.notifications import undelivered

    found = undelivered(settings_on(on))
    if as_json:
        typer.echo(json.dumps([asdict(message) for message in found]))
    else:
        lines = [f"{message.time[:16]}  {message.event}: {message.reason}" for message in found]
        typer.echo("\n".join(lines) or "every message was delivered")
