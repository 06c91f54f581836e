"""What BentoML itself costs at its best: a service that checks a body of the same fields and answers a constant.

Every setting is there that was found to make BentoML faster.
"""

from __future__ import annotations

from typing import Any

import bentoml
import msgspec
from pydantic import BaseModel, Field, create_model
from starlette.responses import Response

from health_predict.adapters.contracts import built_in
from health_predict.core.data.contract import Kind

fields: dict[str, Any] = {}
for column in built_in().features:
    kind: Any = (int | str) if column.kind is Kind.COUNT or column.levels[:1] == ("1",) else str
    fields[column.name.replace("-", "_")] = (
        (kind | None, Field(None, alias=column.name)) if column.nullable else (kind, Field(alias=column.name))
    )
Encounter = create_model("Encounter", __base__=BaseModel, **fields)


class Answer(BaseModel):
    """The fields of a prediction."""

    prediction: int
    probability_score: float
    risk_group: str
    model_version: str
    prediction_id: str


ANSWER = {
    "prediction": 0,
    "probability_score": 0.125,
    "risk_group": "medium",
    "model_version": "1",
    "prediction_id": "7f1d2a36-5a0c-4f0e-9d1c-3c0a5b1f6e21",
}


@bentoml.service(
    name="echo",
    workers=2,
    traffic={"timeout": 5},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ["predict"]},
    metrics={"enabled": False},
)
class Echo:
    """Answers the same to everybody."""

    @bentoml.api(output_spec=Answer)
    async def predict(self, encounter: Encounter, /) -> Any:
        """Check and answer."""
        return Response(msgspec.json.encode(ANSWER), media_type="application/json")
