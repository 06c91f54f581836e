"""The rollout through Systems Manager: against moto's API, and against one that fails in every way it can."""

from __future__ import annotations

import sys
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from infra import rollout
from infra.rollout import Host, RolloutFailed


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


class Ec2:
    def __init__(self, state: str = "running") -> None:
        self.state = state

    def describe_instances(self, InstanceIds: list[str]) -> dict[str, Any]:
        return {"Reservations": [{"Instances": [{"State": {"Name": self.state}}]}]}


class Ssm:
    """Registers after some questions, then gives these answers, the last one for ever. Tells its state when asked."""

    class exceptions:  # noqa: N801
        class InvocationDoesNotExist(Exception):
            pass

    def __init__(self, register_after: int, *answers: dict[str, Any] | None, states: tuple[str, ...] = ("",)) -> None:
        self.register_after = register_after
        self.answers = list(answers)
        self.states = list(states)
        self.sent: list[dict[str, Any]] = []

    def describe_instance_information(self, Filters: Any) -> dict[str, Any]:
        self.register_after -= 1
        online = [{"PingStatus": "Online"}] if self.register_after < 0 else []
        return {"InstanceInformationList": online}

    def send_command(self, **arguments: Any) -> dict[str, Any]:
        (script,) = arguments["Parameters"]["commands"]
        if script.startswith("cat "):
            return {"Command": {"CommandId": "state"}}
        self.sent.append(arguments)
        return {"Command": {"CommandId": "c-1"}}

    def get_command_invocation(self, CommandId: str, InstanceId: str) -> dict[str, Any]:
        if CommandId == "state":
            said = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            return {"Status": "Success", "StandardOutputContent": said}
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise self.exceptions.InvocationDoesNotExist
        return answer


def go(ec2: Any, ssm: Any, told: list[str] | None = None, **arguments: Any) -> str:
    clock = Clock()
    said = [] if told is None else told
    host = Host(ec2, ssm, "us-east-1", "i-1", say=said.append, pause=clock.pause, clock=clock)
    return host.run("echo", **arguments)


def test_it_waits_for_the_agent_and_the_command() -> None:
    ssm = Ssm(3, None, {"Status": "InProgress"}, {"Status": "Success", "StandardOutputContent": "ready: bundle=1"})
    assert go(Ec2(), ssm) == "ready: bundle=1"
    assert ssm.sent[0]["Parameters"]["commands"] == ["echo"] and ssm.sent[0]["InstanceIds"] == ["i-1"]
    assert ssm.sent[0]["Parameters"]["executionTimeout"] == ["7200"]


def test_it_tells_what_the_host_is_doing() -> None:
    # given a host that is silent at first, then long in one step, then in another
    building = "step=62-build status=begins doing=Build the images that ECR lacks\n"
    states = ("cat: no such file", *[building] * 18, "step=70-platform doing=Kubeflow Pipelines and MLflow\n")
    running = [{"Status": "InProgress"}] * 100
    told: list[str] = []
    # when it runs
    go(Ec2(), Ssm(0, *running, {"Status": "Success"}, states=states), told)
    # then each step is told once, and again when it takes long
    assert told == [
        "after 0 min: Build the images that ECR lacks",
        "after 6 min: Build the images that ECR lacks",
        "after 7 min: Kubeflow Pipelines and MLflow",
    ]


def test_what_failed_on_the_host_is_in_the_message() -> None:
    failed = {
        "Status": "Failed",
        "StandardErrorContent": "x" * 9000 + "\nstep 50-cluster failed with exit code 1:\nno space",
    }
    with pytest.raises(RolloutFailed, match="step 50-cluster failed with exit code 1:\nno space\n-> correct") as caught:
        go(Ec2(), Ssm(0, failed))
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("status", ["TimedOut", "Cancelled", "Undeliverable"])
def test_every_other_end_is_a_failure(status: str) -> None:
    with pytest.raises(RolloutFailed, match=f"answered {status}:\n\\(nothing was said\\)"):
        go(Ec2(), Ssm(0, {"Status": status}))


def test_waits_have_an_end() -> None:
    with pytest.raises(RolloutFailed, match="did not register with Systems Manager in 600 s -> "):
        go(Ec2(), Ssm(10**9, None))
    with pytest.raises(
        RolloutFailed, match=r"has been running command c-1 for 400 s -> .*`aws ssm start-session --reg"
    ):
        go(Ec2(), Ssm(0, {"Status": "InProgress"}), run_seconds=100)


@pytest.mark.parametrize(("disk", "size"), [("data_gib", 30), ("root_gib", 39)])
def test_a_volume_that_would_shrink_is_refused_before_anything_changes(disk: str, size: int) -> None:
    # given a stack with 40 and 50 GiB
    provider = rollout._Provider()
    old = {"data_gib": 50.0, "root_gib": 40.0}
    assert provider.check({}, old).failures == provider.check(old, {**old, "data_gib": 60.0}).failures == []
    # when one of them should get smaller
    (failure,) = provider.check(old, {**old, disk: float(size)}).failures
    # then the remedy is the size it has
    assert failure.property == disk and f"pulumi config set {disk} {old[disk]:.0f}`" in failure.reason


def test_a_stopped_host_is_not_waited_for() -> None:
    with pytest.raises(RolloutFailed, match="is stopped -> `aws ec2 start-instances --region us-east-1"):
        go(Ec2("stopped"), Ssm(0, None))


def test_the_provider_runs_when_something_changed() -> None:
    provider = rollout._Provider()
    old = {"instance_id": "i-1", "region": "r", "script": "s", "version": "1", "said": "ready"}
    assert provider.diff("x", old, {**old, "said": None}).changes is False
    for name in ("instance_id", "region", "script", "version"):
        assert provider.diff("x", old, {**old, name: "other"}).changes is True


def test_the_calls_are_those_of_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setattr(Host, "_wait_for_agent", lambda *_: None)  # moto registers no agents
    monkeypatch.setattr(sys, "tracebacklimit", 9, raising=False)  # the provider sets it for its own process
    with mock_aws():
        ec2, ssm = (boto3.client(name, region_name="us-east-1") for name in ("ec2", "ssm"))
        image = ec2.describe_images()["Images"][0]["ImageId"]
        instance = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
        Host(ec2, ssm, "us-east-1", instance, say=print).run("echo ready")
        properties = {"instance_id": instance, "region": "us-east-1", "script": "echo", "version": "1"}
        created = rollout._Provider().create(properties)
        assert created.id == f"rollout-{instance}" and "said" in (created.outs or {})
        assert rollout._Provider().update(created.id, properties, properties).outs


def test_a_host_without_an_agent_is_named() -> None:
    # given the API's own model of the call, and no agent
    session = boto3.Session("test", "test", region_name="us-east-1")
    ec2, ssm = session.client("ec2"), session.client("ssm")
    running = {"Reservations": [{"Instances": [{"State": {"Name": "running"}}]}]}
    with Stubber(ec2) as asked, Stubber(ssm) as agents:
        asked.add_response("describe_instances", running, {"InstanceIds": ["i-0abc"]})
        wanted = {"Filters": [{"Key": "InstanceIds", "Values": ["i-0abc"]}]}
        agents.add_response("describe_instance_information", {"InstanceInformationList": []}, wanted)
        # then the wait ends
        with pytest.raises(RolloutFailed, match="did not register"):
            Host(ec2, ssm, "us-east-1", "i-0abc", say=print).run("echo", register_seconds=-1)
