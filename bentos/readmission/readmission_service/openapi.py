"""The OpenAPI document, made of the same columns as the contract."""

from __future__ import annotations

from typing import Any

from health_predict.core.columns import (
    CODE_PATTERN,
    EXAMPLE,
    FEATURES,
    MAXIMUM_CODE,
    MAXIMUM_TEXT,
    MISSING,
    Column,
    Kind,
)
from health_predict.core.contributions import LOG_ODDS, PROBABILITY
from readmission_service.contract import DIAGNOSIS
from readmission_service.scorer import RISK_GROUPS, Identity


def _property(column: Column) -> dict[str, Any]:
    missing = [MISSING] if column.nullable else []
    null = ["null"] if column.nullable else []
    text: dict[str, Any] = {"type": ["string", *null] if null else "string"}
    if column.kind is Kind.COUNT:
        schema: dict[str, Any] = {"type": "integer", "minimum": column.minimum, "maximum": column.maximum}
    elif column.kind is Kind.LEVEL:
        schema = {**text, "enum": [*column.levels, *missing, *([None] if null else [])]}
    elif column.kind is Kind.ICD9:
        schema = {**text, "pattern": rf"^(?:{DIAGNOSIS}{'|[?]' if null else ''})$"}
    elif column.is_code:
        schema = {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MAXIMUM_CODE},
                {"type": "string", "pattern": f"^{CODE_PATTERN}$"},
            ]
        }
    else:
        schema = {**text, "minLength": 1, "maxLength": MAXIMUM_TEXT}
    description = f"{column.description}."
    if column.kind is Kind.OPEN_LEVEL and column.levels:
        description += f" Known levels: {', '.join(column.levels)}; others are scored and counted."
    if column.nullable:
        description += " null, ? or absent when unknown."
    return {**schema, "description": description, "examples": [EXAMPLE[column.name]]}


