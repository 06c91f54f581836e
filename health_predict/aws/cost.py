"""What the AWS stack costs a month, from one dated table of list prices.

Prices are USD, on demand, Linux, without taxes, free tier and savings plans. Sources, by AWS's own pages:
aws.amazon.com/ec2/pricing/on-demand, /ebs/pricing, /vpc/pricing (public IPv4, NAT), /s3/pricing, /ecr/pricing,
/cloudwatch/pricing, /eks/pricing, /rds/postgresql/pricing, /elasticloadbalancing/pricing. They change seldom, but
they change: compare with those pages before a decision hangs on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PRICES_AS_OF = "2025-06"
HOURS_A_MONTH = 730.0
WEEKS_A_MONTH = HOURS_A_MONTH / (24 * 7)
BUCKET_GIB = 10.0  # what an estimate assumes to be stored
IMAGES_GIB = 10.0
METRICS, ALARMS = 3, 4  # pulumi/infra/alarms.py
NODES = 3  # of the managed alternative
_NODE_DISK_GIB = 20.0
SMALLEST_VCPU, SMALLEST_GIB = 4, 16


@dataclass(frozen=True, slots=True)
class Machine:
    """An x86 instance type: its memory, and whether it is slowed down after a while of full load."""

    gib: int
    burstable: bool


MACHINES: Mapping[str, Machine] = {
    "t3a.xlarge": Machine(16, True),
    "t3.xlarge": Machine(16, True),
    "m6a.xlarge": Machine(16, False),
    "m6i.xlarge": Machine(16, False),
    "t3a.2xlarge": Machine(32, True),
    "t3.2xlarge": Machine(32, True),
    "m6a.2xlarge": Machine(32, False),
    "m6i.2xlarge": Machine(32, False),
}


@dataclass(frozen=True, slots=True)
class RegionPrices:
    """USD in one region: by hour for what runs, by GiB and month for what is stored."""

    machines: Mapping[str, float]
    gp3: float
    bucket: float
    node: float  # t3.large
    nat: float
    balancer: float
    postgres: float  # db.t4g.medium, one zone
    postgres_storage: float
    # The same in all of these regions.
    ipv4: float = 0.005
    images: float = 0.10
    metric: float = 0.30
    alarm: float = 0.10
    eks: float = 0.10


def _machines(*prices: float) -> Mapping[str, float]:
    return dict(zip(MACHINES, prices, strict=True))


_US = RegionPrices(
    _machines(0.1504, 0.1664, 0.1728, 0.192, 0.3008, 0.3328, 0.3456, 0.384),
    gp3=0.08,
    bucket=0.023,
    node=0.0832,
    nat=0.045,
    balancer=0.0225,
    postgres=0.065,
    postgres_storage=0.115,
)
PRICES: Mapping[str, RegionPrices] = {
    "us-east-1": _US,
    "us-east-2": _US,
    "us-west-2": _US,
    "eu-west-1": RegionPrices(
        _machines(0.1632, 0.1824, 0.1926, 0.214, 0.3264, 0.3648, 0.3852, 0.428),
        gp3=0.088,
        bucket=0.023,
        node=0.0912,
        nat=0.048,
        balancer=0.0252,
        postgres=0.070,
        postgres_storage=0.127,
    ),
    "eu-central-1": RegionPrices(
        _machines(0.1728, 0.192, 0.207, 0.23, 0.3456, 0.384, 0.414, 0.46),
        gp3=0.0952,
        bucket=0.0245,
        node=0.096,
        nat=0.052,
        balancer=0.027,
        postgres=0.074,
        postgres_storage=0.137,
    ),
}


@dataclass(frozen=True, slots=True)
class Part:
    """One line of an estimate."""

    name: str
    basis: str
    usd: float


@dataclass(frozen=True, slots=True)
class MonthlyCost:
    """USD a month, with its parts."""

    parts: tuple[Part, ...]

    @property
    def usd(self) -> float:
        """The sum of the parts."""
        return sum(part.usd for part in self.parts)


def machine(instance_type: str) -> Machine:
    """Size of an instance type. Raises ValueError, with the remedy, for one that cannot hold the platform."""
    found = MACHINES.get(instance_type)
    if found is None:
        raise ValueError(
            f"instance type {instance_type!r} is not one of those the platform fits on -> choose from "
            f"{', '.join(MACHINES)}: x86 (Kubeflow Pipelines publishes no arm64 images) with at least "
            f"{SMALLEST_VCPU} vCPU and {SMALLEST_GIB} GiB"
        )
    return found


def host(
    region: str, instance_type: str, root_gib: int, data_gib: int, hours_a_week: float | None = None
) -> MonthlyCost:
    """The stack, always on, or running `hours_a_week`. Disks cost while it is stopped, its address does not."""
    prices = PRICES[region]
    hours = HOURS_A_MONTH if hours_a_week is None else hours_a_week * WEEKS_A_MONTH
    disks = root_gib + data_gib
    return MonthlyCost(
        (
            Part("host", f"{instance_type}, {hours:.0f} h", prices.machines[instance_type] * hours),
            Part("public IPv4", f"{hours:.0f} h", prices.ipv4 * hours),
            Part("disks", f"{disks} GiB gp3", prices.gp3 * disks),
            Part("bucket", f"{BUCKET_GIB:.0f} GiB assumed", prices.bucket * BUCKET_GIB),
            Part("images", f"{IMAGES_GIB:.0f} GiB assumed", prices.images * IMAGES_GIB),
            Part("alarms", f"{METRICS} metrics, {ALARMS} alarms", METRICS * prices.metric + ALARMS * prices.alarm),
        )
    )


def managed(region: str, data_gib: int) -> MonthlyCost:
    """What the stack replaces: EKS with three small nodes, a NAT gateway, a load balancer, managed Postgres."""
    prices = PRICES[region]
    return MonthlyCost(
        (
            Part("EKS control plane", f"{HOURS_A_MONTH:.0f} h", prices.eks * HOURS_A_MONTH),
            Part("nodes", f"{NODES} t3.large", NODES * prices.node * HOURS_A_MONTH),
            Part("node disks", f"{NODES} x {_NODE_DISK_GIB:.0f} GiB gp3", NODES * _NODE_DISK_GIB * prices.gp3),
            Part("NAT gateway", f"{HOURS_A_MONTH:.0f} h, without traffic", prices.nat * HOURS_A_MONTH),
            Part("load balancer", f"{HOURS_A_MONTH:.0f} h, without traffic", prices.balancer * HOURS_A_MONTH),
            Part("public IPv4", "3 addresses", 3 * prices.ipv4 * HOURS_A_MONTH),
            Part("Postgres", "db.t4g.medium, one zone", prices.postgres * HOURS_A_MONTH),
            Part("Postgres storage", f"{data_gib} GiB", prices.postgres_storage * data_gib),
            Part("bucket", f"{BUCKET_GIB:.0f} GiB assumed", prices.bucket * BUCKET_GIB),
            Part("images", f"{IMAGES_GIB:.0f} GiB assumed", prices.images * IMAGES_GIB),
        )
    )
