"""A plugin `aws` for the Pulumi engine that keeps what it is told in a folder, one JSON file a resource.

It judges as AWS and its provider do where the stack depends on it: what forces a replacement, how many tags an object
takes, that a volume never shrinks, which account is meant. Tests change the files to play what happens in the cloud.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import empty_pb2, json_format, struct_pb2
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc

ACCOUNT = "123456789012"
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"  # the engine's word for what only `up` will know
OBJECT_TAGS = 10
# Inputs whose change means another resource, from the provider's schema.
REPLACING = {
    "aws:ec2/instance:Instance": {
        "ami",
        "associatePublicIpAddress",
        "availabilityZone",
        "privateIp",
        "subnetId",
    },
    "aws:ebs/volume:Volume": {"availabilityZone", "encrypted"},
    "aws:ec2/volumeAttachment:VolumeAttachment": {"deviceName", "instanceId", "volumeId"},
    "aws:ec2/securityGroup:SecurityGroup": {"description", "vpcId"},
    "aws:ec2/subnet:Subnet": {"availabilityZone", "cidrBlock", "vpcId"},
    "aws:ecr/repository:Repository": {"encryptionConfigurations", "name"},
    "aws:s3/bucketObjectv2:BucketObjectv2": {"bucket", "key"},
}


def computed(kind: str, name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """What AWS adds to the inputs of a new resource."""
    found = {"name": name, "arn": f"arn:aws:mock:us-east-1:{ACCOUNT}:{name}"}
    if kind == "aws:ec2/instance:Instance":
        found |= {"publicIp": "198.51.100.7", "publicDns": "host.example", "instanceState": "running"}
    if kind == "aws:ecr/repository:Repository":
        found["repositoryUrl"] = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/{inputs['name']}"
    return found


class Recorder(provider_pb2_grpc.ResourceProviderServicer):
    """The provider, as far as the engine asks it."""

    def __init__(self, cloud: Path) -> None:
        self.cloud = cloud

    def _file(self, identity: str) -> Path:
        return self.cloud / f"{identity}.json"

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return plugin_pb2.PluginInfo(version="7.51.1")

    def CheckConfig(self, request: Any, context: Any) -> Any:
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: Any) -> Any:
        none, some = provider_pb2.DiffResponse.DIFF_NONE, provider_pb2.DiffResponse.DIFF_SOME
        return provider_pb2.DiffResponse(changes=some if request.news != request.olds else none)

    def Configure(self, request: Any, context: Any) -> Any:
        allowed = json.loads(json_format.MessageToDict(request.args).get("allowedAccountIds", "[]"))
        if allowed and ACCOUNT not in allowed:
            context.abort(grpc.StatusCode.UNKNOWN, f"AWS account ID not allowed: {ACCOUNT}")
        return provider_pb2.ConfigureResponse(acceptSecrets=False, supportsPreview=True)

    def Invoke(self, request: Any, context: Any) -> Any:
        answers = {
            "aws:index/getCallerIdentity:getCallerIdentity": {"accountId": ACCOUNT},
            "aws:index/getPartition:getPartition": {"partition": "aws"},
            "aws:ssm/getParameter:getParameter": {"value": (self.cloud / "newest-image").read_text()},
        }
        answer = struct_pb2.Struct()
        answer.update(answers[request.tok])
        return provider_pb2.InvokeResponse(**{"return": answer})

    def Check(self, request: Any, context: Any) -> Any:
        return provider_pb2.CheckResponse(inputs=request.news)

    def Diff(self, request: Any, context: Any) -> Any:
        kind = request.urn.split("::")[2].rpartition("$")[2]
        state, old, new = (json_format.MessageToDict(item) for item in (request.olds, request.old_inputs, request.news))
        # As Terraform's providers do, against what the cloud was last seen to have.
        changed = sorted({key for key in new if new[key] != state.get(key)} | {key for key in old if key not in new})
        replaces = sorted(set(changed) & REPLACING.get(kind, set()))
        none, some = provider_pb2.DiffResponse.DIFF_NONE, provider_pb2.DiffResponse.DIFF_SOME
        return provider_pb2.DiffResponse(changes=some if changed else none, diffs=changed, replaces=replaces)

    def Create(self, request: Any, context: Any) -> Any:
        _, _, kinds, name = request.urn.split("::", 3)
        kind = kinds.rpartition("$")[2]
        inputs = json_format.MessageToDict(request.properties)
        if request.preview:
            return provider_pb2.CreateResponse(properties=request.properties)
        if kind.startswith("aws:s3/bucketObject") and len(inputs.get("tags", {})) > OBJECT_TAGS:
            context.abort(grpc.StatusCode.UNKNOWN, "BadRequest: Object tags cannot be greater than 10")
        identity = f"{kind.rpartition(':')[2]}-{name}"
        self._file(identity).write_text(json.dumps({**computed(kind, name, inputs), **inputs}))
        return provider_pb2.CreateResponse(id=identity, properties=self._properties(identity))

    def Read(self, request: Any, context: Any) -> Any:
        if not self._file(request.id).exists():
            return provider_pb2.ReadResponse()
        state = json.loads(self._file(request.id).read_text())
        inputs = struct_pb2.Struct()
        inputs.update({key: state.get(key) for key in json_format.MessageToDict(request.inputs)})
        return provider_pb2.ReadResponse(id=request.id, properties=self._properties(request.id), inputs=inputs)

    def Update(self, request: Any, context: Any) -> Any:
        new = json_format.MessageToDict(request.news)
        if request.preview:
            properties = struct_pb2.Struct()
            properties.update({**json_format.MessageToDict(request.olds), **new})
            return provider_pb2.UpdateResponse(properties=properties)
        state = json.loads(self._file(request.id).read_text())
        if "size" in new and new["size"] < state["size"]:
            context.abort(grpc.StatusCode.UNKNOWN, "InvalidParameterValue: New size cannot be smaller")
        self._file(request.id).write_text(json.dumps({**state, **new}))
        return provider_pb2.UpdateResponse(properties=self._properties(request.id))

    def Delete(self, request: Any, context: Any) -> Any:
        self._file(request.id).unlink()
        return empty_pb2.Empty()

    def Cancel(self, request: Any, context: Any) -> Any:
        return empty_pb2.Empty()

    def _properties(self, identity: str) -> struct_pb2.Struct:
        properties = struct_pb2.Struct()
        properties.update(json.loads(self._file(identity).read_text()))
        return properties


def main() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(Recorder(Path(os.environ["RECORDED_CLOUD"])), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
