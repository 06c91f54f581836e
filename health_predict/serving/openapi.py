"""The OpenAPI document: BentoML's own, with the statuses of the middleware and the paths mounted beside the API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from health_predict.core.data.contract import Contract
from health_predict.serving.middleware import Route
from health_predict.serving.predictor import MEBIBYTE, Predictor
from health_predict.serving.schemas import Options, Problem, Violations

REFERENCE = "#/components/schemas/{model}"
# BentoML makes a class of its own of each model, and names it so.
MADE = "IODescriptor"
BEARER = "bearer"
OPEN_METRICS = "application/openmetrics-text"


class Health(BaseModel):
    """The state of the service, and where its model comes from.

    Where tokens are asked for, who sends none is told only whether it is ready; and as long as no model is loaded,
    there is nothing to tell of it.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    ready: bool
    problem: str = Field(default="", description="Why it is not ready; empty when it is")
    warning: str = Field(default="", description="Not empty when the data are not the real ones")
    since: str = Field(default="", description="When the process began, in UTC")
    model_name: str = ""
    model_version: str = ""
    family: str = ""
    threshold: float = 0.0
    bento_tag: str = ""
    bento_digest: str = ""
    run_id: str = ""
    contract_digest: str = ""
    dataset_digest: str = ""
    dataset_source: str = ""
    git_commit: str = ""
    training_prevalence: float = 0.0
    risk_cutoffs: list[float] = Field(
        default=[], description="Lowest probability of the groups medium, high and very high"
    )
    calibration: list[float] | None = Field(
        default=None, description="Intercept and slope of the map from the model's score to the risk"
    )
    metrics: dict[str, float] = Field(default={}, description="Of the version on its test set")


def document(service: Any, routes: dict[str, Route], predictor: Predictor, told: bool, *, asks: bool) -> dict[str, Any]:
    """The document of a `bentoml.Service` whose API has these routes.

    `told`: with what it says about the model that serves; `asks`: the endpoint asks for a token.
    """
    found: dict[str, Any] = json.loads(json.dumps(service.openapi_spec.asdict()).replace(MADE, ""))
    health = predictor.health(told=told)
    _, ours = models_json_schema(
        [(model, "validation") for model in (Problem, Violations, Health)], ref_template=REFERENCE
    )
    plain, open_metrics = ({kind: {"schema": {"type": "string"}}} for kind in ("text/plain", OPEN_METRICS))
    yes = {"200": {"description": "yes", "content": plain}}
    gets = {
        "/health": (
            "Whether the service is ready, and which model it serves",
            {"200": _answer("Ready", "Health"), "503": _answer("Not ready, and why", "Health")},
        ),
        "/livez": ("Whether the process lives", yes),
        "/readyz": (
            "Whether the golden requests were answered as at build time",
            {**yes, "503": {"description": "no; /health tells why", "content": plain}},
        ),
        "/metrics": (
            "Prometheus metrics",
            {
                "200": {
                    "description": "As Prometheus' text or OpenMetrics, by Accept",
                    "content": {**plain, **open_metrics},
                }
            },
        ),
    }
    example = predictor.contract.request
    paths = {
        api.route: {"post": _operation(found["paths"][api.route]["post"], routes[api.route], api, example)}
        for api in service.apis.values()
    }
    paths |= {
        path: {"get": {"operationId": path.strip("/"), "summary": summary, "responses": responses}}
        for path, (summary, responses) in gets.items()
    }
    if asks:
        for path in (*routes, "/metrics", "/health"):
            for operation in paths[path].values():
                operation["responses"]["401"] = _answer("The token is missing, or not one that is taken", "Problem")
                # Without one /health says less.
                operation["security"] = [{BEARER: []}, {}] if path == "/health" else [{BEARER: []}]
        for path in routes:
            refused = "Only an operator's token keeps a prediction out of the log"
            paths[path]["post"]["responses"]["403"] = _answer(refused, "Problem")
    schemes = {"securitySchemes": {BEARER: {"type": "http", "scheme": "bearer"}}} if asks else {}
    description = description_of(predictor.contract)
    if "risk_cutoffs" in health:
        low, medium, high = health["risk_cutoffs"]
        description += (
            f" Risk groups by probability: low below {low:.3f}, medium below {medium:.3f}, high below {high:.3f}, else "
            "very high: 1, 1.5 and 2.5 times the training prevalence."
        )
    return {
        # Its schemas are pydantic's, which version 3.0 does not know.
        "openapi": "3.1.0",
        "info": {
            "title": predictor.contract.title,
            "version": health.get("model_version", ""),
            "description": description,
        },
        "paths": paths,
        "components": {"schemas": {**_without_bentomls(found["components"]["schemas"]), **ours["$defs"]}, **schemes},
    }


def description_of(contract: Contract) -> str:
    """What the service says, in words."""
    learned = f"Learned from: {contract.description.rstrip('.')}. " if contract.description else ""
    return f"Probability that a patient is {contract.outcome.happened}. {learned}Not for clinical use."


def _without_bentomls(schemas: dict[str, Any]) -> dict[str, Any]:
    """Without the schemas of answers that the middleware words anew, and BentoML's own mark."""
    return {
        name: {key: value for key, value in schema.items() if key != "root_input"}
        for name, schema in schemas.items()
        if name not in ("InvalidArgument", "NotFound", "InternalServerError", "TaskStatusResponse")
    }


def _operation(operation: dict[str, Any], route: Route, api: Any, example: Mapping[str, Any]) -> dict[str, Any]:
    options = Options.model_json_schema()["properties"]
    body = {"schema": {"$ref": REFERENCE.format(model=api.input_spec.__name__.removesuffix(MADE))}}
    return {
        **operation,
        "summary": operation["description"],
        "parameters": [
            {
                "name": name,
                "in": "query",
                "description": option["description"],
                "schema": {"type": "boolean", "default": option["default"]},
            }
            for name, option in options.items()
            if route.explains or name != "explain"
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {**body, "example": example if route.explains else [example]}},
        },
        "responses": {
            "200": _answer(operation["responses"]["200"]["description"], api.output_spec.__name__.removesuffix(MADE)),
            "408": _answer("The body did not arrive in time", "Problem"),
            "413": _answer(f"The body is larger than {route.bytes // MEBIBYTE} MiB", "Problem"),
            "415": _answer("The body is not application/json in UTF-8", "Problem"),
            "422": _answer("The body breaks the contract; every violation is listed", "Violations"),
            "503": _answer("The model is not ready, or too many requests wait", "Problem"),
        },
    }


def _answer(description: str, model: str) -> dict[str, Any]:
    schema = {"$ref": REFERENCE.format(model=model)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
