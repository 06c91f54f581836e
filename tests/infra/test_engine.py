"""The program under Pulumi's own engine: the CLI, its Python host, the dynamic resource and the policy pack.

Runs where `pulumi` is on the PATH. In AWS's place is `engine/recorder.py`, a plugin that keeps what it is told, and
`engine/answerer.py` for what the rollout asks. With MOTO=yes, as in .github/workflows/infra.yml, it is the official
plugin against moto instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.infra.engine.answerer import Host, answering
from tests.infra.engine.clouds import moto
from tests.infra.program import ROOT

STACK = "organization/health-predict/dev"
MOTO = os.environ.get("MOTO") == "yes"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("pulumi") is None, reason="skipped: no pulumi on the PATH"),
    pytest.mark.timeout(1800),
]
recorded = pytest.mark.skipif(MOTO, reason="skipped: moto has no such case")
INSTANCE, VOLUME = "aws:ec2/instance:Instance", "aws:ebs/volume:Volume"
ROLLOUT, POINTER = "pulumi-python:dynamic:Resource", "aws:s3/bucketObjectv2:BucketObjectv2"


@dataclass
class Project:
    """A fresh clone, and one stack of it with its own state and cloud."""

    clone: Path
    folder: Path
    host: Host
    environment: dict[str, str]

    def pulumi(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the CLI in the clone. Raises AssertionError with what it said when it fails."""
        done = subprocess.run(
            ["pulumi", *command, "--non-interactive"],
            cwd=self.clone,
            env=self.environment | {"PULUMI_BACKEND_URL": (self.folder / "state").as_uri()},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def config(self, *given: str) -> list[str]:
        """Arguments that add configuration, as `pulumi config set [--path] KEY VALUE` takes it."""
        file = self.folder / "Pulumi.dev.yaml"
        if not file.exists():
            file.write_text("{}\n")
        for text in given:
            _, path, pair = text.rpartition("--path ")
            self.pulumi("config", "set", *path.split(), *pair.split(), "--stack", STACK, "--config-file", str(file))
        return ["--stack", STACK, "--config-file", str(file)]

    def up(self, *given: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.pulumi("up", "--yes", *self.config(*given), check=check)

    def plan(self, *given: str) -> set[tuple[str, str]]:
        """What `up` would do with this configuration: pairs of operation and type, without what stays."""
        said = json.loads(self.pulumi("preview", "--json", *self.config(*given)).stdout)
        return {
            (step["op"], step["urn"].split("::")[2].rpartition("$")[2])
            for step in said["steps"]
            if step["op"] != "same" and not step["urn"].endswith("health-predict-dev::pulumi")
        } - {("update", "pulumi:pulumi:Stack")}

    def error(self, done: subprocess.CompletedProcess[str]) -> str:
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def cloud(self, kind: str, **changes: Any) -> None:
        """Change what the cloud says of the one resource of a kind."""
        (file,) = (self.folder / "cloud").glob(f"{kind}-*.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def resources(self) -> list[dict[str, Any]]:
        found = json.loads(self.pulumi("stack", "export", "--stack", STACK).stdout)["deployment"].get("resources", [])
        return list(found)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git would give a stranger, after one make target."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("Pulumi."):  # no stack of the developer's
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "Pulumi.yaml", folder)
    # That uv is there already saves a download.
    (folder / ".tools/bin").mkdir(parents=True)
    (folder / ".tools/bin/uv").symlink_to(Path(sys.executable).parent / "uv")
    subprocess.run(["make", "infra"], cwd=folder, check=True, timeout=600)
    return folder


@pytest.fixture(scope="module")
def environment(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("pulumi")
    plugins = folder / "bin"
    plugins.mkdir()
    if not MOTO:
        program = plugins / "pulumi-resource-aws"
        program.write_text(f"#!/bin/sh\nexec {sys.executable} {ROOT}/tests/infra/engine/recorder.py\n")
        program.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "PULUMI_"))}
    with moto() if MOTO else contextlib.nullcontext({}) as cloud:
        yield {
            **kept,
            "PATH": os.pathsep.join([str(plugins), kept["PATH"], str(clone / ".tools/bin")]),
            "PULUMI_HOME": os.environ.get("PULUMI_HOME", str(folder / "home")) if MOTO else str(folder / "home"),
            "PULUMI_CONFIG_PASSPHRASE": "test",
            "PULUMI_SKIP_UPDATE_CHECK": "1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            **cloud,
        }


