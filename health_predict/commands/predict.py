"""`health-predict predict`: a file of encounters through the endpoint."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from health_predict.adapters.storage import whole_file
from health_predict.settings import load_settings

PORTION = 1000
COLUMNS = ("prediction", "probability_score", "risk_group", "model_version", "prediction_id")


def predict(
    file: Annotated[Path, typer.Argument(help="CSV file of encounters, plain or gzipped; `readmitted` may be absent")],
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write; default: FILE.predictions.csv here")
    ] = None,
    url: Annotated[str, typer.Option(help="Base URL of the endpoint; default: the one of the settings")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON")] = False,
) -> None:
    """Score every encounter of a file through the endpoint and write a CSV, in the order of the file."""
    from health_predict.adapters.endpoint import Endpoint
    from health_predict.adapters.target import open_target
    from health_predict.core import cohort
    from health_predict.core.columns import ENCOUNTER

    settings = load_settings()
    console = Console(stderr=as_json)
    with console.status("reading and checking the file"):
        frame = cohort.read_cohort(file, labelled=False)
        cohort.check(frame, labelled=False, name=str(file))
    bodies = cohort.as_requests(frame)
    target = output or Path(f"{file.name.removesuffix('.gz').removesuffix('.csv')}.predictions.csv")
    positives, begin = 0, time.monotonic()
    versions: dict[str, None] = {}
    columns = TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with (
        Endpoint(url or open_target(settings).url) as endpoint,
        whole_file(target) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as sink,
        Progress(*columns, console=console) as progress,
    ):
        task = progress.add_task("scoring", total=len(bodies))
        writer = csv.writer(sink, lineterminator="\n")
        writer.writerow([ENCOUNTER, *COLUMNS])
        names = iter(frame[ENCOUNTER])
        for answers in endpoint.predict(bodies, min(PORTION, settings.serving_batch_rows)):
            for answer in answers:
                writer.writerow([next(names), *(answer[name] for name in COLUMNS)])
                positives += answer["prediction"]
                versions[answer["model_version"]] = None
            progress.advance(task, len(answers))
    result = {
        "file": str(target),
        "encounters": len(bodies),
        "positives": positives,
        "model_versions": list(versions),
        "url": endpoint.url,
    }
    if as_json:
        typer.echo(json.dumps(result))
    else:
        seconds = time.monotonic() - begin
        console.print(
            f"{target}: {len(bodies)} encounters by version {', '.join(versions)} in {seconds:.1f} s, "
            f"{positives} with a readmission expected",
            highlight=False,
            soft_wrap=True,
        )
