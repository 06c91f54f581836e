"""Storage: the bucket of data, artifacts, backups and bootstrap bundles.

What a task deletes of patients' encounters, by the retention that the settings name or by `data forget`, is gone for
good some days later: S3 deletes the old version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pulumi
import pulumi_aws as aws

from health_predict.adapters import keys

OLD_VERSION_DAYS = 90
BACKUP_DAYS = 35
UNFINISHED_UPLOAD_DAYS = 7
# What encounters and outcomes were before somebody deleted or changed them: long enough to notice an accident.
PATIENTS_OLD_VERSION_DAYS = 7
PATIENTS = tuple(f"health-predict/{prefix}" for prefix in keys.OF_PATIENTS)


@dataclass(frozen=True, slots=True)
class StorageArgs:
    """Arguments of Storage. `kms_key`: ARN of the key that encrypts the bucket; empty: S3's own."""

    keep_data: bool
    tags: Mapping[str, str]
    kms_key: str = ""


class Storage(pulumi.ComponentResource):
    """The bucket of the stack: what it held before, and backups, expire."""

    def __init__(self, name: str, args: StorageArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("health-predict:infra:Storage", name, None, opts)
        closed = closed_bucket(name, self, keep_data=args.keep_data, tags=args.tags, kms_key=args.kms_key)
        self.bucket = closed.bucket
        aws.s3.BucketLifecycleConfiguration(
            name,
            bucket=self.bucket.id,
            rules=_lifecycle(),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[closed.versioning]),
        )
        self.register_outputs({"bucket": self.bucket.id})


class ClosedBucket(NamedTuple):
    """A bucket and the parts of it that others wait for."""

    bucket: aws.s3.Bucket
    versioning: aws.s3.BucketVersioning
    policy: aws.s3.BucketPolicy


def closed_bucket(
    name: str,
    parent: pulumi.Resource,
    *,
    keep_data: bool,
    tags: Mapping[str, str],
    kms_key: str = "",
    statements: Callable[[str], list[dict[str, Any]]] = lambda arn: [],
) -> ClosedBucket:
    """A bucket: versioned, encrypted, never public, TLS only; `statements` of its ARN join its policy."""
    inside = pulumi.ResourceOptions(parent=parent)
    made = aws.s3.Bucket(
        name,
        aws.s3.BucketArgs(force_destroy=not keep_data, tags={**tags, "Name": name}),
        opts=pulumi.ResourceOptions(parent=parent, protect=keep_data),
    )
    bucket = made.id
    versioning = aws.s3.BucketVersioning(
        name,
        bucket=bucket,
        versioning_configuration=aws.s3.BucketVersioningVersioningConfigurationArgs(status="Enabled"),
        opts=inside,
    )
    aws.s3.BucketServerSideEncryptionConfiguration(
        name,
        bucket=bucket,
        rules=[
            aws.s3.BucketServerSideEncryptionConfigurationRuleArgs(
                apply_server_side_encryption_by_default=aws.s3.BucketServerSideEncryptionConfigurationRuleApplyServerSideEncryptionByDefaultArgs(
                    sse_algorithm="aws:kms" if kms_key else "AES256", kms_master_key_id=kms_key or None
                ),
                bucket_key_enabled=bool(kms_key),  # a few requests to KMS in place of one an object
            )
        ],
        opts=inside,
    )
    aws.s3.BucketOwnershipControls(
        name,
        bucket=bucket,
        rule=aws.s3.BucketOwnershipControlsRuleArgs(object_ownership="BucketOwnerEnforced"),
        opts=inside,
    )
    closed = aws.s3.BucketPublicAccessBlock(
        name,
        bucket=bucket,
        block_public_acls=True,
        block_public_policy=True,
        ignore_public_acls=True,
        restrict_public_buckets=True,
        opts=inside,
    )
    policy = aws.s3.BucketPolicy(
        name,
        bucket=bucket,
        policy=made.arn.apply(lambda arn: bucket_policy(arn, statements(arn))),
        # Two changes of a bucket's access at once conflict.
        opts=pulumi.ResourceOptions(parent=parent, depends_on=[closed]),
    )
    return ClosedBucket(made, versioning, policy)


def bucket_policy(bucket_arn: str, statements: list[dict[str, Any]]) -> str:
    """Policy of these statements that refuses whoever comes without TLS."""
    tls_only = {
        "Sid": "TlsOnly",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [bucket_arn, f"{bucket_arn}/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [tls_only, *statements]})


def _lifecycle() -> list[aws.s3.BucketLifecycleConfigurationRuleArgs]:
    return [
        aws.s3.BucketLifecycleConfigurationRuleArgs(
            id="old-versions",
            status="Enabled",
            filter=aws.s3.BucketLifecycleConfigurationRuleFilterArgs(prefix=""),
            noncurrent_version_expiration=aws.s3.BucketLifecycleConfigurationRuleNoncurrentVersionExpirationArgs(
                noncurrent_days=OLD_VERSION_DAYS
            ),
            abort_incomplete_multipart_upload=aws.s3.BucketLifecycleConfigurationRuleAbortIncompleteMultipartUploadArgs(
                days_after_initiation=UNFINISHED_UPLOAD_DAYS
            ),
        ),
        aws.s3.BucketLifecycleConfigurationRuleArgs(
            id="backups",
            status="Enabled",
            filter=aws.s3.BucketLifecycleConfigurationRuleFilterArgs(prefix="backups/"),
            expiration=aws.s3.BucketLifecycleConfigurationRuleExpirationArgs(days=BACKUP_DAYS),
        ),
        *(
            aws.s3.BucketLifecycleConfigurationRuleArgs(
                id=f"patients-{prefix.strip('/').rpartition('/')[2]}",
                status="Enabled",
                filter=aws.s3.BucketLifecycleConfigurationRuleFilterArgs(prefix=prefix),
                noncurrent_version_expiration=aws.s3.BucketLifecycleConfigurationRuleNoncurrentVersionExpirationArgs(
                    noncurrent_days=PATIENTS_OLD_VERSION_DAYS
                ),
                # Of what was deleted the mark remains, with its name.
                expiration=aws.s3.BucketLifecycleConfigurationRuleExpirationArgs(expired_object_delete_marker=True),
            )
            for prefix in PATIENTS
        ),
    ]
