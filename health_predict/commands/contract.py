"""`health-predict contract`: describe a table, check the description, and read it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from health_predict.adapters.contracts import named_contract
from health_predict.adapters.files import named_file, write_file
from health_predict.commands.data import ANOTHER_FILE, check_file
from health_predict.commands.operate import AsJson
from health_predict.commands.progress import console_of, working
from health_predict.errors import SettingsError
from health_predict.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="The data contract: what a table holds and what is predicted.")


@app.command()
def draft(
    file: Annotated[Path, typer.Argument(help="CSV (plain or packed) or Parquet file with the outcomes")],
    out: Annotated[Path, typer.Option(help="Contract file to write")],
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there")] = False,
) -> None:
    """Propose a contract for a table. Every line says why; what a person must decide is marked DECIDE."""
    named_file(out, ANOTHER_FILE)
    if out.exists() and not force:
        raise SettingsError(f"{out} is there already, and may have been edited", "name another file, or add --force")
    console = console_of()
    with working(console, "reading"):
        from health_predict.core.data.draft import DECIDE, undecided  # with pandas: a second
        from health_predict.core.data.draft import draft as drafted
        from health_predict.core.data.table_file import read_table_file

        text = drafted(read_table_file(file), re.sub(r"(\.\w+)+$", "", file.name))
    write_file(out, text, ANOTHER_FILE)
    decisions = len(undecided(text))
    typer.echo(f"{out}: {decisions} lines are marked {DECIDE}; then `health-predict contract check {out} {file}`")


@app.command()
def check(
    contract: Annotated[Path, typer.Argument(help="Contract file")],
    file: Annotated[Path | None, typer.Argument(help="CSV file that must keep it, plain or packed")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a contract, and a file by it: exit code 3 with the lines that are wrong."""
    settings = load_settings(contract=str(contract))
    described = named_contract(settings)
    with working(console_of(as_json), "checking"):
        from health_predict.adapters.scores import plug_in  # with pandas: a second
        from health_predict.core.data.draft import DECIDE, undecided

        plug_in(described)
        open_lines = undecided(contract.read_text(encoding="utf-8-sig"))
    if open_lines and not as_json:
        said = ", ".join(map(str, open_lines))
        typer.echo(f"{contract}: still marked {DECIDE}: line{'s' * (len(open_lines) > 1)} {said}", err=True)
    if file is not None:
        check_file(settings, file, unlabelled=False, as_json=as_json)
    elif as_json:
        typer.echo(json.dumps({"contract": described.name, "digest": described.digest}))
    else:
        kinds = ", ".join(
            f"{len(described.names(kind))} {kind}" for kind in dict.fromkeys(c.kind for c in described.columns)
        )
        typer.echo(f"{contract}: {described.name}, {len(described.columns)} columns ({kinds})")


@app.command()
def show(
    contract: Annotated[Path | None, typer.Argument(help="Contract file; by default the one in use")] = None,
    out: Annotated[Path | None, typer.Option(help="HTML file to write; by default in the home folder")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the contract as a page to read; with --json print it."""
    settings = load_settings(contract=str(contract)) if contract else load_settings()
    described = named_contract(settings)
    if as_json:
        typer.echo(described.to_json().decode())
        return
    from health_predict.report.contract_page import contract_page

    target = named_file(out, ANOTHER_FILE) if out else settings.home / "contract.html"
    write_file(target, contract_page(described), ANOTHER_FILE if out else "")
    typer.echo(target)
