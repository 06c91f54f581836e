"""Bundle: what the host runs, versioned by content in the bucket, and the file that says which version is current."""

from __future__ import annotations

import gzip
import hashlib
import io
import shlex
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pulumi
import pulumi_aws as aws

ROOT = Path(__file__).parents[2]
CONTENT = ("pulumi/bootstrap", "k8s", "pipelines/compiled")  # beside what the images are built from
OBJECT_TAGS = ("Project", "Stack", "ManagedBy")  # an object takes ten tags, everything else fifty
_START = ROOT / "pulumi" / "bootstrap" / "start.sh"
HOST_KEY = "bundles/host.env"
USER_DATA_LIMIT = 16_384  # bytes, by AWS


@dataclass(frozen=True, slots=True)
class BundleArgs:
    """Arguments of Bundle.

    `host` holds the variables of `host.env`, no secret among them; `sources` the files that the images are built from.
    """

    bucket: pulumi.Input[str]
    host: Mapping[str, pulumi.Input[str]]
    sources: Sequence[str]
    tags: Mapping[str, str]
    root: Path = ROOT


class Bundle(pulumi.ComponentResource):
    """Uploads the bundle, then the pointer to it."""

    def __init__(self, name: str, args: BundleArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("health-predict:infra:Bundle", name, None, opts)
        tags = {key: args.tags[key] for key in OBJECT_TAGS}
        data = pack(args.root, CONTENT, args.sources)
        digest = hashlib.sha256(data).hexdigest()
        file = args.root / ".health-predict" / "bundles" / f"{digest}.tar.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        key = f"bundles/{digest}.tar.gz"
        archive = aws.s3.BucketObjectv2(
            f"{name}-archive",
            aws.s3.BucketObjectv2Args(
                bucket=args.bucket, key=key, source=pulumi.FileAsset(str(file)), tags={**tags, "Name": key}
            ),
            # The old archive goes only after the pointer has moved on.
            opts=pulumi.ResourceOptions(parent=self),
        )
        variables = {**args.host, "HP_BUCKET": args.bucket, "HP_BUNDLE_KEY": key, "HP_BUNDLE_SHA256": digest}
        self.host_env: pulumi.Output[str] = pulumi.Output.all(**variables).apply(environment_file)
        self.pointer = aws.s3.BucketObjectv2(
            f"{name}-host",
            aws.s3.BucketObjectv2Args(
                bucket=args.bucket,
                key=HOST_KEY,
                content=self.host_env,
                content_type="text/plain",
                tags={**tags, "Name": HOST_KEY},
            ),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[archive]),
        )
        self.digest = digest
        self.register_outputs({"digest": digest})


def pack(root: Path, folders: Iterable[str], files: Iterable[str] = ()) -> bytes:
    """A gzipped tar of folders and files. The same content gives the same bytes: order, times and owners are fixed."""
    names = {path.relative_to(root).as_posix() for folder in folders for path in (root / folder).rglob("*")}
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(names.union(files)):
            path = root / name
            if not path.is_file() or path.suffix == ".pyc":
                continue
            entry = tarfile.TarInfo(name)
            content = path.read_bytes()
            entry.size = len(content)
            entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def environment_file(variables: Mapping[str, object]) -> str:
    """Variables as a file that both a shell and systemd read; values are quoted."""
    return "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in sorted(variables.items()))


def start_script(region: str, bucket: str) -> str:
    """The small program that fetches the current bundle and runs it: user data on the first boot, and upgrades."""
    template = _START.read_text()
    script = template.replace("@REGION@", shlex.quote(region)).replace("@BUCKET@", shlex.quote(bucket))
    if len(script.encode()) > USER_DATA_LIMIT:
        raise pulumi.RunError(f"{_START} is larger than the {USER_DATA_LIMIT} bytes of user data -> move it to steps/")
    return script
