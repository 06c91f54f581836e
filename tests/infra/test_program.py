"""The Pulumi program: what it would create, read off the registered resources, options included."""

from __future__ import annotations

import base64
import functools
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml
from moto import mock_aws

from health_predict.adapters import keys
from health_predict.aws import cost
from health_predict.aws.cost import MACHINES, PRICES
from health_predict.aws.stack_config import StackConfig, read_config
from health_predict.errors import SettingsError
from infra.outputs import FIRST_UP, estimate
from tests.infra.mutants import MUTANTS
from tests.infra.program import ACCOUNT, ROOT, Stack, run

OPERATOR = {"operator_cidr": "203.0.113.7/32", "open_ports": ["api"]}
WORKLOADS = ("service", "mlflow", "backup", "tasks")
OFFICE_HOURS = {"schedule": {"start": "07:30", "stop": "19:00", "days": ["MON", "WED"], "timezone": "Europe/Berlin"}}
ALARM = {"budget_email": "ops@example.org", "budget_usd": 99}


@functools.cache
def _run(config: str) -> Stack:
    return run(json.loads(config))


def stack(**config: Any) -> Stack:
    """One run of the program for each configuration; the resources are only read."""
    return _run(json.dumps(config))


def policy(text: str) -> list[dict[str, Any]]:
    statements: list[dict[str, Any]] = json.loads(text)["Statement"]
    return statements


def test_the_sdk_is_not_shadowed() -> None:
    assert "site-packages" in (pulumi.__file__ or "")
    assert not (ROOT / "pulumi" / "__init__.py").exists()


