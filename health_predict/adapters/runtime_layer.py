"""The libraries of a Bento as one image layer: the same bytes for the same lock file, wherever it is made.

`uv` takes the wheels of the target platform, checks each against the hashes of the lock file and unpacks them; the
archive holds nothing that depends on the time, the machine or the folder.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from health_predict.adapters.locks import only_one
from health_predict.adapters.storage import disk_error, whole_file
from health_predict.core.errors import StateError, UnreachableError

log = logging.getLogger(__name__)

LOCK_FILE = Path(__file__).resolve().parents[2] / "uv.lock"
PYTHON_VERSION = "3.11"
# Kubeflow Pipelines has no images for another architecture.
PLATFORM = "x86_64-manylinux_2_28"
SITE = "app/lib"
SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
INSTALL_SECONDS = 600
# A part of the layer's key: to be raised when the same wheels give other bytes.
FORMAT = 1
# Fast enough, and within a few per cent of the best.
COMPRESSION = 6


@dataclass(frozen=True, slots=True)
class Layer:
    """A compressed layer: its file, the digest of that file, and of the archive in it."""

    file: Path
    digest: str
    diff_id: str
    size: int


def runtime_key(requirements: str) -> str:
    """What decides the bytes of the layer of these `name==version` lines, as 24 hex digits."""
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


def runtime_layer(requirements: str, cache: Path) -> Layer:
    """The layer of these requirements, from the cache or made anew.

    Raises UnreachableError when the package index does not answer, StateError when a wheel is not the locked one.
    """
    key = runtime_key(requirements)
    file, record = cache / f"{key}.tar.gz", cache / f"{key}.json"
    with only_one(cache, INSTALL_SECONDS):
        try:
            known = json.loads(record.read_text(encoding="utf-8"))
            if file.stat().st_size == known["size"]:
                return Layer(file, **known)
        except (OSError, ValueError, KeyError):
            pass
        log.info("assembling the libraries of the service, which a change of the lock file asks for")
        try:
            with tempfile.TemporaryDirectory(prefix=".runtime-", dir=cache) as workshop:
                site = Path(workshop) / "site"
                _install(pinned(requirements), Path(workshop), site)
                layer = pack_layer(_tree(site), file)
        except OSError as error:
            raise disk_error(error, cache) from error
        with whole_file(record) as temporary:
            known = {"digest": layer.digest, "diff_id": layer.diff_id, "size": layer.size}
            temporary.write_text(json.dumps(known), encoding="utf-8")
        return layer


def _install(lines: list[str], workshop: Path, site: Path) -> None:
    listed = workshop / "requirements.txt"
    listed.write_text("\n".join(lines), encoding="utf-8")
    uv = shutil.which("uv", path=os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", ""))))
    if uv is None:
        raise StateError("uv is not installed", "pip install 'health-predict[operations]'")
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
        compile_all = [
            "compileall",
            "-qq",
            "-j",
            "1",
            "--invalidation-mode",
            "unchecked-hash",
            "-s",
            str(site),
            "-p",
            "/",
        ]
        _run([sys.executable, "-m", *compile_all, str(site)], PYTHONHASHSEED="0", check=False)


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


def _tree(site: Path) -> Iterator[tuple[str, Path]]:
    for path in site.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield f"{SITE}/{path.relative_to(site).as_posix()}", path


def pack_layer(files: Iterable[tuple[str, Path]], target: Path) -> Layer:
    """Write files, given with their names in the image, as a compressed layer."""
    compressed, plain = hashlib.sha256(), hashlib.sha256()
    with whole_file(target) as temporary:
        with (
            temporary.open("wb") as sink,
            # No name and no time in the header.
            gzip.GzipFile("", "wb", COMPRESSION, _Tee(sink, compressed), mtime=0) as packed,
            tarfile.open(fileobj=_Tee(packed, plain), mode="w|", format=tarfile.PAX_FORMAT) as tar,  # type: ignore[call-overload]
        ):
            _write(tar, files)
        size = temporary.stat().st_size
    return Layer(target, f"sha256:{compressed.hexdigest()}", f"sha256:{plain.hexdigest()}", size)


def _write(tar: tarfile.TarFile, files: Iterable[tuple[str, Path]]) -> None:
    made: set[str] = set()
    for name, path in sorted(files):
        for folder in _new_folders(name, made):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = path.stat().st_size, 0o644
        with path.open("rb") as content:
            tar.addfile(entry, content)


def _new_folders(name: str, made: set[str]) -> list[str]:
    parts = name.split("/")[:-1]
    folders = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    new = [folder for folder in folders if folder not in made]
    made.update(new)
    return new


class _Tee:
    """Hashes what it hands on."""

    def __init__(self, sink: IO[bytes] | gzip.GzipFile, digest: hashlib._Hash) -> None:
        self._sink = sink
        self._digest = digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self._sink.write(data)
        return len(data)

    def flush(self) -> None:
        pass
