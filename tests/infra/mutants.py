"""`make mutants`: spoil the Pulumi program in one place at a time; the tests must notice every time.

Each mutant is a copy of the repository in which one guard is gone or one value wrong. Exits with 1 when a mutant
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
COPIED = ("pulumi", "health_predict", "tests/infra", "k8s", "pipelines/compiled", "pyproject.toml")
TESTS = ("tests/infra/test_program.py", "tests/infra/test_policy.py")
SECONDS = 300


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    file: str
    before: str
    after: str


MUTANTS = (
    # who may come in
    Mutant("health_predict/core/stack_config.py", "if network.prefixlen < WIDEST_PREFIX:", "if False:"),
    Mutant("health_predict/core/stack_config.py", "WIDEST_PREFIX = 24", "WIDEST_PREFIX = 16"),
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
    Mutant("pulumi/infra/host.py", "HOP_LIMIT = 3", "HOP_LIMIT = 2"),
    Mutant("pulumi/infra/storage.py", "block_public_policy=True", "block_public_policy=False"),
    Mutant("pulumi/infra/storage.py", '"aws:SecureTransport": "false"', '"aws:SecureTransport": "true"'),
    Mutant("pulumi/infra/storage.py", 'status="Enabled"),\n            opts', 'status="Suspended"),\n            opts'),
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
        "opts=pulumi.ResourceOptions(parent=self, protect=args.keep_data)",
        "opts=pulumi.ResourceOptions(parent=self)",
    ),
    Mutant("pulumi/infra/host.py", 'ignore_changes=["ami", "userDataBase64"]', 'ignore_changes=["ami"]'),
    Mutant("pulumi/infra/host.py", "user_data_replace_on_change=False", "user_data_replace_on_change=True"),
    Mutant(
        "pulumi/infra/host.py",
        "the old one must go first.\n                delete_before_replace=True",
        "the old one must go first.\n                delete_before_replace=False",
    ),
    Mutant("pulumi/infra/host.py", "stop_instance_before_detaching=True", "stop_instance_before_detaching=False"),
    # who may do what
    Mutant("pulumi/infra/identity.py", '"s3:GetObjectVersion"], [f"{bucket_arn}/*"]', '"s3:GetObjectVersion"], ["*"]'),
    Mutant("pulumi/infra/identity.py", "for prefix in WRITABLE]", 'for prefix in (*WRITABLE, "bundles")]'),
    Mutant("pulumi/infra/identity.py", '"ecr:BatchGetImage"', '"ecr:BatchGetImages"'),
    Mutant("pulumi/infra/identity.py", "                    repository_arns,\n", '                    ["*"],\n'),
    Mutant(
        "pulumi/infra/schedule.py",
        'trust_policy("scheduler.amazonaws.com", args.account_id)',
        'trust_policy("scheduler.amazonaws.com")',
    ),
    # tags, types, schedule, money
    Mutant("health_predict/core/stack_config.py", '"Project": PROJECT, "Stack": stack', '"Stack": stack'),
    Mutant(
        "health_predict/core/stack_config.py",
        'model_config = ConfigDict(frozen=True, extra="forbid")\n\n    region',
        'model_config = ConfigDict(frozen=True, extra="ignore")\n\n    region',
    ),
    Mutant("health_predict/core/stack_config.py", "machine(self.region, self.instance_type)\n", "pass\n"),
    Mutant("pulumi/infra/schedule.py", "cron({int(minute)} {int(hour)}", "cron({int(hour)} {int(minute)}"),
    Mutant("pulumi/infra/budget.py", "limit_amount=str(args.monthly_usd)", 'limit_amount="1000"'),
    Mutant(
        "pulumi/__main__.py",
        "allowed_account_ids=[config.account_id] if config.account_id else None",
        "allowed_account_ids=None",
    ),
)


def survives(mutant: Mutant | None) -> bool:
    """Whether the tests pass on the mutant, or on the program as it is when there is none."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source, target = ROOT / name, copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
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
            [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *TESTS],
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
