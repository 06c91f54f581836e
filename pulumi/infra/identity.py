"""Identity: what the host, and the pods on it that may reach its metadata, can do in AWS."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
WRITABLE = ("raw", "health-predict", "mlflow", "backups")  # prefixes of the bucket; bundles stay read-only
ERASABLE = ("health-predict", "mlflow", "backups")  # deleting there leaves the old version for 90 days


@dataclass(frozen=True, slots=True)
class IdentityArgs:
    """Arguments of Identity. The policy names exactly these resources."""

    bucket_arn: pulumi.Input[str]
    repository_arns: Sequence[pulumi.Input[str]]
    topic_arn: pulumi.Input[str]
    partition: str
    region: str
    account_id: str
    tags: Mapping[str, str]


class Identity(pulumi.ComponentResource):
    """The host's role and instance profile."""

    def __init__(self, name: str, args: IdentityArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("health-predict:infra:Identity", name, None, opts)
        inside = pulumi.ResourceOptions(parent=self)
        tags = {**args.tags, "Name": name}
        self.role = aws.iam.Role(
            name, aws.iam.RoleArgs(assume_role_policy=trust_policy("ec2.amazonaws.com"), tags=tags), opts=inside
        )
        policy = pulumi.Output.all(args.bucket_arn, args.topic_arn, *args.repository_arns).apply(
            lambda arns: instance_policy(arns[0], arns[1], arns[2:], args.partition, args.region, args.account_id)
        )
        self.policy = aws.iam.RolePolicy(name, aws.iam.RolePolicyArgs(role=self.role.id, policy=policy), opts=inside)
        self.profile = aws.iam.InstanceProfile(
            name, aws.iam.InstanceProfileArgs(role=self.role.name, tags=tags), opts=inside
        )
        self.register_outputs({"role_arn": self.role.arn})


def trust_policy(service: str, source_account: str = "") -> str:
    """Policy by which an AWS service may take a role; with `source_account`, only on that account's behalf."""
    statement: dict[str, Any] = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    if source_account:
        statement["Condition"] = {"StringEquals": {"aws:SourceAccount": source_account}}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def instance_policy(
    bucket_arn: str, topic_arn: str, repository_arns: Sequence[str], partition: str, region: str, account_id: str
) -> str:
    """This bucket, this topic, these repositories, Systems Manager; nothing else."""

    def allow(sid: str, actions: Sequence[str], resources: Sequence[str]) -> dict[str, Any]:
        return {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": list(resources)}

    return json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [
                allow("ListBucket", ["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketVersions"], [bucket_arn]),
                allow("ReadObjects", ["s3:GetObject", "s3:GetObjectVersion"], [f"{bucket_arn}/*"]),
                allow(
                    "WriteObjects",
                    ["s3:AbortMultipartUpload", "s3:ListMultipartUploadParts", "s3:PutObject"],
                    [f"{bucket_arn}/{prefix}/*" for prefix in WRITABLE],
                ),
                allow("EraseObjects", ["s3:DeleteObject"], [f"{bucket_arn}/{prefix}/*" for prefix in ERASABLE]),
                allow("Messages", ["sns:Publish"], [topic_arn]),
                allow(
                    "Images",
                    [
                        "ecr:BatchCheckLayerAvailability",
                        "ecr:BatchGetImage",
                        "ecr:CompleteLayerUpload",
                        "ecr:DescribeImages",
                        "ecr:DescribeRepositories",
                        "ecr:GetDownloadUrlForLayer",
                        "ecr:InitiateLayerUpload",
                        "ecr:PutImage",
                        "ecr:UploadLayerPart",
                    ],
                    repository_arns,
                ),
                allow(
                    "Register",
                    ["ssm:UpdateInstanceInformation"],
                    [f"arn:{partition}:ec2:{region}:{account_id}:instance/*"],
                ),
                # Metrics are no resource; a namespace narrows them all the same.
                {
                    **allow("Metrics", ["cloudwatch:PutMetricData"], ["*"]),
                    "Condition": {"StringEquals": {"cloudwatch:namespace": NAMESPACE}},
                },
                allow("WithoutResource", WITHOUT_RESOURCE, ["*"]),
            ],
        }
    )
