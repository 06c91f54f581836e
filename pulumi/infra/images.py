"""Images: which tag of the pipeline and MLflow images the host runs."""

from __future__ import annotations

import subprocess

import pulumi

from infra.bundle import ROOT


def image_tag(configured: str) -> str:
    """The configured tag, or the commit of this checkout, under which `make images PUSH=...` pushes."""
    if configured:
        return configured
    asked = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=30
    )
    if asked.returncode:
        raise pulumi.RunError(
            "this is no git checkout, so the images have no commit -> "
            "`pulumi config set health-predict:image_tag <tag>`"
        )
    return asked.stdout.strip()
