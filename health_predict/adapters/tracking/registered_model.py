"""The registered model, for everybody who has MLflow: raw encounters to probabilities, decisions and risk groups.

MLflow keeps this file with the model (models from code) and runs it where the model is loaded, with the few modules of
`health_predict.core` that it imports beside it. Nothing else of the library is needed there, and no stage loads it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types.schema import AnyType, ColSpec, DataType, Schema

from health_predict.core.data.contract import Contract
from health_predict.core.data.raw_encounters import read_encounters
from health_predict.core.model.risk_groups import group_of
from health_predict.errors import DataError


class RiskModel(PythonModel):  # type: ignore[misc]
    """The fitted pipeline with its data contract, its threshold and the bounds of its risk groups."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the pipeline, which may hold the named types only, and what decides."""
        import skops.io

        self.contract = Contract.from_json(Path(context.artifacts["contract"]).read_bytes())
        self.decision = json.loads(Path(context.artifacts["decision"]).read_text())
        self.pipeline = skops.io.load(context.artifacts["pipeline"], trusted=self.decision["trusted_types"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """`probability_score`, `prediction` and `risk_group` of encounters (n, columns), under the same index.

        Raises MlflowException that names the cells that break the contract.
        """
        try:
            encounters = read_encounters(model_input, self.contract)
        except DataError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        # scikit-learn refuses to predict nothing.
        scores = self.pipeline.predict_proba(encounters)[:, 1].astype(float) if len(encounters) else np.zeros(0)
        return pd.DataFrame(
            {
                "probability_score": scores,
                "prediction": (scores >= self.decision["threshold"]).astype(int),
                "risk_group": group_of(scores, self.decision["risk_cutoffs"]),
            },
            index=model_input.index,
        )


def signature(contract: Contract) -> ModelSignature:
    """Columns of any type, since people have counts as text and codes as numbers; the model checks them itself."""
    return ModelSignature(
        Schema([ColSpec(AnyType(), column.name, required=not column.nullable) for column in contract.features]),
        Schema(
            [
                ColSpec(DataType.double, "probability_score"),
                ColSpec(DataType.long, "prediction"),
                ColSpec(DataType.string, "risk_group"),
            ]
        ),
    )


mlflow.models.set_model(RiskModel())
