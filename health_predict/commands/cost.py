"""`health-predict cost`: what the AWS stack costs a month, beside the managed services that it replaces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from health_predict.aws import cost
from health_predict.aws.stack_config import PROJECT, Schedule, StackConfig, read_config
from health_predict.errors import SettingsError

OFFICE_HOURS = Schedule.model_validate({"timezone": "UTC"})


def cost_command(
    stack: Annotated[str, typer.Option(help="Stack whose Pulumi.<stack>.yaml is read; none: the defaults")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON")] = False,
) -> None:
    """What the AWS stack costs a month, always on and by schedule, beside the managed services it replaces."""
    config = stack_file(Path(f"Pulumi.{stack}.yaml")) if stack else read_config({})
    schedule = config.schedule or OFFICE_HOURS
    always = cost.host(config.region, config.instance_type, config.root_gib, config.data_gib)
    scheduled = cost.host(config.region, config.instance_type, config.root_gib, config.data_gib, schedule.hours_a_week)
    managed = cost.managed(config.region, config.data_gib)
    if as_json:
        estimates = {"always_on": always, "scheduled": scheduled, "managed": managed}
        content = {name: _plain(estimate) for name, estimate in estimates.items()}
        typer.echo(json.dumps({"region": config.region, "prices_as_of": cost.PRICES_AS_OF, **content}))
        return
    console = Console(emoji=False)
    days = f"{schedule.days[0]}-{schedule.days[-1]}" if len(schedule.days) > 1 else schedule.days[0]
    console.print(f"{config.region}, list prices of {cost.PRICES_AS_OF} in USD a month, without taxes and traffic")
    for title, estimate in (
        ("this stack, always on", always),
        (f"this stack, {days} {schedule.start} to {schedule.stop}", scheduled),
        (f"managed instead: EKS with {cost.NODES} nodes and RDS", managed),
    ):
        table = Table(title, "", "USD", box=None, pad_edge=False)
        table.columns[2].justify = "right"
        for part in estimate.parts:
            table.add_row(f"  {part.name}", part.basis, f"{part.usd:.2f}")
        table.add_row("[bold]  sum[/bold]", "", f"[bold]{estimate.usd:.2f}[/bold]")
        console.print()
        console.print(table)


def stack_file(file: Path) -> StackConfig:
    """The configuration in a `Pulumi.<stack>.yaml`. Raises SettingsError for a missing or wrong one."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        found: dict[str, Any] = content.get("config") or {}
        own = {key.partition(":")[2]: value for key, value in found.items() if key.partition(":")[0] == PROJECT}
    except FileNotFoundError:
        raise SettingsError(
            f"{file} does not exist in this folder", "run in the checkout, or `pulumi stack init` first"
        ) from None
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise SettingsError(f"{file} cannot be read: {error}", "correct it, or `pulumi config refresh`") from None
    return read_config(own)


def _plain(estimate: cost.MonthlyCost) -> dict[str, Any]:
    return {"usd": round(estimate.usd, 2), "parts": {part.name: round(part.usd, 2) for part in estimate.parts}}
