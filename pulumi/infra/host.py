"""Host: the one EC2 instance, and the data volume that outlives it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra.bundle import start_script
from infra.network import HOST_ADDRESS

# Amazon Linux 2023: the AWS CLI and the Systems Manager agent are part of it.
IMAGE_PARAMETER = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
# The metadata service hands out the whole role of the host. Only the host reaches it: a container is the second hop, a
# pod inside Kind the third. Pods have credentials of their own (infra/identity.py).
HOP_LIMIT = 1


@dataclass(frozen=True, slots=True)
class HostArgs:
    """Arguments of Host."""

    region: str
    availability_zone: str
    instance_type: str
    burstable: bool
    unlimited_burst: bool
    root_gib: int
    data_gib: int
    keep_data: bool
    subnet_id: pulumi.Input[str]
    security_group_id: pulumi.Input[str]
    instance_profile: pulumi.Input[str]
    bucket: pulumi.Input[str]
    tags: Mapping[str, str]


class Host(pulumi.ComponentResource):
    """Instance with IMDSv2 and encrypted disks. Replacing it reattaches the same data volume."""

    # Long, since it is a list: one resource after the other, each with its arguments.
    def __init__(self, name: str, args: HostArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("health-predict:infra:Host", name, None, opts)
        self.volume = aws.ebs.Volume(
            f"{name}-data",
            aws.ebs.VolumeArgs(
                availability_zone=args.availability_zone,
                size=args.data_gib,
                type="gp3",
                encrypted=True,
                tags={**args.tags, "Name": f"{name}-data"},
            ),
            opts=pulumi.ResourceOptions(parent=self, protect=args.keep_data),
        )
        image = aws.ssm.get_parameter_output(name=IMAGE_PARAMETER, opts=pulumi.InvokeOutputOptions(parent=self))
        user_data = pulumi.Output.from_input(args.bucket).apply(
            lambda bucket: base64.b64encode(start_script(args.region, bucket).encode()).decode()
        )
        self.instance = aws.ec2.Instance(
            name,
            aws.ec2.InstanceArgs(
                ami=image.value,
                instance_type=args.instance_type,
                availability_zone=args.availability_zone,
                subnet_id=args.subnet_id,
                private_ip=HOST_ADDRESS,
                associate_public_ip_address=True,
                vpc_security_group_ids=[args.security_group_id],
                iam_instance_profile=args.instance_profile,
                metadata_options=aws.ec2.InstanceMetadataOptionsArgs(
                    http_endpoint="enabled", http_tokens="required", http_put_response_hop_limit=HOP_LIMIT
                ),
                root_block_device=aws.ec2.InstanceRootBlockDeviceArgs(
                    volume_size=args.root_gib,
                    volume_type="gp3",
                    encrypted=True,
                    delete_on_termination=True,
                    tags={**args.tags, "Name": f"{name}-root"},
                ),
                credit_specification=aws.ec2.InstanceCreditSpecificationArgs(
                    cpu_credits="unlimited" if args.unlimited_burst else "standard"
                )
                if args.burstable
                else None,
                instance_initiated_shutdown_behavior="stop",
                user_data_base64=user_data,
                # Neither a newer image nor newer user data may replace a running host or restart it for nothing:
                # cloud-init reads user data only once. Changes reach the host through Systems Manager.
                user_data_replace_on_change=False,
                tags={**args.tags, "Name": name},
            ),
            opts=pulumi.ResourceOptions(
                parent=self,
                # What a refresh finds otherwise than the program says: a stopped host has no public address, and that
                # alone would replace it.
                ignore_changes=["ami", "userDataBase64", "associatePublicIpAddress"],
                # A volume attaches to one instance at a time, and the address is taken: the old one must go first.
                delete_before_replace=True,
            ),
        )
        self.attachment = aws.ec2.VolumeAttachment(
            f"{name}-data",
            aws.ec2.VolumeAttachmentArgs(
                device_name="/dev/sdf",
                instance_id=self.instance.id,
                volume_id=self.volume.id,
                # Postgres shuts down in order before its disk goes.
                stop_instance_before_detaching=True,
            ),
            opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True),
        )
        self.register_outputs({"instance_id": self.instance.id, "volume_id": self.volume.id})
