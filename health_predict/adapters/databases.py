"""The databases of a cluster: whole dumps out of their pods and back, by the tools inside them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from health_predict.adapters.files import whole_file
from health_predict.errors import StateError, UnreachableError

EXEC_SECONDS = 1800.0
WAIT_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Database:
    """One database: where it runs, how it is dumped and restored, and the Deployments that must not use it then."""

    name: str
    namespace: str
    pod: str
    dump: Sequence[str]
    restore: Sequence[str]
    suffix: str
    users: Mapping[str, int] = field(default_factory=dict)
    """Deployments with their replicas."""


def _with_password(tool: str, *options: str) -> tuple[str, ...]:
    """A tool of MySQL by the password that its container has in its environment; with none where it has none."""
    program = 'export MYSQL_PWD="${MYSQL_ROOT_PASSWORD:-}" && exec "$@"'
    return ("sh", "-c", program, "sh", tool, "--host=127.0.0.1", "--user=root", *options)


DATABASES = (
    Database(
        "mlflow",
        "health-predict-tracking",
        "postgres-0",
        ("pg_dump", "--format=custom", "--username=mlflow", "mlflow"),
        # In one transaction: what was there stays until all of the dump is in.
        (
            "pg_restore",
            *("--clean", "--if-exists", "--no-owner", "--single-transaction", "--exit-on-error"),
            *("--username=mlflow", "--dbname=mlflow"),
        ),
        ".dump",
        {"mlflow": 1},
    ),
    Database(
        "pipelines",
        "kubeflow",
        "deployment/mysql",
        _with_password(
            "mysqldump", "--single-transaction", "--add-drop-database", "--databases", "mlpipeline", "metadb"
        ),
        _with_password("mysql"),
        ".sql",
        {"ml-pipeline": 1, "metadata-grpc-deployment": 1},
    ),
)


class KubectlDatabases:
    """Reaches the databases through kubectl, which streams.

    Raises UnreachableError without kubectl or an answering cluster, StateError when a tool in a pod fails.
    """

    def __init__(self, context: str = "") -> None:
        self._kubectl = shutil.which("kubectl") or ""
        if not self._kubectl:
            raise UnreachableError("kubectl is not installed", "https://kubernetes.io/docs/tasks/tools/")
        self._context = ("--context", context) if context else ()

    def present(self, database: Database) -> bool:
        """Whether the cluster has it."""
        kind, _, name = database.pod.rpartition("/")
        asked = ("get", kind or "pod", name, "--ignore-not-found", "--output=name")
        return bool(self._run(database, asked).stdout.strip())

    def dump(self, database: Database, file: Path) -> None:
        """Write a whole dump, or nothing."""
        with whole_file(file) as temporary:
            with temporary.open("wb") as target:
                self._run(database, ("exec", database.pod, "--", *database.dump), stdout=target.fileno())
            if not temporary.stat().st_size:
                raise StateError(f"the dump of {database.name} is empty", f"look at {database.pod}'s log")

    def restore(self, database: Database, file: Path) -> None:
        """Put a dump back. Who uses the database is away in the meantime and comes back in any case."""
        try:
            self._scale(database, 0)
            with file.open("rb") as source:
                self._run(database, ("exec", "-i", database.pod, "--", *database.restore), stdin=source.fileno())
        finally:
            self._scale(database, None)

    def _scale(self, database: Database, replicas: int | None) -> None:
        for name, usual in database.users.items():
            count = usual if replicas is None else replicas
            self._run(database, ("scale", f"deployment/{name}", f"--replicas={count}"))
        for name in database.users:
            wait = ("rollout", "status", f"deployment/{name}", f"--timeout={WAIT_SECONDS}s")
            self._run(database, wait)

    def _run(
        self,
        database: Database,
        arguments: Sequence[str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
    ) -> subprocess.CompletedProcess[bytes]:
        command = [self._kubectl, *self._context, "--namespace", database.namespace, *arguments]
        try:
            done = subprocess.run(
                command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, timeout=EXEC_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise UnreachableError(
                f"kubectl {arguments[0]} {database.pod} took over {EXEC_SECONDS:.0f} s", "look at the pod's log"
            ) from None
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())[:300]
            raise StateError(
                f"kubectl {arguments[0]} in {database.namespace} failed: {said}",
                f"kubectl --namespace {database.namespace} get pods",
            )
        return done