def _body(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def _json(description: str, schema: dict[str, Any], example: Any = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": schema}
    if example is not None:
        content["example"] = example
    return {"description": description, "content": {"application/json": content}}


def _option(name: str, default: bool, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "description": description,
        "schema": {"type": "boolean", "default": default},
    }


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def document(identity: Identity, *, maximum_rows: int, limits: dict[str, int]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the service; `limits` gives the largest body in bytes by path."""
    answer = {
        "prediction": 1,
        "probability_score": 0.214,
        "risk_group": "high",
        "model_version": identity.model_version,
        "prediction_id": "7f1d2a36-5a0c-4f0e-9d1c-3c0a5b1f6e21",
    }
    wrong = {"detail": [{"loc": ["body", "age"], "msg": "must be one of [0-10), ...", "type": "literal_error"}]}

    def failures(path: str) -> dict[str, Any]:
        mebibytes = limits[path] // (1024 * 1024)
        return {
            "408": _json("The body did not arrive in time", _reference("Problem")),
            "413": _json(f"The body is larger than {mebibytes} MiB", _reference("Problem")),
            "415": _json("The body is not application/json in UTF-8", _reference("Problem")),
            "422": _json("The body breaks the contract; every violation is listed", _reference("Violations"), wrong),
            "503": _json("The model is not ready, or too many requests wait", _reference("Problem")),
        }

    log = _option("log", True, "false for probes: the prediction is not written to the prediction log")
    explain = _option("explain", False, "Adds what each column contributed to the score")
    number = {"type": "number"}
    plain = {"text/plain": {"schema": {"type": "string"}}}
    probe = {"200": {"description": "yes", "content": plain}}
    not_ready = {"503": _json("no, and why", _reference("Problem"))}
    medium, high, very_high = identity.risk_cutoffs
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Readmission within 30 days",
            "version": identity.model_version,
            "description": (
                "Probability that a diabetic in-patient comes back within 30 days of discharge. Trained on US data of "
                "1999-2008. Not for clinical use. "
                f"Risk groups by probability: low below {medium:.3f}, medium below {high:.3f}, high below "
                f"{very_high:.3f}, else very high: 1, 1.5 and 2.5 times the training prevalence."
            ),
        },
        "paths": {
            "/predict": {
                "post": {
                    "operationId": "predict",
                    "summary": "Score one encounter",
                    "parameters": [explain, log],
                    "requestBody": _body(_reference("Encounter"), EXAMPLE),
                    "responses": {
                        "200": _json("The prediction", _reference("Prediction"), answer),
                        **failures("/predict"),
                    },
                }
            },
            "/predict/batch": {
                "post": {
                    "operationId": "predictBatch",
                    "summary": f"Score up to {maximum_rows:,} encounters, answered in order",
                    "parameters": [log],
                    "requestBody": _body(
                        {"type": "array", "items": _reference("Encounter"), "maxItems": maximum_rows}, [EXAMPLE]
                    ),
                    "responses": {
                        "200": _json(
                            "One prediction for each encounter, in order",
                            {"type": "array", "items": _reference("Prediction")},
                            [answer],
                        ),
                        **failures("/predict/batch"),
                    },
                }
            },
            "/health": {
                "get": {
                    "operationId": "health",
                    "summary": "Whether the service is ready, and which model it serves",
                    "responses": {
                        "200": _json("Ready", _reference("Health")),
                        "503": _json("Not ready", _reference("Health")),
                    },
                }
            },
            "/livez": {"get": {"operationId": "livez", "summary": "Whether the process lives", "responses": probe}},
            "/readyz": {
                "get": {
                    "operationId": "readyz",
                    "summary": "Whether the golden requests were answered as at build time",
                    "responses": {**probe, **not_ready},
                }
            },
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Prometheus metrics",
                    "responses": {"200": {"description": "Metrics in text format", "content": plain}},
                }
            },
        },
        "components": {
            "schemas": {
                "Encounter": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {column.name: _property(column) for column in FEATURES},
                    "required": [column.name for column in FEATURES if not column.nullable],
                },
                "Prediction": {
                    "type": "object",
                    "properties": {
                        "prediction": {"type": "integer", "enum": [0, 1], "description": "1: readmission expected"},
                        "probability_score": {"type": "number", "minimum": 0, "maximum": 1},
                        "risk_group": {"type": "string", "enum": list(RISK_GROUPS)},
                        "model_version": {"type": "string"},
                        "prediction_id": {"type": "string", "format": "uuid"},
                        "explanation": _reference("Explanation"),
                    },
                    "required": list(answer),
                    "additionalProperties": False,
                },
                "Explanation": {
                    "type": "object",
                    "description": "With explain=true. base, all contributions and others add up to score. For a "
                    "linear model the exact parts relative to the mean of the training rows, for trees the "
                    "path-dependent TreeSHAP values.",
                    "properties": {
                        "unit": {"type": "string", "enum": [LOG_ODDS, PROBABILITY]},
                        "base": {**number, "description": "The mean score"},
                        "score": {**number, "description": "The score of this encounter, in the unit"},
                        "contributions": {
                            "type": "array",
                            "description": "The largest ones, by amount",
                            "items": {
                                "type": "object",
                                "properties": {
                                    "column": {"type": "string"},
                                    "value": {"type": ["string", "integer", "null"]},
                                    "contribution": number,
                                },
                                "required": ["column", "value", "contribution"],
                            },
                        },
                        "others": {**number, "description": "The sum of the remaining contributions"},
                    },
                    "required": ["unit", "base", "score", "contributions", "others"],
                },
                "Violations": {
                    "type": "object",
                    "properties": {
                        "detail": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "properties": {
                                    "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
                                    "msg": {"type": "string"},
                                    "type": {"type": "string"},
                                },
                                "required": ["loc", "msg", "type"],
                            },
                        }
                    },
                    "required": ["detail"],
                },
                "Problem": {
                    "type": "object",
                    "properties": {"detail": {"type": "string"}},
                    "required": ["detail"],
                },
                "Health": {
                    "type": "object",
                    "properties": {
                        "ready": {"type": "boolean"},
                        "problem": {"type": "string", "description": "Why it is not ready; empty when it is"},
                        "warning": {"type": "string", "description": "Not empty when the data are not the real ones"},
                        "model_name": {"type": "string"},
                        "model_version": {"type": "string"},
                        "family": {"type": "string"},
                        "threshold": {"type": "number"},
                        "bento_tag": {"type": "string"},
                        "bento_digest": {"type": "string"},
                        "run_id": {"type": "string"},
                        "dataset_digest": {"type": "string"},
                        "dataset_source": {"type": "string"},
                        "git_commit": {"type": "string"},
                        "since": {"type": "string", "format": "date-time"},
                    },
                    "required": ["ready", "problem", "since"],
                },
            }
        },
    }
