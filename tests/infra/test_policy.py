"""The policy pack over what the program registers, and served as the CLI would ask it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import struct_pb2
from pulumi.runtime.proto import analyzer_pb2, analyzer_pb2_grpc

from policy.rules import CHECKS, TAGGED, bucket_parts
from tests.infra.program import ROOT, Captured, Stack, run

EVERYTHING = {
    "operator_cidr": "203.0.113.7/32",
    "open_ports": ["api"],
    "schedule": {"timezone": "UTC"},
    "budget_email": "ops@example.org",
    "alarm_email": "ops@example.org",
}
INSTANCE = "aws:ec2/instance:Instance"
GROUP = "aws:ec2/securityGroup:SecurityGroup"
ROLE_POLICY = "aws:iam/rolePolicy:RolePolicy"


@pytest.fixture(scope="module")
def whole() -> Stack:
    return run(EVERYTHING)


def violations(kind: str, props: dict[str, Any]) -> dict[str, list[str]]:
    found = {name: list(check(kind, props)) for name, check in CHECKS.items()}
    return {name: problems for name, problems in found.items() if problems}


def test_the_program_breaks_no_rule(whole: Stack) -> None:
    for item in whole.resources:
        assert violations(item.type, item.inputs) == {}, item.name
    assert list(bucket_parts([item.type for item in whole.resources])) == []
    # and the rules know every kind that is tagged
    assert {item.type for item in whole.resources if "tags" in item.inputs} <= set(TAGGED)


def _statement(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def spoil(props: dict[str, Any]) -> None:
        document = json.loads(props["policy"])
        document["Statement"][0] |= changes
        props["policy"] = json.dumps(document)

    return spoil


Spoil = Callable[[dict[str, Any]], object]
BROKEN: list[tuple[str, Spoil, str, str]] = [
    (GROUP, lambda p: p["ingress"][0].update(cidrBlocks=["0.0.0.0/0"]), "no-public-ingress", "lets 0.0.0.0/0 in"),
    (GROUP, lambda p: p["ingress"][0].update(cidrBlocks=["203.0.0.0/16"]), "no-public-ingress", "203.0.0.0/16"),
    (GROUP, lambda p: p["ingress"][0].update(cidrBlocks=["203.0.113.6/31"]), "no-public-ingress", "name one address"),
    (GROUP, lambda p: p["ingress"][0].update(fromPort=5050, toPort=5050), "no-public-ingress", "opens ports 5050"),
    (GROUP, lambda p: p["ingress"][0].update(ipv6CidrBlocks=["::/0"]), "no-public-ingress", "::/0"),
    ("aws:ebs/volume:Volume", lambda p: p.update(encrypted=False), "encrypted", "not encrypted"),
    ("aws:ebs/volume:Volume", lambda p: p.pop("encrypted"), "encrypted", "not encrypted"),
    (INSTANCE, lambda p: p["rootBlockDevice"].pop("encrypted"), "encrypted", "root volume"),
    (INSTANCE, lambda p: p.update(ebsBlockDevices=[{"deviceName": "x"}]), "encrypted", "a volume"),
    (INSTANCE, lambda p: p["metadataOptions"].update(httpTokens="optional"), "imds-v2", "without a token"),
    (INSTANCE, lambda p: p.pop("metadataOptions"), "imds-v2", "without a token"),
    (INSTANCE, lambda p: p["metadataOptions"].update(httpPutResponseHopLimit=2), "imds-v2", "to containers"),
    (INSTANCE, lambda p: p["metadataOptions"].pop("httpPutResponseHopLimit"), "imds-v2", "to containers"),
    (INSTANCE, lambda p: p["tags"].pop("Project"), "tagged", "no tag Project"),
    ("aws:s3/bucket:Bucket", lambda p: p.pop("tags"), "tagged", "Project, Stack, ManagedBy"),
    ("aws:s3/bucket:Bucket", lambda p: p.update(acl="public-read"), "no-open-bucket", "public-read"),
    (
        "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock",
        lambda p: p.update(blockPublicPolicy=False),
        "no-open-bucket",
        "blockPublicPolicy is off",
    ),
    ("aws:ecr/repository:Repository", lambda p: p.pop("encryptionConfigurations"), "encrypted", "images"),
    (ROLE_POLICY, _statement(Action="s3:*"), "no-wildcard-iam", "allows s3:*"),
    (ROLE_POLICY, _statement(Resource="*"), "no-wildcard-iam", "on every resource"),
    (ROLE_POLICY, _statement(NotAction="iam:*"), "no-wildcard-iam", "all but something"),
    (
        "aws:iam/role:Role",
        lambda p: p.update(assumeRolePolicy=p["assumeRolePolicy"].replace('{"Service": "ec2.amazonaws.com"}', '"*"')),
        "no-wildcard-iam",
        "trusts everybody",
    ),
    (
        "aws:iam/role:Role",
        lambda p: p.update(
            assumeRolePolicy=p["assumeRolePolicy"].replace(
                '{"Service": "ec2.amazonaws.com"}', '{"AWS": "arn:aws:iam::123456789012:root"}'
            )
        ),
        "no-wildcard-iam",
        "trusts a whole account",
    ),
]


@pytest.mark.parametrize(("kind", "spoil", "rule", "words"), BROKEN, ids=[f"{row[0]} {row[3]}" for row in BROKEN])
def test_a_broken_rule_is_reported(whole: Stack, kind: str, spoil: Spoil, rule: str, words: str) -> None:
    # given a resource of the program with one fault
    first = next(item for item in whole.of(kind) if "scheduler" not in item.name)
    props = copy.deepcopy(first.inputs)
    spoil(props)
    # then this rule alone finds it, and says what to do
    found = violations(kind, props)
    assert list(found) == [rule] and any(words in problem and " -> " in problem for problem in found[rule])


def test_rules_beside_the_resources_of_the_program() -> None:
    rule = {"type": "ingress", "cidrBlocks": ["0.0.0.0/0"]}
    assert "no-public-ingress" in violations("aws:ec2/securityGroupRule:SecurityGroupRule", rule)
    assert not violations("aws:ec2/securityGroupRule:SecurityGroupRule", {**rule, "type": "egress"})
    assert "no-public-ingress" in violations(
        "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule", {"cidrIpv4": "10.0.0.0/8"}
    )
    administrator = {"policyArn": "arn:aws:iam::aws:policy/AdministratorAccess"}
    assert "no-wildcard-iam" in violations("aws:iam/rolePolicyAttachment:RolePolicyAttachment", administrator)


def test_a_bucket_without_one_of_its_parts_is_reported(whole: Stack) -> None:
    kinds = [item.type for item in whole.resources]
    for part in ("PublicAccessBlock", "ServerSideEncryptionConfiguration", "Versioning", "Policy"):
        left = [kind for kind in kinds if not kind.endswith(f":Bucket{part}")]
        assert list(bucket_parts(left)) == [f"a bucket has no bucket{part} -> see infra/storage.py"]


@pytest.fixture(scope="module")
def analyzer() -> Iterator[analyzer_pb2_grpc.AnalyzerStub]:
    """The pack as `pulumi up --policy-pack` starts it: it prints its port and answers the engine's questions."""
    pack = ROOT / "pulumi" / "policy"
    # Unbuffered, as Pulumi runs it: the pack does not flush the port that it prints.
    command = [sys.executable, "-u", "-W", "ignore", str(pack)]
    server = subprocess.Popen(command, cwd=pack, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline())
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield analyzer_pb2_grpc.AnalyzerStub(channel)
    server.kill()
    server.wait(30)


def _asked(analyzer: analyzer_pb2_grpc.AnalyzerStub, item: Captured, props: dict[str, Any]) -> list[Any]:
    properties = struct_pb2.Struct()
    properties.update(props)
    urn = f"urn:pulumi:dev::health-predict::{item.type}::{item.name}"
    request = analyzer_pb2.AnalyzeRequest(type=item.type, properties=properties, urn=urn, name=item.name)
    return list(analyzer.Analyze(request, timeout=60).diagnostics)


def test_the_pack_answers_the_engine(whole: Stack, analyzer: analyzer_pb2_grpc.AnalyzerStub) -> None:
    for item in whole.resources:
        if item.type.startswith("aws:"):
            assert _asked(analyzer, item, item.inputs) == [], item.name
    group = whole.one("securityGroup:SecurityGroup")
    spoilt = copy.deepcopy(group.inputs)
    spoilt["ingress"][0]["cidrBlocks"] = ["0.0.0.0/0"]
    (diagnostic,) = _asked(analyzer, group, spoilt)
    assert diagnostic.policyName == "no-public-ingress" and diagnostic.enforcementLevel == analyzer_pb2.MANDATORY
