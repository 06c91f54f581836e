"""Bentos: an ordinary one for each compiled model version, the same bytes each time.

BentoML builds it, in a process and a store of its own, so that nothing half built ever stands where a finished
Bento is looked for. What BentoML adds by the clock is replaced, and the result moves to its place in one rename.
The service's code is `service.py` and the wheel of this library, which lies in the Bento.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from health_predict.adapters.archives import archive, content_digest
from health_predict.adapters.files import disk_error, whole_file
from health_predict.adapters.locks import only_one
from health_predict.core.serving.compiled_model import CompiledModel
from health_predict.errors import StateError

log = logging.getLogger(__name__)

NAME = "readmission"
ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "bentos" / NAME
DISTRIBUTION = "health-predict"
EXTRA = "serving"
# What the library's wheel is built from.
PACKAGES = ("health_predict", "components", "contracts", "pipelines")
PROJECT_FILES = ("pyproject.toml", "README.md")
BUILD_SECONDS = 300
WORKSHOP = ".building-"
OPTIONS = "options.json"
# Not the command line: that refuses a folder below a hidden one, such as `.health-predict`.
BUILD_PROGRAM = f"""
import bentoml, json, pathlib
options = json.loads(pathlib.Path("../{OPTIONS}").read_text(encoding="utf-8"))
bentoml.bentos.build("service:Readmission", include=["*"], python={{"lock_packages": False}}, build_ctx=".", **options)
"""
WHEEL_PROGRAM = """
import sys
from setuptools import build_meta
build_meta.build_wheel(sys.argv[1])
"""
# BentoML wants a time in a Bento; the same version must give the same bytes.
CREATED = "1980-01-01T00:00:00+00:00"


@dataclass(frozen=True, slots=True)
class Bento:
    """A finished Bento: its tag, the digest of its content, and its folder."""

    tag: str
    digest: str
    folder: Path


class BentoStore:
    """BentoML's store of Bentos in `home` (its BENTOML_HOME)."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def folder(self, tag: str) -> Path:
        """Where a Bento lies, whether it is there or not."""
        name, _, number = tag.partition(":")
        return self.home / "bentos" / name / number

    def find(self, tag: str, digest: str) -> Bento | None:
        """The Bento of this tag if it is there and undamaged."""
        folder = self.folder(tag)
        if not (folder / "bento.yaml").is_file() or content_digest(folder) != digest:
            return None
        return Bento(tag, digest, folder)

    def build(
        self, tag: str, compiled: CompiledModel, identity: Mapping[str, Any], golden: list[dict[str, Any]]
    ) -> Bento:
        """Build a Bento, replacing one of the same tag.

        `identity` holds the fields of the service's `Identity` that `compiled` does not tell. Raises StateError when
        BentoML refuses, UnreachableError when the disk does.
        """
        with only_one(self.home, BUILD_SECONDS):
            try:
                folder = self._build(tag, compiled, identity, golden)
            except OSError as error:
                raise disk_error(error, self.home) from error
        bento = Bento(tag, content_digest(folder), folder)
        log.info("built %s, %s", bento.tag, bento.digest)
        return bento

    def _build(
        self, tag: str, compiled: CompiledModel, identity: Mapping[str, Any], golden: list[dict[str, Any]]
    ) -> Path:
        folder = self.folder(tag)
        folder.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in self.home.glob(f"{WORKSHOP}*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=WORKSHOP, dir=self.home) as workshop:
            source = Path(workshop) / "source"
            write_source(source, tag, compiled, identity, golden)
            built = _built(Path(workshop) / "home", source, tag)
            _normalise(built, source)
            if folder.exists():
                folder.rename(Path(workshop) / "replaced")
            built.rename(folder)
        with whole_file(folder.parent / "latest") as temporary:
            temporary.write_text(folder.name, encoding="utf-8")
        return folder


def bento_tag(model_version: str, identity: Mapping[str, Any]) -> str:
    """Tag of the Bento of a model version: it changes with the model and with the service's code and libraries."""
    digest = hashlib.sha256(json.dumps([identity, requirements()], sort_keys=True).encode())
    for name, data in sorted({**service_files(), **library_files()}.items()):
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return f"{NAME}:v{model_version}-{digest.hexdigest()[:12]}"


def service_files() -> dict[str, bytes]:
    """The service's own files by their name in the Bento. Raises StateError when they are not installed."""
    if not (SOURCE / "service.py").is_file():
        raise StateError(f"{SOURCE} holds no service.py", "run from a clone of the repository or its image")
    return {name: (SOURCE / name).read_bytes() for name in ("service.py", "README.md")}


def library_files() -> dict[str, bytes]:
    """The files that the library's wheel is built from, by their name in the repository."""
    paths = [ROOT / name for name in PROJECT_FILES]
    paths += (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in paths if "__pycache__" not in path.parts}


def build_wheel(folder: Path) -> None:
    """Put the library's wheel into `folder`: the same bytes for the same files, by setuptools as anybody builds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="health-predict-wheel-") as copy:
        # It leaves its own files where it works, and the checkout may be read-only.
        for name, data in library_files().items():
            path = Path(copy) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(int(datetime.fromisoformat(CREATED).timestamp()))}
        _run("the wheel of health-predict", WHEEL_PROGRAM, [str(folder)], Path(copy), environment)


def write_source(
    folder: Path, tag: str, compiled: CompiledModel, identity: Mapping[str, Any], golden: list[dict[str, Any]]
) -> None:
    """Write everything that the Bento's `src` folder will hold, and beside it BentoML's options for the build."""
    complete = {
        **identity,
        "bento_tag": tag,
        "contract_digest": compiled.contract.digest,
        "family": compiled.family,
        "threshold": compiled.threshold,
        "calibration": compiled.calibration,
    }
    files = service_files() | {
        "requirements.txt": "".join(f"{line}\n" for line in requirements()).encode(),
        "identity.json": _json(complete),
        "encoder.json": _json(compiled.encoder.to_json()),
        "golden.json": _json(golden),
        "contract.json": compiled.contract.to_json(),
        "model.onnx": compiled.graph,
    }
    if compiled.explainer is not None:
        files["explainer.npz"] = compiled.explainer.to_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    build_wheel(folder / "wheels")
    labels = {
        name: str(complete[name]) for name in ("model_version", "run_id", "dataset_digest", "git_commit", "family")
    }
    options = {"name": NAME, "version": tag.partition(":")[2], "labels": labels}
    (folder.parent / OPTIONS).write_bytes(_json(options))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def requirements() -> list[str]:
    """Exact versions of all that the library needs with its extra `serving`, `name==version`, sorted.

    Raises StateError when the serving libraries are not installed.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    waiting, visited = [Requirement(f"{DISTRIBUTION}[{EXTRA}]")], set()
    while waiting:
        wanted = waiting.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, extras) in visited:
            continue
        visited.add((name, extras))
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue  # asked for by nobody on this platform
        found[name] = installed.version
        for requirement in map(Requirement, installed.requires or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append(requirement)
    if "bentoml" not in found:
        raise StateError(
            "bentoml is not installed", "install the serving libraries: pip install 'health-predict[serving]'"
        )
    return sorted(f"{name}=={number}" for name, number in found.items() if name != DISTRIBUTION)


def _built(home: Path, source: Path, tag: str) -> Path:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("BENTOML_", "HEALTH_PREDICT_"))},
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "true",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    _run("bentoml build", BUILD_PROGRAM, [], source, environment)
    return BentoStore(home).folder(tag)


def _run(what: str, program: str, arguments: list[str], folder: Path, environment: Mapping[str, str]) -> None:
    """Run a program of a few lines in a process of its own. Raises StateError with its last words."""
    # -P: the working folder is no place to import from.
    command = [sys.executable, "-P", "-c", program, *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise StateError(f"{what} took longer than {BUILD_SECONDS} s", "run the stage again") from None
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise StateError(
            f"{what} failed: {lines[-1] if lines else f'exit code {done.returncode}'}",
            "run it by hand on bentos/readmission to see all of its output",
        )


def _normalise(folder: Path, source: Path) -> None:
    """Replace what depends on the time or the place of the build."""
    description = folder / "bento.yaml"
    text = description.read_text(encoding="utf-8")
    text = re.sub(r"^creation_time: .*$", f"creation_time: '{CREATED}'", text, flags=re.MULTILINE)
    description.write_text(text.replace(str(source), "."), encoding="utf-8")
    for cache in sorted(folder.rglob("__pycache__")):
        shutil.rmtree(cache)


def pack(bento: Bento, file: Path) -> None:
    """Write the Bento's archive, of which its digest is the SHA-256."""
    with file.open("wb") as sink:
        archive(bento.folder, sink)
