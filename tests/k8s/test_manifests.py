"""Manifests, images' recipe and scripts, without a cluster."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from health_predict.pipelines.wiring import TOKEN, TOKEN_FOLDER
from health_predict.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
KUBECTL = shutil.which("kubectl")
CHECKOV = ROOT / ".tools" / "checkov" / "bin" / "checkov"
OVERLAYS = sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir())
KUBERNETES = "1.34"
WITHOUT_NAMESPACE = ("Namespace", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
NAMESPACES = ("health-predict", "health-predict-tracking", "kubeflow")

needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="skipped: no kubectl, which renders the manifests")


def render(overlay: str) -> list[dict[str, Any]]:
    assert KUBECTL is not None
    done = subprocess.run(
        [KUBECTL, "kustomize", str(ROOT / "k8s" / "overlays" / overlay)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def pod_specs(items: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {}
    for item in items:
        spec = item.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec) if item["kind"] == "CronJob" else spec
        if "template" in spec:
            found[f"{item['kind']}/{item['metadata']['name']}"] = spec["template"]["spec"]
    return found


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_overlay_is_valid(overlay: str) -> None:
    import kubernetes_validate

    items = render(overlay)
    assert {"Postgres", "mlflow"} - {item["metadata"]["name"] for item in items} == {"Postgres"}
    for item in items:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
        assert item["kind"] in WITHOUT_NAMESPACE or item["metadata"]["namespace"] in NAMESPACES
    # nothing secret is committed
    assert not [item for item in items if item["kind"] == "Secret"]


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_restricted_and_bounded(overlay: str) -> None:
    specs = pod_specs(render(overlay))
    assert set(specs) == {"Deployment/mlflow", "Deployment/readmission-api", "StatefulSet/postgres", "CronJob/backup"}
    for name, spec in specs.items():
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert set(container["resources"]) == {"requests", "limits"}, name
        if not name.startswith("CronJob"):
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(spec["containers"][0]), name


@needs_kubectl
def test_every_workload_and_its_pods_say_what_they_are() -> None:
    for item in render("kind"):
        spec = item.get("spec", {})
        template = spec.get("jobTemplate", spec).get("spec", spec).get("template", spec.get("template"))
        if template is not None:
            wanted = {f"app.kubernetes.io/{name}" for name in ("name", "component", "part-of")}
            assert wanted <= set(item["metadata"]["labels"]) and wanted <= set(template["metadata"]["labels"])


@needs_kubectl
def test_the_prediction_log_has_a_volume_that_holds_it() -> None:
    # given what `k8s/up` tells the service, and the Deployment that reads it
    said = dict(re.findall(r"echo HEALTH_PREDICT_(PREDICTION_LOG\w*)=(\S+)", (ROOT / "k8s" / "up").read_text()))
    spec = pod_specs(render("kind"))["Deployment/readmission-api"]
    container = spec["containers"][0]
    assert "readmission-api" in [item.get("configMapRef", {}).get("name") for item in container["envFrom"]]
    # then the log waits in a volume of the pod, with room left, since a full one ends the pod
    folder = Path(said["PREDICTION_LOG"])
    [mount] = [one for one in container["volumeMounts"] if Path(one["mountPath"]) in folder.parents]
    [volume] = [one for one in spec["volumes"] if one["name"] == mount["name"]]
    assert volume["emptyDir"] == {"sizeLimit": "512Mi"} and int(said["PREDICTION_LOG_LIMIT_MB"]) <= 256


@needs_kubectl
def test_the_service_asks_for_the_tokens_of_a_secret_that_may_change() -> None:
    # given the pods of the service
    spec = pod_specs(render("kind"))["Deployment/readmission-api"]
    (container,) = spec["containers"]
    # then the file that they ask by is a Secret's, which must be there, and follows its changes
    (file,) = [item["value"] for item in container["env"] if item["name"] == "HEALTH_PREDICT_SERVING_TOKENS"]
    (mount,) = [item for item in container["volumeMounts"] if file.startswith(item["mountPath"] + "/")]
    (volume,) = [item for item in spec["volumes"] if item["name"] == mount["name"]]
    assert "subPath" not in mount and not volume["secret"].get("optional")
    # and the admission policy lets its pods, and the task of a rollout, mount theirs
    allowed = {
        item["metadata"]["namespace"]: item["data"]["secrets"].split("\n")
        for item in render("kind")
        if item["kind"] == "ConfigMap" and item["metadata"]["name"] == "health-predict-pods"
    }
    assert volume["secret"]["secretName"] in allowed["health-predict"] and TOKEN in allowed["kubeflow"]
    # and `k8s/up` makes it, and tells the tasks where they find theirs
    script = (ROOT / "k8s" / "up").read_text()
    assert f"create secret generic {volume['secret']['secretName']} --from-file={Path(file).name}=" in script
    assert f"HEALTH_PREDICT_SERVING_TOKEN_FILE={TOKEN_FOLDER}/token" in script


@needs_kubectl
def test_the_service_speaks_tls_where_an_overlay_says_so(tmp_path: Path) -> None:
    # given an overlay with that component
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    file = tmp_path / "k8s" / "overlays" / "kind" / "kustomization.yaml"
    file.write_text(file.read_text().replace("components: [../../kind]", "components: [../../kind, ../../tls]"))
    done = subprocess.run([str(KUBECTL), "kustomize", str(file.parent)], capture_output=True, text=True, check=True)
    spec = pod_specs([item for item in yaml.safe_load_all(done.stdout) if item])["Deployment/readmission-api"]
    (container,) = spec["containers"]
    # then certificate and key come from a Secret, and every probe asks by TLS
    mounted = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "tls")
    named = {item["name"]: item["value"] for item in container["env"]}
    assert named["HEALTH_PREDICT_SERVING_TLS_CERTIFICATE"] == f"{mounted}/tls.crt"
    assert named["HEALTH_PREDICT_SERVING_TLS_KEY"] == f"{mounted}/tls.key" and "HEALTH_PREDICT_SERVING_TOKENS" in named
    probes = [container[f"{kind}Probe"]["httpGet"]["scheme"] for kind in ("startup", "readiness", "liveness")]
    assert probes == ["HTTPS"] * 3


def test_no_account_may_read_all_secrets_or_leave_its_namespace() -> None:
    items = render("kind")
    assert not [item for item in items if item["kind"].startswith("ClusterRole")]
    for role in (item for item in items if item["kind"] == "Role"):
        for rule in role["rules"]:
            assert "*" not in (*rule["verbs"], *rule["resources"], *rule["apiGroups"])
            if "secrets" in rule["resources"]:
                assert rule["resourceNames"] == ["health-predict-artifacts"] and rule["verbs"] == ["get"]


@needs_kubectl
def test_what_is_not_opened_is_closed() -> None:
    items = [item for item in render("kind") if item["kind"] == "NetworkPolicy"]
    policies = {(item["metadata"]["namespace"], item["metadata"]["name"]): item["spec"] for item in items}
    for namespace in ("health-predict", "health-predict-tracking"):
        assert policies[namespace, "default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    opened = {name for name, spec in policies.items() if any("from" not in rule for rule in spec.get("ingress", ()))}
    assert opened == {("health-predict", "readmission-api")}


@needs_kubectl
def test_what_our_own_pods_are_is_what_the_policy_admits() -> None:
    # given what the policy admits beside the service, and the Deployment there, which is the candidate's template too
    items = render("kind")
    admitted = {
        item["metadata"]["namespace"]: {name: text.split("\n") for name, text in item["data"].items()}
        for item in items
        if item["metadata"]["name"] == "health-predict-pods" and item["kind"] == "ConfigMap"
    }
    assert set(admitted) == {"health-predict", "kubeflow"}
    spec = pod_specs(render("aws"))["Deployment/readmission-api"]
    # then its account and Secrets are admitted, and nothing else is
    (container,) = spec["containers"]
    secrets = [one["secretRef"]["name"] for one in container["envFrom"] if "secretRef" in one]
    secrets += [volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume]
    beside = admitted["health-predict"]
    # The certificate's is there where an overlay has the component `k8s/tls`.
    assert beside["accounts"] == [spec["serviceAccountName"]]
    assert set(beside["secrets"]) == {*secrets, "readmission-api-tls"}
    # and of the tasks, whose Secrets are those of the compiled pipelines and of a run's artifacts
    compiled = [list(yaml.safe_load_all(file.read_text())) for file in (ROOT / "pipelines/compiled").iterdir()]
    tasks = [
        (name, task)
        for _, platform in compiled
        for name, task in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items()
    ]
    named = {
        one["secretName"] for _, task in tasks for kind in ("Env", "Volume") for one in task.get(f"secretAs{kind}", ())
    }
    assert set(admitted["kubeflow"]["secrets"]) == {*named, "health-predict-artifacts"}
    assert admitted["kubeflow"]["accounts"] == ["health-predict-pipeline"]
    # and the token of a rollout goes to the task of that name, to where the stage looks for it
    folder = Settings.model_fields["kube_account"].default
    mounting = {
        name.rstrip("-0123456789")
        for name, task in tasks
        if (folder, "health-predict-rollout")
        in {(one["mountPath"], one["secretName"]) for one in task.get("secretAsVolume", ())}
    }
    holding = {name.rstrip("-0123456789") for name, task in tasks if "health-predict-rollout" in str(task)}
    assert mounting == holding == {"exec-rollout"}


@needs_kubectl
def test_on_aws_no_pod_reaches_the_machine_s_role() -> None:
    # given what may leave each namespace; each denies all else, but for `kubeflow`, which one policy closes as a whole
    policies = [item for item in render("aws") if item["kind"] == "NetworkPolicy"]
    (kubeflow,) = [item["spec"] for item in policies if item["metadata"]["namespace"] == "kubeflow"]
    assert kubeflow["podSelector"] == {} and kubeflow["policyTypes"] == ["Egress"]
    # then no address that is open is that of the metadata service
    opened = [
        to["ipBlock"]
        for item in policies
        for rule in item["spec"].get("egress", ())
        for to in rule["to"]
        if "ipBlock" in to
    ]
    assert len(opened) == 3
    for block in opened:
        assert any(ip_address("169.254.169.254") in ip_network(network) for network in block["except"])


@needs_kubectl
def test_on_aws_each_server_has_the_credentials_that_are_its_own() -> None:
    items = render("aws")
    found = {
        name: [volume["secret"]["secretName"] for volume in spec["volumes"] if volume["name"] == "aws"]
        for name, spec in pod_specs(items).items()
    }
    assert found == {
        "Deployment/mlflow": ["mlflow-aws"],
        "Deployment/readmission-api": ["readmission-api-aws"],
        "CronJob/backup": ["backup-aws"],
        "StatefulSet/postgres": [],
    }


@needs_kubectl
@pytest.mark.skipif(not CHECKOV.exists(), reason="skipped: no checkov (`make .tools/checkov/.ready`)")
def test_checkov_finds_nothing_but_the_listed_exceptions(tmp_path: Path) -> None:
    for overlay in OVERLAYS:
        (tmp_path / f"{overlay}.yaml").write_text(yaml.safe_dump_all(render(overlay)))
    shutil.copy(ROOT / "Dockerfile", tmp_path / "Dockerfile")
    done = subprocess.run(
        [str(CHECKOV), "--config-file", str(ROOT / "k8s" / "checkov.yaml"), "-d", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize("script", ["up", "rotate", "images", "kind-up", "kind-down"])
def test_each_script_parses(script: str) -> None:
    assert subprocess.run(["sh", "-n", str(ROOT / "k8s" / script)], check=False).returncode == 0


def test_kind_names_each_missing_tool(tmp_path: Path) -> None:
    # given a machine that has a shell and nothing else
    for tool in ("sh", "dirname"):
        (tmp_path / tool).symlink_to(Path(shutil.which(tool) or ""))
    done = subprocess.run(
        ["sh", str(ROOT / "k8s" / "kind-up")], env={"PATH": str(tmp_path), "HOME": "/"}, capture_output=True, text=True
    )
    assert done.returncode == 5
    for tool in ("docker", "kind", "kubectl", "git"):
        assert f"{tool} is not installed -> " in done.stderr


def test_only_what_the_images_need_is_sent_to_the_builder() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    recipe = (ROOT / "Dockerfile").read_text()
    copied = {
        word
        for line in recipe.splitlines()
        if line.startswith("COPY") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert copied == set(kept)


def test_nothing_but_its_own_digest_names_an_image_in_ecr(tmp_path: Path) -> None:
    # given a Docker that only writes down what it is told
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n[ "$1" != inspect ] || echo "${{4%:*}}@sha256:1"\n')
    docker.chmod(0o755)
    registry = "123456789012.dkr.ecr.us-east-1.amazonaws.com/health-predict/dev"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PUSH": registry, "TAG": "0123abc"}
    # when images are pushed there under a name of one's own, a commit's for example
    done = subprocess.run([ROOT / "k8s/images"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # then they have the tag of what they are built from all the same
    tag = subprocess.run([ROOT / "k8s/image-source"], capture_output=True, text=True, check=True).stdout.strip()
    pushed = [line for line in (tmp_path / "calls").read_text().splitlines() if line.startswith("push")]
    assert pushed == [f"push --quiet {registry}/{name}:{tag}" for name in ("mlflow", "pipeline")]
    assert f"PIPELINE_IMAGE={registry}/pipeline@sha256:1" in done.stdout


@pytest.mark.parametrize(
    ("written", "pulled"),
    [
        ("mysql:8.4", "docker.io/library/mysql:8.4"),
        ("docker.io/alpine:3.23", "docker.io/library/alpine:3.23"),
        ("kindest/node:v1", "docker.io/kindest/node:v1"),
        ("ghcr.io/kubeflow/kfp-driver:2.17.0", "ghcr.io/kubeflow/kfp-driver:2.17.0"),
        ("localhost:5001/x/y:1", "localhost:5001/x/y:1"),
    ],
)
def test_images_are_listed_as_they_are_pulled(written: str, pulled: str) -> None:
    assert air_gap().full(written) == pulled


def test_every_image_of_a_manifest_is_listed() -> None:
    # given containers of each kind, and what a controller is told to start
    container = {"image": "a", "env": [{"name": "V2_DRIVER_IMAGE", "value": "b"}, {"name": "LEVEL", "value": "info"}]}
    spec = {"initContainers": [{"image": "c"}], "containers": [container, {"args": ["--executor-image", "d", "-v"]}]}
    assert set(air_gap().images({"spec": {"template": {"spec": spec}}})) == {"a", "b", "c", "d"}


def air_gap() -> Any:
    """`k8s/air_gap.py`, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("air_gap", ROOT / "k8s" / "air_gap.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_kubectl
def test_every_image_of_others_is_named_by_its_digest() -> None:
    # given all that the manifests and scripts start, but what is built or rolled out here
    others = {
        name
        for place in ("kind", "aws")
        for document in render(place)
        for name in air_gap().images(document)
        if not air_gap().ours(name)
    }
    others |= set(re.findall(r"REGISTRY_IMAGE=(docker\.io/\S+)", (ROOT / "k8s" / "kind-up").read_text()))
    others |= set(re.findall(r"^ARG PYTHON_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    # then its content cannot change under its name
    assert len(others) == 4
    assert [name for name in others if not re.search(r"@sha256:[0-9a-f]{64}$", name)] == []
    # and Kubeflow's manifests are those of a commit
    assert re.search(r"\?ref=[0-9a-f]{40}$", (ROOT / "k8s" / "kfp" / "kustomization.yaml").read_text(), re.MULTILINE)
