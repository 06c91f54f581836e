"""`make mutants`: spoil the Pulumi program or its host in one place at a time; the tests must notice every time.

Each mutant is a copy of the repository in which one guard is gone or one value wrong. Those of the host need root. Exits with 1 when a mutant
survives or its place is no longer in the program.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "Pulumi.yaml",
    "pulumi",
    "tests/infra",
    "tests/k8s",
    "k8s",
    "docs/aws.md",
    # what the images are built from
    ".dockerignore",
    "Dockerfile",
    "README.md",
    "bentos",
    "components",
    "contracts",
    "health_predict",
    "pipelines",
    "pyproject.toml",
    "uv.lock",
)
TESTS = ("tests/infra/test_program.py", "tests/infra/test_policy.py", "tests/infra/test_rollout.py")
HOST = "tests/infra/test_bootstrap.py"
KIND = "tests/k8s/test_kind_up.py"
CREDENTIALS = "tests/infra/test_credentials.py"
STORE = "tests/k8s/test_store_keys.py"
SECONDS = 300


@dataclass(frozen=True)
class Mutant:
    """One change of one file, and the tests that should notice."""

    file: str
    before: str
    after: str
    tests: tuple[str, ...] = TESTS


MUTANTS = (
    # who may come in
    Mutant("health_predict/aws/stack_config.py", "if network.num_addresses > 1:", "if False:"),
    Mutant("health_predict/aws/stack_config.py", "if network.num_addresses > 1:", "if network.num_addresses > 2:"),
    Mutant("pulumi/infra/firewall.py", "cidr_blocks=[args.operator_cidr]", 'cidr_blocks=["0.0.0.0/0"]'),
    Mutant("pulumi/infra/firewall.py", "for port in args.open_ports", "for port in OpenPort"),
    Mutant("pulumi/infra/firewall.py", "to_port=port.number", "to_port=65535"),
    # what is encrypted and closed
    Mutant(
        "pulumi/infra/host.py",
        'type="gp3",\n                encrypted=True',
        'type="gp3",\n                encrypted=False',
    ),
    Mutant("pulumi/infra/host.py", 'volume_type="gp3",\n                    encrypted=True,', 'volume_type="gp3",'),
    Mutant("pulumi/infra/host.py", 'http_tokens="required"', 'http_tokens="optional"'),
    Mutant("pulumi/infra/host.py", "HOP_LIMIT = 1", "HOP_LIMIT = 2"),
    Mutant("pulumi/infra/storage.py", "block_public_policy=True", "block_public_policy=False"),
    Mutant("pulumi/infra/storage.py", '"aws:SecureTransport": "false"', '"aws:SecureTransport": "true"'),
    Mutant("pulumi/infra/storage.py", 'ConfigurationArgs(status="Enabled")', 'ConfigurationArgs(status="Suspended")'),
    Mutant("pulumi/infra/registry.py", 'image_tag_mutability="IMMUTABLE"', 'image_tag_mutability="MUTABLE"'),
    Mutant("pulumi/infra/registry.py", "scan_on_push=True", "scan_on_push=False"),
    # what survives
    Mutant(
        "pulumi/infra/host.py",
        "opts=pulumi.ResourceOptions(parent=self, protect=args.keep_data)",
        "opts=pulumi.ResourceOptions(parent=self)",
    ),
    Mutant(
        "pulumi/infra/storage.py",
        "opts=pulumi.ResourceOptions(parent=parent, protect=keep_data)",
        "opts=pulumi.ResourceOptions(parent=parent)",
    ),
    Mutant("pulumi/infra/host.py", '"ami", "userDataBase64", "associatePublicIpAddress"', '"ami", "userDataBase64"'),
    Mutant("pulumi/infra/host.py", '"ami", "userDataBase64", "associatePublicIpAddress"', '"associatePublicIpAddress"'),
    Mutant("pulumi/infra/host.py", "user_data_replace_on_change=False", "user_data_replace_on_change=True"),
    Mutant(
        "pulumi/infra/host.py",
        "the old one must go first.\n                delete_before_replace=True",
        "the old one must go first.\n                delete_before_replace=False",
    ),
    Mutant("pulumi/infra/host.py", "stop_instance_before_detaching=True", "stop_instance_before_detaching=False"),
    # who may do what
    Mutant("pulumi/infra/identity.py", '[f"{bucket_arn}/bundles/*", raw]', '[f"{bucket_arn}/*"]'),
    Mutant("pulumi/infra/identity.py", "WRITE, [raw]", 'WRITE, [raw, f"{bucket_arn}/bundles/*"]'),
    Mutant("pulumi/infra/identity.py", '"ecr:BatchGetImage"', '"ecr:BatchGetImages"'),
    Mutant(
        "pulumi/infra/identity.py", '"ecr:DescribeRepositories"], repository_arns', '"ecr:DescribeRepositories"], ["*"]'
    ),
    Mutant("pulumi/infra/identity.py", '"s3:PutObject"], below(f"{DATA}/predictions")', '"s3:PutObject"], below(DATA)'),
    Mutant("pulumi/infra/identity.py", '"s3:PutObject"], below(', '"s3:PutObject", "s3:GetObject"], below('),
    Mutant("pulumi/infra/identity.py", "*WRITE], mlflow)", "*WRITE], [*mlflow, *data])"),
    Mutant("pulumi/infra/identity.py", "*WRITE], backups)", "*WRITE], [*backups, *mlflow])"),
    Mutant("pulumi/infra/identity.py", "*WRITE], data)", "*WRITE], [*data, *backups])"),
    Mutant("pulumi/infra/identity.py", "*PUSH], [readmission_arn]", "*PUSH], [readmission_arn, topic_arn]"),
    Mutant(
        "pulumi/infra/identity.py",
        '"Principal": {"AWS": arn}',
        '"Principal": {"AWS": arn.rpartition(":")[0] + ":root"}',
    ),
    Mutant("pulumi/infra/identity.py", '["sts:AssumeRole"], role_arns', '["sts:AssumeRole"], ["*"]'),
    Mutant(
        "pulumi/infra/schedule.py",
        'trust_policy("scheduler.amazonaws.com", args.account_id)',
        'trust_policy("scheduler.amazonaws.com")',
    ),
    # tags, types, schedule, money
    Mutant("health_predict/aws/stack_config.py", '"Project": PROJECT, "Stack": stack', '"Stack": stack'),
    Mutant(
        "health_predict/aws/stack_config.py",
        'extra="forbid", coerce_numbers_to_str=True',
        'extra="ignore", coerce_numbers_to_str=True',
    ),
    Mutant("health_predict/aws/stack_config.py", "machine(self.instance_type)\n", "pass\n"),
    Mutant("pulumi/infra/schedule.py", "cron({int(minute)} {int(hour)}", "cron({int(hour)} {int(minute)}"),
    Mutant("pulumi/infra/budget.py", "limit_amount=str(args.monthly_usd)", 'limit_amount="1000"'),
    Mutant(
        "pulumi/__main__.py",
        "allowed_account_ids=[config.account_id] if config.account_id else None",
        "allowed_account_ids=None",
    ),
    Mutant("Pulumi.yaml", "toolchain: uv", "toolchain: pip"),
    Mutant("pulumi/infra/account.py", "if found != account_id:", "if False:"),
    Mutant("pulumi/infra/bundle.py", "{key: args.tags[key] for key in OBJECT_TAGS}", "args.tags"),
    Mutant("pulumi/infra/config.py", "if not isinstance(values[key], list | dict):", "if False:"),
    Mutant("pulumi/infra/rollout.py", "if news[disk] < _olds.get(disk, 0)", "if False"),
    Mutant("pulumi/infra/rollout.py", "doing != told or ", ""),
    Mutant("pulumi/__main__.py", '            "HP_DATA_GIB": str(config.data_gib),\n', ""),
    Mutant("health_predict/aws/stack_config.py", "coerce_numbers_to_str=True", "coerce_numbers_to_str=False"),
    # what the images are made of
    Mutant("k8s/image-source", "find_files -perm -100 && ", ""),
    Mutant("k8s/image-source", 'echo "${base#*@}"', "echo"),
    Mutant("k8s/image-source", "xargs -0 $sum", "xargs -0 echo"),
    Mutant("pulumi/infra/images.py", 'return f"{commit}-dirty" if changed else commit', "return commit"),
    Mutant("pulumi/infra/images.py", '"--format=%H", "--", *sources', '"--format=%H"'),
    # who is told
    Mutant("pulumi/infra/alarms.py", "alarm_actions=[args.topic_arn]", "alarm_actions=[]"),
    Mutant("pulumi/infra/alarms.py", '"FailedBackups"', '"BackupsFailed"'),
    Mutant("pulumi/__main__.py", "topic.arn, config.schedule is None", "topic.arn, True"),
    Mutant("pulumi/__main__.py", "depends_on=[rollout.command]", "depends_on=[]"),
    Mutant("pulumi/infra/identity.py", '"cloudwatch:namespace": NAMESPACE', '"cloudwatch:namespace": "*"'),
    # the host
    Mutant(
        "pulumi/bootstrap/install.sh",
        'systemctl enable --now --quiet "${timers[@]}"',
        'systemctl enable --quiet "${timers[@]}"',
        (HOST, "-k", "first_run_second"),
    ),
    Mutant(
        "pulumi/bootstrap/steps/20-volume.sh",
        '(($(blockdev --getsize64 "$device") >= wanted))',
        "true",
        (HOST, "-k", "grows_is_waited"),
    ),
    Mutant(
        "pulumi/bootstrap/steps/62-build.sh",
        "grep --quiet ImageNotFoundException",
        "grep --quiet Exception",
        (HOST, "-k", "not_taken_for_an_empty"),
    ),
    Mutant(
        "pulumi/bootstrap/steps/62-build.sh",
        '[[ $("$HP_ROOT/k8s/image-source") == "$HP_IMAGE_TAG" ]] || exit 0',
        "",
        (HOST, "-k", "not_there_is_named"),
    ),
    Mutant(
        "pulumi/bootstrap/steps/95-first-model.sh",
        "if [[ -n $(serving) ]]; then exit 0; fi",
        "",
        (HOST, "-k", "brings_what_is_lacking"),
    ),
    Mutant(
        "pulumi/bootstrap/steps/95-first-model.sh",
        "if [[ $(status) == *Failed* || $(status) == *Complete* ]]; then",
        "if false; then",
        (HOST, "-k", "first_run_without_a_model"),
    ),
    Mutant("pulumi/bootstrap/watch.sh", "'$1 > since {found++}", "'{found++}", (HOST, "-k", "told_once")),
    # the cluster on a machine of one's own
    Mutant(
        "k8s/kind-up",
        "    built=$(./images)\n    PIPELINE_IMAGE=${built##*PIPELINE_IMAGE=}",
        "    PIPELINE_IMAGE=$(./images | sed -n 's/^PIPELINE_IMAGE=//p')",
        (KIND, "-k", "failed_image_build"),
    ),
    Mutant(
        "k8s/kind-up", "doctor --on kind || exit 5", "doctor --on kind || true", (KIND, "-k", "findings_of_the_checks")
    ),
    Mutant("k8s/kind-up", '[ "$owner" != "$2" ] || return 0', "return 0", (KIND, "-k", "registry_of_their_own")),
    Mutant("k8s/kind-up", 'KUBECONFIG="$data/kubeconfig" DATA=', "DATA=", (KIND, "-k", "neither_trusted")),
    Mutant(
        "k8s/kind-up",
        'sys.exit(not (found["champion"] and not found["serving"]))',
        "sys.exit(1)",
        (KIND, "-k", "serves_the_champion"),
    ),
    Mutant(
        "k8s/kind-cluster",
        '    if [ ! -e "$record" ]; then\n        echo',
        "    if false; then\n        echo",
        (KIND, "-k", "half_made"),
    ),
    Mutant(
        "k8s/kind-cluster",
        'if [ "${REPLACE:-}" != "$made" ]; then',
        "if false; then",
        (KIND, "-k", "another_configuration"),
    ),
    Mutant("k8s/kind-cluster", '    docker start "$node" >/dev/null', "    :", (KIND, "-k", "stopped_node")),
    Mutant("k8s/platform", "export NODE_NETWORK", "unset NODE_NETWORK", (KIND, "-k", "network_that_docker_gave")),
    Mutant("k8s/platform", '[ "$phase" != Released ] ||', "true ||", (KIND, "-k", "claimed_again")),
    Mutant("k8s/platform", '[ -z "${KEPT:-}" ] || ./keep-password "$KEPT"', ":", (KIND, "-k", "down_and_up")),
    Mutant(
        "k8s/up",
        '-e "${network:-}" | apply',
        '-e "${network:-}" | apply || true',
        (KIND, "-k", "cluster_refuses"),
    ),
    Mutant(
        "k8s/up",
        '    [ -z "$image" ] || echo "HEALTH_PREDICT_PIPELINE_IMAGE=$image"',
        '    [ -z "${PIPELINE_IMAGE:-}" ] || echo "HEALTH_PREDICT_PIPELINE_IMAGE=$PIPELINE_IMAGE"',
        (KIND, "-k", "keeps_the_one_there"),
    ),
    # who has which key
    Mutant("pulumi/bootstrap/credentials.sh", '"$HP_ROLE_SERVICE" health', '"$HP_ROLE_TASKS" health', (CREDENTIALS,)),
    Mutant("pulumi/bootstrap/credentials.sh", "credential_process = cat", "# credential_process = cat", (CREDENTIALS,)),
    Mutant(
        "pulumi/bootstrap/install.sh",
        "timers=(health-predict-credentials.timer ",
        "timers=(",
        (HOST, "-k", "first_run_second"),
    ),
    Mutant("k8s/platform", "./kfp-secrets\n", "", (KIND, "-k", "made_once")),
    Mutant("k8s/store-keys", 'PutObject" "$storage/predictions"', 'PutObject" "$storage"', (STORE,)),
    Mutant("k8s/store-keys", ' || [ "$key" = "$shared" ]', "", (STORE,)),
    Mutant("k8s/store-keys", "-access_key=$old -delete", "-access_key= -delete", (STORE,)),
    Mutant("k8s/store-keys", 'echo "no identity $user" >&2; exit 1', ":", (STORE,)),
    Mutant("k8s/keep-password", "keep kubeflow mysql-secret\n", "", (KIND, "-k", "made_once")),
)


def survives(mutant: Mutant | None) -> bool:
    """Whether the tests pass on the mutant, or on the program as it is when there is none."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source, target = ROOT / name, copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".venv"))
            elif source.exists():
                shutil.copy(source, target)
        (copy / "tests" / "__init__.py").touch()
        if mutant is not None:
            file = copy / mutant.file
            text = file.read_text()
            if text.count(mutant.before) != 1:
                raise SystemExit(f"{mutant.file} holds {mutant.before!r} {text.count(mutant.before)} times, not once")
            file.write_text(text.replace(mutant.before, mutant.after))
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-x",
                "-n",
                "0",
                "-p",
                "no:cacheprovider",
                *(mutant.tests if mutant else TESTS),
            ],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if done.returncode not in (0, 1):
            raise SystemExit(f"the tests did not run: {done.stdout[-1500:]}{done.stderr[-500:]}")
        return done.returncode == 0


def main() -> None:
    if not survives(None):
        raise SystemExit("the tests fail on the program as it is -> `make test` first")
    alive = []
    for number, mutant in enumerate(MUTANTS, 1):
        found = survives(mutant)
        print(
            f"{number:>2}/{len(MUTANTS)} {'SURVIVES' if found else 'caught'}  {mutant.file}: {mutant.after.strip()[:70]}",
            flush=True,
        )
        alive += [mutant] if found else []
    print(f"{len(MUTANTS) - len(alive)} of {len(MUTANTS)} mutants caught")
    raise SystemExit(1 if alive else 0)


if __name__ == "__main__":
    main()
