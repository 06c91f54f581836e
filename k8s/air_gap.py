"""`make air-gap FOLDER=...`: on a machine with network, what `make kind-up` fetches by itself, for a site without.

Writes `kinds.yaml` and `pipelines.yaml`, Kubeflow Pipelines as `KFP=FOLDER make kind-up` applies it, and `images.txt`,
a line an image: name and digest. Needs kubectl, git and skopeo. KIND_NODE_IMAGE is the node's image, as the release
notes of your kind name it; without it that line is missing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent


def images(value: Any) -> Iterator[str]:
    """Every image in a document: in fields of that name, and where a controller is told which one to start."""
    if isinstance(value, dict):
        if isinstance(value.get("image"), str):
            yield value["image"]
        if str(value.get("name", "")).endswith("_IMAGE") and value.get("value"):
            yield value["value"]
        for item in value.values():
            yield from images(item)
    elif isinstance(value, list):
        for before, item in zip(["", *value], value, strict=False):
            if before == "--executor-image":
                yield item
            yield from images(item)


def ours(name: str) -> bool:
    """Whether the project builds it itself."""
    return "health-predict" in name


def full(name: str) -> str:
    """The name as it is pulled: with its registry, and the folder of Docker Hub's own images."""
    first, _, rest = name.partition("/")
    if ("." not in first and ":" not in first and first != "localhost") or not rest:
        first, rest = "docker.io", name
    return f"{first}/{rest}" if first != "docker.io" or "/" in rest else f"docker.io/library/{rest}"


def main() -> int:
    if len(sys.argv) != 2:
        print("the folder to write to is missing -> make air-gap FOLDER=...", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    kustomization = (HERE / "kfp" / "kustomization.yaml").read_text()
    version = re.search(r"platform-agnostic\?ref=(\S+)", kustomization)
    assert version, "k8s/kfp names no version"
    kinds = f"https://github.com/kubeflow/pipelines//manifests/kustomize/cluster-scoped-resources?ref={version[1]}"
    base = re.search(r"^ARG PYTHON_IMAGE=(\S+)", (HERE.parent / "Dockerfile").read_text(), re.MULTILINE)
    registry = re.search(r"REGISTRY_IMAGE=(docker\.io/\S+)", (HERE / "kind-up").read_text())
    assert base and registry, "the Dockerfile names no base, or kind-up no registry"
    found = {registry[1], base[1]} | {name for name in (os.environ.get("KIND_NODE_IMAGE"),) if name}
    for source, file in (
        (kinds, "kinds.yaml"),
        (str(HERE / "kfp"), "pipelines.yaml"),
        (str(HERE / "overlays/kind"), ""),
    ):
        text = run("kubectl", "kustomize", source)
        found |= {name for document in yaml.safe_load_all(text) for name in images(document)}
        if file:
            (folder / file).write_text(text)
    lines = []
    for name in sorted({full(name) for name in found if not ours(name)}):
        plain, _, digest = name.partition("@")
        digest = digest or run("skopeo", "inspect", "--no-tags", "--format", "{{.Digest}}", f"docker://{name}").strip()
        lines.append(f"{plain} {digest}\n")
    (folder / "images.txt").write_text("".join(lines))
    print(f"{len(lines)} images by digest in {folder / 'images.txt'}")
    return 0


def run(*command: str) -> str:
    """What a command prints. Ends this one with the command's own words when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not installed -> your package manager has it")
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
