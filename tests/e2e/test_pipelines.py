"""The pipelines on a real Kubeflow: a run that ends with a model in service, versions, schedules."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from health_predict.adapters.pipelines.kubeflow import ACCOUNT, ClusterPipelines, ClusterRun
from health_predict.core.data.partition import Parameters, partition
from health_predict.settings import PREFIX, Settings
from tests.cohorts import synthesize
from tests.contracts import DIABETES
from tests.e2e import platform
from tests.e2e.conftest import (
    BASE_IMAGE,
    KFP,
    NAMESPACE,
    OBJECT_STORE,
    TRACKING,
    deployment,
    kubectl,
    object_store_keys,
    outside,
    until,
)

BUCKET, KEY = "mlpipeline", "raw/e2e.csv"
# Of this session alone: what another one left there has been judged already.
STORAGE = f"s3://{BUCKET}/e2e-{secrets.token_hex(4)}"
# How a task calls the base image, where its registry has another name in the cluster.
TASK_BASE_IMAGE = os.environ.get("E2E_TASK_BASE_IMAGE", BASE_IMAGE)
# Every cohort and every search is small: it is the way that is examined, not the model.
SMALL = ("initial_share=0.8", "future_batches=2", "families=LogisticRegression,LightGBM", "trials=1")
COHORT = synthesize(14_000, seed=11)
FUTURE = partition(COHORT, DIABETES, Parameters(0.8, 2, "any")).batches

pytestmark = [pytest.mark.full]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The platform from nothing, the data in its object store, and the environment of who works with it."""
    import boto3

    if not platform.have_pipelines():
        pytest.skip("skipped: the cluster has no Kubeflow Pipelines")
    if not platform.PIPELINE_IMAGE:
        pytest.skip("skipped: E2E_PIPELINE_IMAGE names no image of the tasks (`make images`)")
    folder = tmp_path_factory.mktemp("pipelines")
    platform.down()
    platform.prepare(folder)
    # What arrives is judged at once, as many encounters at a time as are added first.
    windows = {"window": str(len(FUTURE[0])), "follow_up_days": "0"}
    COHORT.to_csv(folder / "cohort.csv", index=False)
    sha256 = hashlib.sha256((folder / "cohort.csv").read_bytes()).hexdigest()
    given = {
        "data_source": f"s3://{BUCKET}/{KEY}",
        "data_sha256": sha256,
        "storage_uri": STORAGE,
        "rollout_observation": "5",
        **windows,
    }
    platform.up(folder, base_image=TASK_BASE_IMAGE, **given)
    credentials = object_store_keys()
    client = boto3.client(
        "s3",
        endpoint_url=OBJECT_STORE,
        aws_access_key_id=credentials["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=credentials["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    client.upload_file(str(folder / "cohort.csv"), BUCKET, KEY)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return {**plain, **credentials, **{PREFIX + name.upper(): value for name, value in addresses(folder).items()}}


def addresses(home: Path) -> dict[str, str]:
    own = {"home": home / "home", "storage_uri": STORAGE, "kfp_host": KFP}
    return {name: str(value) for name, value in {**outside(), **own}.items()}


def ask(shell: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """What `health-predict ...` does."""
    words = [sys.executable, "-m", "health_predict", *arguments]
    return subprocess.run(words, env=shell, capture_output=True, text=True, timeout=2400, check=False)


def command(shell: dict[str, str], *arguments: str) -> Any:
    """What `health-predict ... --json` says last."""
    done = ask(shell, *arguments, "--json")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_a_run_ends_with_a_model_in_service(shell: dict[str, str]) -> None:
    # when the pipeline runs in the cluster
    parameters = [word for pair in SMALL for word in ("-p", pair)]
    run = command(shell, "pipeline", "run", "readmission", "--timeout", "2000", *parameters)
    # then it ended well, and is the newest of the list
    assert run["state"] == "SUCCEEDED"
    (first,) = command(shell, "pipeline", "list")[:1]
    # with its end recorded
    assert (first["run_id"], first["state"]) == (run["run_id"], "succeeded")
    assert first["outputs"] == {"champion": command(shell, "status")["champion"], "dataset_source": "synthetic"}
    # and a model serves, from the image that lineage names
    links = command(shell, "lineage")["links"]
    assert [link["problem"] for link in links] == [""] * len(links)
    label = "app.kubernetes.io/name=readmission-api"
    pods = json.loads(kubectl("-n", NAMESPACE, "get", "pods", "-l", label, "-o", "json"))["items"]
    (digest,) = {pod["status"]["containerStatuses"][0]["imageID"].rpartition("@")[2] for pod in pods}
    assert links[1]["identity"].endswith(f"@{digest}")
    assert deployment()["status"]["availableReplicas"] == 2


def test_a_run_that_fails_says_why_for_good(shell: dict[str, str]) -> None:
    # when a run cannot succeed
    done = ask(shell, "pipeline", "run", "deployment", "-p", "model_version=4711", "--timeout", "900")
    # then it ends with the reason of its stage
    assert done.returncode != 0
    assert "4711" in done.stderr
    # and the list has that reason from the record, whatever becomes of the pods
    (last,) = command(shell, "pipeline", "list")[:1]
    assert last["state"] == "failed"
    assert "4711" in last["error"]


def test_a_file_that_was_compiled_for_an_image_runs_by_kubeflows_own_client(
    shell: dict[str, str], tmp_path: Path
) -> None:
    import kfp

    # given a pipeline for upload by hand, with the image of the cluster
    image = ClusterPipelines(Settings(**addresses(tmp_path))).image()  # type: ignore[arg-type]
    done = ask(shell, "pipeline", "compile", "--out", str(tmp_path), "--image", image)
    assert done.returncode == 0, done.stderr
    # when Kubeflow's own client runs it, for a version that is not there
    client = kfp.Client(host=KFP)
    run = client.create_run_from_pipeline_package(
        str(tmp_path / "deployment.yaml"), arguments={"model_version": "4712"}, service_account=ACCOUNT
    )
    assert run.wait_for_run_completion(timeout=900).state == "FAILED"
    # then its first stage ran, and says so
    (last,) = command(shell, "pipeline", "list")[:1]
    assert "4712" in last["error"]


def test_versions_and_schedules_are_made_once(shell: dict[str, str], tmp_path: Path) -> None:
    from health_predict import pipelines

    settings = Settings(**addresses(tmp_path))  # type: ignore[arg-type]
    cluster = ClusterPipelines(settings)
    training = pipelines.recorded(pipelines.PIPELINES["training"])
    # when a version is uploaded twice, then it is one
    assert cluster.upload("training", training, "a" * 40) == cluster.upload("training", training, "a" * 40)
    # when it is scheduled, for a time that does not come
    try:
        never = "0 0 3 29 2 *"
        first = cluster.schedule("training", training, "a" * 40, never, {"trials": "1"})
        assert first.changed
        # then a repetition changes nothing, another time replaces it
        assert not cluster.schedule("training", training, "a" * 40, never, {"trials": "1"}).changed
        assert cluster.schedule("training", training, "a" * 40, "0 0 4 29 2 *", {"trials": "1"}).changed
    finally:
        assert cluster.unschedule("training") == 1
    assert cluster.unschedule("training") == 0


def test_a_badly_calibrated_batch_leads_to_a_new_version_in_service(shell: dict[str, str], tmp_path: Path) -> None:
    # given the model of the first run, and encounters with outcomes that its risks do not fit
    before = command(shell, "status")
    FUTURE[0].to_csv(tmp_path / "future.csv", index=False)
    added = command(shell, "data", "add", str(tmp_path / "future.csv"))
    assert added["rows"] == added["outcomes"] == len(FUTURE[0])
    # when they are judged
    run = command(shell, "pipeline", "run", "monitoring", "--timeout", "2000")
    # then a new version was made, passed its gates, and serves
    assert run["state"] == "SUCCEEDED"
    after = command(shell, "status")
    assert (after["drift"]["batch"], after["drift"]["verdict"]) == (0, "recalibrate")
    assert int(after["champion"]) == int(before["champion"]) + 1
    assert after["serving"]["model_version"] == after["champion"]
    assert [link["problem"] for link in command(shell, "lineage")["links"] if link["problem"]] == []


def test_what_the_pods_answer_arrives(shell: dict[str, str], tmp_path: Path) -> None:
    # given encounters that are scored over HTTP
    FUTURE[1].to_csv(tmp_path / "later.csv", index=False)
    before = command(shell, "status")["arrivals"]["total"]
    command(shell, "predict", str(tmp_path / "later.csv"), "--out", str(tmp_path / "out.csv"))
    # when what the pods logged has come to storage, and monitoring runs
    sent = time.monotonic() + 90  # more than a file of the log waits to be shipped
    until(lambda: time.monotonic() > sent and command(shell, "status")["arrivals"]["at_door"], 240)
    run = command(shell, "pipeline", "run", "monitoring", "--timeout", "2000")
    # then each of them has arrived, once
    assert run["state"] == "SUCCEEDED"
    after = command(shell, "status")
    assert after["arrivals"]["total"] == before + len(FUTURE[1])
    assert (after["arrivals"]["repeated"], after["arrivals"]["quarantined"]) == (0, 0)


def test_a_simulation_is_served_by_the_cluster(shell: dict[str, str]) -> None:
    # when a batch of the champion's data passes through the endpoint
    found = command(shell, "simulate", "--batches", "1", "--policy", "never", "--delay", "0")
    # then what its pods answered was judged against the outcomes
    (moment,) = found["moments"]
    assert (moment["served_by"], moment["outcome"]) == (found["first_version"], "unchanged")
    assert moment["rows"] > 1000
    assert moment["observed_expected"]["value"] > 0


def test_a_search_outlives_the_tracking_server(shell: dict[str, str], tmp_path: Path) -> None:
    from health_predict.adapters.tracking import Tracking

    # given a search under way
    tracking = Tracking(Settings(**addresses(tmp_path)))  # type: ignore[arg-type]
    parameters = [word for pair in (*SMALL[:-1], "trials=4", "seed=5") for word in ("-p", pair)]
    run = command(shell, "pipeline", "run", "training", "--no-wait", *parameters)
    parent = until(lambda: tracking.runs("tags.role = 'search' and attributes.status = 'RUNNING'"), 900)[0].run_id
    until(lambda: tracking.children(parent), 300)
    # when MLflow's pod dies
    kubectl("-n", TRACKING, "delete", "pod", "-l", "app.kubernetes.io/name=mlflow", "--grace-period=0", "--force")
    # then the run ends well, with every trial once
    cluster = ClusterPipelines(Settings(**addresses(tmp_path)))  # type: ignore[arg-type]
    ended = cluster.wait(ClusterRun(run["run_id"], "training", "RUNNING", ""), 1500, lambda event: None)
    assert ended.state == "SUCCEEDED"
    children = [child for child in tracking.children(parent) if child.tags["role"] == "trial"]
    assert sorted((child.tags["family"], child.tags["trial"]) for child in children) == [
        (family, str(trial)) for family in ("LightGBM", "LogisticRegression") for trial in range(4)
    ]
    assert {child.status for child in tracking.children(parent)} == {"FINISHED"}


def test_a_schedule_fires_and_does_not_catch_up(shell: dict[str, str], tmp_path: Path) -> None:
    from health_predict import pipelines

    settings = Settings(**addresses(tmp_path))  # type: ignore[arg-type]
    cluster = ClusterPipelines(settings)
    controller = ("-n", "kubeflow", "scale", "deployment/ml-pipeline-scheduledworkflow")

    def begun() -> list[str]:
        return [str(run["run_id"]) for run in cluster.runs(100) if run["pipeline"].startswith("monitoring")]

    earlier = set(begun())
    try:
        # given a schedule of every minute that has fired
        monitoring = pipelines.recorded(pipelines.PIPELINES["monitoring"])
        cluster.schedule("monitoring", monitoring, "b" * 40, "0 * * * * *", {})
        (first,) = until(lambda: set(begun()) - earlier, 180)
        # when its controller is away while it would have fired twice more
        kubectl(*controller, "--replicas=0")
        cluster.wait(ClusterRun(first, "monitoring", "RUNNING", ""), 900, lambda event: None)
        back = time.monotonic() + 120
        until(lambda: time.monotonic() > back, 180)
        kubectl(*controller, "--replicas=1")
        kubectl("-n", "kubeflow", "rollout", "status", "deployment/ml-pipeline-scheduledworkflow", "--timeout=120s")
        # then what was missed is one run and not two
        until(lambda: len(set(begun()) - earlier) > 1, 180)
        assert len(set(begun()) - earlier) == 2
    finally:
        kubectl(*controller, "--replicas=1")
        cluster.unschedule("monitoring")
