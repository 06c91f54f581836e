"""Asks the service of a Bento in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from health_predict.adapters.serving.bentoml import SOURCE
from health_predict.settings import PREFIX

JSON = {"content-type": "application/json"}
IDENTITY: dict[str, Any] = {
    "model_name": "diabetes-130",
    "model_version": "7",
    "run_id": "r",
    "dataset_digest": "d",
    "dataset_source": "uci",
    "git_commit": "c",
    "training_prevalence": 0.1,
    "risk_cutoffs": [0.1, 0.15, 0.25],
    "metrics": {},
}


class Client(TestClient):
    """Asks a service in this process, without a network."""

    def __init__(self, service: Any, url: str = "http://localhost") -> None:
        self.predictor = service.PREDICTOR
        super().__init__(service.Readmission.to_asgi(), base_url=url, raise_server_exceptions=False)

    def predict(self, body: Any) -> httpx.Response:
        return self.post("/predict", json=body)

    def raw(self, body: bytes, path: str = "/predict", **headers: str | bytes) -> httpx.Response:
        return self.post(path, content=body, headers=httpx.Headers({**JSON, **headers}))

    def metric(self, name: str, **labels: str) -> float:
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        for line in self.get("/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == f"health_predict_{name}" and wanted <= set(
                series.partition("{")[2].rstrip("}").split(",")
            ):
                return float(value)
        return 0.0


NUMBERS = count()
Source = Callable[..., Path]
"""Writes the source folder of a Bento whose identity has these changes."""


def imported(folder: Path, **settings: Any) -> Any:
    """The module `service.py` of a Bento with these settings, as new as BentoML would import it."""
    name, file = f"service_{next(NUMBERS)}", folder / "service.py"
    spec = spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    # Coverage follows links: so it is counted as the file that it is a copy of.
    file.unlink()
    file.symlink_to(SOURCE / "service.py")
    sys.modules[name] = module
    with pytest.MonkeyPatch.context() as environment:
        for setting, value in settings.items():
            environment.setenv(PREFIX + setting.upper(), str(value))
        spec.loader.exec_module(module)
    return module


@contextmanager
def open_client(folder: Path, **settings: Any) -> Iterator[Client]:
    with Client(imported(folder, **settings)) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}
