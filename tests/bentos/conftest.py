"""A Bento of the built-in contract, asked in this process and behind a socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import uvicorn
from sklearn.pipeline import Pipeline

from health_predict.adapters.serving.bentoml import bento_tag, write_source
from health_predict.core.data.cohort import target
from health_predict.core.model.families import FAMILIES
from health_predict.core.model.features import EncounterFeatures
from health_predict.core.serving.compiled_model import CompiledModel, compile_pipeline, prove_parity
from health_predict.core.serving.explained_model import explain_pipeline
from health_predict.stages.bento_build import golden_requests
from tests.contracts import DIABETES
from tests.processes import wait_for
from tests.services import IDENTITY, Client, Source, imported, open_client


@pytest.fixture(scope="module")
def pipeline(cohort: pd.DataFrame) -> Pipeline:
    features = EncounterFeatures(DIABETES, minimum_rows=30).fit(cohort.head(2000))
    family = FAMILIES["LightGBM"]
    rows = features.transform(cohort.head(2000))
    estimator = family.fit({**family.first, "n_estimators": 40}, rows, target(cohort.head(2000), DIABETES), seed=1)
    return Pipeline([("features", features), ("estimator", estimator)])


@pytest.fixture(scope="module")
def compiled(pipeline: Pipeline, cohort: pd.DataFrame) -> CompiledModel:
    model = replace(
        compile_pipeline(pipeline, FAMILIES["LightGBM"], 0.12),
        explainer=explain_pipeline(pipeline, FAMILIES["LightGBM"], cohort.head(2000)),
    )
    prove_parity(model, pipeline, cohort.iloc[2000:].reset_index(drop=True))
    return model


@pytest.fixture(scope="module")
def golden(compiled: CompiledModel, cohort: pd.DataFrame) -> list[dict[str, Any]]:
    return golden_requests(compiled, cohort, IDENTITY["risk_cutoffs"])


@pytest.fixture(scope="module")
def source(compiled: CompiledModel, golden: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Writes the source folder of a Bento."""

    def write(**changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("bento") / "source"
        identity = {**IDENTITY, **changes}
        write_source(folder, bento_tag("7", identity), compiled, identity, golden)
        return folder

    first = write()
    return lambda **changes: write(**changes) if changes else first


@pytest.fixture(scope="module")
def client(source: Source) -> Iterator[Client]:
    with open_client(source()) as client:
        yield client


@pytest.fixture
def service_settings() -> dict[str, str]:
    """Settings of `server`; a test has others by a fixture of its own."""
    return {}


@pytest.fixture
def server(source: Source, service_settings: dict[str, str]) -> Iterator[uvicorn.Server]:
    """The service behind a real socket, spoken to as in its image, which has no httptools."""
    app = imported(source(), **service_settings).Readmission.to_asgi()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, http="h11"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_for(lambda: server.started)
        yield server
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def url(server: uvicorn.Server) -> str:
    return "http://{}:{}".format(*server.servers[0].sockets[0].getsockname())
