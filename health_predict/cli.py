"""`health-predict`: the command line. Thin: every command calls one function of the library."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack, suppress
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from health_predict.adapters.files import owner_only, temporary_files
from health_predict.commands import contract, data, image, notify, operate, pipeline, report, token, versions
from health_predict.commands.backup import backup, restore
from health_predict.commands.cost import cost_command
from health_predict.commands.predict import predict
from health_predict.commands.progress import console_of, working
from health_predict.commands.simulate import simulate
from health_predict.errors import HealthPredictError
from health_predict.settings import load_settings

app = typer.Typer(
    name="health-predict",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, ship and watch a model of a hospital's outcomes: one data set by default, your own by contract.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong setting or usage, 3 bad data, 4 missing or inconsistent state, "
    "5 something does not answer or is full, 6 a gate refused, 70 unexpected, 130 interrupted.",
)
app.add_typer(contract.app, name="contract")
app.add_typer(data.app, name="data")
app.add_typer(pipeline.app, name="pipeline")
app.add_typer(report.app, name="report")
app.add_typer(notify.app, name="notify")
app.add_typer(token.app, name="token")
app.add_typer(image.app, name="image")
operate.mount(app)
versions.mount(app)
app.command()(backup)
app.command()(restore)
app.command("cost")(cost_command)
app.command()(predict)
app.command()(simulate)

UNEXPECTED = 70
# What an interrupted command leaves, and how to go on.
GO_ON = {
    "demo": "trials that ended are kept, and what served goes on serving; the same command goes on from there",
    "pipeline": "stages and trials that ended are kept, and what served goes on serving; the same command goes on from "
    "there. A run in a cluster goes on by itself: `health-predict pipeline list`",
    "approve": "what was said is kept, and what served goes on serving; the same command goes on from there",
    "rollback": "the pin is kept, and what served goes on serving; the same command goes on from there",
    "simulate": "batches that ended are kept; the same command goes on from there. `health-predict status` says what "
    "serves",
    "predict": "nothing was written; give the command again",
    "data": "what was begun is not kept; give the command again",
}


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"health-predict {version('health-predict')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error")] = False,
) -> None:
    """Options of every command; `main` reads --debug itself, since it also covers errors of the other options."""


@app.command()
def demo(replace_data: pipeline.ReplaceData = False) -> None:
    """From the raw data to a trained, deployed, answering model, on this machine."""
    console = console_of()
    console.print("[bold]demo        [/bold]from the raw data to an answering model")
    with working(console, "beginning"):
        from health_predict.commands.demo import demo as run  # takes seconds to import

    run(replace_data)


@app.command("mlflow-ui")
def mlflow_ui(port: Annotated[int, typer.Option(help="Port on loopback")] = 5000) -> None:
    """Serve MLflow's pages on loopback until interrupted."""
    from health_predict.commands.mlflow_ui import mlflow_ui as run

    run(port)


def main() -> None:
    """Entry point: an expected error is one line with its remedy, on standard error; so is an interrupt."""
    console, interrupts = Console(stderr=True, emoji=False, highlight=False, soft_wrap=True), []

    def interrupt(number: int, _: object) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` has it so
            signal.signal(number, interrupt)
    owner_only()
    try:
        with _temporary_files():
            app()
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        if interrupts:  # whatever came of it: a library that is interrupted while it is imported raises what it likes
            command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
            if command in GO_ON:
                console.print(f"[bold]interrupted:[/bold] {GO_ON[command]}")
            sys.exit(128 + interrupts[0])
        if "--debug" in sys.argv[1:] or not isinstance(error, Exception):
            raise
        said = escape(" ".join(str(error).split()))
        if isinstance(error, HealthPredictError):
            console.print(f"[bold red]error:[/bold red] {said}")
            sys.exit(error.exit_code)
        said = said or type(error).__name__
        where = "run again with `--debug` before the command to see where"
        console.print(f"[bold red]unexpected:[/bold red] {said} -> {where}")
        sys.exit(UNEXPECTED)


def _temporary_files() -> ExitStack:
    """Temporary files in the home, where there is one and it takes them; a command that makes it does so itself."""
    entered = ExitStack()
    with suppress(HealthPredictError):  # the command says it, where it asks for settings or writes
        home = load_settings().home
        if home.is_dir():
            entered.enter_context(temporary_files(home))
    return entered
