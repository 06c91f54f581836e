"""Git: which commit of this code runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

UNKNOWN = "unknown"


def commit() -> str:
    """The commit of the checkout this package lies in, with `-dirty` when files differ from it.

    `unknown` where there is no git or no checkout; an image sets HEALTH_PREDICT_GIT_COMMIT instead.
    """
    folder = Path(__file__).parents[2]
    # Installed into site-packages of some other repository, git would name that one's commit.
    if not (folder / "pyproject.toml").is_file():
        return UNKNOWN
    # With its optional lock git would write into the checkout what it found out.
    command = ["git", "--no-optional-locks", "-C", str(folder), "status", "--porcelain=v2"]
    try:
        found = subprocess.run(
            [*command, "--branch", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    lines = found.stdout.splitlines()
    oid = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), UNKNOWN)
    if oid == "(initial)":
        return UNKNOWN
    return f"{oid}-dirty" if any(not line.startswith("#") for line in lines) else oid


def contains(found: str) -> bool | None:
    """Whether the checkout this package lies in has a commit; None where there is none to ask."""
    folder = Path(__file__).parents[2]
    if commit() == UNKNOWN:
        return None
    command = ["git", "-C", str(folder), "cat-file", "-e", f"{found}^{{commit}}"]
    return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0
