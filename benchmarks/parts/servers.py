"""The services of a benchmark as processes of this machine, and the CPU time of each with all its children."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from sklearn.pipeline import Pipeline

from benchmarks.parts.cohorts import DIABETES, synthesize
from health_predict.adapters.contracts import built_in
from health_predict.adapters.serving.bentoml import Bento, BentoStore, bento_tag
from health_predict.core.data.cohort import as_requests, target
from health_predict.core.model import risk_groups
from health_predict.core.model.evaluation import f1_threshold
from health_predict.core.model.families import FAMILIES
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.serving.compiled_model import cleared, compile_pipeline, prove_parity
from health_predict.core.serving.explained_model import explain_pipeline
from health_predict.stages.bento_build import golden_requests

HERE = Path(__file__).parent
START_SECONDS = 120.0
STOP_SECONDS = 30.0
TRAINING_ROWS, OTHER_ROWS = 12_000, 10_000


@dataclass(frozen=True)
class Model:
    """One fitted pipeline in the forms that the services take, and rows to ask about."""

    pipeline: Pipeline
    bento: Bento
    threshold: float
    rows: list[dict[str, Any]]
    """Encounters as JSON objects."""
    frame: pd.DataFrame
    """The same as text."""


def train(folder: Path, family: str = "XGBoost", version: str = "1", seed: int = 1) -> Model:
    """Fit a family's first candidate on synthetic encounters and build its Bento in `folder`."""
    everything = synthesize(TRAINING_ROWS + OTHER_ROWS, seed=seed)
    training, other = everything.head(TRAINING_ROWS), everything.tail(OTHER_ROWS).reset_index(drop=True)
    features = EncounterFeatures(built_in()).fit(training)
    chosen = FAMILIES[family]
    estimator = chosen.fit(chosen.first, features.transform(training), target(training, DIABETES), seed=seed, threads=1)
    pipeline = Pipeline([("features", features), ("estimator", estimator)])
    scores = pipeline.predict_proba(training)[:, 1].astype(float)
    threshold = cleared(f1_threshold(target(training, DIABETES), scores), pipeline, other)
    compiled = compile_pipeline(pipeline, chosen, threshold)
    compiled = replace(compiled, explainer=explain_pipeline(pipeline, chosen, training))
    prove_parity(compiled, pipeline, other)
    prevalence = float(np.mean(target(training, DIABETES)))
    cutoffs = risk_groups.cutoffs(prevalence)
    identity = {
        "model_name": "readmission",
        "model_version": version,
        "run_id": "benchmark",
        "dataset_digest": "",
        "dataset_source": "synthetic",
        "git_commit": "",
        "training_prevalence": prevalence,
        "risk_cutoffs": cutoffs,
        "metrics": {},
    }
    golden = golden_requests(compiled, other, cutoffs)
    bento = BentoStore(folder / "bentoml").build(bento_tag(version, identity), compiled, identity, golden)
    return Model(pipeline, bento, compiled.threshold, as_requests(other, DIABETES.features), other)


def free_port() -> int:
    """A port of loopback that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A running service."""

    process: subprocess.Popen[bytes]
    port: int
    token: str = ""

    def tree(self) -> list[psutil.Process]:
        """The process and all that came of it."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def cpu(self) -> float:
        """CPU seconds of the tree so far."""
        total = 0.0
        for process in self.tree():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def memory(self) -> float:
        """Megabytes of the tree, shared pages divided among those that share them (PSS)."""
        return float(sum(process.memory_full_info().pss for process in self.tree()) / 1e6)

    def ask(self, path: str, body: bytes) -> Any:
        """One request and its answer as JSON."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", body, {"content-type": "application/json"}
        )
        if self.token:
            request.add_header("authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)


@contextmanager
def serve(
    command: Sequence[str],
    port: int,
    log: Path,
    *,
    probe: tuple[str, bytes],
    environment: Mapping[str, str] = {},
    token: str = "",
) -> Iterator[Server]:
    """A service, from the moment it answers `probe` (path and body) to its end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "true", **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=HERE,
            start_new_session=True,
        )
    server = Server(process, port, token)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(server, *probe):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} does not serve:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(server: Server, path: str, body: bytes) -> bool:
    try:
        server.ask(path, body)
    except (OSError, urllib.error.URLError):
        return False
    return True


def ours(bento: Bento, port: int, home: Path, workers: int, **settings: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment that serve a Bento as its users do, without httptools as in its own environment."""
    hidden = home / "hidden" / "httptools.py"
    hidden.parent.mkdir(parents=True, exist_ok=True)
    hidden.write_text("raise ImportError('not in a Bento')")
    environment = {
        "PYTHONPATH": str(hidden.parent),
        "BENTOML_HOME": str(home),
        "BENTOML_CONFIG_OPTIONS": f"services.readmission.workers={workers}",
        **{f"HEALTH_PREDICT_{name.upper()}": value for name, value in settings.items()},
    }
    arguments = ["-P", "-m", "bentoml", "serve", str(bento.folder), "--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, *arguments], environment