def test_pulumi_s_environment_is_locked_for_these_dependencies() -> None:
    uv = Path(sys.executable).parent / "uv"
    command = [uv, "lock", "--check", "--offline", "--quiet", "--directory", "pulumi"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"`cd pulumi && uv lock`, and commit: {done.stderr}"


@pytest.mark.parametrize("file", ["Pulumi.yaml", "pulumi/policy/PulumiPolicy.yaml"])
def test_engine_dynamic_resource_and_policy_pack_agree_on_the_environment(file: str) -> None:
    # With `virtualenv` the dynamic resource looks beside the program, the engine beside the project's file; pip would
    # ask the environment for pip, and upgrade it. tests/infra/test_engine.py shows it where the CLI is.
    options = yaml.safe_load((ROOT / file).read_text())["runtime"]["options"]
    assert options == {"toolchain": "uv"} and (ROOT / "pulumi/uv.lock").exists()


def test_network() -> None:
    made = stack()
    assert made.one("ec2/vpc:Vpc").inputs["enableDnsHostnames"] is True
    subnet = made.one("ec2/subnet:Subnet").inputs
    assert subnet["availabilityZone"] == "us-east-1a" == made.one("ebs/volume:Volume").inputs["availabilityZone"]
    route = made.one("ec2/routeTable:RouteTable").inputs["routes"]
    assert [item["cidrBlock"] for item in route] == ["0.0.0.0/0"] and route[0]["gatewayId"]
    assert made.one("ec2/routeTableAssociation:RouteTableAssociation").inputs["subnetId"] == "health-predict-dev"
    default = made.one("ec2/defaultSecurityGroup:DefaultSecurityGroup").inputs
    assert not default.get("ingress") and not default.get("egress")


def test_nothing_comes_in_by_default() -> None:
    group = stack().one("ec2/securityGroup:SecurityGroup").inputs
    assert not group.get("ingress")
    assert sorted(rule["fromPort"] for rule in group["egress"]) == [80, 443]
    assert all(rule["fromPort"] == rule["toPort"] and rule["protocol"] == "tcp" for rule in group["egress"])


def test_the_endpoint_opens_to_the_operator_alone() -> None:
    rules = stack(**OPERATOR).one("ec2/securityGroup:SecurityGroup").inputs["ingress"]
    assert {rule["description"]: (rule["fromPort"], rule["toPort"]) for rule in rules} == {"api": (3000, 3000)}
    assert all(rule["cidrBlocks"] == ["203.0.113.7/32"] and rule["protocol"] == "tcp" for rule in rules)


def test_the_bucket() -> None:
    made = stack()
    bucket = made.one("s3/bucket:Bucket")
    assert bucket.options["protect"] is True and not bucket.inputs.get("forceDestroy")
    versioning = made.one("s3/bucketVersioning:BucketVersioning").inputs["versioningConfiguration"]
    assert versioning == {"status": "Enabled"}
    rules = made.one("BucketServerSideEncryptionConfiguration").inputs["rules"]
    assert rules[0]["applyServerSideEncryptionByDefault"]["sseAlgorithm"] == "AES256"
    closed = made.one("BucketPublicAccessBlock").inputs
    for name in ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets"):
        assert closed[name] is True
    assert made.one("BucketOwnershipControls").inputs["rule"]["objectOwnership"] == "BucketOwnerEnforced"
    (tls,) = policy(made.one("s3/bucketPolicy:BucketPolicy").inputs["policy"])
    assert (tls["Effect"], tls["Principal"], tls["Action"]) == ("Deny", "*", "s3:*")
    assert tls["Condition"] == {"Bool": {"aws:SecureTransport": "false"}} and len(tls["Resource"]) == 2
    lifecycle = {rule["id"]: rule for rule in made.one("BucketLifecycleConfiguration").inputs["rules"]}
    assert lifecycle["old-versions"]["noncurrentVersionExpiration"] == {"noncurrentDays": 90}
    assert lifecycle["old-versions"]["abortIncompleteMultipartUpload"] == {"daysAfterInitiation": 7}
    assert lifecycle["backups"]["filter"] == {"prefix": "backups/"}
    assert lifecycle["backups"]["expiration"] == {"days": 35}
    assert all(rule["status"] == "Enabled" for rule in lifecycle.values())
    # and what was an encounter or an outcome is gone for good a week after a task deleted it
    patients = {rule["filter"]["prefix"]: rule for name, rule in lifecycle.items() if name.startswith("patients-")}
    assert patients.keys() == {f"health-predict/{prefix}" for prefix in keys.OF_PATIENTS}
    for rule in patients.values():
        assert rule["noncurrentVersionExpiration"] == {"noncurrentDays": 7}
        assert rule["expiration"] == {"expiredObjectDeleteMarker": True}


def test_a_key_of_your_own_encrypts_the_bucket() -> None:
    arn = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/1234-ab"
    (rule,) = stack(kms_key=arn).one("BucketServerSideEncryptionConfiguration").inputs["rules"]
    assert rule["applyServerSideEncryptionByDefault"] == {"sseAlgorithm": "aws:kms", "kmsMasterKeyId": arn}
    assert rule["bucketKeyEnabled"] is True
    with pytest.raises(SettingsError, match="kms_key"):
        read_config({"kms_key": "alias/mine"})


def test_who_reads_encounters_is_recorded_where_that_is_wanted() -> None:
    assert not stack().of("cloudtrail/trail:Trail")
    # given a stack that records it
    made = stack(record_access=True)
    # then CloudTrail tells of objects below the data's prefix, to a closed bucket of its own
    trail = made.one("cloudtrail/trail:Trail").inputs
    (selector,) = trail["advancedEventSelectors"]
    fields = {one["field"]: one.get("equals") or one.get("startsWiths") for one in selector["fieldSelectors"]}
    assert fields == {
        "eventCategory": ["Data"],
        "resources.type": ["AWS::S3::Object"],
        "resources.ARN": ["arn:aws:s3:::health-predict-dev/health-predict/"],
    }
    assert trail["s3BucketName"] == "health-predict-dev-audit" and trail["enableLogFileValidation"] is True
    for part in ("PublicAccessBlock", "ServerSideEncryptionConfiguration", "Versioning", "Policy"):
        made.one(f"s3/bucket{part}:Bucket{part}", "health-predict-dev-audit")
    tls, *writing = policy(made.one("s3/bucketPolicy:BucketPolicy", "health-predict-dev-audit").inputs["policy"])
    assert tls["Effect"] == "Deny"
    assert [one["Principal"] for one in writing] == [{"Service": "cloudtrail.amazonaws.com"}] * 2
    assert all(one["Condition"]["StringEquals"]["aws:SourceArn"].endswith(":trail/health-predict-dev")
               for one in writing)  # fmt: skip


def test_the_registry() -> None:
    made = stack()
    repositories = made.of("ecr/repository:Repository")
    assert {item.inputs["name"] for item in repositories} == {
        f"health-predict/dev/{name}" for name in ("pipeline", "mlflow", "readmission")
    }
    for item in repositories:
        assert item.inputs["imageTagMutability"] == "IMMUTABLE"
        assert item.inputs["imageScanningConfiguration"] == {"scanOnPush": True}
        assert item.inputs["encryptionConfigurations"] == [{"encryptionType": "AES256"}]
        assert item.options["protect"] is True and not item.inputs.get("forceDelete")
    policies = made.of("ecr/lifecyclePolicy:LifecyclePolicy")
    assert len(policies) == 3
    untagged, newest = json.loads(policies[0].inputs["policy"])["rules"]
    assert untagged["selection"]["tagStatus"] == "untagged" and newest["selection"]["countNumber"] == 50


def test_the_host() -> None:
    made = stack()
    host = made.one("ec2/instance:Instance")
    assert host.inputs["instanceType"] == "t3a.xlarge" and host.inputs["ami"] == "ami-0abc"
    assert host.inputs["metadataOptions"] == {
        "httpEndpoint": "enabled",
        "httpTokens": "required",
        "httpPutResponseHopLimit": 1,
    }
    root = host.inputs["rootBlockDevice"]
    assert (root["encrypted"], root["volumeSize"], root["volumeType"]) == (True, 40, "gp3")
    assert host.inputs["creditSpecification"] == {"cpuCredits": "standard"}
    assert "keyName" not in host.inputs and host.inputs["vpcSecurityGroupIds"] == ["health-predict-dev"]
    assert host.inputs["iamInstanceProfile"] == "health-predict-dev"
    # a running host is neither replaced nor restarted for a newer image or newer user data
    # nor because it has no public address while it is stopped
    assert host.options["ignore_changes"] == ["ami", "userDataBase64", "associatePublicIpAddress"]
    assert host.inputs["userDataReplaceOnChange"] is False
    # and where it must be replaced, it goes first
    assert host.options["delete_before_replace"] is True
    volume = made.one("ebs/volume:Volume")
    assert (volume.inputs["encrypted"], volume.inputs["size"], volume.inputs["type"]) == (True, 50, "gp3")
    assert volume.options["protect"] is True and not volume.options["ignore_changes"]
    attachment = made.one("ec2/volumeAttachment:VolumeAttachment")
    assert attachment.inputs["stopInstanceBeforeDetaching"] is True
    assert attachment.options["delete_before_replace"] is True
    assert (attachment.inputs["instanceId"], attachment.inputs["volumeId"]) == ("i-0abc", "vol-0abc")


def test_a_machine_that_does_not_burst_has_no_credits() -> None:
    made = stack(instance_type="m6a.xlarge", data_gib="80", region="eu-central-1", zone="b")
    host = made.one("ec2/instance:Instance").inputs
    assert "creditSpecification" not in host and host["availabilityZone"] == "eu-central-1b"
    assert made.one("ebs/volume:Volume").inputs["size"] == 80
    assert made.one("providers:aws").inputs["region"] == "eu-central-1"


def test_user_data_fits_and_holds_no_secret() -> None:
    text = base64.b64decode(stack().one("ec2/instance:Instance").inputs["userDataBase64"]).decode()
    assert text.startswith("#!/bin/bash") and "@" not in text.replace("$@", "").partition("set -euo")[0]
    assert "bucket=health-predict-dev" in text and "region=us-east-1" in text
    for word in ("password", "secret", "AWS_ACCESS_KEY", "token"):
        assert word not in text.lower()


def test_the_bundle_is_named_by_its_content() -> None:
    made = stack()
    archive = made.one("s3/bucketObjectv2:BucketObjectv2", "health-predict-dev-archive").inputs
    pointer = made.one("s3/bucketObjectv2:BucketObjectv2", "health-predict-dev-host")
    digest = archive["key"].removeprefix("bundles/").removesuffix(".tar.gz")
    assert f"HP_BUNDLE_SHA256={digest}\n" in pointer.inputs["content"]
    assert "HP_VOLUME_ID=vol-0abc\n" in pointer.inputs["content"]
    assert (
        f"HP_IMAGE_PIPELINE={ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/health-predict/dev/pipeline\n"
        in (pointer.inputs["content"])
    )
    assert "HP_IMAGE_TAG=0123abc\n" in pointer.inputs["content"]
    assert f"HP_TOPIC=arn:aws:sns:us-east-1:{ACCOUNT}:health-predict-dev\n" in pointer.inputs["content"]
    scheduled = stack(monitor="0 30 2 * * *").one("s3/bucketObjectv2:BucketObjectv2", "health-predict-dev-host")
    assert "HP_MONITOR='0 30 2 * * *'\n" in scheduled.inputs["content"]
    # and the pointer moves only after the archive is there
    assert any("archive" in urn for urn in pointer.depends_on)
    assert stack(**OPERATOR).one("BucketObjectv2", "health-predict-dev-archive").inputs["key"] == archive["key"]


def test_the_rollout_waits_for_bundle_and_disk() -> None:
    made = stack()
    rollout = made.one("dynamic:Resource")
    assert rollout.inputs["instance_id"] == "i-0abc" and len(rollout.inputs["version"]) == 64
    assert (
        rollout.inputs["script"]
        == base64.b64decode(made.one("ec2/instance:Instance").inputs["userDataBase64"]).decode()
    )
    assert rollout.options["create_timeout"] == "150m"
    waits = {urn.rpartition("::")[2] for urn in made.one("infra:Rollout").depends_on + rollout.depends_on}
    assert {"health-predict-dev-host", "health-predict-dev-data"} <= waits
    other = stack(**OPERATOR).one("dynamic:Resource")
    assert other.inputs["version"] != rollout.inputs["version"]
    # also when nothing but the volume grows, with which its file system must
    assert stack(data_gib=80).one("dynamic:Resource").inputs["version"] != rollout.inputs["version"]


def powers(made: Stack, name: str) -> dict[str, dict[str, Any]]:
    """What a role may do, by the name of the statement."""
    return {item["Sid"]: item for item in policy(made.one("iam/rolePolicy:RolePolicy", name).inputs["policy"])}


def test_the_host_s_role_reaches_this_stack_alone() -> None:
    made = stack()
    role = made.one("iam/role:Role", "health-predict-dev").inputs
    assert policy(role["assumeRolePolicy"])[0]["Principal"] == {"Service": "ec2.amazonaws.com"}
    statements = powers(made, "health-predict-dev")
    bucket = "arn:aws:s3:::health-predict-dev"
    assert statements["ListBucket"]["Resource"] == [bucket]
    assert statements["ReadObjects"]["Resource"] == [f"{bucket}/bundles/*", f"{bucket}/raw/*"]
    assert statements["WriteObjects"]["Resource"] == [f"{bucket}/raw/*"]
    assert not any(action.startswith("s3:Delete") for item in statements.values() for action in item["Action"])
    assert all(f"{ACCOUNT}:repository/health-predict/dev/" in arn for arn in statements["Images"]["Resource"])
    assert len(statements["Images"]["Resource"]) == 3
    everywhere = [sid for sid, item in statements.items() if "*" in item["Resource"]]
    assert everywhere == ["Metrics", "WithoutResource"]
    assert statements["Metrics"]["Action"] == ["cloudwatch:PutMetricData"]
    assert statements["Metrics"]["Condition"] == {"StringEquals": {"cloudwatch:namespace": "health-predict"}}
    assert all(
        action.startswith(("ssmmessages:", "ec2messages:")) or action == "ecr:GetAuthorizationToken"
        for action in statements["WithoutResource"]["Action"]
    )
    assert not made.of("RolePolicyAttachment") and not made.of("iam/user:User")


def test_each_workload_has_a_role_that_the_host_alone_may_take() -> None:
    made = stack()
    roles = {f"health-predict-dev-{workload}" for workload in WORKLOADS}
    arns = {made_role.name: f"arn:aws:iam::{ACCOUNT}:role/{made_role.name}" for made_role in made.of("iam/role:Role")}
    assert set(arns) == {"health-predict-dev", *roles}
    for name in roles:
        (trust,) = policy(made.one("iam/role:Role", name).inputs["assumeRolePolicy"])
        assert (trust["Action"], trust["Principal"]) == ("sts:AssumeRole", {"AWS": arns["health-predict-dev"]})
    (assume,) = [item for item in powers(made, "health-predict-dev").values() if "sts:AssumeRole" in item["Action"]]
    assert set(assume["Resource"]) == {arns[name] for name in roles}
    # and the host is told which is whose
    pointer = made.one("s3/bucketObjectv2:BucketObjectv2", "health-predict-dev-host").inputs["content"]
    for workload in WORKLOADS:
        assert f"HP_ROLE_{workload.upper()}={arns[f'health-predict-dev-{workload}']}\n" in pointer


def test_each_mutant_still_finds_what_it_spoils() -> None:
    lost = [(one.file, one.before) for one in MUTANTS if (ROOT / one.file).read_text().count(one.before) != 1]
    assert lost == []


def test_the_operators_alone_delete_old_versions_and_with_a_second_factor() -> None:
    # given a stack that names nobody, and one that names somebody
    person = f"arn:aws:iam::{ACCOUNT}:user/somebody"
    none, made = stack(), stack(operators=[person])
    assert not [role for role in none.of("iam/role:Role") if role.name.endswith("operator")]
    # then that person may take the role, signed in by a second factor
    (trust,) = policy(made.one("iam/role:Role", "health-predict-dev-operator").inputs["assumeRolePolicy"])
    assert trust["Principal"] == {"AWS": [person]}
    assert trust["Condition"] == {"Bool": {"aws:MultiFactorAuthPresent": "true"}}
    # and the role, as no other, deletes old versions, of patients' data alone
    eraser = {
        (item.name, resource)
        for item in made.of("iam/rolePolicy:RolePolicy")
        for one in policy(item.inputs["policy"])
        if "s3:DeleteObjectVersion" in one["Action"]
        for resource in one["Resource"]
    }
    assert eraser == {("health-predict-dev-operator", "arn:aws:s3:::health-predict-dev/health-predict/*")}
    with pytest.raises(SettingsError, match="operators"):
        read_config({"operators": [f"arn:aws:iam::{ACCOUNT}:root"]})


def test_no_workload_reaches_what_is_another_s() -> None:
    made, bucket = stack(), "arn:aws:s3:::health-predict-dev"
    found = {workload: powers(made, f"health-predict-dev-{workload}") for workload in WORKLOADS}

    def on(workload: str, *verbs: str) -> set[str]:
        """Resources on which a workload has one of these actions."""
        return {
            resource
            for item in found[workload].values()
            if set(item["Action"]) & set(verbs)
            for resource in item["Resource"]
        }

    # then the service puts its log and reads nothing, not even names
    assert on("service", "s3:PutObject") == {f"{bucket}/health-predict/predictions/*"}
    assert not on("service", "s3:GetObject", "s3:ListBucket", "s3:DeleteObject")
    # and each of the others has its own prefix
    both = ("s3:PutObject", "s3:DeleteObject")
    assert on("mlflow", "s3:GetObject", *both) == {f"{bucket}/mlflow/*"}
    assert on("backup", *both) == {f"{bucket}/backups/*"} and not on("backup", "s3:GetObject")
    assert on("tasks", *both) == {f"{bucket}/health-predict/*"}
    assert on("tasks", "s3:GetObject") == {f"{bucket}/health-predict/*", f"{bucket}/raw/*"}
    # and only tasks push, to one repository, and send messages
    assert on("tasks", "ecr:PutImage") == {f"arn:aws:ecr:us-east-1:{ACCOUNT}:repository/health-predict/dev/readmission"}
    assert len(on("tasks", "sns:Publish")) == 1
    # and each may use the bucket's key, where it has one, and no other
    key = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/1234-ab"
    for name in ("health-predict-dev", *(f"health-predict-dev-{workload}" for workload in WORKLOADS)):
        assert powers(stack(kms_key=key), name)["Key"]["Resource"] == [key] and "Key" not in powers(made, name)
    # and nobody has what is the host's
    actions = {action for powers_of in found.values() for item in powers_of.values() for action in item["Action"]}
    assert not {action for action in actions if action.startswith(("ssm", "ec2", "sts", "cloudwatch", "iam"))}
    everywhere = {sid for powers_of in found.values() for sid, item in powers_of.items() if "*" in item["Resource"]}
    assert everywhere == {"WithoutResource"}


def test_office_hours() -> None:
    made = stack(**OFFICE_HOURS)
    found = {item.name.rpartition("-")[2]: item.inputs for item in made.of("scheduler/schedule:Schedule")}
    assert found["start"]["scheduleExpression"] == "cron(30 7 ? * MON,WED *)"
    assert found["stop"]["scheduleExpression"] == "cron(0 19 ? * MON,WED *)"
    for verb, item in found.items():
        assert item["scheduleExpressionTimezone"] == "Europe/Berlin"
        assert item["target"]["arn"] == f"arn:aws:scheduler:::aws-sdk:ec2:{verb}Instances"
        assert json.loads(item["target"]["input"]) == {"InstanceIds": ["i-0abc"]}
    role = made.one("iam/role:Role", "health-predict-dev-scheduler").inputs
    (trust,) = policy(role["assumeRolePolicy"])
    assert trust["Condition"] == {"StringEquals": {"aws:SourceAccount": ACCOUNT}}
    (power,) = policy(made.one("iam/rolePolicy:RolePolicy", "health-predict-dev-scheduler").inputs["policy"])
    assert power["Action"] == ["ec2:StartInstances", "ec2:StopInstances"] and power["Resource"].endswith("/i-0abc")
    assert not stack().of("scheduler/schedule:Schedule")


def test_the_budget_alarm() -> None:
    budget = stack(**ALARM).one("budgets/budget:Budget").inputs
    assert (budget["limitAmount"], budget["limitUnit"], budget["timeUnit"]) == ("99", "USD", "MONTHLY")
    notes = budget["notifications"]
    assert {(note["notificationType"], note["threshold"]) for note in notes} == {("ACTUAL", 80), ("FORECASTED", 100)}
    assert all(note["subscriberEmailAddresses"] == ["ops@example.org"] for note in notes)
    assert not stack().of("budgets/budget:Budget")


def test_every_resource_has_our_tags_and_our_provider() -> None:
    # given as many tags as are allowed, a number among them, as `pulumi config set --path` stores it
    given = {f"key-{number}": "x" for number in range(39)} | {"cost_center": 4711}
    made = stack(tags=given, alarm_email="ops@example.org", **OFFICE_HOURS, **ALARM)
    tagged = [item for item in made.resources if "tags" in item.inputs]
    assert len(tagged) >= 23
    own = {"Project": "health-predict", "Stack": "dev", "ManagedBy": "pulumi", "Name": ""}
    for item in tagged:
        found = item.inputs["tags"]
        # then all have them, but for objects, of which S3 refuses those with more than ten
        theirs = {} if "bucketObject" in item.type else {**given, "cost_center": "4711"}
        assert {**found, "Name": ""} == {**own, **theirs}, item.name
        assert found["Name"] and len(found) <= (10 if "bucketObject" in item.type else 50)
    for item in made.resources:
        if item.type.startswith("aws:"):
            assert "providers:aws" in item.options["provider"], item.name


def test_the_alarms() -> None:
    made = stack(alarm_email="ops@example.org")
    (topic,) = made.of("sns/topic:Topic")
    subscription = made.one("sns/topicSubscription:TopicSubscription").inputs
    assert (subscription["protocol"], subscription["endpoint"]) == ("email", "ops@example.org")
    alarms = {
        item.name.removeprefix("health-predict-dev-"): item.inputs
        for item in made.of("cloudwatch/metricAlarm:MetricAlarm")
    }
    assert {name: (item["metricName"], item["threshold"]) for name, item in alarms.items()} == {
        "host-down": ("StatusCheckFailed", 0),
        "disk-full": ("DiskUsed", 85),
        "backup-failed": ("FailedBackups", 0),
        "run-failed": ("FailedRuns", 0),
    }
    for name, item in alarms.items():
        assert len(item["alarmActions"]) == 1 and topic.name in item["alarmActions"][0]
        assert " -> " in item["alarmDescription"], name
    # each metric is one that the host sends, under the same names
    sent = (ROOT / "pulumi/bootstrap/watch.sh").read_text()
    for name in ("disk-full", "backup-failed", "run-failed"):
        assert f"put {alarms[name]['metricName']} " in sent and alarms[name]["dimensions"] == {"Stack": "dev"}
        assert f"--namespace {alarms[name]['namespace']} " in sent
    assert alarms["host-down"]["dimensions"] == {"InstanceId": "i-0abc"}
    # a host that is always on may not be silent, one that sleeps at night may
    assert alarms["host-down"]["treatMissingData"] == "breaching"
    asleep = stack(**OFFICE_HOURS)
    assert asleep.one("MetricAlarm", "health-predict-dev-host-down").inputs["treatMissingData"] == "notBreaching"
    # and they are made when the host is ready, and not silent any more
    assert any("dynamic:Resource" in urn for urn in made.one("infra:Alarms").depends_on)
    assert not stack().of("TopicSubscription")


def test_the_tag_of_the_images_is_what_they_are_built_from(tmp_path: Path) -> None:
    # given a checkout
    from infra.images import image_sources, image_tag, source_revision

    for name in image_sources():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "k8s").mkdir()
    shutil.copy(ROOT / "k8s/image-source", tmp_path / "k8s")
    first = image_tag(root=tmp_path)
    assert len(first) == 40 and image_sources(tmp_path) == image_sources()
    assert source_revision(("Dockerfile",), tmp_path) == "unknown"

    def commit_all() -> None:
        for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=one"]):
            subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *command], cwd=tmp_path, check=True)

    commit_all()
    commit = source_revision(("Dockerfile",), tmp_path)
    # when another commit changes something else, then the tag stays, and so does the commit it is told by
    (tmp_path / "docs.md").write_text("words")
    commit_all()
    (tmp_path / "health_predict/core/__pycache__").mkdir()
    (tmp_path / "health_predict/core/__pycache__/cost.pyc").write_text("compiled")
    assert image_tag(root=tmp_path) == first and source_revision(("Dockerfile",), tmp_path) == commit
    # when a source changes by one byte, its mode, or the base's digest does, then it is another tag
    base = "mirror.example.org/python@sha256:" + "0" * 64
    tags = {first, image_tag(base, tmp_path)}
    assert image_tag(base.replace("mirror", "other"), tmp_path) in tags
    (tmp_path / "health_predict/cli.py").chmod(0o755)
    tags.add(image_tag(root=tmp_path))
    (tmp_path / "Dockerfile").write_text((tmp_path / "Dockerfile").read_text() + "\n")
    tags.add(image_tag(root=tmp_path))
    assert len(tags) == 4
    assert source_revision(("Dockerfile",), tmp_path) == f"{commit}-dirty"
    # and where a source is missing, that is said
    (tmp_path / "uv.lock").unlink()
    with pytest.raises(pulumi.RunError, match=r"uv\.lock is not here.* -> "):
        image_tag(root=tmp_path)


