"""The second model's image, from Bento to pushed digest, beside a builder's build and push of the same Bento.

Needs docker-registry (or BENCH_REGISTRY, a registry on loopback that has the base image) and, for the comparison,
buildah or docker. BENCH_BASE names the base image in that registry. The first model, which brings base and libraries,
is pushed before anything is timed; the builder has its cache of them as well.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sklearn.pipeline import Pipeline

from benchmarks.parts import results
from benchmarks.parts.cohorts import DIABETES, synthesize
from health_predict.adapters.contracts import built_in
from health_predict.adapters.files import unpack_archive
from health_predict.adapters.images import RemoteRegistry
from health_predict.adapters.images.client import Repository
from health_predict.adapters.serving.bentoml import BentoStore, pack
from health_predict.core.data.cohort import target
from health_predict.core.model.evaluation import f1_threshold
from health_predict.core.model.families import FAMILIES
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.serving.compiled_model import compile_pipeline
from health_predict.stages.bento_build import golden_requests

REGISTRY = os.environ.get("BENCH_REGISTRY", "localhost:5000")
BASE = os.environ.get("BENCH_BASE", f"{REGISTRY}/library/python:3.11-slim")
CUTOFFS = [0.1, 0.15, 0.25]


@dataclass
class Cost:
    """What one build and push took."""

    seconds: float
    cpu: float
    pushed: int


def bentos(home: Path) -> list[Path]:
    """Archives of two models of the same code."""
    frame = synthesize(6_000, seed=1)
    features = EncounterFeatures(built_in()).fit(frame)
    matrix, labels = features.transform(frame), target(frame, DIABETES)
    found = []
    for version, seed in (("1", 1), ("2", 2)):
        family = FAMILIES["XGBoost"]
        pipeline = Pipeline(
            [("features", features), ("estimator", family.fit(family.first, matrix, labels, seed=seed))]
        )
        threshold = f1_threshold(labels, pipeline.predict_proba(frame)[:, 1].astype(float))
        compiled = compile_pipeline(pipeline, family, threshold)
        identity = {
            **{"model_name": "readmission", "model_version": version, "run_id": "r" * 32, "dataset_digest": "d" * 64},
            **{"dataset_source": "synthetic", "git_commit": "c" * 40},
            **{"training_prevalence": 0.1, "risk_cutoffs": CUTOFFS, "metrics": {}},
        }
        tag = f"readmission:v{version}-bench"
        bento = BentoStore(home).build(tag, compiled, identity, golden_requests(compiled, frame, CUTOFFS))
        archive = home / f"{version}.tar"
        pack(bento, archive)
        found.append(archive)
    return found


def cpu() -> float:
    """Seconds of this process and its ended children."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def ours(home: Path, archives: list[Path]) -> tuple[Cost, bool]:
    """Assemble and push the second model; whether another machine gets the same digest."""
    name = f"{REGISTRY}/bench/readmission-{os.getpid()}"
    identities = [{"model_version": version, "bento_tag": f"readmission:v{version}-bench"} for version in "12"]
    registry = RemoteRegistry(name, base_image=BASE)
    registry.push(archives[0], identities[0])
    sent = 0
    request = Repository.request

    def count(self: Repository, method: str, url: str, *, data: bytes | IO[bytes] | None = None, **options: Any) -> Any:
        nonlocal sent
        sent += len(data) if isinstance(data, bytes) else os.fstat(data.fileno()).st_size if data else 0
        return request(self, method, url, data=data, **options)

    Repository.request = count  # type: ignore[method-assign]
    try:
        begin, used = time.perf_counter(), cpu()
        uri = RemoteRegistry(name, base_image=BASE).push(archives[1], identities[1])
        cost = Cost(time.perf_counter() - begin, cpu() - used, sent)
    finally:
        Repository.request = request  # type: ignore[method-assign]
    # `sent` counts what went over the wire in this push; the repetition makes everything anew.
    again = RemoteRegistry(f"{name}-again", base_image=BASE).push(archives[1], identities[1])
    return cost, uri.partition("@")[2] == again.partition("@")[2]


def builder(home: Path, archives: list[Path]) -> tuple[str, Cost] | None:
    """Build and push the same Bento by its own Dockerfile, the first model's layers cached."""
    tool = next((name for name in ("buildah", "docker") if shutil.which(name) and works(name)), "")
    if not tool:
        return None
    cost = None
    for archive in archives:
        context = home / f"context-{archive.stem}"
        unpack_archive(archive, context)
        for script in context.glob("env/docker/*.sh"):
            script.chmod(0o755)
        image = f"{REGISTRY}/bench/builder-{os.getpid()}:{archive.stem}"
        file = context / "env" / "docker" / "Dockerfile"
        # Behind a proxy with a certificate of its own, the base's store of certificates is what knows it.
        text = re.sub(r"FROM python:3.11-slim(.*)", rf"FROM {BASE}\1\nENV UV_SYSTEM_CERTS=1", file.read_text())
        file.write_text(text)
        begin, used = time.perf_counter(), cpu()
        if tool == "buildah":
            build = ["buildah", "bud", "--layers", "--isolation", "chroot", "--tls-verify=false", "-f", str(file)]
            push = ["buildah", "push", "--tls-verify=false", image, f"docker://{image}"]
        else:
            build, push = ["docker", "build", "-f", str(file)], ["docker", "push", image]
        for command in ([*build, "-q", "-t", image, str(context)], push):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
        cost = Cost(time.perf_counter() - begin, cpu() - used, 0)
    assert cost is not None
    return tool, cost


def works(tool: str) -> bool:
    return subprocess.run([tool, "info"], capture_output=True, check=False).returncode == 0


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-image-") as folder:
        home = Path(folder)
        archives = bentos(home)
        cost, same = ours(home, archives)
        assert same, "two builds of the same Bento differ"
        print(f"{'':<22} {'seconds':>8} {'CPU, s':>8} {'bytes pushed':>14}")
        print(f"{'assembled':<22} {cost.seconds:>8.2f} {cost.cpu:>8.2f} {cost.pushed:>14,}")
        other = builder(home, archives)
        figures = {"push_bytes": cost.pushed, "cpu_seconds": round(cost.cpu, 2)}
        if other is None:
            print("no builder works here: no comparison")
        else:
            tool, theirs = other
            print(f"{tool + ' build and push':<22} {theirs.seconds:>8.2f} {theirs.cpu:>8.2f} {'not counted':>14}")
            figures["cpu_vs_builder"] = round(theirs.cpu / cost.cpu, 1)
        results.save("image", figures)


if __name__ == "__main__":
    main()
