"""The libraries of a Bento as files: the same bytes for the same lock file, wherever they are made.

`uv` takes the wheels of the target platform, checks each against the hashes of the lock file and unpacks them; the
archive holds nothing that depends on the time, the machine or the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

from health_predict.errors import StateError, UnreachableError

LOCK_FILE = Path(__file__).resolve().parents[3] / "uv.lock"
PYTHON_VERSION = "3.11"
# Kubeflow Pipelines has no images for another architecture.
PLATFORM = "x86_64-manylinux_2_28"
SITE = "app/lib"
SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
INSTALL_SECONDS = 600
# A part of the layer's key: to be raised when the same wheels give other bytes.
FORMAT = 1


def key_of(requirements: str) -> str:
    """What decides the bytes of the libraries of these `name==version` lines, as 24 hex digits."""
    content = json.dumps([FORMAT, PLATFORM, PYTHON_VERSION, pinned(requirements)])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def pinned(requirements: str) -> list[str]:
    """The lines of a requirements file with the hashes that the lock file has for them.

    Raises StateError for a version that the lock file does not know.
    """
    try:
        packages = tomllib.loads(LOCK_FILE.read_text(encoding="utf-8"))["package"]
    except FileNotFoundError:
        raise StateError(f"{LOCK_FILE} does not exist", "run from a clone of the repository or its image") from None
    wheels = {
        f"{package['name']}=={package['version']}": sorted(wheel["hash"] for wheel in package.get("wheels", ()))
        for package in packages
        if "version" in package
    }
    lines = []
    for line in sorted(requirements.split()):
        if not wheels.get(line):
            raise StateError(
                f"{line} of the Bento is not a wheel of {LOCK_FILE.name}",
                "install the locked environment (`make .venv/.ready`) and run bento_build again",
            )
        lines.append(" ".join((line, *(f"--hash={value}" for value in wheels[line]))))
    return lines


def install(requirements: str, workshop: Path) -> Iterator[tuple[str, Path]]:
    """Install into `workshop`; the files with their names in the image.

    Raises UnreachableError when the package index does not answer, StateError when a wheel is not the locked one.
    """
    site = workshop / "site"
    listed = workshop / "requirements.txt"
    listed.write_text("\n".join(pinned(requirements)), encoding="utf-8")
    uv = uv_program()
    command = [uv, "pip", "install", "--no-config", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["--python-platform", PLATFORM, "--python-version", PYTHON_VERSION, "--link-mode=copy"]
    command += ["--python", sys.executable, "--target", str(site), "-r", str(listed)]
    # Where the system has certificates of its own, such as a company proxy's, they count unless the caller said no.
    certificates = os.environ.get("UV_SYSTEM_CERTS", "1" if SYSTEM_CERTIFICATES.is_file() else "0")
    _run(command, UV_SYSTEM_CERTS=certificates)
    for folder in ("bin", "include", "share", "etc"):  # nothing of them is used by a service
        shutil.rmtree(site / folder, ignore_errors=True)
    (site / ".lock").unlink(missing_ok=True)
    for recorded in site.glob("*.dist-info/RECORD"):
        kept = (line for line in recorded.read_text(encoding="utf-8").splitlines() if not line.startswith("bin/"))
        recorded.write_text("\n".join(sorted(kept)) + "\n", encoding="utf-8")
    if f"{sys.version_info[0]}.{sys.version_info[1]}" == PYTHON_VERSION:
        # A read-only root file system can keep no byte code, and compiling takes seconds at each start.
        how = ["-qq", "-j", "1", "--invalidation-mode", "unchecked-hash", "-s", str(site), "-p", "/"]
        _run([sys.executable, "-m", "compileall", *how, str(site)], PYTHONHASHSEED="0", check=False)
    return (
        (f"{SITE}/{path.relative_to(site).as_posix()}", path)
        for path in site.rglob("*")
        if path.is_file() and not path.is_symlink()
    )


def find_uv() -> str | None:
    """The program uv of this environment, else of the path; None when there is none."""
    return shutil.which("uv", path=os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", ""))))


def uv_program() -> str:
    """The same. Raises StateError when there is none."""
    found = find_uv()
    if found is None:
        raise StateError("uv is not installed", "pip install 'health-predict[operations]'")
    return found


def _run(command: list[str], *, check: bool = True, **environment: str) -> None:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnreachableError(f"{command[0]} took longer than {INSTALL_SECONDS} s", "check the network") from None
    if not check or done.returncode == 0:
        return
    said = " ".join(done.stderr.split())[-600:]
    if "hash" in said.lower():
        raise StateError(f"a wheel is not the locked one: {said}", "find out who changed it before going on")
    raise UnreachableError(
        f"the wheels of the service cannot be had: {said}", "check that the package index answers (UV_DEFAULT_INDEX)"
    )
