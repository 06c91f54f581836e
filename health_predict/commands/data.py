"""`health-predict data`: the raw data, encounters and outcomes that arrive, and what is to be forgotten."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from health_predict.adapters.contracts import named_contract
from health_predict.adapters.files import named_file, whole_file, write_file
from health_predict.adapters.notifications import delivered
from health_predict.commands.operate import AsJson, AsOf, On
from health_predict.commands.progress import console_of, working
from health_predict.core.choices import Scenario
from health_predict.errors import DataError
from health_predict.settings import Settings, load_settings, settings_on

if TYPE_CHECKING:
    from health_predict.adapters.data.dataset import RawData

ANOTHER_FILE = "name another file with --out"
SHOWN = 5  # lines that are named where the same thing is wrong in many

app = typer.Typer(no_args_is_help=True, help="The raw data; encounters and outcomes that arrive.")


@app.command()
def fetch(as_json: AsJson = False) -> None:
    """Bring the raw data to this machine and say where they are and whether they are real.

    A source that is named, else the champion's data, else the contract's published file; without network the synthetic
    cohort, said loudly.
    """
    console = console_of(as_json)
    with working(console, "looking for the data"):
        raw = _bring(load_settings(), console, stand_in=True)
    if as_json:
        typer.echo(json.dumps({"path": str(raw.path), "sha256": raw.sha256, "source": str(raw.source)}))
    else:
        typer.echo(f"{raw.path}\nsource {raw.source}, SHA-256 {raw.sha256}")


def _bring(settings: Settings, console: Console, *, stand_in: bool) -> RawData:
    """A source that is named, else what a training would take: looking at other data replaces nothing."""
    from health_predict.adapters.data import dataset, raw_data

    if settings.data_source:
        return dataset.fetch(settings, console)
    return raw_data.raw_data(settings, raw_data.champion_origin(settings), console, stand_in=stand_in)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="CSV file, plain or packed (gz, bz2, xz, zip)")],
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="The label may be absent, as in encounters to be scored")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List what breaks the data contract, the same thing once with its lines; exit code 3 when there is any.

    With --json every cell by itself. Labelled data must also be enough to train a model with the settings.
    """
    check_file(load_settings(), file, unlabelled=unlabelled, as_json=as_json)


