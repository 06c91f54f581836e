"""Network: one public subnet. The host needs a way out to images and APIs; a NAT gateway would cost a third of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

VPC_CIDR = "10.20.0.0/24"
SUBNET_CIDR = "10.20.0.0/28"
HOST_ADDRESS = "10.20.0.10"


@dataclass(frozen=True, slots=True)
class NetworkArgs:
    """Arguments of Network."""

    availability_zone: str
    tags: Mapping[str, str]


class Network(pulumi.ComponentResource):
    """VPC, public subnet, internet gateway, route; the VPC's default security group lets nothing through."""

    def __init__(self, name: str, args: NetworkArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("health-predict:infra:Network", name, None, opts)
        inside = pulumi.ResourceOptions(parent=self)
        tags = {**args.tags, "Name": name}
        self.vpc = aws.ec2.Vpc(
            name,
            aws.ec2.VpcArgs(cidr_block=VPC_CIDR, enable_dns_support=True, enable_dns_hostnames=True, tags=tags),
            opts=inside,
        )
        aws.ec2.DefaultSecurityGroup(
            f"{name}-default",
            aws.ec2.DefaultSecurityGroupArgs(vpc_id=self.vpc.id, ingress=[], egress=[], tags=tags),
            opts=inside,
        )
        gateway = aws.ec2.InternetGateway(name, aws.ec2.InternetGatewayArgs(vpc_id=self.vpc.id, tags=tags), opts=inside)
        self.subnet = aws.ec2.Subnet(
            name,
            aws.ec2.SubnetArgs(
                vpc_id=self.vpc.id,
                cidr_block=SUBNET_CIDR,
                availability_zone=args.availability_zone,
                map_public_ip_on_launch=False,
                tags=tags,
            ),
            opts=inside,
        )
        routes = aws.ec2.RouteTable(
            name,
            aws.ec2.RouteTableArgs(
                vpc_id=self.vpc.id,
                routes=[aws.ec2.RouteTableRouteArgs(cidr_block="0.0.0.0/0", gateway_id=gateway.id)],
                tags=tags,
            ),
            opts=inside,
        )
        self.route = aws.ec2.RouteTableAssociation(
            name,
            aws.ec2.RouteTableAssociationArgs(subnet_id=self.subnet.id, route_table_id=routes.id),
            opts=inside,
        )
        self.register_outputs({"vpc_id": self.vpc.id, "subnet_id": self.subnet.id})
