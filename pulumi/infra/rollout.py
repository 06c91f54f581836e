"""Rollout: a new bundle reaches the running host, and what fails there fails `pulumi up`, with its reason.

User data cannot do it: it runs once. A Systems Manager association waits only when it is created. So a small dynamic
resource sends the command, waits for its end, and raises the step that failed with the end of its standard error.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, ResourceProvider, UpdateResult

REGISTER_SECONDS = 600.0
RUN_SECONDS = 2400
PAUSE_SECONDS = 5.0
_SHOWN = 2500  # characters of an error
_ENDED = (
    "Success",
    "Failed",
    "Cancelled",
    "TimedOut",
    "Undeliverable",
    "Terminated",
    "InvalidPlatform",
    "AccessDenied",
)


class RolloutFailed(Exception):
    """The host did not come up; the message is what Pulumi shows."""


def run_on_host(
    ec2: Any,
    ssm: Any,
    instance_id: str,
    script: str,
    *,
    register_seconds: float = REGISTER_SECONDS,
    run_seconds: int = RUN_SECONDS,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Run a script on the instance and return the end of its output. Raises RolloutFailed with its reason."""
    _wait_for_agent(ec2, ssm, instance_id, register_seconds, pause, clock)
    sent = ssm.send_command(
        InstanceIds=[instance_id],
        DocumentName="AWS-RunShellScript",
        Comment="health-predict rollout",
        TimeoutSeconds=600,
        Parameters={"commands": [script], "executionTimeout": [str(run_seconds)]},
    )
    command = sent["Command"]["CommandId"]
    deadline = clock() + run_seconds + 300
    while True:
        try:
            seen = ssm.get_command_invocation(CommandId=command, InstanceId=instance_id)
        except ssm.exceptions.InvocationDoesNotExist:
            seen = {"Status": "Pending"}
        if seen["Status"] in _ENDED:
            break
        if clock() > deadline:
            raise RolloutFailed(
                f"the host {instance_id} has been running command {command} for {run_seconds + 300} s -> open a "
                "session (`pulumi stack output session`) and look at `journalctl -u health-predict-bootstrap`"
            )
        pause(PAUSE_SECONDS)
    if seen["Status"] != "Success":
        said = (seen.get("StandardErrorContent") or seen.get("StandardOutputContent") or "").strip()
        raise RolloutFailed(
            f"the host {instance_id} answered {seen['Status']}:\n{said[-_SHOWN:] or '(nothing was said)'}\n"
            "-> correct that and run `pulumi up` again: it goes on where it stopped"
        )
    return str(seen.get("StandardOutputContent", ""))[-_SHOWN:]


def _wait_for_agent(
    ec2: Any, ssm: Any, instance_id: str, seconds: float, pause: Callable[[float], None], clock: Callable[[], float]
) -> None:
    deadline = clock() + seconds
    while True:
        found = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]["State"]["Name"]
        if found not in ("pending", "running"):
            raise RolloutFailed(
                f"the host {instance_id} is {found} -> `aws ec2 start-instances --instance-ids {instance_id}`, then "
                "`pulumi up` again"
            )
        listed = ssm.describe_instance_information(Filters=[{"Key": "InstanceIds", "Values": [instance_id]}])
        if any(item["PingStatus"] == "Online" for item in listed["InstanceInformationList"]):
            return
        if clock() > deadline:
            raise RolloutFailed(
                f"the host {instance_id} did not register with Systems Manager in {seconds:.0f} s -> see its console "
                f"with `aws ec2 get-console-output --latest --instance-id {instance_id}`"
            )
        pause(PAUSE_SECONDS)


class _Provider(ResourceProvider):
    """Runs the script whenever the instance or what it should run has changed."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(id_=f"rollout-{props['instance_id']}", outs={**props, "said": self._run(props)})

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(outs={**_news, "said": self._run(_news)})

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        compared = ("instance_id", "region", "script", "version")
        return DiffResult(changes=any(_olds.get(name) != _news.get(name) for name in compared))

    def _run(self, props: dict[str, Any]) -> str:
        import boto3

        ec2, ssm = (boto3.client(service, region_name=props["region"]) for service in ("ec2", "ssm"))
        return run_on_host(ec2, ssm, props["instance_id"], props["script"])


@dataclass(frozen=True, slots=True)
class RolloutArgs:
    """Arguments of Rollout. `version` is anything that changes when the host must run the script again."""

    region: str
    instance_id: pulumi.Input[str]
    script: pulumi.Input[str]
    version: pulumi.Input[str]


class _Command(Resource):
    def __init__(self, name: str, args: RolloutArgs, opts: pulumi.ResourceOptions) -> None:
        super().__init__(
            _Provider(),
            name,
            {
                "region": args.region,
                "instance_id": args.instance_id,
                "script": args.script,
                "version": args.version,
                "said": None,
            },
            opts,
        )


class Rollout(pulumi.ComponentResource):
    """Brings the host to the current bundle; done when the platform is ready."""

    def __init__(self, name: str, args: RolloutArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("health-predict:infra:Rollout", name, None, opts)
        self.command = _Command(
            name,
            args,
            pulumi.ResourceOptions(
                parent=self,
                custom_timeouts=pulumi.CustomTimeouts(create="75m", update="75m"),
            ),
        )
        self.register_outputs({})