def check_file(settings: Settings, file: Path, *, unlabelled: bool, as_json: bool) -> None:
    """Print what breaks the contract in a file, or that nothing does. Raises typer.Exit with the code of DataError."""
    with working(console_of(as_json), "reading and checking"):
        from health_predict.core.data import cohort  # these take a second
        from health_predict.core.data.leaks import refuse_leaks
        from health_predict.core.data.partition import Parameters, partition

        contract = named_contract(settings)
        given = not unlabelled and contract.outcome.next is None  # else the label is made from the next row
        frame = cohort.read_cohort(file, contract, labelled=given)
        violations = cohort.validate(frame, contract, labelled=given)
    if as_json:
        found = [asdict(violation) for violation in violations]
        typer.echo(json.dumps({"file": str(file), "encounters": len(frame), "violations": found}))
    elif violations:
        alike: dict[tuple[str, str, str], list[int]] = {}
        for one in violations:
            alike.setdefault((one.column, one.problem, one.remedy), []).append(one.row)
        for (column, problem, remedy), lines in _few(alike).items():
            typer.echo(f"{_named(lines)}, {column}: {problem} -> {remedy}")
        count = "1 violation" if len(violations) == 1 else f"{len(violations):,} violations"
        console_of().print(f"[bold red]{count}[/bold red] of the data contract")
    if violations:
        raise typer.Exit(DataError.exit_code)
    without = 0
    if not unlabelled:
        labelled, without = cohort.with_labels(frame, contract, str(file))
        parameters = Parameters(settings.initial_share, settings.future_batches, settings.salt)
        refuse_leaks(partition(labelled, contract, parameters).train, contract)
    if not as_json:
        patients = frame[contract.patient].nunique()
        said = f" ({without:,} without a next one that counts, so without a label)" if without else ""
        typer.echo(f"{file}: {len(frame):,} encounters{said} of {patients:,} patients, no violation")


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="CSV (plain or packed) or Parquet file of encounters")],
    as_of: AsOf = None,
    on: On = None,
    as_json: AsJson = False,
) -> None:
    """Score encounters by the champion and let them arrive, as if they had come through the endpoint.

    Identifiers and dates may be absent; the label's column counts as delivered outcomes. Rows that break the data
    contract are set aside with a report. The same file twice changes nothing.
    """
    console, settings = console_of(as_json), settings_on(on, as_of)
    with delivered(settings), working(console, "scoring and adding"):
        from health_predict.operations.feed import add_encounters  # with pandas and MLflow: seconds

        added, outcomes = add_encounters(settings, file)
    if as_json:
        typer.echo(json.dumps({**asdict(added), "outcomes": outcomes}))
    elif added.before:
        said = f"; {_many(outcomes, 'outcome')} delivered" if outcomes else ", nothing changes"
        typer.echo(f"{file}: was added before{said}")
    else:
        said = f", {_many(outcomes, 'outcome')} delivered" if outcomes else ""
        typer.echo(f"{file}: {_many(added.rows, 'encounter')} added{said}")
        for one in added.refusals:
            typer.echo(f"  {_named(list(one.lines), one.count)}, {one.column}: {one.rule}")
        if added.quarantined:
            typer.echo(f"  {_many(added.quarantined, 'row')} set aside: {added.report}")
    if added.quarantined and not added.rows:
        raise typer.Exit(DataError.exit_code)


@app.command()
def outcomes(
    file: Annotated[Path, typer.Argument(help="CSV file of outcomes")],
    as_of: AsOf = None,
    on: On = None,
    as_json: AsJson = False,
) -> None:
    """Deliver outcomes: the label's column (1 or 0) by prediction_id, or by what the contract says identifies an
    encounter, or by the patient and the date."""
    console, settings = console_of(as_json), settings_on(on, as_of)
    with delivered(settings), working(console, "reading"):
        from health_predict.operations.feed import add_outcomes

        found = add_outcomes(settings, file)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        typer.echo(f"{file}: {_many(found.outcomes, 'outcome')} by {found.key}, matched by the next monitoring")


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


@app.command()
def forget(
    patient: Annotated[str, typer.Option(help="What the contract identifies the patient by")],
    on: On = None,
    as_json: AsJson = False,
) -> None:
    """Remove every copy of a patient's encounters: log, arrivals, outcomes, datasets. Says which models learned from
    them.

    The raw file of the first training is not rewritten; whether it holds the patient is said.
    """
    console = console_of(as_json)
    with working(console, "looking through storage"):
        from health_predict.operations.forget import forget as remove

        found = remove(settings_on(on), patient)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    rows = f"{_many(found.encounters, 'encounter')} and {_many(found.outcomes, 'outcome')} removed"
    typer.echo(f"{rows}, and rows of {_many(len(found.datasets), 'dataset')}")
    if found.versions:
        typer.echo(f"learned from: version {', '.join(found.versions)} of the model; the next retraining will not")
    if found.calibrated:
        versions = ", ".join(found.calibrated)
        typer.echo(
            f"map from score to risk fitted on: version {versions} of the model; the next recalibration will not"
        )
    if found.old_states:
        typer.echo(f"{_many(found.old_states, 'old version')} of objects with encounters removed from the bucket")
    for sha256 in found.raw:
        typer.echo(f"still in the raw file with SHA-256 {sha256[:12]}: train on a corrected file with --replace-data")


