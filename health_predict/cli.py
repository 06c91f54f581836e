"""`health-predict`: the command line. Thin: every command calls one function of the library."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer
from rich.console import Console

from health_predict.commands import data, operate, pipeline, report
from health_predict.commands.backup import backup, restore
from health_predict.commands.cost import cost_command
from health_predict.commands.predict import predict
from health_predict.commands.simulate import simulate
from health_predict.core.errors import HealthPredictError

app = typer.Typer(
    name="health-predict",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Readmission within 30 days of diabetic in-patients: train, ship and watch one model.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong setting or usage, 3 bad data, 4 missing or inconsistent state, "
    "5 something does not answer or is full, 6 a gate refused, 70 unexpected, 130 interrupted.",
)
app.add_typer(data.app, name="data")
app.add_typer(pipeline.app, name="pipeline")
app.add_typer(report.app, name="report")
operate.mount(app)
app.command()(backup)
app.command()(restore)
app.command("cost")(cost_command)
app.command()(predict)
app.command()(simulate)

UNEXPECTED = 70
INTERRUPTED = 130


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error")] = False,
) -> None:
    """Options of every command; `main` reads --debug itself, since it also covers errors of the other options."""


@app.command()
def demo(replace_data: pipeline.ReplaceData = False) -> None:
    """From the raw data to a trained, deployed, answering model, on this machine."""
    from health_predict.commands.demo import demo as run  # takes seconds to import

    run(replace_data)


@app.command("mlflow-ui")
def mlflow_ui(port: Annotated[int, typer.Option(help="Port on loopback")] = 5000) -> None:
    """Serve MLflow's pages on loopback until interrupted."""
    from health_predict.commands.mlflow_ui import mlflow_ui as run

    run(port)


def main() -> None:
    """Entry point: an expected error is one line with its remedy, on standard error."""
    debug = "--debug" in sys.argv[1:]
    console = Console(stderr=True)
    interrupts: list[int] = []

    def interrupt(number: int, _: object) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        app()
    except HealthPredictError as error:
        if debug:
            raise
        console.print(f"[bold red]error:[/bold red] {_escaped(error)}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.print("interrupted", highlight=False)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe left, as `head` does. Nothing more can be said; Python must not try at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if interrupts:  # a compiled module that is interrupted while it is imported raises what it likes
            console.print("interrupted", highlight=False)
            sys.exit(INTERRUPTED)
        if debug:
            raise
        console.print(
            f"[bold red]unexpected:[/bold red] {_escaped(error) or type(error).__name__} -> run again with `--debug` "
            "before the command to see where",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(UNEXPECTED)


def _escaped(error: Exception) -> str:
    from rich.markup import escape

    return escape(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
