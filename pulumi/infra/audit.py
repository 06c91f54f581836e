"""Audit: who read and wrote which object of the bucket, told by CloudTrail to a bucket of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws

from infra.storage import closed_bucket

KEPT_DAYS = 365


@dataclass(frozen=True, slots=True)
class AuditArgs:
    """Arguments of Audit."""

    bucket_arn: pulumi.Input[str]
    partition: str
    region: str
    account_id: str
    keep_data: bool
    tags: Mapping[str, str]


class Audit(pulumi.ComponentResource):
    """A trail of the data events of one bucket: caller, time, object and action, never what the object holds."""

    def __init__(self, name: str, args: AuditArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("health-predict:infra:Audit", name, None, opts)
        trail = f"arn:{args.partition}:cloudtrail:{args.region}:{args.account_id}:trail/{name}"
        closed = closed_bucket(
            f"{name}-audit",
            self,
            keep_data=args.keep_data,
            tags=args.tags,
            statements=lambda arn: writable_by_trail(arn, trail, args.account_id),
        )
        aws.s3.BucketLifecycleConfiguration(
            f"{name}-audit",
            bucket=closed.bucket.id,
            rules=[
                aws.s3.BucketLifecycleConfigurationRuleArgs(
                    id="old-records",
                    status="Enabled",
                    filter=aws.s3.BucketLifecycleConfigurationRuleFilterArgs(prefix=""),
                    expiration=aws.s3.BucketLifecycleConfigurationRuleExpirationArgs(days=KEPT_DAYS),
                    noncurrent_version_expiration=aws.s3.BucketLifecycleConfigurationRuleNoncurrentVersionExpirationArgs(
                        noncurrent_days=1
                    ),
                )
            ],
            opts=pulumi.ResourceOptions(parent=self, depends_on=[closed.versioning]),
        )
        aws.cloudtrail.Trail(
            name,
            aws.cloudtrail.TrailArgs(
                name=name,
                s3_bucket_name=closed.bucket.id,
                enable_log_file_validation=True,
                include_global_service_events=False,
                advanced_event_selectors=[
                    aws.cloudtrail.TrailAdvancedEventSelectorArgs(
                        name="objects of the bucket",
                        field_selectors=[
                            aws.cloudtrail.TrailAdvancedEventSelectorFieldSelectorArgs(
                                field="eventCategory", equals=["Data"]
                            ),
                            aws.cloudtrail.TrailAdvancedEventSelectorFieldSelectorArgs(
                                field="resources.type", equals=["AWS::S3::Object"]
                            ),
                            aws.cloudtrail.TrailAdvancedEventSelectorFieldSelectorArgs(
                                field="resources.ARN",
                                starts_withs=[pulumi.Output.concat(args.bucket_arn, "/health-predict/")],
                            ),
                        ],
                    )
                ],
                tags={**args.tags, "Name": name},
            ),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[closed.policy]),
        )
        self.register_outputs({"bucket": closed.bucket.id})


def writable_by_trail(bucket_arn: str, trail_arn: str, account_id: str) -> list[dict[str, Any]]:
    """Statements by which CloudTrail may write this trail's records into a bucket, and nobody else's."""
    service = {"Effect": "Allow", "Principal": {"Service": "cloudtrail.amazonaws.com"}}
    source = {"aws:SourceArn": trail_arn}
    return [
        {
            **service,
            "Sid": "Look",
            "Action": "s3:GetBucketAcl",
            "Resource": bucket_arn,
            "Condition": {"StringEquals": source},
        },
        {
            **service,
            "Sid": "Write",
            "Action": "s3:PutObject",
            "Resource": f"{bucket_arn}/AWSLogs/{account_id}/*",
            "Condition": {"StringEquals": {**source, "s3:x-amz-acl": "bucket-owner-full-control"}},
        },
    ]
