"""`health-predict token`: the tokens that the endpoint takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from health_predict.adapters.tokens import Role, add_token, read_tokens, remove_token
from health_predict.commands.operate import AsJson
from health_predict.errors import SettingsError
from health_predict.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="The tokens that the endpoint takes, in the file of the settings.")

Name = Annotated[str, typer.Argument(help="Who or what sends the token, such as ward-7")]


@app.command()
def add(
    name: Name,
    operator: Annotated[bool, typer.Option("--operator", help="May also keep predictions out of the log")] = False,
) -> None:
    """Make a token and print it, this once: the file keeps its digest. A running endpoint takes it at once."""
    typer.echo(add_token(_file(), name, Role.OPERATOR if operator else Role.CLIENT))


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The names of the tokens, and what their holders may do."""
    found = read_tokens(_file())
    if as_json:
        typer.echo(json.dumps([{"name": one.name, "role": one.role.value} for one in found]))
    else:
        typer.echo("\n".join(f"{one.role.value:<9} {one.name}" for one in found) or "there is no token")


@app.command()
def remove(name: Name) -> None:
    """Take a token back: a running endpoint refuses it at once."""
    remove_token(_file(), name)
    typer.echo(f"removed {name}")


def _file() -> Path:
    settings = load_settings()
    if not settings.serving_tokens:
        raise SettingsError(
            "the settings name no file of tokens",
            "set HEALTH_PREDICT_SERVING_TOKENS, such as to ~/health-predict-tokens",
        )
    return Path(settings.serving_tokens)
