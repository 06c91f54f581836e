"""Rollout: a new bundle reaches the running host, and what fails there fails `pulumi up`, with its reason.

User data cannot do it: it runs once. A Systems Manager association waits only when it is created. So a small dynamic
resource sends the command, tells what the host is doing, waits for the end, and raises the step that failed with the
end of its standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi.dynamic import CheckFailure, CheckResult, CreateResult, DiffResult, Resource, ResourceProvider, UpdateResult

REGISTER_SECONDS = 600.0
RUN_SECONDS = 7200  # of which a first run takes well under one half
PAUSE_SECONDS = 5.0
ASK_SECONDS = 20.0
AGAIN_SECONDS = 300.0  # after which the same is told again
STATE = "/var/lib/health-predict/state"
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


class Host:
    """The instance as Systems Manager knows it. Waits by `pause` on a `clock` in seconds, and tells lines by `say`."""

    def __init__(
        self,
        ec2: Any,
        ssm: Any,
        region: str,
        instance_id: str,
        *,
        say: Callable[[str], None],
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ec2, self.ssm = ec2, ssm
        self.region, self.instance_id = region, instance_id
        self.say, self.pause, self.clock = say, pause, clock

    def run(self, script: str, register_seconds: float = REGISTER_SECONDS, run_seconds: int = RUN_SECONDS) -> str:
        """Run a script there, as root, and return the end of its output. Raises RolloutFailed with its reason."""
        self._wait_for_agent(register_seconds)
        command = self._send(script, run_seconds)
        begin = self.clock()
        asked_at = told_at = begin - AGAIN_SECONDS
        told = ""
        while (seen := self._invocation(command))["Status"] not in _ENDED:
            now = self.clock()
            if now - begin > run_seconds + 300:
                raise RolloutFailed(
                    f"the host {self.instance_id} has been running command {command} for {run_seconds + 300} s -> look "
                    f"at `journalctl -u health-predict-bootstrap` there: `{self._session()}`"
                )
            if now - asked_at >= ASK_SECONDS:
                asked_at = now
                doing = self._doing()
                if doing and (doing != told or now - told_at >= AGAIN_SECONDS):
                    told, told_at = doing, now
                    self.say(f"after {(now - begin) / 60:.0f} min: {doing}")
            self.pause(PAUSE_SECONDS)
        if seen["Status"] != "Success":
            said = (seen.get("StandardErrorContent") or seen.get("StandardOutputContent") or "").strip()
            raise RolloutFailed(
                f"the host {self.instance_id} answered {seen['Status']}:\n{said[-_SHOWN:] or '(nothing was said)'}\n"
                "-> correct that and run `pulumi up` again: it goes on where it stopped"
            )
        return str(seen.get("StandardOutputContent", ""))[-_SHOWN:]

    def _send(self, script: str, seconds: int) -> str:
        sent = self.ssm.send_command(
            InstanceIds=[self.instance_id],
            DocumentName="AWS-RunShellScript",
            Comment="health-predict rollout",
            TimeoutSeconds=600,
            Parameters={"commands": [script], "executionTimeout": [str(seconds)]},
        )
        return str(sent["Command"]["CommandId"])

    def _invocation(self, command: str) -> dict[str, Any]:
        try:
            seen: dict[str, Any] = self.ssm.get_command_invocation(CommandId=command, InstanceId=self.instance_id)
        except self.ssm.exceptions.InvocationDoesNotExist:
            return {"Status": "Pending"}
        return seen

    def _doing(self) -> str:
        """What the bootstrap says it is doing; a command gives its output only at its end, so another one asks."""
        command = self._send(f"cat {STATE}", 60)
        for _ in range(6):
            self.pause(PAUSE_SECONDS / 2)
            if (seen := self._invocation(command))["Status"] in _ENDED:
                return str(seen.get("StandardOutputContent", "")).partition("doing=")[2].strip()
        return ""

    def _session(self) -> str:
        return f"aws ssm start-session --region {self.region} --target {self.instance_id}"

    def _wait_for_agent(self, seconds: float) -> None:
        begin = self.clock()
        arguments = f"--region {self.region} --instance-id {self.instance_id}"
        while True:
            found = self.ec2.describe_instances(InstanceIds=[self.instance_id])["Reservations"][0]["Instances"][0]
            state = found["State"]["Name"]
            if state not in ("pending", "running"):
                start = f"aws ec2 start-instances --region {self.region} --instance-ids {self.instance_id}"
                raise RolloutFailed(f"the host {self.instance_id} is {state} -> `{start}`, then `pulumi up` again")
            listed = self.ssm.describe_instance_information(
                Filters=[{"Key": "InstanceIds", "Values": [self.instance_id]}]
            )
            if any(item["PingStatus"] == "Online" for item in listed["InstanceInformationList"]):
                return
            if self.clock() - begin > seconds:
                raise RolloutFailed(
                    f"the host {self.instance_id} did not register with Systems Manager in {seconds:.0f} s -> see its "
                    f"console with `aws ec2 get-console-output --latest {arguments}`"
                )
            self.pause(PAUSE_SECONDS)


class _Provider(ResourceProvider):
    """Runs the script whenever the instance or what it should run has changed."""

    def check(self, _olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        # Already at the preview: AWS would say so after half of the changes are made.
        smaller = [
            CheckFailure(
                disk,
                f"a volume cannot shrink from {_olds[disk]:.0f} to {news[disk]:.0f} GiB -> "
                f"`pulumi config set {disk} {_olds[disk]:.0f}`",
            )
            for disk in ("data_gib", "root_gib")
            if news[disk] < _olds.get(disk, 0)
        ]
        return CheckResult(news, smaller)

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(id_=f"rollout-{props['instance_id']}", outs={**props, "said": self._run(props)})

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(outs={**_news, "said": self._run(_news)})

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        compared = ("instance_id", "region", "script", "version")
        return DiffResult(changes=any(_olds.get(name) != _news.get(name) for name in compared))

    def _run(self, props: dict[str, Any]) -> str:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        # Pulumi prints the traceback of whatever is raised here; the operator needs the message alone.
        sys.tracebacklimit = 0
        try:
            ec2, ssm = (boto3.client(service, region_name=props["region"]) for service in ("ec2", "ssm"))
            return Host(ec2, ssm, props["region"], props["instance_id"], say=_say).run(props["script"])
        except (BotoCoreError, ClientError) as error:
            raise RolloutFailed(f"{error} -> see that `aws sts get-caller-identity` answers") from None


def _say(line: str) -> None:
    print(line, flush=True)


@dataclass(frozen=True, slots=True)
class RolloutArgs:
    """Arguments of Rollout. `version` is anything that changes when the host must run the script again."""

    region: str
    instance_id: pulumi.Input[str]
    script: pulumi.Input[str]
    version: pulumi.Input[str]
    data_gib: int
    root_gib: int


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
                "data_gib": args.data_gib,
                "root_gib": args.root_gib,
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
                custom_timeouts=pulumi.CustomTimeouts(create="150m", update="150m"),
            ),
        )
        self.register_outputs({})