def _project(clone: Path, folder: Path, environment: dict[str, str], host: Host) -> Project:
    services = ("SSM",) if MOTO else ("SSM", "EC2", "STS")
    addresses = {f"AWS_ENDPOINT_URL_{service}": host.url for service in services}
    return Project(clone, folder, host, {**environment, **addresses, "RECORDED_CLOUD": str(folder / "cloud")})


@pytest.fixture
def empty(clone: Path, tmp_path: Path, environment: dict[str, str]) -> Iterator[Project]:
    """A stack of which nothing exists yet."""
    with answering() as host:
        yield _empty(clone, tmp_path, environment, host)


def _empty(clone: Path, folder: Path, environment: dict[str, str], host: Host) -> Project:
    (folder / "cloud").mkdir()
    (folder / "state").mkdir()
    (folder / "cloud/newest-image").write_text("ami-0abc")
    project = _project(clone, folder, environment, host)
    project.pulumi("stack", "init", STACK)
    (clone / "Pulumi.dev.yaml").unlink(missing_ok=True)
    return project


@pytest.fixture(scope="module")
def made(clone: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[Project]:
    """A stack that is up, for looking only."""
    with answering() as host:
        project = _empty(clone, tmp_path_factory.mktemp("made"), environment, host)
        project.up()
        yield project


@pytest.fixture
def up(made: Project, tmp_path: Path, environment: dict[str, str]) -> Iterator[Project]:
    """A stack that is up, of this test alone."""
    if MOTO:  # one cloud for all
        yield made
        return
    for name in ("state", "cloud"):
        shutil.copytree(made.folder / name, tmp_path / name)
    with answering() as host:
        yield _project(made.clone, tmp_path, environment, host)


def test_from_nothing_to_a_second_up_that_changes_nothing(empty: Project) -> None:
    # given an empty account, when it is previewed
    seen = empty.pulumi("preview", *empty.config()).stdout
    # then what it takes is said before it begins, and nothing was asked of the host
    assert "the first `pulumi up` takes about" in seen and "USD a month" in seen
    assert not empty.host.scripts
    # when it is made, by a host that takes a moment
    empty.host.pending = 1
    said = empty.up().stdout
    # then what the host does is told on the way
    assert "after 0 min: Mount the data volume at /data" in said
    assert len(empty.host.scripts) == 1
    # when it is made again, then nothing changes, and a refresh finds the same
    empty.pulumi("up", "--yes", "--expect-no-changes", *empty.config())
    empty.pulumi("refresh", "--yes", "--expect-no-changes", *empty.config())
    assert len(empty.host.scripts) == 1


def test_the_environment_is_the_locked_one_and_stays_it(clone: Path, made: Project) -> None:
    def installed() -> str:
        command = [str(clone / ".tools/bin/uv"), "pip", "freeze", "--quiet", "--python", str(clone / "pulumi/.venv")]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    before = installed(), (clone / "pulumi/uv.lock").read_bytes()
    made.pulumi("install", "--no-plugins")
    assert (installed(), (clone / "pulumi/uv.lock").read_bytes()) == before
    # and it is the same Pulumi that the other tests run
    for name in ("pulumi", "pulumi-aws"):
        versions = {
            (ROOT / file).read_text().partition(f'name = "{name}"\nversion = ')[2].split("\n")[0] for file in LOCKS
        }
        assert len(versions) == 1, name


LOCKS = ("uv.lock", "pulumi/uv.lock")
ON_THE_HOST = {("update", POINTER), ("update", ROLLOUT)}
CHANGES: list[tuple[tuple[str, ...], set[tuple[str, str]]]] = [
    (("instance_type m6a.xlarge",), {("update", INSTANCE)}),
    (("unlimited_burst true",), {("update", INSTANCE)}),
    (("root_gib 60",), {("update", INSTANCE)}),
    (("data_gib 80",), {("update", VOLUME), *ON_THE_HOST}),
    (
        ("operator_cidr 203.0.113.7/32", "--path open_ports[0] api"),
        {("update", "aws:ec2/securityGroup:SecurityGroup"), *ON_THE_HOST},
    ),
    (
        ("--path schedule.timezone Europe/Berlin",),
        {
            ("create", "health-predict:infra:OfficeHours"),
            ("create", "aws:iam/role:Role"),
            ("create", "aws:iam/rolePolicy:RolePolicy"),
            ("create", "aws:scheduler/schedule:Schedule"),
            ("update", "aws:cloudwatch/metricAlarm:MetricAlarm"),
        },
    ),
    (("budget_usd 99",), set()),
    (
        ("budget_email ops@example.org", "budget_usd 99"),
        {("create", "health-predict:infra:BudgetAlarm"), ("create", "aws:budgets/budget:Budget")},
    ),
    (("alarm_email ops@example.org",), {("create", "aws:sns/topicSubscription:TopicSubscription")}),
    (("images push",), ON_THE_HOST),
    (("image_tag 0123abc",), ON_THE_HOST),
    ((f"python_image mirror.example.org/python@sha256:{'0' * 64}",), ON_THE_HOST),
    (("first_run false",), ON_THE_HOST),
    (("recreate_cluster 0123456789ab",), ON_THE_HOST),
    (("account_id 123456789012",), {("update", "pulumi:providers:aws")}),
    (
        ("keep_data false",),
        {
            ("update", "aws:s3/bucket:Bucket"),
            ("update", "aws:ecr/repository:Repository"),
        },
    ),
]


@pytest.mark.parametrize(("given", "changes"), CHANGES, ids=[" ".join(given) for given, _ in CHANGES])
def test_a_change_of_the_configuration_changes_this_and_replaces_nothing(
    up: Project, given: tuple[str, ...], changes: set[tuple[str, str]]
) -> None:
    assert up.plan(*given) == changes


@recorded
def test_many_tags_are_taken(up: Project) -> None:
    # when forty tags are given, which is all that AWS takes beside ours, then the stack comes up with them
    up.up(*[f"--path tags.key-{number} {number}" for number in range(40)])
    tags = [len(item["inputs"]["tags"]) for item in up.resources() if "tags" in item.get("inputs", {})]
    assert max(tags) == 44 and min(tags) == 4


WRONG: list[tuple[str, str]] = [
    ("data_gib 30", "a volume cannot shrink from 50 to 30 GiB -> `pulumi config set data_gib 50`"),
    ("account_id 111122223333", "belong to account 123456789012, and health-predict:account_id is 111122223333 -> "),
    ("open_ports api", "`pulumi config rm open_ports && pulumi config set --path 'open_ports[0]' api`"),
    ("--path tags.Stack prod", "tag 'Stack' is set by the stack or by AWS -> choose another name"),
    ("zone b", "protect"),
]


@pytest.mark.parametrize(("given", "words"), WRONG)
def test_what_cannot_be_is_refused_at_the_preview_in_one_line(up: Project, given: str, words: str) -> None:
    said = up.error(up.pulumi("preview", *up.config(given), check=False))
    assert words in said
    assert "Traceback" not in said


@recorded
def test_a_host_that_fails_is_one_line_and_goes_on(up: Project) -> None:
    # given a step that fails
    up.host.answer = {"Status": "Failed", "StandardErrorContent": "step 50-cluster failed with exit code 1:\nno space"}
    # when something changes
    said = up.error(up.up("first_run false", check=False))
    # then what it says is the reason, without a stack trace
    assert "answered Failed:\n    step 50-cluster failed with exit code 1:\n    no space\n    -> correct that" in said
    assert "Traceback" not in said and 'File "' not in said
    # when it is corrected, then it runs again
    up.host.answer = {"Status": "Success", "StandardOutputContent": "ready"}
    up.up()
    assert len(up.host.scripts) == 2


# What AWS and the clock change on a host that the program did not touch.
LIVES: dict[str, dict[str, Any]] = {
    "stopped": {
        "associatePublicIpAddress": False,
        "publicIp": "",
        "publicDns": "",
        "instanceState": "stopped",
    },
    "started again": {"publicIp": "198.51.100.8", "publicDns": "other.example"},
    "with other user data": {"userDataBase64": "b3RoZXI="},
    "with an older image": {"ami": "ami-0old"},
}


@recorded
@pytest.mark.parametrize("life", LIVES)
def test_a_host_that_was_only_used_is_left_alone(up: Project, life: str) -> None:
    # given a host that AWS shows otherwise than the program made it
    before = {(item["urn"], item.get("id")) for item in up.resources()}
    up.cloud("Instance", **LIVES[life])
    (up.folder / "cloud/newest-image").write_text("ami-0new")
    up.host.state = "stopped" if life == "stopped" else "running"
    # when all is looked up and brought up
    said = up.pulumi("up", "--yes", "--refresh", *up.config()).stdout
    # then nothing is replaced or changed, and nothing waits for a host that sleeps
    assert {(item["urn"], item.get("id")) for item in up.resources()} == before and not up.host.scripts
    assert " unchanged" in said and " updated" not in said and " replaced" not in said


@recorded
def test_a_sleeping_host_is_named_when_it_is_needed(up: Project) -> None:
    up.host.state = "stopped"
    said = up.error(up.up("first_run false", check=False))
    assert "is stopped -> `aws ec2 start-instances --region us-east-1" in said and "Traceback" not in said


def test_the_policy_pack_passes_and_finds_what_is_planted(clone: Path, made: Project) -> None:
    def checked(file: str = "", before: str = "", after: str = "") -> subprocess.CompletedProcess[str]:
        path = clone / file
        text = path.read_text() if file else ""
        assert text.count(before) == 1 or not file
        if file:
            path.write_text(text.replace(before, after))
        try:
            return made.pulumi("preview", "--policy-pack", "pulumi/policy", *made.config(), check=False)
        finally:
            if file:
                path.write_text(text)

    assert checked().returncode == 0
    for file, before, after, words in (
        ("pulumi/infra/host.py", 'http_tokens="required"', 'http_tokens="optional"', "imds-v2"),
        ("pulumi/infra/storage.py", "block_public_acls=True", "block_public_acls=False", "no-open-bucket"),
    ):
        done = checked(file, before, after)
        assert done.returncode != 0 and words in done.stdout, done.stdout


@recorded
def test_destroy_keeps_the_data_until_it_is_told_otherwise(up: Project) -> None:
    # given a stack that keeps its data, then destroy stops before anything is gone
    before = len(up.resources())
    said = up.error(up.pulumi("destroy", "--yes", *up.config(), check=False))
    assert "is protected" in said and len(up.resources()) == before
    # when that is lifted, by what the stack's outputs say, then all goes
    commands = json.loads(up.pulumi("stack", "output", "commands", "--json", "--stack", STACK).stdout)
    assert commands["delete"] == "pulumi config set keep_data false && pulumi up && pulumi destroy"
    up.up("keep_data false")
    assert not up.host.scripts
    up.pulumi("destroy", "--yes", *up.config())
    assert not up.resources() and not list((up.folder / "cloud").glob("*.json"))