def test_the_bundle_holds_what_the_images_are_built_from() -> None:
    from infra.bundle import CONTENT, pack
    from infra.images import image_sources

    with tarfile.open(fileobj=io.BytesIO(pack(ROOT, CONTENT, image_sources()))) as tar:
        names = tar.getnames()
    assert {"Dockerfile", ".dockerignore", "uv.lock", "health_predict/cli.py", "k8s/image-source"} <= set(names)
    assert len(names) == len(set(names)) and not [name for name in names if name.endswith(".pyc")]
    assert not [name for name in names if name.startswith(("tests/", ".git/", "pulumi/.venv"))]


def test_destroy_needs_a_decision_first() -> None:
    protected = {(item.type, item.name) for item in stack().resources if item.options["protect"]}
    assert {kind for kind, _ in protected} == {
        "aws:s3/bucket:Bucket",
        "aws:ecr/repository:Repository",
        "aws:ebs/volume:Volume",
    }
    free = stack(keep_data=False)
    assert not [item.name for item in free.resources if item.options["protect"]]
    assert free.one("s3/bucket:Bucket").inputs["forceDestroy"] is True
    assert all(item.inputs["forceDelete"] is True for item in free.of("ecr/repository:Repository"))


def test_outputs_are_ready_to_paste() -> None:
    outputs = stack(**OFFICE_HOURS).outputs
    assert (outputs["instance_id"], outputs["public_ip"]) == ("i-0abc", "198.51.100.7")
    assert outputs["public_dns"] == "host.example" and outputs["bucket"] == "health-predict-dev"
    assert set(outputs["images"]) == {"pipeline", "mlflow", "readmission"}
    assert set(outputs["commands"]) == {
        "session",
        "kubeconfig",
        "kubernetes",
        "state",
        "api",
        "mlflow",
        "pipelines",
        "delete",
    }
    assert outputs["commands"].pop("delete") == "pulumi config set keep_data false && pulumi up && pulumi destroy"
    assert all("--region us-east-1 --target i-0abc" in command for command in outputs["commands"].values())
    assert "portNumber=5050,localPortNumber=5050" in outputs["commands"]["mlflow"]
    # 23 hours a week of host and address, and what costs while it is stopped
    hours = 23 * 730 / 168
    assert outputs["monthly_cost"]["usd"] == pytest.approx(
        (0.1504 + 0.005) * hours + 90 * 0.08 + 0.23 + 1 + 1.3, abs=0.01
    )
    assert set(outputs["monthly_cost"]["parts"]) == {"host", "public IPv4", "disks", "bucket", "images", "alarms"}


