"""The service that the usual tutorials show: FastAPI, a pydantic body, a one-row DataFrame, the pickled pipeline."""

from __future__ import annotations

import os
from typing import Any

import joblib
import pandas as pd
from fastapi import FastAPI
from pydantic import BaseModel, Field, create_model

from health_predict.adapters.contracts import built_in
from health_predict.core.data.contract import MISSING, Kind

saved = joblib.load(os.environ["NAIVE_MODEL"])
model, threshold = saved["pipeline"], saved["threshold"]

fields: dict[str, Any] = {}
for column in built_in().features:
    kind: Any = int if column.kind is Kind.COUNT else str
    fields[column.name.replace("-", "_")] = (
        (kind | None, Field(None, alias=column.name)) if column.nullable else (kind, Field(alias=column.name))
    )
Encounter = create_model("Encounter", __base__=BaseModel, **fields)
app = FastAPI()


def to_frame(encounters: list[Any]) -> pd.DataFrame:
    """The pipeline takes text, as the file has it."""
    return pd.DataFrame(
        [
            {
                name: MISSING if value is None else str(value)
                for name, value in encounter.model_dump(by_alias=True).items()
            }
            for encounter in encounters
        ]
    )


@app.post("/predict")
def predict(encounter: Encounter) -> dict[str, float]:
    """Score one encounter."""
    probability = float(model.predict_proba(to_frame([encounter]))[0, 1])
    return {"prediction": int(probability >= threshold), "probability_score": probability}


@app.post("/predict/batch")
def predict_batch(encounters: list[Encounter]) -> list[dict[str, float]]:
    """Score many."""
    scores = model.predict_proba(to_frame(encounters))[:, 1]
    return [{"prediction": int(score >= threshold), "probability_score": float(score)} for score in scores]
