"""Who may do what in the object store, by attempts with each workload's own key: as docs/kubernetes.md says it."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.e2e import platform
from tests.e2e.conftest import NAMESPACE, OBJECT_STORE, TRACKING, kubectl

BUCKET = "mlpipeline"
LOG, DATA, RAW, MODELS, DUMPS = "health-predict/predictions", "health-predict/data", "raw", "mlflow", "backups"
ARTIFACTS, LOGS = "v2/artifacts", "private-artifacts"
PLACES = (LOG, DATA, RAW, MODELS, DUMPS, ARTIFACTS, LOGS)
# Whose Secret lies where, and where that key may read, write and delete.
KEYS: dict[str, tuple[str, str, dict[str, set[str]]]] = {
    "service": (NAMESPACE, "readmission-api-object-store", {"write": {LOG}}),
    "mlflow": (TRACKING, "mlflow-object-store", {"read": {MODELS}, "write": {MODELS}, "delete": {MODELS}}),
    "backup": (TRACKING, "backup-object-store", {"write": {DUMPS}, "delete": {DUMPS}}),
    "tasks": (
        "kubeflow",
        "health-predict-credentials",
        {"read": {RAW, LOG, DATA}, "write": {LOG, DATA}, "delete": {LOG, DATA}},
    ),
    "operator": (
        "kubeflow",
        "health-predict-operator",
        {verb: {RAW, LOG, DATA, DUMPS} for verb in ("read", "write", "delete")},
    ),
    "runs": ("kubeflow", "health-predict-artifacts", {verb: {ARTIFACTS, LOGS} for verb in ("read", "write")}),
}


def client(service: str, namespace: str, secret: str, access: str, key: str) -> Any:
    found = json.loads(kubectl("-n", namespace, "get", "secret", secret, "-o", "json"))["data"]
    return boto3.client(
        service,
        endpoint_url=OBJECT_STORE,
        aws_access_key_id=base64.b64decode(found[access]).decode(),
        aws_secret_access_key=base64.b64decode(found[key]).decode(),
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 1}),
    )


def of(workload: str, service: str = "s3") -> Any:
    namespace, secret, _ = KEYS[workload]
    return client(service, namespace, secret, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def allowed(attempt: Callable[[], Any]) -> bool:
    """Whether the store does it; an answer other than that it may not is an error."""
    try:
        answer = attempt()
    except ClientError as error:
        # A key with `..` in it is no valid request.
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 403), error
        return False
    return not answer.get("Errors")


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client with the store's own key, and an object in each place."""
    folder = tmp_path_factory.mktemp("store")
    platform.prepare(folder)
    platform.up(folder)
    if not platform.have_store():
        pytest.skip("skipped: the stand-in for the object store knows no identities")
    store = client("s3", "kubeflow", "mlpipeline-minio-artifact", "accesskey", "secretkey")
    mark = uuid.uuid4().hex
    for place in PLACES:
        store.put_object(Bucket=BUCKET, Key=f"{place}/{mark}", Body=b"kept")
    store.mark = mark
    yield store
    for place in PLACES:
        for item in store.list_objects_v2(Bucket=BUCKET, Prefix=place).get("Contents", []):
            if mark in item["Key"]:
                store.delete_object(Bucket=BUCKET, Key=item["Key"])


@pytest.mark.parametrize("workload", KEYS)
def test_each_key_may_do_what_its_workload_needs_and_no_more(admin: Any, workload: str) -> None:
    # given its key
    store, may = of(workload), KEYS[workload][2]
    found: dict[str, set[str]] = {"read": set(), "write": set(), "delete": set()}
    for place in PLACES:
        kept, new, old = f"{place}/{admin.mark}", f"{place}/{admin.mark}-{workload}", f"{place}/{admin.mark}-old"
        admin.put_object(Bucket=BUCKET, Key=old, Body=b"old")
        # when it reads, writes and deletes in each place
        if allowed(lambda kept=kept: store.get_object(Bucket=BUCKET, Key=kept)):  # type: ignore[misc]
            found["read"].add(place)
        if allowed(lambda new=new: store.put_object(Bucket=BUCKET, Key=new, Body=b"x" * 100)):  # type: ignore[misc]
            found["write"].add(place)
        if allowed(lambda old=old: store.delete_object(Bucket=BUCKET, Key=old)):  # type: ignore[misc]
            found["delete"].add(place)
    # then it may do that where it has to, and nowhere else; names are for all but the service
    assert {verb: places for verb, places in found.items() if places} == may
    assert allowed(lambda: store.list_objects_v2(Bucket=BUCKET)) is (workload != "service")


@pytest.mark.parametrize("workload", KEYS)
def test_there_is_no_way_around(admin: Any, workload: str, tmp_path: Path) -> None:
    # given its key, a place that it may write to and one that it may neither read nor write
    store, iam, may = of(workload), of(workload, "iam"), KEYS[workload][2]
    own = sorted(may["write"])[0]
    closed = next(place for place in PLACES if place not in may["write"] | may.get("read", set()))
    theirs, mine = f"{closed}/{admin.mark}", f"{own}/{admin.mark}-way"
    source = {"Bucket": BUCKET, "Key": theirs}
    up = "../" * (own.count("/") + 1)
    everybody = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [everybody]})
    other = f"health-predict-{'tasks' if workload != 'tasks' else 'mlflow'}"
    # when it tries to come by the other one's object in another way, or to be more than it is
    attempts: dict[str, Callable[[], Any]] = {
        "copy": lambda: store.copy_object(Bucket=BUCKET, Key=mine, CopySource=source),
        "delete many": lambda: store.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": theirs}]}),
        "head": lambda: store.head_object(Bucket=BUCKET, Key=theirs),
        "tags": lambda: store.put_object_tagging(Bucket=BUCKET, Key=theirs, Tagging={"TagSet": []}),
        "open its list of access": lambda: store.put_object_acl(Bucket=BUCKET, Key=theirs, ACL="public-read"),
        "open the bucket": lambda: store.put_bucket_policy(Bucket=BUCKET, Policy=policy),
        "delete the bucket": lambda: store.delete_bucket(Bucket=BUCKET),
        "a bucket of its own": lambda: store.create_bucket(Bucket=f"own-{admin.mark}"),
        "a key of another": lambda: iam.create_access_key(UserName=other),
        "another policy": lambda: iam.attach_user_policy(
            UserName=f"health-predict-{workload}", PolicyArn=f"arn:aws:iam:::policy/{other}"
        ),
        "up and over": lambda: store.put_object(Bucket=BUCKET, Key=f"{own}/{up}{theirs}", Body=b"theirs"),
        "up and over, to read": lambda: store.get_object(Bucket=BUCKET, Key=f"{own}/{up}{theirs}"),
    }
    # then nothing of it works, and the object is what it was
    assert [name for name, attempt in attempts.items() if allowed(attempt)] == []
    assert admin.get_object(Bucket=BUCKET, Key=theirs)["Body"].read() == b"kept"


def test_a_file_in_parts_is_taken(admin: Any, tmp_path: Path) -> None:
    # given a file that boto3 sends in parts, as a model or a dump may be
    file = tmp_path / "large"
    file.write_bytes(b"x" * (17 << 20))
    for workload, (_, _, may) in KEYS.items():
        key = f"{sorted(may['write'])[0]}/{admin.mark}-large"
        of(workload).upload_file(str(file), BUCKET, key)
        assert admin.head_object(Bucket=BUCKET, Key=key)["ContentLength"] == file.stat().st_size