def test_another_account_is_refused_by_the_provider() -> None:
    with mock_aws():
        provider = stack(account_id=ACCOUNT).one("providers:aws").inputs
        assert json.loads(provider["allowedAccountIds"]) == [ACCOUNT]
        # and by the program, which says what to do
        with pytest.raises(pulumi.RunError, match=f"belong to account {ACCOUNT}, and .* is 111122223333 -> use others"):
            stack(account_id="111122223333")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"operator_cidr": "0.0.0.0/0", "open_ports": ["api"]}, "opens the host to 4294967296 addresses"),
    ({"operator_cidr": "203.0.113.6/31", "open_ports": ["api"]}, "opens the host to 2 addresses"),
    ({"operator_cidr": "203.0.113.7/32", "open_ports": ["mlflow"]}, "open_ports"),
    ({"operator_cidr": "203.0.113.7/24", "open_ports": ["api"]}, "is no IPv4 network"),
    ({"operator_cidr": "::/0", "open_ports": ["api"]}, "is no IPv4 network"),
    ({"open_ports": ["api"]}, "operator_cidr and open_ports belong together"),
    ({"operator_cidr": "203.0.113.7/32"}, "operator_cidr and open_ports belong together"),
    ({"operator_cidr": "203.0.113.7/32", "open_ports": ["ssh"]}, "open_ports"),
    ({"instance_type": "t2.micro"}, "t3a.xlarge"),
    ({"instance_type": "t4g.xlarge"}, "no arm64 images"),
    ({"region": "mars-north-1"}, "us-east-1"),
    ({"zone": "us-east-1a"}, "letter alone"),
    ({"root_gib": 8}, "greater than or equal to 40"),
    ({"data_gib": "many"}, "data_gib: Input should be a valid integer"),
    ({"account_id": "12345"}, "12 digits"),
    ({"budget_email": "nobody"}, "e-mail"),
    ({"schedule": {"timezone": "Mars/Olympus"}}, "IANA"),
    ({"schedule": {"timezone": "UTC", "start": "18:00", "stop": "08:00"}}, "before it starts"),
    ({"schedule": {"timezone": "UTC", "start": "8am"}}, "HH:MM"),
    ({"schedule": {"timezone": "UTC", "days": ["MON", "MON"]}}, "each once"),
    ({"tags": {"aws:x": "1"}}, "set by the stack or by AWS"),
    ({"tags": {"Stack": "prod"}}, "set by the stack or by AWS"),
    ({"tags": {"team": "a;b"}}, "AWS refuses"),
    ({"image_tag": "latest"}, "another image every day"),
    ({"images": "pull"}, "images: Input should be 'build' or 'push'"),
    ({"python_image": "python:3.11"}, "has no digest"),
    ({"alarm_email": "nobody"}, "e-mail"),
    ({"image_tag": "a b"}, "no image tag"),
    ({"monitor": "every day"}, "six fields"),
    ({"instnace_type": "t3a.xlarge"}, "there is no such key"),
]


