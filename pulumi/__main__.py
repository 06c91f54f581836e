"""`pulumi up`: the whole platform on one closed host. See docs/aws.md."""

from __future__ import annotations

import hashlib

import pulumi
import pulumi_aws as aws

from health_predict.adapters.contracts import built_in
from health_predict.aws.cost import machine
from health_predict.aws.stack_config import PROJECT
from infra.account import require_account
from infra.alarms import Alarms, AlarmsArgs, Topic
from infra.audit import Audit, AuditArgs
from infra.budget import BudgetAlarm, BudgetAlarmArgs
from infra.bundle import Bundle, BundleArgs, start_script
from infra.config import stack_config
from infra.firewall import Firewall, FirewallArgs
from infra.host import Host, HostArgs
from infra.identity import Identity, IdentityArgs
from infra.images import image_sources, image_tag, source_revision
from infra.network import HOST_ADDRESS, Network, NetworkArgs
from infra.outputs import commands, estimate, monthly_cost
from infra.registry import Registry, RegistryArgs
from infra.rollout import Rollout, RolloutArgs
from infra.schedule import OfficeHours, OfficeHoursArgs
from infra.storage import Storage, StorageArgs

PUBLISHED = built_in().published
assert PUBLISHED is not None
config = stack_config()
if config.account_id:
    require_account(config.account_id, config.region)
if pulumi.runtime.is_dry_run():
    pulumi.log.info(estimate(config))
stack = pulumi.get_stack()
name = f"{PROJECT}-{stack}"
tags = config.resource_tags(stack)

provider = aws.Provider(
    "aws", region=config.region, allowed_account_ids=[config.account_id] if config.account_id else None
)
opts = pulumi.ResourceOptions(providers={"aws": provider})
ask = pulumi.InvokeOptions(provider=provider)
account_id = config.account_id or aws.get_caller_identity(opts=ask).account_id
partition = aws.get_partition(opts=ask).partition

network = Network(name, NetworkArgs(config.availability_zone, tags), opts)
firewall = Firewall(name, FirewallArgs(network.vpc.id, config.operator_cidr, config.open_ports, tags), opts)
storage = Storage(name, StorageArgs(config.keep_data, tags, config.kms_key), opts)
if config.record_access:
    Audit(
        name,
        AuditArgs(storage.bucket.arn, partition, config.region, account_id, config.keep_data, tags),
        opts,
    )
registry = Registry(name, RegistryArgs(f"{PROJECT}/{stack}", config.keep_data, tags), opts)
topic = Topic(name, config.alarm_email, tags, opts).topic
identity = Identity(
    name,
    IdentityArgs(
        storage.bucket.arn,
        {image: repository.arn for image, repository in registry.repositories.items()},
        topic.arn,
        partition,
        config.region,
        account_id,
        tags,
        config.kms_key,
    ),
    opts,
)
host = Host(
    name,
    HostArgs(
        region=config.region,
        availability_zone=config.availability_zone,
        instance_type=config.instance_type,
        burstable=machine(config.instance_type).burstable,
        unlimited_burst=config.unlimited_burst,
        root_gib=config.root_gib,
        data_gib=config.data_gib,
        keep_data=config.keep_data,
        subnet_id=network.subnet.id,
        security_group_id=firewall.group.id,
        instance_profile=identity.profile.name,
        bucket=storage.bucket.id,
        tags=tags,
    ),
    pulumi.ResourceOptions(providers={"aws": provider}, depends_on=[network.route, identity.policy]),
)
sources = image_sources()
tag = config.image_tag or image_tag(config.python_image)
bundle = Bundle(
    name,
    BundleArgs(
        storage.bucket.id,
        {
            "HP_REGION": config.region,
            "HP_STACK": stack,
            "HP_VOLUME_ID": host.volume.id,
            "HP_DATA_GIB": str(config.data_gib),
            "HP_IMAGE_PIPELINE": registry.urls["pipeline"],
            "HP_IMAGE_MLFLOW": registry.urls["mlflow"],
            "HP_IMAGE_READMISSION": registry.urls["readmission"],
            "HP_IMAGES": config.images,
            "HP_IMAGE_TAG": tag,
            "HP_PYTHON_IMAGE": config.python_image,
            "HP_GIT_COMMIT": source_revision(sources),
            "HP_ADDRESS": HOST_ADDRESS,
            "HP_OPEN_PORTS": " ".join(str(port.number) for port in config.open_ports),
            "HP_RECREATE_CLUSTER": config.recreate_cluster,
            "HP_FIRST_RUN": str(config.first_run).lower(),
            "HP_MONITOR": config.monitor,
            "HP_TOPIC": topic.arn,
            **{f"HP_ROLE_{workload.upper()}": role.arn for workload, role in identity.workloads.items()},
            "HP_DATA_URL": PUBLISHED.url,
            "HP_DATA_SHA256": PUBLISHED.sha256,
        },
        sources,
        tags,
    ),
    opts,
)
script = storage.bucket.id.apply(lambda bucket: start_script(config.region, bucket))
version = bundle.host_env.apply(lambda text: hashlib.sha256(text.encode()).hexdigest())
rollout = Rollout(
    name,
    RolloutArgs(config.region, host.instance.id, script, version, config.data_gib, config.root_gib),
    pulumi.ResourceOptions(depends_on=[bundle.pointer, host.attachment]),
)
Alarms(
    name,
    AlarmsArgs(host.instance.id, stack, topic.arn, config.schedule is None, tags),
    # What is silent counts as down, and until it is ready the host is silent.
    pulumi.ResourceOptions(providers={"aws": provider}, depends_on=[rollout.command]),
)
if config.schedule:
    OfficeHours(
        name,
        OfficeHoursArgs(config.schedule, host.instance.id, host.instance.arn, partition, account_id, tags),
        opts,
    )
if config.budget_email:
    BudgetAlarm(name, BudgetAlarmArgs(config.budget_usd, config.budget_email, tags), opts)

pulumi.export("instance_id", host.instance.id)
pulumi.export("public_ip", host.instance.public_ip)
pulumi.export("public_dns", host.instance.public_dns)
pulumi.export("bucket", storage.bucket.id)
pulumi.export("images", registry.urls)
pulumi.export("image_tag", tag)
pulumi.export("commands", host.instance.id.apply(lambda instance: commands(config, instance)))
pulumi.export("monthly_cost", monthly_cost(config))
