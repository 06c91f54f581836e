"""`health-predict simulate`: the future, batch by batch, against the running endpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from health_predict.adapters.files import temporary_files
from health_predict.adapters.locks import only_one
from health_predict.adapters.serving.target import open_target
from health_predict.commands.operate import AsJson, On
from health_predict.commands.pipeline import run_pipeline
from health_predict.commands.progress import console_of, heartbeat, say_source, working
from health_predict.core.choices import Policy, Scenario
from health_predict.errors import HealthPredictError, SettingsError
from health_predict.settings import Profile, Settings, settings_on

if TYPE_CHECKING:
    from health_predict.simulation.timeline import Moment, Timeline

log = logging.getLogger(__name__)


def simulate(  # each parameter is an option of the command
    batches: Annotated[int, typer.Option(min=1, help="How many of the future batches")] = 16,
    scenario: Annotated[
        list[Scenario] | None, typer.Option(help="Drift to inject, with a known truth; give it twice for two at once")
    ] = None,
    from_batch: Annotated[int | None, typer.Option(min=0, help="Where drift begins; by default half-way")] = None,
    policy: Annotated[Policy | None, typer.Option(help="What changes the model; by default the settings'")] = None,
    delay: Annotated[int, typer.Option(min=0, help="Batches until outcomes are known; 0: at once")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the injected drift")] = 0,
    name: Annotated[
        str, typer.Option(help="The same name goes on where it ended; by default made of the options")
    ] = "",
    pipelines: Annotated[
        bool, typer.Option("--pipelines", help="Run the pipeline `monitoring` for each batch, not its stages in here")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the simulation's last model in service, not what served before")
    ] = False,
    on: On = None,
    as_json: AsJson = False,
) -> None:
    """Replay future batches against the endpoint: predict, wait for outcomes, monitor, retrain, redeploy.

    Begins with the model of the initial data, whatever serves now; what served before serves again at the end. Killed,
    the same command goes on.
    """
    settings, console = settings_on(on), console_of(as_json)
    with working(console, "beginning"):  # these take seconds
        from health_predict.adapters.source_control import commit
        from health_predict.simulation.in_service import put_back
        from health_predict.simulation.monitoring import monitoring
        from health_predict.simulation.plan import Plan
        from health_predict.simulation.replay import begin, play
        from health_predict.simulation.timeline import moment, publish, timeline

    if pipelines and settings.profile is not Profile.LOCAL:
        raise SettingsError("--pipelines runs pipelines on this machine", "leave it out beside a model in a cluster")
    evidently = settings.evidently if "evidently" in settings.model_fields_set else "never"
    settings = settings.model_copy(update={"git_commit": settings.git_commit or commit(), "evidently": evidently})
    scenarios, chosen = tuple(map(str, scenario or ())), str(policy or settings.policy)
    plan = Plan(
        name=name or "-".join([*(scenarios or ["stream"]), chosen, f"delay{delay}", str(batches)]),
        scenarios=scenarios,
        from_batch=batches // 2 if from_batch is None else from_batch,
        policy=chosen,
        delay=delay,
        batches=batches,
        seed=seed,
    )

    def as_pipeline(own: Settings) -> None:
        run_pipeline(own, "monitoring", {}, console)

    console.print(f"[bold]simulation  [/bold]{escape(plan.name)}")
    _show_stages(console)
    with (
        temporary_files(settings.home),
        only_one(settings.home / "simulations", 1.0),  # one endpoint for all
        heartbeat(console, lambda: "simulation"),
    ):
        with _put_back_on_failure(settings, keep):
            replay = begin(settings, plan, keep=keep)
            for number in play(replay, as_pipeline if pipelines else monitoring):
                console.print(_ended(moment(replay, number)))
            found = timeline(replay)
            page = publish(replay, found)
        ending = put_back(settings, keep=keep)
    if as_json:
        active = open_target(settings).active()
        serving = active.model_version if active else None
        typer.echo(json.dumps({**asdict(found), "page": page, "serving": serving}))
        return
    _tell(console, found, page, ending)


def _show_stages(console: Console) -> None:
    """Let the log of the stages appear on the console."""
    stages = logging.StreamHandler(console.file)
    stages.setFormatter(logging.Formatter("%(module)-11s %(message)s"))
    ours = logging.getLogger("health_predict")
    ours.addHandler(stages)
    ours.setLevel(logging.INFO)
    ours.propagate = False  # some library gives the root logger a handler of its own


def _tell(console: Console, found: Timeline, page: str, ending: str) -> None:
    """What the simulation showed, where its page is, and what serves now."""
    from health_predict.report.timeline_report import summary

    console.print(
        f"{len(found.moments)} batches, {found.retrainings} retrainings and {found.recalibrations} recalibrations in "
        f"service, {found.lost} challengers lost"
    )
    for line in summary(asdict(found)):
        console.print(line, markup=False)
    console.print(f"timeline: {page}", markup=False)
    if ending:
        console.print(f"[bold]{ending}[/bold]")
    say_source(console, "synthetic" if found.synthetic else "")


def _ended(batch: Moment) -> str:
    """How a batch ended, in a line."""
    return (
        f"[bold]batch {batch.batch:<6}[/bold]version {batch.served_by}: AUC {batch.auc}, observed/expected "
        f"{batch.observed_expected.value:.2f}; [bold]{batch.verdict}[/bold], {batch.action}: {batch.outcome}"
        + (f", version {batch.version_after} serves" if batch.outcome == "deployed" else "")
    )


@contextmanager
def _put_back_on_failure(settings: Settings, keep: bool) -> Iterator[None]:
    """What served before serves again when a simulation fails or is interrupted; it can go on all the same."""
    from health_predict.simulation.in_service import put_back

    try:
        yield
    except BaseException:
        if not keep:
            try:
                if ending := put_back(settings, ended=False):
                    log.warning(ending)
            except HealthPredictError as error:
                log.error("what served before does not serve again: %s", error)
        raise
