"""Registry: one ECR repository for each image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

IMAGES = ("pipeline", "mlflow", "readmission")
KEPT_IMAGES = 50
UNTAGGED_DAYS = 7


@dataclass(frozen=True, slots=True)
class RegistryArgs:
    """Arguments of Registry."""

    prefix: str
    keep_data: bool
    tags: Mapping[str, str]


class Registry(pulumi.ComponentResource):
    """Repositories whose tags never move, scanned on push; old images expire."""

    def __init__(self, name: str, args: RegistryArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("health-predict:infra:Registry", name, None, opts)
        self.repositories: dict[str, aws.ecr.Repository] = {}
        for image in IMAGES:
            repository = aws.ecr.Repository(
                f"{name}-{image}",
                aws.ecr.RepositoryArgs(
                    name=f"{args.prefix}/{image}",
                    image_tag_mutability="IMMUTABLE",
                    image_scanning_configuration=aws.ecr.RepositoryImageScanningConfigurationArgs(scan_on_push=True),
                    encryption_configurations=[aws.ecr.RepositoryEncryptionConfigurationArgs(encryption_type="AES256")],
                    force_delete=not args.keep_data,
                    tags={**args.tags, "Name": f"{args.prefix}/{image}"},
                ),
                opts=pulumi.ResourceOptions(parent=self, protect=args.keep_data),
            )
            aws.ecr.LifecyclePolicy(
                f"{name}-{image}",
                aws.ecr.LifecyclePolicyArgs(repository=repository.name, policy=expiry_policy()),
                opts=pulumi.ResourceOptions(parent=self),
            )
            self.repositories[image] = repository
        self.urls: dict[str, pulumi.Output[str]] = {
            image: repository.repository_url for image, repository in self.repositories.items()
        }
        self.register_outputs({"urls": self.urls})


def expiry_policy() -> str:
    """ECR lifecycle policy: untagged images go after a week, of the others the newest stay."""
    return json.dumps(
        {
            "rules": [
                {
                    "rulePriority": 1,
                    "description": "untagged",
                    "selection": {
                        "tagStatus": "untagged",
                        "countType": "sinceImagePushed",
                        "countUnit": "days",
                        "countNumber": UNTAGGED_DAYS,
                    },
                    "action": {"type": "expire"},
                },
                {
                    "rulePriority": 2,
                    "description": "all but the newest",
                    "selection": {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": KEPT_IMAGES},
                    "action": {"type": "expire"},
                },
            ]
        }
    )
