"""The credentials that the host gives to the workloads, and that botocore reads them anew before they end."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from botocore.session import Session

from tests.infra.program import ROOT

MOUNTED = "/var/run/secrets/health-predict/aws"
ROLES = {
    "HP_ROLE_SERVICE": ("health-predict", "readmission-api-aws"),
    "HP_ROLE_MLFLOW": ("health-predict-tracking", "mlflow-aws"),
    "HP_ROLE_BACKUP": ("health-predict-tracking", "backup-aws"),
    "HP_ROLE_TASKS": ("kubeflow", "health-predict-aws"),
}
# An AWS that gives each role a key of its name, and a kubectl that keeps each Secret as a folder of its files.
AWS = """#!/bin/bash
echo "aws $*" >>"$WORLD/calls"
[[ ! -e $WORLD/denied ]] || exit 254
printf '%s\\tsecret\\ttoken\\t%s\\n' "$4" "$(cat "$WORLD/end")"
"""
KUBECTL = """#!/bin/bash
echo "kubectl $*" >>"$WORLD/calls"
case $* in
    *"create secret generic"*)
        folder=$WORLD/secrets/$2/$6
        mkdir -p "$folder"
        cat >"$folder/credentials.json"
        for argument in "$@"; do
            [[ $argument != --from-literal=config=* ]] || printf '%s' "${argument#*config=}" >"$folder/config"
        done
        ;;
esac
"""


class Host:
    """Runs credentials.sh with these commands, in place of AWS and the cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for name, text in (("aws", AWS), ("kubectl", KUBECTL)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        # The script puts its own folder of tools first.
        script = (ROOT / "pulumi" / "bootstrap" / "credentials.sh").read_text()
        (folder / "credentials.sh").write_text(script.replace("PATH=/usr/local/bin:$PATH", "PATH=$PATH"))

    def give(self, lasts: timedelta) -> subprocess.CompletedProcess[str]:
        (self.folder / "end").write_text((datetime.now(UTC) + lasts).isoformat(timespec="seconds"))
        kept = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "WORLD": str(self.folder)}
        roles = {name: f"arn:aws:iam::123456789012:role/{name.lower()}" for name in ROLES}
        return subprocess.run(
            ["bash", str(self.folder / "credentials.sh")],
            env={**kept, **roles, "HP_REGION": "eu-central-1", "HP_ASSUME_SECONDS": "0"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def secret(self, place: tuple[str, str]) -> Path:
        return self.folder.joinpath("secrets", *place)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_each_workload_gets_its_own_role_and_no_value_stands_on_a_command_line(host: Host) -> None:
    done = host.give(timedelta(hours=1))
    assert done.returncode == 0, done.stderr
    for name, place in ROLES.items():
        given = json.loads((host.secret(place) / "credentials.json").read_text())
        assert given["AccessKeyId"].endswith(name.lower()) and given["Version"] == 1
    assert "secret\t" not in (host.folder / "calls").read_text()
    assert "SecretAccessKey" not in (host.folder / "calls").read_text().replace("[AccessKeyId, SecretAccessKey", "")
    # and the manifests mount each where its file says that it is
    settings = (ROOT / "k8s/overlays/aws/settings.env").read_text()
    assert f"AWS_CONFIG_FILE={MOUNTED}/config\n" in settings
    for item in yaml.safe_load_all((ROOT / "k8s/overlays/aws/credentials.yaml").read_text()):
        spec = item["spec"].get("jobTemplate", item).get("spec")["template"]["spec"]
        place = (item["metadata"]["namespace"], spec["volumes"][0]["secret"]["secretName"])
        assert place in ROLES.values() and spec["containers"][0]["volumeMounts"][0]["mountPath"] == MOUNTED


def test_who_uses_them_reads_them_anew_before_they_end(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a pod with credentials that have five minutes left, mounted as in the cluster
    assert host.give(timedelta(minutes=5)).returncode == 0
    mounted = host.secret(ROLES["HP_ROLE_TASKS"])
    config = mounted / "config"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(host.folder / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert f"{MOUNTED}/credentials.json" in config.read_text()
    config.write_text(config.read_text().replace(MOUNTED, str(mounted)))
    session = Session()
    credentials = session.get_credentials()
    assert credentials is not None and credentials.method == "custom-process"
    before = credentials.get_frozen_credentials()
    # when the host gives new ones
    file = mounted / "credentials.json"
    file.write_text(file.read_text().replace("hp_role_tasks", "hp_role_tasks-anew"))
    # then the next call has them, in the same process
    after = credentials.get_frozen_credentials()
    assert before.access_key != after.access_key and after.access_key.endswith("-anew")


def test_a_role_that_cannot_be_taken_is_named(host: Host) -> None:
    (host.folder / "denied").touch()
    done = host.give(timedelta(hours=1))
    assert (
        done.returncode == 1
        and "may not take the role arn:aws:iam::123456789012:role/hp_role_service ->" in done.stderr
    )
