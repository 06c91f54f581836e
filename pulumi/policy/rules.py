"""The rules. Each looks at one resource as it is about to be created, except where a bucket's parts must be counted."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pulumi_policy import (
    Policy,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    StackValidationArgs,
    StackValidationPolicy,
)

ENDPOINT_PORT = 3000
REQUIRED_TAGS = ("Project", "Stack", "ManagedBy")
TAGGED = (
    "aws:budgets/budget:Budget",
    "aws:cloudwatch/metricAlarm:MetricAlarm",
    "aws:ebs/volume:Volume",
    "aws:ec2/defaultSecurityGroup:DefaultSecurityGroup",
    "aws:ec2/instance:Instance",
    "aws:ec2/internetGateway:InternetGateway",
    "aws:ec2/routeTable:RouteTable",
    "aws:ec2/securityGroup:SecurityGroup",
    "aws:ec2/subnet:Subnet",
    "aws:ec2/vpc:Vpc",
    "aws:ecr/repository:Repository",
    "aws:iam/instanceProfile:InstanceProfile",
    "aws:iam/policy:Policy",
    "aws:iam/role:Role",
    "aws:s3/bucket:Bucket",
    "aws:s3/bucketObjectv2:BucketObjectv2",
    "aws:sns/topic:Topic",
)
# AWS knows no resource for these; `*` is all one can write.
_WITHOUT_RESOURCE = ("cloudwatch:PutMetricData", "ec2messages:", "ecr:GetAuthorizationToken", "ssmmessages:")
_TOO_POWERFUL = ("AdministratorAccess", "PowerUserAccess", "IAMFullAccess")
_CLOSED = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")

Check = Callable[[str, Mapping[str, Any]], Iterator[str]]


def public_ingress(kind: str, props: Mapping[str, Any]) -> Iterator[str]:
    """Nothing comes in but from one address, to the port of the endpoint, which asks for a token."""
    if kind == "aws:ec2/securityGroup:SecurityGroup":
        rules = list(props.get("ingress") or [])
    elif kind == "aws:ec2/securityGroupRule:SecurityGroupRule" and props.get("type") == "ingress":
        rules = [props]
    elif kind == "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule":
        rules = [{**props, "cidrBlocks": [props.get("cidrIpv4")], "ipv6CidrBlocks": [props.get("cidrIpv6")]}]
    else:
        return
    for rule in rules:
        if (rule.get("fromPort"), rule.get("toPort")) != (ENDPOINT_PORT, ENDPOINT_PORT):
            yield f"opens ports {rule.get('fromPort')} to {rule.get('toPort')} -> forward them by Systems Manager"
        for cidr in (*(rule.get("cidrBlocks") or ()), *(rule.get("ipv6CidrBlocks") or ())):
            if not cidr:
                continue
            network = ipaddress.ip_network(cidr, strict=False)
            if network.num_addresses > 1:
                yield f"lets {cidr} in -> name one address, or use Systems Manager"


def unencrypted(kind: str, props: Mapping[str, Any]) -> Iterator[str]:
    """Every disk and every image is encrypted."""
    disks: list[tuple[str, Any]] = []
    if kind == "aws:ebs/volume:Volume":
        disks = [("the volume", props)]
    elif kind == "aws:ec2/instance:Instance":
        disks = [("the root volume", props.get("rootBlockDevice") or {})]
        disks += [("a volume", item) for item in props.get("ebsBlockDevices") or ()]
    for name, disk in disks:
        if disk.get("encrypted") is not True:
            yield f"{name} is not encrypted -> encrypted=True"
    if kind == "aws:ecr/repository:Repository" and not props.get("encryptionConfigurations"):
        yield "images are not encrypted -> encryption_configurations"


def wildcard_iam(kind: str, props: Mapping[str, Any]) -> Iterator[str]:
    """No action of a service as a whole, no resource `*` where AWS knows one, no administrator."""
    attached = props.get("policyArn")
    if attached and str(attached).rpartition("/")[2] in _TOO_POWERFUL:
        yield f"attaches {attached} -> allow single actions on single resources"
    if not kind.startswith("aws:iam/"):
        return
    for text in (props.get("policy"), props.get("assumeRolePolicy")):
        document = json.loads(text) if isinstance(text, str) else text or {}
        for statement in _list(document.get("Statement")):
            if statement.get("Effect") == "Allow":
                yield from _wildcards(statement)


def _wildcards(statement: Mapping[str, Any]) -> Iterator[str]:
    if "NotAction" in statement or "NotResource" in statement:
        yield "allows all but something -> list what is allowed"
    principal = statement.get("Principal")
    if principal == "*" or (isinstance(principal, Mapping) and "*" in _list(principal.get("AWS"))):
        yield "trusts everybody -> name the service or role"
    if isinstance(principal, Mapping) and any(str(arn).endswith(":root") for arn in _list(principal.get("AWS"))):
        yield "trusts a whole account -> name the role"
    actions = _list(statement.get("Action"))
    for action in actions:
        if "*" in action:
            yield f"allows {action} -> list single actions"
    if "*" in _list(statement.get("Resource")):
        named = [action for action in actions if not action.startswith(_WITHOUT_RESOURCE)]
        if named:
            yield f"allows {', '.join(named)} on every resource -> name the resources"


def untagged(kind: str, props: Mapping[str, Any]) -> Iterator[str]:
    """Whatever can have tags says whose it is."""
    missing = [tag for tag in REQUIRED_TAGS if not (props.get("tags") or {}).get(tag)]
    if kind in TAGGED and missing:
        yield f"has no tag {', '.join(missing)} -> tags=config.resource_tags(stack)"


def old_metadata(kind: str, props: Mapping[str, Any]) -> Iterator[str]:
    """The metadata service answers only who holds a token, and the host alone."""
    if kind != "aws:ec2/instance:Instance":
        return
    options = props.get("metadataOptions") or {}
    if options.get("httpTokens") != "required":
        yield 'answers metadata requests without a token -> metadata_options http_tokens="required"'
    if options.get("httpPutResponseHopLimit") != 1:
        yield "gives its role to containers -> metadata_options http_put_response_hop_limit=1"


def open_bucket(kind: str, props: Mapping[str, Any]) -> Iterator[str]:
    """No bucket and no object is public."""
    if kind.startswith("aws:s3/") and str(props.get("acl", "")).startswith(("public", "authenticated")):
        yield f"has ACL {props['acl']} -> none"
    if kind == "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock":
        for name in _CLOSED:
            if props.get(name) is not True:
                yield f"{name} is off -> True"


def bucket_parts(kinds: list[str]) -> Iterator[str]:
    """Each bucket of a stack is closed, encrypted, versioned and asks for TLS."""
    buckets = kinds.count("aws:s3/bucket:Bucket")
    for part in ("PublicAccessBlock", "ServerSideEncryptionConfiguration", "Versioning", "Policy"):
        name = f"bucket{part}"
        if kinds.count(f"aws:s3/{name}:{name[0].upper()}{name[1:]}") < buckets:
            yield f"a bucket has no {name} -> see infra/storage.py"


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _policy(name: str, check: Check) -> ResourceValidationPolicy:
    def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
        for problem in check(args.resource_type, args.props):
            report(f"{args.name} {problem}", None)

    return ResourceValidationPolicy(name=name, description=check.__doc__ or name, validate=validate)


def _whole_stack(args: StackValidationArgs, report: ReportViolation) -> None:
    for problem in bucket_parts([resource.resource_type for resource in args.resources]):
        report(problem, None)


CHECKS: Mapping[str, Check] = {
    "no-public-ingress": public_ingress,
    "encrypted": unencrypted,
    "no-wildcard-iam": wildcard_iam,
    "tagged": untagged,
    "imds-v2": old_metadata,
    "no-open-bucket": open_bucket,
}
POLICIES: list[Policy] = [
    *(_policy(name, check) for name, check in CHECKS.items()),
    StackValidationPolicy(name="whole-buckets", description=bucket_parts.__doc__ or "", validate=_whole_stack),
]
