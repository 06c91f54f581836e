"""Identity: what the host can do in AWS, and what each workload on it can, by a role of its own."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws

from infra.alarms import NAMESPACE

# Actions for which AWS knows no resource: their only possible resource is `*`.
WITHOUT_RESOURCE = (
    "ec2messages:AcknowledgeMessage",
    "ec2messages:DeleteMessage",
    "ec2messages:FailMessage",
    "ec2messages:GetEndpoint",
    "ec2messages:GetMessages",
    "ec2messages:SendReply",
    "ecr:GetAuthorizationToken",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
)
DATA = "health-predict"  # prefix of the bucket, as HEALTH_PREDICT_STORAGE_URI of k8s/overlays/aws names it
WORKLOADS = ("service", "mlflow", "backup", "tasks")
PULL = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:DescribeImages", "ecr:GetDownloadUrlForLayer")
PUSH = ("ecr:CompleteLayerUpload", "ecr:InitiateLayerUpload", "ecr:PutImage", "ecr:UploadLayerPart")
WRITE = ("s3:AbortMultipartUpload", "s3:ListMultipartUploadParts", "s3:PutObject")

Statement = dict[str, Any]


@dataclass(frozen=True, slots=True)
class IdentityArgs:
    """Arguments of Identity. The policies name exactly these resources; `repository_arns` are by image.

    `kms_key`: ARN of the key that encrypts the bucket; empty: S3's own. `operators`: ARNs of the people and roles who
    may take the operators' role; empty: there is none.
    """

    bucket_arn: pulumi.Input[str]
    repository_arns: Mapping[str, pulumi.Input[str]]
    topic_arn: pulumi.Input[str]
    partition: str
    region: str
    account_id: str
    tags: Mapping[str, str]
    kms_key: str = ""
    operators: Sequence[str] = ()


class Identity(pulumi.ComponentResource):
    """The host's role and instance profile, the workloads' roles, which the host alone may take, and the operators'."""

    def __init__(self, name: str, args: IdentityArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("health-predict:infra:Identity", name, None, opts)
        inside = pulumi.ResourceOptions(parent=self)
        tags = {**args.tags, "Name": name}
        self.role = aws.iam.Role(
            name, aws.iam.RoleArgs(assume_role_policy=trust_policy("ec2.amazonaws.com"), tags=tags), opts=inside
        )
        trust = self.role.arn.apply(trust_of_role)
        arns = pulumi.Output.all(args.bucket_arn, args.topic_arn, args.repository_arns["readmission"])
        self.workloads: dict[str, aws.iam.Role] = {}
        for workload in WORKLOADS:
            policy = arns.apply(functools.partial(_policy_of, workload, args.kms_key))
            self.workloads[workload] = self._role(f"{name}-{workload}", args.tags, trust, policy)
        if args.operators:
            policy = pulumi.Output.from_input(args.bucket_arn).apply(lambda arn: operator_policy(arn, args.kms_key))
            self._role(f"{name}-operator", args.tags, trust_of_people(args.operators), policy)
        roles = [role.arn for role in self.workloads.values()]
        policy = pulumi.Output.all(args.bucket_arn, roles, list(args.repository_arns.values())).apply(
            lambda found: host_policy(args, found[0], found[1], found[2])
        )
        self.policy = aws.iam.RolePolicy(name, aws.iam.RolePolicyArgs(role=self.role.id, policy=policy), opts=inside)
        self.profile = aws.iam.InstanceProfile(
            name, aws.iam.InstanceProfileArgs(role=self.role.name, tags=tags), opts=inside
        )
        self.register_outputs({"role_arn": self.role.arn})

    def _role(
        self, name: str, tags: Mapping[str, str], trust: pulumi.Input[str], policy: pulumi.Input[str]
    ) -> aws.iam.Role:
        """A role by its trust policy, with one policy of what it may do."""
        inside = pulumi.ResourceOptions(parent=self)
        made = aws.iam.Role(name, aws.iam.RoleArgs(assume_role_policy=trust, tags={**tags, "Name": name}), opts=inside)
        aws.iam.RolePolicy(name, aws.iam.RolePolicyArgs(role=made.id, policy=policy), opts=inside)
        return made


def trust_policy(service: str, source_account: str = "") -> str:
    """Policy by which an AWS service may take a role; with `source_account`, only on that account's behalf."""
    statement: Statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    if source_account:
        statement["Condition"] = {"StringEquals": {"aws:SourceAccount": source_account}}
    return _document([statement])


def trust_of_role(arn: str) -> str:
    """Policy by which one role may take another."""
    return _document([{"Effect": "Allow", "Principal": {"AWS": arn}, "Action": "sts:AssumeRole"}])


def trust_of_people(arns: Sequence[str]) -> str:
    """Policy by which these people and roles may take a role, who signed in with a second factor."""
    statement: Statement = {"Effect": "Allow", "Principal": {"AWS": list(arns)}, "Action": "sts:AssumeRole"}
    return _document([{**statement, "Condition": {"Bool": {"aws:MultiFactorAuthPresent": "true"}}}])


def operator_policy(bucket_arn: str, kms_key: str = "") -> str:
    """To remove a patient from all that is kept, old versions too, which no workload may."""
    names = ["s3:ListBucket", "s3:ListBucketVersions"]
    erase = ["s3:GetObject", "s3:DeleteObject", "s3:DeleteObjectVersion", *WRITE]
    return _document(
        [
            _allow("ListBucket", names, [bucket_arn]),
            _allow("ReadRaw", ["s3:GetObject"], [f"{bucket_arn}/raw/*"]),
            _allow("Erase", erase, [f"{bucket_arn}/{DATA}/*"]),
            *_key(kms_key),
        ]
    )


def workload_policies(bucket_arn: str, topic_arn: str, readmission_arn: str, kms_key: str = "") -> dict[str, str]:
    """What each workload may do, by its name.

    Who reads lists too: without that, S3 answers 403 for an object that is not there.
    """

    def below(*prefixes: str) -> list[str]:
        return [f"{bucket_arn}/{prefix}/*" for prefix in prefixes]

    names = _allow("ListBucket", ["s3:ListBucket"], [bucket_arn])
    mlflow, backups, data = below("mlflow"), below("backups"), below(DATA)
    powers = {
        # The log of its predictions, and nothing that it could read.
        "service": [_allow("WriteLog", ["s3:AbortMultipartUpload", "s3:PutObject"], below(f"{DATA}/predictions"))],
        "mlflow": [names, _allow("Artifacts", ["s3:GetObject", "s3:DeleteObject", *WRITE], mlflow)],
        "backup": [names, _allow("Backups", ["s3:DeleteObject", *WRITE], backups)],
        "tasks": [
            names,
            _allow("ReadObjects", ["s3:GetObject"], below("raw", DATA)),
            _allow("WriteObjects", ["s3:DeleteObject", *WRITE], data),
            _allow("Messages", ["sns:Publish"], [topic_arn]),
            _allow("Images", [*PULL, *PUSH], [readmission_arn]),
            _allow("WithoutResource", ["ecr:GetAuthorizationToken"], ["*"]),
        ],
    }
    return {workload: _document([*statements, *_key(kms_key)]) for workload, statements in powers.items()}


def _policy_of(workload: str, kms_key: str, arns: Sequence[str]) -> str:
    bucket_arn, topic_arn, readmission_arn = arns
    return workload_policies(bucket_arn, topic_arn, readmission_arn, kms_key)[workload]


def host_policy(args: IdentityArgs, bucket_arn: str, role_arns: Sequence[str], repository_arns: Sequence[str]) -> str:
    """The bundle, the raw data, these repositories, Systems Manager, and the roles of the workloads; nothing else."""
    raw = f"{bucket_arn}/raw/*"
    return _document(
        [
            _allow("ListBucket", ["s3:GetBucketLocation", "s3:ListBucket"], [bucket_arn]),
            _allow("ReadObjects", ["s3:GetObject"], [f"{bucket_arn}/bundles/*", raw]),
            _allow("WriteObjects", WRITE, [raw]),
            _allow("Workloads", ["sts:AssumeRole"], role_arns),
            _allow("Images", [*PULL, *PUSH, "ecr:DescribeRepositories"], repository_arns),
            _allow(
                "Register",
                ["ssm:UpdateInstanceInformation"],
                [f"arn:{args.partition}:ec2:{args.region}:{args.account_id}:instance/*"],
            ),
            # Metrics are no resource; a namespace narrows them all the same.
            {
                **_allow("Metrics", ["cloudwatch:PutMetricData"], ["*"]),
                "Condition": {"StringEquals": {"cloudwatch:namespace": NAMESPACE}},
            },
            _allow("WithoutResource", WITHOUT_RESOURCE, ["*"]),
            *_key(args.kms_key),
        ]
    )


def _key(kms_key: str) -> list[Statement]:
    """What S3 asks the key for, on behalf of who reads or writes; an upload in parts is read by S3 itself."""
    return [_allow("Key", ["kms:Decrypt", "kms:GenerateDataKey"], [kms_key])] if kms_key else []


def _allow(sid: str, actions: Iterable[str], resources: Iterable[str]) -> Statement:
    return {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": list(resources)}


def _document(statements: Sequence[Statement]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