@pytest.mark.parametrize(("config", "words"), WRONG, ids=lambda value: json.dumps(value) if value else "")
def test_a_wrong_value_fails_with_its_remedy(config: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_config(config)
    assert words in str(caught.value) and "->" in str(caught.value)


@pytest.mark.parametrize("config", [WRONG[0][0], WRONG[7][0], WRONG[-1][0]])
def test_a_wrong_value_stops_the_program_before_anything_is_registered(config: dict[str, Any]) -> None:
    with pytest.raises(pulumi.RunError, match=r"health-predict:|wrong stack configuration"):
        run(config)


@pytest.mark.parametrize(
    ("key", "text"), [("schedule", "{broken"), ("open_ports", "api"), ("open_ports", "3000"), ("tags", "team=ml")]
)
def test_a_text_where_a_list_or_a_map_is_meant_is_answered_by_the_right_command(key: str, text: str) -> None:
    with pytest.raises(pulumi.RunError, match=f"health-predict:{key}: .* -> `pulumi config rm {key} && .* --path "):
        run({key: text})


def test_every_region_prices_every_machine() -> None:
    for region, prices in PRICES.items():
        assert set(prices.machines) == set(MACHINES)
        assert read_config({"region": region}).region == region


def test_parliament_finds_nothing_in_the_policies() -> None:
    from parliament import analyze_policy_string

    made = stack(**OFFICE_HOURS)
    texts = [item.inputs["policy"] for item in made.of("iam/rolePolicy:RolePolicy")]
    assert len(texts) == 6
    for text in texts:
        assert [str(finding) for finding in analyze_policy_string(text).findings] == []
    # and it would find a misspelt action
    assert all(analyze_policy_string(text.replace("s3:Put", "s3:Pt")).findings for text in texts if "s3:Put" in text)


def test_the_volume_and_address_of_the_units_are_the_programs() -> None:
    from infra.network import HOST_ADDRESS

    assert (
        f"ListenStream={HOST_ADDRESS}:%i" in (ROOT / "pulumi/bootstrap/units/health-predict-port@.socket").read_text()
    )


def test_every_key_is_in_the_documentation_as_it_is() -> None:
    text = (ROOT / "docs/aws.md").read_text()
    for key, field in StackConfig.model_fields.items():
        assert field.description
        default = "" if field.default in ("", (), None) or field.default_factory else f"`{field.default}`".lower()
        assert f"| `{key}` | {default} | {field.description} |\n" in text
    # and what it says of costs is what the command says, with its date
    always, scheduled = (cost.host("us-east-1", "t3a.xlarge", 40, 50, hours).usd for hours in (None, 50.0))
    assert f"{cost.PRICES_AS_OF}, without taxes and traffic: about {always:.0f} USD a month" in text.replace("\n", " ")
    assert f"about {scheduled:.0f} with office hours" in text.replace("\n", " ")
    assert f"about {FIRST_UP} minutes" in text


def test_the_preview_says_how_long_it_takes_and_what_it_costs() -> None:
    said = estimate(read_config({"data_gib": 100}))
    assert f"about {FIRST_UP} minutes, with images and with training" in said
    assert "about 127 USD a month" in said and cost.PRICES_AS_OF in said
    assert "training" not in estimate(read_config({"first_run": False}))