def _few(alike: dict[tuple[str, str, str], list[int]]) -> dict[tuple[str, str, str], list[int]]:
    """What is wrong, a column's many different values in one line."""
    problems = Counter((column, remedy) for column, _, remedy in alike)
    found: dict[tuple[str, str, str], list[int]] = {}
    for (column, problem, remedy), lines in alike.items():
        many = problems[column, remedy]
        said = problem if many <= SHOWN else f"{many:,} different values are not allowed"
        found.setdefault((column, said, remedy), []).extend(lines)
    return {key: sorted(lines) for key, lines in found.items()}


def _named(lines: list[int], count: int | None = None) -> str:
    shown = ", ".join(map(str, lines[:SHOWN]))
    others = (len(lines) if count is None else count) - len(lines[:SHOWN])
    more = f" and {others:,} more" if others else ""
    return f"line{'s' if len(lines) > 1 else ''} {shown}{more}"


@app.command()
def profile(
    file: Annotated[Path | None, typer.Argument(help="CSV file; by default what a training would take")] = None,
    out: Annotated[Path | None, typer.Option(help="HTML file to write; by default in the home folder")] = None,
) -> None:
    """Write the data profile: who is in the cohort, what is missing, levels, and what changes over time."""
    settings = load_settings(data_source=str(file.absolute()), data_sha256="") if file else load_settings()
    target = named_file(out, ANOTHER_FILE) if out else settings.home / "data-profile.html"
    console = console_of()
    with working(console, "reading and checking"):
        from health_predict.adapters.contracts import contract_of
        from health_predict.core.data import cohort  # these take seconds
        from health_predict.core.data.partition import Parameters, partition
        from health_predict.report.data_profile import data_profile_page

        raw = _bring(settings, console, stand_in=False)
        contract = contract_of(settings)
        frame, unlabelled = cohort.training_cohort(raw.path, contract, str(file or raw.path))
    with working(console, "profiling"):
        parameters = Parameters(settings.initial_share, settings.future_batches, settings.salt)
        cut = partition(frame, contract, parameters)
        page = data_profile_page(
            frame,
            contract,
            cut,
            parameters=parameters,
            raw_sha256=raw.sha256,
            source=raw.source,
            unlabelled=unlabelled,
        )
        write_file(target, page, ANOTHER_FILE if out else "")
    typer.echo(target)


@app.command()
def synthesize(
    out: Annotated[Path, typer.Option(help="CSV file to write")],
    rows: Annotated[int, typer.Option(min=1, help="Encounters")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same file")] = 130,
    scenario: Annotated[
        Scenario | None, typer.Option(help="Drift to inject; its truth goes to OUT with the suffix .truth.json")
    ] = None,
    from_row: Annotated[
        int | None, typer.Option(min=0, help="Row, from 0, where drift begins; by default half-way")
    ] = None,
) -> None:
    """Write a cohort of patients who do not exist, like the real one in its columns, levels and risks."""
    named_file(out, ANOTHER_FILE)
    with working(console_of(), "synthesizing"):
        from health_predict.adapters.contracts import contract_of, synthetic_of  # these take a second
        from health_predict.core.data.cohort import save_csv
        from health_predict.core.data.scenarios import inject
        from health_predict.core.data.synthetic import synthesize

        settings = load_settings()
        contract = contract_of(settings)
        synthetic = synthetic_of(contract, settings)
        frame = synthesize(contract, synthetic, rows, seed)
        if scenario is not None:
            begins = rows // 2 if from_row is None else from_row
            frame, truth = inject(frame, contract, synthetic, scenario, begins, seed)
            write_file(out.with_suffix(".truth.json"), json.dumps(asdict(truth), indent=1) + "\n", ANOTHER_FILE)
        with whole_file(out, ANOTHER_FILE) as temporary:
            save_csv(frame, temporary)
    typer.echo(
        f"{out}: {rows:,} synthetic encounters" + (f", {scenario.value} from row {truth.from_row}" if scenario else "")
    )
