"""The shapes that the program registers, sent to an AWS API: moto's server, through boto3."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from tests.infra.program import Captured, Stack, run

Client = Callable[[str], Any]


@pytest.fixture(scope="module")
def whole() -> Stack:
    return run(
        {
            "operator_cidr": "203.0.113.7/32",
            "open_ports": ["api"],
            "schedule": {"timezone": "Europe/Berlin"},
            "budget_email": "ops@example.org",
        }
    )


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    session = boto3.Session("test", "test", region_name="us-east-1")
    yield lambda service: session.client(service, endpoint_url=f"http://{host}:{port}")
    server.stop()


def upper(value: Any) -> Any:
    """AWS's spelling of an argument: the provider's `cidrBlock` is `CidrBlock`."""
    if isinstance(value, dict):
        return {key[0].upper() + key[1:]: upper(item) for key, item in value.items()}
    if isinstance(value, list):
        return [upper(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def tags(item: Captured) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in item.inputs["tags"].items()]


def test_the_bucket_and_its_parts(whole: Stack, client: Client) -> None:
    # given the bucket as the program makes it
    s3 = client("s3")
    name = whole.one("s3/bucket:Bucket").name
    s3.create_bucket(Bucket=name)
    s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": tags(whole.one("s3/bucket:Bucket"))})
    status = whole.one("BucketVersioning").inputs["versioningConfiguration"]["status"]
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": status})
    (rule,) = whole.one("BucketServerSideEncryptionConfiguration").inputs["rules"]
    algorithm = rule["applyServerSideEncryptionByDefault"]["sseAlgorithm"]
    s3.put_bucket_encryption(
        Bucket=name,
        ServerSideEncryptionConfiguration={
            "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": algorithm}}]
        },
    )
    closed = whole.one("BucketPublicAccessBlock").inputs
    s3.put_public_access_block(
        Bucket=name,
        PublicAccessBlockConfiguration={key[0].upper() + key[1:]: closed[key] for key in closed if key != "bucket"},
    )
    ownership = whole.one("BucketOwnershipControls").inputs["rule"]["objectOwnership"]
    s3.put_bucket_ownership_controls(Bucket=name, OwnershipControls={"Rules": [{"ObjectOwnership": ownership}]})
    s3.put_bucket_policy(Bucket=name, Policy=whole.one("s3/bucketPolicy:BucketPolicy").inputs["policy"])
    rules = upper(whole.one("BucketLifecycleConfiguration").inputs["rules"])
    for item in rules:
        item["ID"] = item.pop("Id")
    s3.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": rules})
    # then AWS's own reading of it is what we mean
    assert s3.get_bucket_versioning(Bucket=name)["Status"] == "Enabled"
    assert all(s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"].values())
    found = s3.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
    assert {"old-versions", "backups", "patients-arrivals"} <= {item["ID"] for item in found}
    # and without TLS, which is how this client comes, nothing is to be had
    with pytest.raises(ClientError, match="Forbidden"):
        s3.put_object(Bucket=name, Key="backups/x", Body=b"plain")
    s3.delete_bucket_policy(Bucket=name)
    # and an object that is overwritten can be had back
    s3.put_object(Bucket=name, Key="backups/x", Body=b"first")
    s3.put_object(Bucket=name, Key="backups/x", Body=b"second")
    versions = s3.list_object_versions(Bucket=name, Prefix="backups/")["Versions"]
    bodies = {
        s3.get_object(Bucket=name, Key="backups/x", VersionId=item["VersionId"])["Body"].read() for item in versions
    }
    assert bodies == {b"first", b"second"}


def test_the_repositories(whole: Stack, client: Client) -> None:
    ecr = client("ecr")
    for item in whole.of("ecr/repository:Repository"):
        made = ecr.create_repository(
            repositoryName=item.inputs["name"],
            imageTagMutability=item.inputs["imageTagMutability"],
            imageScanningConfiguration=item.inputs["imageScanningConfiguration"],
            encryptionConfiguration=item.inputs["encryptionConfigurations"][0],
            tags=tags(item),
        )["repository"]
        (policy,) = [
            policy.inputs["policy"]
            for policy in whole.of("ecr/lifecyclePolicy:LifecyclePolicy")
            if policy.name == item.name
        ]
        ecr.put_lifecycle_policy(repositoryName=made["repositoryName"], lifecyclePolicyText=policy)
        assert made["imageTagMutability"] == "IMMUTABLE" and made["imageScanningConfiguration"]["scanOnPush"]
    # a tag that was pushed does not move
    manifest = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": []})
    repository = "health-predict/dev/pipeline"
    ecr.put_image(
        repositoryName=repository, imageManifest=manifest, imageTag="0123abc", imageDigest=f"sha256:{'0' * 64}"
    )
    with pytest.raises(ClientError, match="AlreadyExists"):
        ecr.put_image(
            repositoryName=repository,
            imageManifest=manifest.replace("[]", "[{}]"),
            imageTag="0123abc",
            imageDigest=f"sha256:{'1' * 64}",
        )


def test_roles_and_policies(whole: Stack, client: Client) -> None:
    iam = client("iam")
    for item in whole.of("iam/role:Role"):
        iam.create_role(RoleName=item.name, AssumeRolePolicyDocument=item.inputs["assumeRolePolicy"], Tags=tags(item))
        (policy,) = [
            found.inputs["policy"] for found in whole.of("iam/rolePolicy:RolePolicy") if found.name == item.name
        ]
        iam.put_role_policy(RoleName=item.name, PolicyName="own", PolicyDocument=policy)
        stored = iam.get_role_policy(RoleName=item.name, PolicyName="own")["PolicyDocument"]
        assert stored == json.loads(policy)
    profile = whole.one("iam/instanceProfile:InstanceProfile")
    iam.create_instance_profile(InstanceProfileName=profile.name, Tags=tags(profile))
    iam.add_role_to_instance_profile(InstanceProfileName=profile.name, RoleName=profile.inputs["role"])


def test_network_host_and_volume(whole: Stack, client: Client) -> None:
    # given the network
    ec2 = client("ec2")
    vpc_inputs = whole.one("ec2/vpc:Vpc").inputs
    vpc = ec2.create_vpc(CidrBlock=vpc_inputs["cidrBlock"])["Vpc"]["VpcId"]
    ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": vpc_inputs["enableDnsHostnames"]})
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    place = whole.one("ec2/subnet:Subnet").inputs
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=place["cidrBlock"], AvailabilityZone=place["availabilityZone"])
    subnet_id = subnet["Subnet"]["SubnetId"]
    table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    (route,) = whole.one("ec2/routeTable:RouteTable").inputs["routes"]
    ec2.create_route(RouteTableId=table, DestinationCidrBlock=route["cidrBlock"], GatewayId=gateway)
    ec2.associate_route_table(RouteTableId=table, SubnetId=subnet_id)
    # and the firewall
    rules = whole.one("ec2/securityGroup:SecurityGroup").inputs
    group = ec2.create_security_group(GroupName="host", Description=rules["description"], VpcId=vpc)["GroupId"]
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[_permission(rule) for rule in rules["ingress"]])
    ec2.revoke_security_group_egress(
        GroupId=group,
        IpPermissions=ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissionsEgress"],
    )
    ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[_permission(rule) for rule in rules["egress"]])
    # when the host starts with its volume
    inputs = whole.one("ec2/instance:Instance").inputs
    root = inputs["rootBlockDevice"]
    instance = ec2.run_instances(
        ImageId=ec2.describe_images()["Images"][0]["ImageId"],
        InstanceType=inputs["instanceType"],
        MinCount=1,
        MaxCount=1,
        UserData=base64.b64decode(inputs["userDataBase64"]).decode(),
        MetadataOptions=upper(inputs["metadataOptions"]),
        CreditSpecification=upper(inputs["creditSpecification"]),
        InstanceInitiatedShutdownBehavior=inputs["instanceInitiatedShutdownBehavior"],
        NetworkInterfaces=[
            {
                "DeviceIndex": 0,
                "SubnetId": subnet_id,
                "Groups": [group],
                "PrivateIpAddress": inputs["privateIp"],
                "AssociatePublicIpAddress": inputs["associatePublicIpAddress"],
            }
        ],
        BlockDeviceMappings=[
            {
                "DeviceName": "/dev/xvda",
                "Ebs": {
                    "Encrypted": root["encrypted"],
                    "VolumeSize": int(root["volumeSize"]),
                    "VolumeType": root["volumeType"],
                    "DeleteOnTermination": root["deleteOnTermination"],
                },
            }
        ],
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags(whole.one("ec2/instance:Instance"))}],
    )["Instances"][0]
    disk = whole.one("ebs/volume:Volume").inputs
    volume = ec2.create_volume(
        AvailabilityZone=disk["availabilityZone"],
        Size=int(disk["size"]),
        VolumeType=disk["type"],
        Encrypted=disk["encrypted"],
    )
    device = whole.one("VolumeAttachment").inputs["deviceName"]
    ec2.attach_volume(Device=device, InstanceId=instance["InstanceId"], VolumeId=volume["VolumeId"])
    # then it is closed, encrypted, and where it should be
    seen = ec2.describe_instances(InstanceIds=[instance["InstanceId"]])["Reservations"][0]["Instances"][0]
    assert seen["PrivateIpAddress"] == inputs["privateIp"] and seen["InstanceType"] == "t3a.xlarge"
    assert {item["DeviceName"] for item in seen["BlockDeviceMappings"]} >= {device}
    volumes = ec2.describe_volumes(VolumeIds=[volume["VolumeId"]])["Volumes"]
    assert all(item["Encrypted"] for item in volumes)
    found = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]
    assert [item["IpRanges"][0]["CidrIp"] for item in found["IpPermissions"]] == ["203.0.113.7/32"]


def _permission(rule: dict[str, Any]) -> dict[str, Any]:
    return {
        "IpProtocol": rule["protocol"],
        "FromPort": int(rule["fromPort"]),
        "ToPort": int(rule["toPort"]),
        "IpRanges": [{"CidrIp": cidr, "Description": rule["description"]} for cidr in rule["cidrBlocks"]],
    }


def test_schedules_and_budget(whole: Stack, client: Client) -> None:
    scheduler = client("scheduler")
    for item in whole.of("scheduler/schedule:Schedule"):
        target = item.inputs["target"]
        assert re.fullmatch(r"cron\(\d+ \d+ \? \* [A-Z,]+ \*\)", item.inputs["scheduleExpression"])
        scheduler.create_schedule(
            Name=item.name,
            ScheduleExpression=item.inputs["scheduleExpression"],
            ScheduleExpressionTimezone=item.inputs["scheduleExpressionTimezone"],
            FlexibleTimeWindow=upper(item.inputs["flexibleTimeWindow"]),
            Target={
                "Arn": target["arn"],
                "RoleArn": target["roleArn"],
                "Input": target["input"],
                "RetryPolicy": upper(target["retryPolicy"]),
            },
        )
    assert len(scheduler.list_schedules()["Schedules"]) == 2
    budget = whole.one("budgets/budget:Budget").inputs
    budgets = client("budgets")
    budgets.create_budget(
        AccountId="123456789012",
        Budget={
            "BudgetName": "monthly",
            "BudgetType": budget["budgetType"],
            "TimeUnit": budget["timeUnit"],
            "BudgetLimit": {"Amount": budget["limitAmount"], "Unit": budget["limitUnit"]},
        },
        NotificationsWithSubscribers=[
            {
                "Notification": {
                    "NotificationType": note["notificationType"],
                    "ComparisonOperator": note["comparisonOperator"],
                    "Threshold": note["threshold"],
                    "ThresholdType": note["thresholdType"],
                },
                "Subscribers": [
                    {"SubscriptionType": "EMAIL", "Address": address} for address in note["subscriberEmailAddresses"]
                ],
            }
            for note in budget["notifications"]
        ],
    )
    stored = budgets.describe_notifications_for_budget(AccountId="123456789012", BudgetName="monthly")["Notifications"]
    assert {note["NotificationType"] for note in stored} == {"ACTUAL", "FORECASTED"}
