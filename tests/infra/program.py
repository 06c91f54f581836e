"""Runs the Pulumi program without the CLI and captures what it would create, resource options included."""

from __future__ import annotations

import asyncio
import json
import runpy
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
from google.protobuf import json_format
from pulumi.runtime import mocks
from pulumi.runtime.settings import set_root_resource
from pulumi.runtime.stack import run_in_stack

ROOT = Path(__file__).parents[2]
ACCOUNT = "123456789012"


@dataclass(frozen=True)
class Captured:
    """One resource as it was registered."""

    type: str
    name: str
    inputs: dict[str, Any]
    options: dict[str, Any]
    parent: str
    depends_on: tuple[str, ...]


@dataclass
class Stack:
    """All resources of one run, and its outputs."""

    resources: list[Captured] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> list[Captured]:
        """Resources whose type ends with `kind`, as in `ec2/instance:Instance`."""
        return [item for item in self.resources if item.type.endswith(kind)]

    def one(self, kind: str, name: str = "") -> Captured:
        found = [item for item in self.of(kind) if not name or item.name == name]
        assert len(found) == 1, f"{len(found)} of {kind} {name}: {[item.name for item in found]}"
        return found[0]


class _Cloud(pulumi.runtime.Mocks):
    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        outputs = {"name": args.name, **args.inputs, "arn": f"arn:aws:mock:us-east-1:{ACCOUNT}:{args.name}"}
        if args.typ == "aws:ec2/instance:Instance":
            outputs |= {"publicIp": "198.51.100.7", "publicDns": "host.example"}
            outputs["arn"] = f"arn:aws:ec2:us-east-1:{ACCOUNT}:instance/i-0abc"
            return "i-0abc", outputs
        if args.typ == "aws:ebs/volume:Volume":
            return "vol-0abc", outputs
        if args.typ == "aws:iam/role:Role":
            outputs["arn"] = f"arn:aws:iam::{ACCOUNT}:role/{args.name}"
        if args.typ == "aws:sns/topic:Topic":
            outputs["arn"] = f"arn:aws:sns:us-east-1:{ACCOUNT}:{args.name}"
        if args.typ == "aws:s3/bucket:Bucket":
            outputs["arn"] = f"arn:aws:s3:::{args.name}"
        if args.typ == "aws:ecr/repository:Repository":
            outputs["repositoryUrl"] = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/{args.inputs['name']}"
            outputs["arn"] = f"arn:aws:ecr:us-east-1:{ACCOUNT}:repository/{args.inputs['name']}"
        return args.name, outputs

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[str, Any]:
        return {
            "aws:index/getCallerIdentity:getCallerIdentity": {"accountId": ACCOUNT},
            "aws:index/getPartition:getPartition": {"partition": "aws"},
            "aws:ssm/getParameter:getParameter": {"value": "ami-0abc"},
        }[args.token]


class _Monitor(mocks.MockMonitor):
    """Keeps what `Mocks` does not see: protect, ignoreChanges, deleteBeforeReplace, dependencies."""

    def __init__(self, cloud: _Cloud, stack: Stack) -> None:
        super().__init__(cloud)
        self.stack = stack

    def RegisterResource(self, request: Any) -> Any:
        answer = super().RegisterResource(request)
        if request.type != "pulumi:pulumi:Stack":
            options = {
                "protect": request.protect,
                "ignore_changes": list(request.ignoreChanges),
                "replace_on_changes": list(request.replaceOnChanges),
                "delete_before_replace": request.deleteBeforeReplace,
                "retain_on_delete": request.retainOnDelete,
                "provider": request.provider,
                "create_timeout": request.customTimeouts.create,
            }
            self.stack.resources.append(
                Captured(
                    request.type,
                    request.name,
                    json_format.MessageToDict(request.object),
                    options,
                    request.parent,
                    tuple(request.dependencies),
                )
            )
        return answer

    def RegisterResourceOutputs(self, request: Any) -> Any:
        if "::pulumi:pulumi:Stack::" in request.urn:
            self.stack.outputs = json_format.MessageToDict(request.outputs)
        return super().RegisterResourceOutputs(request)


def run(config: Mapping[str, Any] | None = None, program: Path = ROOT / "pulumi", stack_name: str = "dev") -> Stack:
    """Run the program in this process. Configuration values are written as `pulumi config set` would."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    # Pulumi's mocks would open a loop in each thread that asks them, and leave it open.
    loops = [loop]

    def open_loop() -> None:
        loops.append(asyncio.new_event_loop())
        asyncio.set_event_loop(loops[-1])

    threads = ThreadPoolExecutor(initializer=open_loop)
    loop.set_default_executor(threads)
    stack = Stack()
    monitor = _Monitor(_Cloud(), stack)
    texts = {
        f"health-predict:{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in {"image_tag": "0123abc", **(config or {})}.items()
    }
    pulumi.runtime.set_mocks(monitor.mocks, "health-predict", stack_name, preview=False, monitor=monitor)
    pulumi.runtime.set_all_config(texts)
    for module in [name for name in sys.modules if name.partition(".")[0] == "infra"]:
        del sys.modules[module]
    sys.path.insert(0, str(program))
    try:
        set_root_resource(None)  # type: ignore[arg-type]
        loop.run_until_complete(run_in_stack(lambda: _execute(program)))
    finally:
        sys.path.remove(str(program))
        threads.shutdown()
        for opened in loops:
            opened.close()
    return stack


def _execute(program: Path) -> None:
    runpy.run_path(str(program / "__main__.py"), run_name="__main__")


if __name__ == "__main__":
    for item in run(json.loads(sys.argv[1]) if sys.argv[1:] else {}).resources:
        print(item.type, item.name, item.options)
