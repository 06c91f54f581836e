"""The risk of the contract's outcome as a BentoML service: `bentoml serve` runs it, BentoML's clients speak to it."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import TYPE_CHECKING

import bentoml
from starlette.middleware.cors import CORSMiddleware

from health_predict.adapters.tokens import taken_tokens
from health_predict.serving.middleware import (
    WAITING_BATCHES,
    Limits,
    Route,
    TrustedHosts,
    keep_values_out_of_logs,
    options_of,
)
from health_predict.serving.openapi import description_of, document
from health_predict.serving.pages import PATHS, pages
from health_predict.serving.predictor import MEBIBYTE, Predictor
from health_predict.serving.schemas import Prediction, Predictions, batch_of, encounter_model
from health_predict.serving.scorer import contract_in
from health_predict.settings import load_settings

HERE = Path(__file__).parent
# Exact versions, and the library itself.
REQUIREMENTS = (HERE / "requirements.txt").read_text(encoding="utf-8").split()
WHEELS = [f"./wheels/{path.name}" for path in (HERE / "wheels").glob("*.whl")]
SETTINGS = load_settings()
TOKENS = taken_tokens(SETTINGS)
CONTRACT = contract_in(HERE)
if TYPE_CHECKING:
    from pydantic import BaseModel, RootModel

    Encounter = BaseModel
    Encounters = RootModel[list[Encounter]]
else:
    Encounter = encounter_model(CONTRACT)
    Encounters = batch_of(Encounter, SETTINGS.serving_batch_rows)  # of a length that the settings limit
BATCH_BYTES = SETTINGS.serving_batch_mb * MEBIBYTE
ROUTES = {
    "/predict": Route(Encounter, MEBIBYTE, seconds=10, most=10_000, held=32 * MEBIBYTE, values=10_000, explains=True),
    "/predict/batch": Route(
        Encounters,
        BATCH_BYTES,
        seconds=30,
        most=WAITING_BATCHES,
        held=2 * BATCH_BYTES,
        # Commas may stand in texts, too.
        values=4 * SETTINGS.serving_batch_rows * len(Encounter.model_fields),
        alone=True,
    ),
}
COUNTED = frozenset({*PATHS, "/livez", "/healthz", "/readyz", "/schema.json"})
PREDICTOR = Predictor(HERE, Encounter, SETTINGS, [*ROUTES, *COUNTED, "other"])


@bentoml.asgi_app(
    pages(
        PREDICTOR,
        lambda told: document(Readmission, ROUTES, PREDICTOR, told, asks=TOKENS is not None),
        asks=TOKENS is not None,
    ),
    path="/",
)
@bentoml.service(
    name="readmission",
    image=bentoml.images.Image(
        base_image="python:3.11-slim", distro="none", python_version="3.11", lock_python_packages=False
    )
    # Not `requirements_file`: that refuses a Bento below a hidden folder.
    .python_packages(*REQUIREMENTS, *WHEELS)
    .build_include("wheels"),
    envs=[
        # Native threads of several workers would fight for the processors.
        {"name": "OMP_NUM_THREADS", "value": "1"},
        {"name": "OPENBLAS_NUM_THREADS", "value": "1"},
        {"name": "BENTOML_DO_NOT_TRACK", "value": "true"},
        {"name": "ORT_DISABLE_TELEMETRY", "value": "1"},
    ],
    ssl={
        "enabled": bool(SETTINGS.serving_tls_certificate),
        "certfile": SETTINGS.serving_tls_certificate,
        "keyfile": SETTINGS.serving_tls_key,
    },
    # BentoML holds each answered request until then. The middleware's own limits are shorter.
    traffic={"timeout": 40},
    # Counted by the service itself, with bounded labels.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": [".*"]},
)
class Readmission:
    __doc__ = description_of(CONTRACT)

    def __init__(self) -> None:
        keep_values_out_of_logs()
        PREDICTOR.open()
        # What was loaded stays for good: the collector need not walk it in the middle of a request.
        gc.collect()
        gc.freeze()

    async def __is_ready__(self) -> bool:
        return not PREDICTOR.problem

    @bentoml.api(route="/predict")
    async def predict(self, encounter: Encounter, /, ctx: bentoml.Context) -> Prediction:
        """Score one encounter"""
        options = options_of(ctx.request.scope["query_string"])
        prediction = PREDICTOR.predict(encounter, log=options.log)
        if options.explain:
            # Not on the loop: a large forest takes some 50 ms.
            prediction.explanation = await asyncio.to_thread(PREDICTOR.explain, encounter)
        return prediction

    # Not `async`: BentoML runs it in a thread, one batch at a time, and other requests go on.
    @bentoml.api(route="/predict/batch")
    def predict_batch(self, encounters: Encounters, /, ctx: bentoml.Context) -> Predictions:
        """Score many encounters, answered in order"""
        options = options_of(ctx.request.scope["query_string"])
        return Predictions(PREDICTOR.predict_many(encounters.root, log=options.log))

    @bentoml.on_shutdown
    def close(self) -> None:
        """Finish the prediction log."""
        PREDICTOR.close()


# BentoML's decorator has made a service of the class, which the type checker does not see.
if SETTINGS.serving_cors_origins:
    # The outermost one, so that a page may read refusals too. BentoML's own stands behind the limits.
    Readmission.add_asgi_middleware(  # type: ignore[attr-defined]
        CORSMiddleware, allow_origins=SETTINGS.serving_cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
    )
if TOKENS is None:
    # A page of another site must not ask by a name of its own that leads to this machine (DNS rebinding).
    Readmission.add_asgi_middleware(  # type: ignore[attr-defined]
        TrustedHosts,
        allowed_hosts=["127.0.0.1", "[::1]", *SETTINGS.serving_hosts],
        www_redirect=False,
    )
Readmission.add_asgi_middleware(  # type: ignore[attr-defined]
    Limits, predictor=PREDICTOR, routes=ROUTES, others=COUNTED, tokens=TOKENS
)
