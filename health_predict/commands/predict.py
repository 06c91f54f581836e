"""`health-predict predict`: a file of encounters through the endpoint."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from health_predict.adapters.files import named_file, write_file
from health_predict.commands.progress import console_of, heartbeat, working
from health_predict.settings import load_settings

PORTION = 1000
ANOTHER_FILE = "name another file with --out"
COLUMNS = ["prediction", "probability_score", "risk_group", "model_version", "prediction_id"]


def predict(
    file: Annotated[
        Path,
        typer.Argument(help="CSV file of encounters, plain or packed (gz, bz2, xz, zip); the label may be absent"),
    ],
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write; default: FILE.predictions.csv here")
    ] = None,
    url: Annotated[str, typer.Option(help="Base URL of the endpoint; default: the one of the settings")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON")] = False,
) -> None:
    """Score every encounter of a file through the endpoint and write a CSV, in the order of the file.

    They arrive with their numbers, so that outcomes find them by these too.
    """
    settings, console, begin = load_settings(), console_of(as_json), time.monotonic()
    name = re.sub(r"(\.csv)?(\.(gz|bz2|xz|zip))?$", "", file.name)
    target = named_file(output or Path(f"{name}.predictions.csv"), ANOTHER_FILE)
    with working(console, "reading and checking the file"):
        import pandas as pd  # these take seconds

        from health_predict.adapters.contracts import contract_of
        from health_predict.adapters.serving.endpoint import Endpoint
        from health_predict.adapters.serving.target import open_target
        from health_predict.core.data import cohort

        contract = contract_of(settings)
        frame = cohort.read_cohort(file, contract, labelled=False)
        cohort.check(frame, contract, labelled=False, name=str(file))
    identifiers = [column for column in contract.identifiers if column.name in frame]
    bodies = cohort.as_requests(frame, [*contract.features, *identifiers])
    portion, answers = min(PORTION, settings.serving_batch_rows), []
    asked = Endpoint(url or open_target(settings).url, settings)
    with asked as endpoint, heartbeat(console_of(as_json=True), lambda: "scoring"):
        portions = math.ceil(len(bodies) / portion)
        for some in track(endpoint.predict(bodies, portion), "scoring", portions, console=console):
            answers += some
    found = pd.DataFrame(answers, columns=COLUMNS)
    for at, name in enumerate(contract.encounter):
        found.insert(at, name, frame[name].to_numpy())
    write_file(target, found.to_csv(index=False, lineterminator="\n"), ANOTHER_FILE)
    versions = [*dict.fromkeys(found["model_version"])]
    result = {
        "file": str(target),
        "encounters": len(found),
        "positives": int(found["prediction"].sum()),
        "model_versions": versions,
        "url": endpoint.url,
    }
    if as_json:
        typer.echo(json.dumps(result))
    else:
        console.print(
            f"{target}: {len(found)} encounters by version {', '.join(versions)} in "
            f"{time.monotonic() - begin:.1f} s, {result['positives']} with {contract.outcome.an_event} expected",
            markup=False,
        )
