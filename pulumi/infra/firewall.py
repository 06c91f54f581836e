"""Firewall: nothing comes in, unless the operator asks for named ports to be opened to a network of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from health_predict.aws.stack_config import OpenPort

# Packages over HTTP (signed), everything else over TLS. DNS and time come from link-local addresses, which no
# security group filters.
WAYS_OUT = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class FirewallArgs:
    """Arguments of Firewall."""

    vpc_id: pulumi.Input[str]
    operator_cidr: str
    open_ports: Sequence[OpenPort]
    tags: Mapping[str, str]


class Firewall(pulumi.ComponentResource):
    """The host's security group."""

    def __init__(self, name: str, args: FirewallArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("health-predict:infra:Firewall", name, None, opts)
        self.group = aws.ec2.SecurityGroup(
            name,
            aws.ec2.SecurityGroupArgs(
                description="health-predict host",
                vpc_id=args.vpc_id,
                ingress=[
                    aws.ec2.SecurityGroupIngressArgs(
                        description=port.value,
                        protocol="tcp",
                        from_port=port.number,
                        to_port=port.number,
                        cidr_blocks=[args.operator_cidr],
                    )
                    for port in args.open_ports
                ],
                egress=[
                    aws.ec2.SecurityGroupEgressArgs(
                        description=way, protocol="tcp", from_port=port, to_port=port, cidr_blocks=["0.0.0.0/0"]
                    )
                    for way, port in WAYS_OUT.items()
                ],
                tags={**args.tags, "Name": name},
            ),
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.register_outputs({"group_id": self.group.id})
