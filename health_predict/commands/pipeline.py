"""`health-predict pipeline`: compile, run, list; upload and schedule in a cluster."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from health_predict.adapters.files import writable
from health_predict.adapters.notifications import delivered
from health_predict.adapters.pipelines.local import LocalRun, compile_pipeline, list_runs, run_locally
from health_predict.adapters.source_control import commit
from health_predict.commands.operate import AsJson, AsOf, On
from health_predict.commands.progress import PipelineProgress, console_of, say_source, working
from health_predict.core.data.sources import refuse_changeable
from health_predict.errors import HealthPredictError, SettingsError
from health_predict.settings import PREFIX, SYNTHETIC_SOURCE, Profile, Settings, load_settings, settings_on

if TYPE_CHECKING:
    from health_predict.adapters.pipelines.kubeflow import ClusterRun

app = typer.Typer(no_args_is_help=True, help="Compile the pipelines, run one here or in a cluster, list the runs.")
CLUSTER_SECONDS = 6 * 3600.0
COMPILED = Path(__file__).parents[2] / "pipelines" / "compiled"

Parameters = Annotated[
    list[str] | None, typer.Option("--param", "-p", help="A parameter of the pipeline as name=value")
]
ReplaceData = Annotated[
    bool, typer.Option("--replace-data", help="Train on the data that are asked for although the champion has others")
]
Name = Annotated[str, typer.Argument(help="training, deployment, readmission, recalibration or monitoring")]


def _pipelines() -> Any:
    import health_predict.pipelines as pipelines  # kfp takes two seconds to import

    return pipelines


@app.command("compile")
def compile_(
    out: Annotated[
        Path, typer.Option(help="Folder of the compiled pipelines", show_default="pipelines/compiled")
    ] = COMPILED,
    image: Annotated[
        str, typer.Option(help="Image of the tasks that the cluster can pull, for a file that you upload by hand")
    ] = "",
) -> None:
    """Compile every pipeline to YAML, the contract with a cluster.

    `pipeline run` and `pipeline upload` put the cluster's image in. For the dashboard's own upload, or `kfp.Client`,
    name it: `make images` prints it.
    """
    writable(out, "name another folder with --out")
    with working(console_of(), "compiling"):
        pipelines = _pipelines()
    for name, pipeline in pipelines.PIPELINES.items():
        compile_pipeline(pipelines.recorded(pipeline), out / f"{name}.yaml", image)
        typer.echo(out / f"{name}.yaml")


@app.command("run")
def run(  # each parameter is an option of the command
    name: Name,
    parameter: Parameters = None,
    replace_data: ReplaceData = False,
    on: On = None,
    as_of: AsOf = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="In a cluster: do not wait for the end")] = False,
    timeout: Annotated[float, typer.Option(help="In a cluster: seconds to wait for the end")] = CLUSTER_SECONDS,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run as JSON at the end")] = False,
) -> None:
    """Run a pipeline on this machine or, with the same functions, in a cluster."""
    settings = settings_on(on, as_of)
    given = _parameters(parameter or []) | ({"replace_data": "true"} if replace_data else {})
    if as_of and settings.profile is not Profile.LOCAL:
        raise SettingsError("a cluster's runs go by its own clock", "leave --as-of out")
    record = run_anywhere(settings, name, given, console_of(as_json), None if no_wait else timeout)
    if as_json:
        typer.echo(json.dumps(record))


@app.command("upload")
def upload(on: On = None, as_json: AsJson = False) -> None:
    """Make every pipeline known to the cluster, as a version that is named by the git commit."""
    from health_predict.adapters.pipelines.kubeflow import ClusterPipelines

    settings = settings_on(on)
    cluster = ClusterPipelines(settings)
    revision = settings.git_commit or commit()
    uploaded = {}
    with working(Console(emoji=False, stderr=True), "uploading"):
        for name, pipeline in _pipelines().PIPELINES.items():
            ids = cluster.upload(name, _pipelines().recorded(pipeline), revision)
            uploaded[name] = dict(zip(("pipeline_id", "version_id"), ids, strict=True))
    typer.echo(json.dumps(uploaded) if as_json else "\n".join(f"{name} {revision}" for name in uploaded))


@app.command("schedule")
def schedule(
    name: Name,
    cron: Annotated[
        str | None,
        typer.Option(help="In a cluster: second minute hour day month weekday; empty: no schedule any more"),
    ] = None,
    every: Annotated[float | None, typer.Option(min=1, help="On this machine: seconds from begin to begin")] = None,
    times: Annotated[int, typer.Option(min=0, help="On this machine: end after so many runs; 0: never")] = 0,
    parameter: Parameters = None,
    on: On = None,
) -> None:
    """Run a pipeline again and again: in a cluster by its schedule, on this machine in a loop.

    One run at a time; what was missed is not caught up. A run that fails does not end the schedule.
    """
    settings = settings_on(on)
    given = _parameters(parameter or [])
    usage = f"`health-predict pipeline schedule {name}"
    if settings.profile is Profile.LOCAL:
        if every is None or cron is not None:
            raise SettingsError("on this machine a schedule is an interval", f"{usage} --every 3600`")
        _loop(settings, name, given, every, times)
        return
    if cron is None or every is not None:
        raise SettingsError("in a cluster a schedule has six fields", f"{usage} --cron '0 30 2 * * *'`")
    from health_predict.adapters.contracts import use_named
    from health_predict.adapters.pipelines.kubeflow import ClusterPipelines

    arguments = _arguments(settings, name, given)
    use_named(settings)
    cluster = ClusterPipelines(settings)
    if not cron:
        typer.echo(f"{cluster.unschedule(name)} schedules of {name} deleted")
        return
    with working(Console(emoji=False, stderr=True), "scheduling"):
        recorded = _pipelines().recorded(_pipelines().PIPELINES[name])
        made = cluster.schedule(name, recorded, settings.git_commit or commit(), cron, arguments)
    typer.echo(f"{name} at {made.cron}: {'scheduled' if made.changed else 'unchanged'}")


def _loop(settings: Settings, name: str, given: Mapping[str, Any], every: float, times: int) -> None:
    console = console_of()
    _arguments(settings, name, given)  # what cannot run at all is said at once
    done = 0
    while True:
        begin = time.monotonic()
        try:
            outputs = run_pipeline(settings, name, given, console).outputs
            said = ", ".join(f"{key} {value}" for key, value in outputs.items())
        except HealthPredictError as error:
            said = f"failed: {error}"
        done += 1
        console.print(f"[bold]run {done:<8}[/bold]{escape(said)}")
        if done == times:
            return
        time.sleep(every - (time.monotonic() - begin) % every)


@app.command("list")
def list_(on: On = None, as_json: AsJson = False) -> None:
    """The newest runs on this machine or in a cluster."""
    settings = settings_on(on)
    if settings.profile is Profile.LOCAL:
        records = list_runs(settings.home)
    else:
        from health_predict.adapters.pipelines.kubeflow import ClusterPipelines

        records = ClusterPipelines(settings).runs()
    if as_json:
        typer.echo(json.dumps(records))
        return
    table = Table("pipeline", "started", "run, its outputs or why it failed", box=None)
    for record in records:
        outputs = ", ".join(f"{key}={value}" for key, value in record.get("outputs", {}).items())
        started, ended = (datetime.fromisoformat(record.get(key) or record["started"]) for key in ("started", "ended"))
        table.add_row(
            f"{record['pipeline']}\n{record['state']}",
            f"{started:%Y-%m-%d %H:%M}\n{f'took {ended - started}' if record.get('ended') else ''}",
            f"{record['run_id']}\n{escape(textwrap.shorten(record.get('error') or outputs, 200, placeholder=' ...'))}",
        )
    Console(emoji=False).print(table if records else "no run yet: `health-predict pipeline run readmission`")


def run_anywhere(
    settings: Settings, name: str, given: Mapping[str, Any], console: Console, seconds: float | None = CLUSTER_SECONDS
) -> dict[str, Any]:
    """Run a pipeline here or in the settings' cluster, print its end, and give its record.

    `seconds`: how long to wait for a cluster; None: not at all. Raises as `run_pipeline` does.
    """
    if settings.profile is Profile.LOCAL:
        result = run_pipeline(settings, name, given, console)
        record = {"run_id": result.run_id, "pipeline": name, "outputs": dict(result.outputs)}
        lines = [f"{output}: {value}" for output, value in result.outputs.items()]
        lines.append(f"artifacts and log: {result.folder}")
        source = str(result.outputs.get("dataset_source", ""))
    else:
        done = _run_in_cluster(settings, name, given, console, seconds)
        record, lines, source = asdict(done), [f"{done.state.lower()}: {done.url}"], done.dataset_source
    console.print("\n".join(lines), markup=False)
    say_source(console, source)
    return record


def run_pipeline(settings: Settings, name: str, given: Mapping[str, Any], console: Console) -> LocalRun:
    """Run a pipeline here with the settings' values and the given ones over them.

    Raises SettingsError for an unknown pipeline or parameter, and what the stages raise.
    """
    if settings.profile is not Profile.LOCAL:
        raise SettingsError(
            f"pipelines of profile {settings.profile.value} run in their cluster",
            "unset HEALTH_PREDICT_PROFILE to run on this machine",
        )
    console.print(f"[bold]pipeline    [/bold]{escape(name)}")
    with delivered(settings), PipelineProgress(console) as progress:
        arguments = _arguments(settings, name, given)
        settings = settings.model_copy(update={"git_commit": settings.git_commit or commit()})
        return run_locally(_pipelines().PIPELINES[name], arguments, settings, progress)


def _run_in_cluster(
    settings: Settings, name: str, given: Mapping[str, Any], console: Console, seconds: float | None
) -> ClusterRun:
    from health_predict.adapters.contracts import use_named
    from health_predict.adapters.pipelines.kubeflow import ClusterPipelines

    arguments = _arguments(settings, name, given)
    use_named(settings)
    cluster = ClusterPipelines(settings)
    started = cluster.start(name, _pipelines().recorded(_pipelines().PIPELINES[name]), arguments)
    console.print(f"[bold]pipeline    [/bold]{name} in {started.url}")
    if seconds is None:
        return started
    with PipelineProgress(console) as progress:
        return cluster.wait(started, seconds, progress)


def _arguments(settings: Settings, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's inputs: those given. The rest are the settings' where its tasks run.

    A cluster's tasks do not see the environment of this command: what is set there goes with the run too. Raises
    SettingsError for what the pipeline does not take and for a value that is none.
    """
    pipelines = _pipelines().PIPELINES
    if name not in pipelines:
        raise SettingsError(f"unknown pipeline {name!r}", f"choose from {', '.join(pipelines)}")
    inputs = pipelines[name].component_spec.inputs or {}
    for key in given.keys() - inputs.keys():
        raise SettingsError(f"pipeline {name} has no parameter {key!r}", f"it takes {', '.join(inputs)}")
    arguments = {key: _typed(key, value, inputs[key].type) for key, value in given.items()}
    if settings.profile is not Profile.LOCAL:
        here = {key: getattr(settings, key) for key in settings.model_fields_set if key in inputs}
        arguments = {key: _typed(key, value, inputs[key].type) for key, value in here.items()} | arguments
        source = str(arguments.get("data_source", ""))
        if source and source != SYNTHETIC_SOURCE and "://" not in source:
            raise SettingsError(
                f"the data source {source} is a path on this machine, which the cluster cannot read",
                f"put the file into its object store and name that (s3://...), or unset {PREFIX}DATA_SOURCE",
            )
        if source and source != SYNTHETIC_SOURCE:
            refuse_changeable(source, str(arguments.get("data_sha256", "")))
    checked = load_settings(
        **{key: value for key, value in arguments.items() if key in Settings.model_fields and value}
    )
    if arguments.get("data_source"):
        arguments["data_source"] = checked.data_source  # absolute: a task has another working folder
    missing = [key for key, item in inputs.items() if not item.optional and key not in arguments]
    if missing:
        raise SettingsError(f"pipeline {name} needs {', '.join(missing)}", " ".join(f"-p {key}=..." for key in missing))
    return arguments


def _parameters(pairs: list[str]) -> dict[str, str]:
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise SettingsError(f"parameter {wrong[0]!r} has no value", "write it as name=value")
    return dict(pair.split("=", 1) for pair in pairs)


def _typed(name: str, value: Any, kind: str) -> Any:
    """A text or a setting in the type of the pipeline's input."""
    if "List" in kind:
        return [item for item in value.split(",") if item] if isinstance(value, str) else list(value)
    if kind not in ("Integer", "Boolean"):
        return str(value)
    try:
        return TypeAdapter(int if kind == "Integer" else bool).validate_python(value)
    except ValidationError:
        what, example = ("a number", "1") if kind == "Integer" else ("true or false", "true")
        raise SettingsError(f"parameter {name} takes {what}, not {value!r}", f"write -p {name}={example}") from None
