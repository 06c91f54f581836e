"""`health-predict simulate`: the future, batch by batch, against the running endpoint."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from health_predict.adapters.kfp import Event
from health_predict.adapters.locks import only_one
from health_predict.adapters.target import open_target
from health_predict.commands.data import ScenarioName
from health_predict.commands.operate import AsJson, On
from health_predict.commands.progress import PipelineProgress, say_source
from health_predict.core.errors import HealthPredictError
from health_predict.settings import Settings, settings_on

log = logging.getLogger(__name__)


class PolicyName(StrEnum):
    """The names of `policy.Policy`, which is not imported for `--help`. A test keeps them equal."""

    NEVER = "never"
    EVERY = "every"
    SCHEDULED = "scheduled"
    DRIFT = "drift"


def simulate(
    batches: Annotated[int, typer.Option(min=1, help="How many of the future batches")] = 16,
    scenario: Annotated[
        list[ScenarioName] | None,
        typer.Option(help="Drift to inject, with a known truth; give it twice for two at once"),
    ] = None,
    from_batch: Annotated[int | None, typer.Option(min=0, help="Where drift begins; by default half-way")] = None,
    policy: Annotated[PolicyName | None, typer.Option(help="What changes the model; by default the settings'")] = None,
    delay: Annotated[int, typer.Option(min=0, help="Batches until outcomes are known; 0: at once")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the injected drift")] = 0,
    name: Annotated[
        str, typer.Option(help="The same name goes on where it ended; by default made of the options")
    ] = "",
    pipelines: Annotated[
        bool, typer.Option("--pipelines", help="Run the compiled pipeline for each batch, not its stages in here")
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
    from health_predict.adapters.source_control import commit
    from health_predict.report.timeline_report import summary
    from health_predict.simulation.in_service import put_back
    from health_predict.simulation.monitoring import monitoring
    from health_predict.simulation.plan import Plan
    from health_predict.simulation.replay import begin, play
    from health_predict.simulation.timeline import Moment, moment, publish, timeline

    settings = settings_on(on)
    evidently = settings.evidently if "evidently" in settings.model_fields_set else "never"
    settings = settings.model_copy(update={"git_commit": settings.git_commit or commit(), "evidently": evidently})
    scenarios = tuple(one.value for one in scenario or ())
    chosen = policy.value if policy else settings.policy
    plan = Plan(
        name=name or "-".join([*(scenarios or ["stream"]), chosen, f"delay{delay}", str(batches)]),
        scenarios=scenarios,
        from_batch=batches // 2 if from_batch is None else from_batch,
        policy=chosen,
        delay=delay,
        batches=batches,
        seed=seed,
    )
    console = Console(file=sys.stderr if as_json else sys.stdout)  # pinned: a running pipeline redirects both
    console.print(f"[bold]simulation  [/bold]{plan.name}", highlight=False)

    def handle(own: Settings, number: int) -> object:
        if pipelines:
            from health_predict.commands.pipeline import run_pipeline

            return run_pipeline(own, "monitoring", {"batch": number}, console)
        return monitoring(own, batch=number)

    shown: list[Moment] = []
    with (
        only_one(settings.home / "simulations", 1.0),  # they share an endpoint
        PipelineProgress(console) as progress,
        _said_by_stages(progress),
    ):

        def told(number: int) -> None:
            one = moment(replay, number)
            shown.append(one)
            console.print(
                f"[bold]batch {one.batch:<6}[/bold]version {one.served_by}: AUC {one.auc}, observed/expected "
                f"{one.observed_expected.value:.2f}; [bold]{one.verdict}[/bold], {one.action}: {one.outcome}"
                + (f", version {one.version_after} serves" if one.outcome == "deployed" else ""),
                highlight=False,
                soft_wrap=True,
            )

        with _put_back_on_failure(settings, keep):
            replay = begin(settings, plan, keep=keep)
            play(replay, handle, told)
            found = timeline(replay)
            page = publish(replay, found)
        ending = put_back(settings, keep=keep)
    if as_json:
        active = open_target(settings).active()
        serving = active.model_version if active else None
        typer.echo(json.dumps({**found.to_json(), "page": page, "serving": serving}))
        return
    console.print(
        f"{len(shown)} batches, {found.retrainings} retrainings and {found.recalibrations} recalibrations in service, "
        f"{found.lost} challengers lost",
        highlight=False,
    )
    for line in summary(found.to_json()):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(f"timeline: {page}", highlight=False, soft_wrap=True)
    if ending:
        console.print(f"[bold]{ending}[/bold]", highlight=False, soft_wrap=True)
    say_source(console, "synthetic" if found.synthetic else "")


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


class _said_by_stages(logging.Handler):  # noqa: N801 (a context manager reads like a function)
    """What the stages log, as events of the stage that says it."""

    def __init__(self, progress: PipelineProgress) -> None:
        super().__init__(logging.INFO)
        self._progress = progress
        self._logger = logging.getLogger("health_predict")

    def __enter__(self) -> None:
        self._before = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self)

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._before)

    def emit(self, record: logging.LogRecord) -> None:
        level = "warning" if record.levelno >= logging.WARNING else "info"
        self._progress(Event(record.name.rpartition(".")[2], record.getMessage(), level))
