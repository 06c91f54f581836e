"""Images: what the pipeline's and MLflow's images are built from, and the tag that follows from it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pulumi

from infra.bundle import ROOT


def image_sources(root: Path = ROOT) -> tuple[str, ...]:
    """The files that the images are built from, relative to the repository. Raises RunError where one is missing."""
    return tuple(_run("k8s/image-source", "--files", root=root).splitlines())


def image_tag(python_image: str = "", root: Path = ROOT) -> str:
    """Digest of the images' sources and base: 40 hexadecimal digits."""
    return _run("k8s/image-source", root=root, PYTHON_IMAGE=python_image)


def source_revision(sources: tuple[str, ...], root: Path = ROOT) -> str:
    """The last commit that changed a source; `-dirty` follows where the checkout differs from it, `unknown` is no git.

    Of a commit that changes only other files the host need not know.
    """
    try:
        commit = _run("git", "log", "-1", "--format=%H", "--", *sources, root=root)
        changed = _run("git", "status", "--porcelain", "--", *sources, root=root)
    except (pulumi.RunError, FileNotFoundError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _run(*command: str, root: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **environment}
    )
    if done.returncode:
        raise pulumi.RunError(done.stderr.strip())
    return done.stdout.strip()
