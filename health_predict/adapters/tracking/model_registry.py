"""The models that runs hold, and the model registry.

The run whose model is registered holds a third one, which others load: see `registered_model`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import health_predict
from health_predict.adapters.tracking.runs import MODEL, PREPROCESSOR, TRUSTED_TYPES, Runs, origin, requirements
from health_predict.core.data.contract import Contract
from health_predict.core.model import families
from health_predict.errors import HealthPredictError, StateError
from health_predict.settings import Settings

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

CHAMPION = "champion"
CHALLENGER = "challenger"
# The model of a run that is for everybody else.
REGISTERED = "registered"
CONTRACT = "contract.json"
# Of the library, what the registered model needs where nothing of it is installed.
REGISTERED_CODE = (
    "errors.py",
    "core/statistics.py",
    "core/data/codes.py",
    "core/data/contract.py",
    "core/data/raw_encounters.py",
    "core/data/values.py",
    "core/model/calibration.py",
    "core/model/features.py",
    "core/model/risk_groups.py",
    "core/model/row_encoder.py",
)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version of the registered model."""

    name: str
    version: str
    run_id: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]


class Tracking(Runs):
    """Runs, their models, and the versions of the registered model."""

    def _load(self, uri: str) -> Any:
        with self._answering(), tempfile.TemporaryDirectory(prefix="health-predict-mlflow-") as folder:
            return self._mlflow.sklearn.load_model(uri, dst_path=folder)

    def load_run_pipeline(self, run_id: str) -> Pipeline:
        """The fitted pipeline of a `Best_` run. Raises StateError when the run holds none."""
        try:
            loaded: Pipeline = self._load(f"runs:/{run_id}/{MODEL}")
        except (HealthPredictError, OSError) as error:
            raise StateError(f"run {run_id} holds no readable model: {error}", "run the search again") from error
        return loaded

    def log_registered(
        self, run_id: str, family: str, contract: Contract, threshold: float, risk_cutoffs: Sequence[float]
    ) -> None:
        """Add the model that is registered to a `Best_` run, unless it is there: see `registered_model`.

        The run itself stays finished. One that is open while this is written would be half a run after a kill.
        """
        from mlflow.entities import LoggedModelOutput

        if self._logged_model(run_id, REGISTERED) is not None:
            return
        kind = families.named(family)
        decision = {
            "threshold": threshold,
            "risk_cutoffs": list(risk_cutoffs),
            "trusted_types": [*TRUSTED_TYPES, *kind.trusted_types],
        }
        with self._answering(), tempfile.TemporaryDirectory(prefix="health-predict-mlflow-") as folder:
            for half in self._logged_models(run_id):  # of an attempt that was killed
                if half.name == REGISTERED:
                    self._client.delete_logged_model(half.model_id)
            run = self.run(run_id)
            model = self._client.create_logged_model(
                self._experiment_id, REGISTERED, run_id, tags=origin(run.tags), params=dict(run.params)
            )
            _save_registered(Path(folder), run_id, model, contract, decision, requirements(kind))
            self._client.log_model_artifacts(model.model_id, str(Path(folder) / REGISTERED))
            self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
            self._client.finalize_logged_model(model.model_id, "READY")

    def preprocessor_matches(self, run_id: str, pipeline: Pipeline) -> bool:
        """Whether the run holds, beside its model, the very preprocessor that the model was fitted with."""
        try:
            beside = self._load(f"runs:/{run_id}/{PREPROCESSOR}")
        except (HealthPredictError, OSError):
            return False
        return _digest(beside) == _digest(pipeline.named_steps["features"])

    def load_pipeline(self, version: str) -> Pipeline:
        """The fitted pipeline of a model version, from its run."""
        return self.load_run_pipeline(self.version(version).run_id)

    # Registry

    def version(self, version: str) -> ModelVersion:
        """A version of the registered model by its number. Raises StateError when it is absent."""
        with self._answering():
            return _version(self._client.get_model_version(self.registered_model, version))

    def versions(self) -> list[ModelVersion]:
        """All versions, newest first."""
        with self._answering():
            stored = self._client.search_model_versions(f"name = '{self.registered_model}'")
        # A search leaves the aliases out; get each version whole.
        return sorted((self.version(str(item.version)) for item in stored), key=lambda item: -int(item.version))

    def by_alias(self, alias: str) -> ModelVersion | None:
        """The version that an alias points to, None when there is none."""
        model = self._model()
        number = dict(model.aliases).get(alias) if model else None
        return None if number is None else self.version(str(number))

    def _model(self) -> Any:
        """The registered model, None when there is none."""
        with self._answering():
            try:
                return self._client.get_registered_model(self.registered_model)
            except self._mlflow.MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def champion(self) -> ModelVersion:
        """The version with the alias `champion`. Raises StateError when there is none."""
        champion = self.by_alias(CHAMPION)
        if champion is None:
            remedy = "`health-predict demo`, or `pipeline run readmission`, trains and deploys one"
            raise StateError("no model version is the champion", remedy)
        return champion

    def register(self, run_id: str, tags: Mapping[str, str], description: str) -> ModelVersion:
        """The version of a run's registered model (`log_registered`): the existing one, else a new one.

        Tags are written either way.
        """
        with self._answering():
            try:
                self._client.create_registered_model(self.registered_model, description=self.contract.title)
            except self._mlflow.MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            stored = self._client.search_model_versions(f"name = '{self.registered_model}' and run_id = '{run_id}'")
            number = str(min(int(item.version) for item in stored)) if stored else ""
            if not number:
                model_id = self._logged_model(run_id, REGISTERED) or self._logged_model(run_id, MODEL)
                created = self._client.create_model_version(
                    self.registered_model,
                    source=f"models:/{model_id}" if model_id else f"runs:/{run_id}/{MODEL}",
                    run_id=run_id,
                    description=description,
                    model_id=model_id,  # a server refuses the source without it
                )
                number = str(created.version)
        self.tag_version(number, tags)
        return self.version(number)

    def _logged_model(self, run_id: str, name: str) -> str | None:
        """The id of a run's finished model of that name."""
        models = self._logged_models(run_id)
        return next((str(item.model_id) for item in models if item.name == name and item.status == "READY"), None)

    def _logged_models(self, run_id: str) -> list[Any]:
        return list(self._client.search_logged_models([self._experiment_id], f"source_run_id = '{run_id}'"))

    def tag_version(self, version: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with self._answering():
            for name, value in tags.items():
                self._client.set_model_version_tag(self.registered_model, version, name, value)

    def tag_model(self, tags: Mapping[str, str]) -> None:
        """Set tags of the registered model."""
        with self._answering():
            for name, value in tags.items():
                self._client.set_registered_model_tag(self.registered_model, name, value)

    def model_tag(self, name: str) -> str:
        """A tag of the registered model; empty when there is no such tag or model."""
        model = self._model()
        return model.tags.get(name, "") if model else ""

    def describe_version(self, version: str, text: str) -> None:
        """What MLflow's page of a version says, in Markdown."""
        with self._answering():
            self._client.update_model_version(self.registered_model, version, description=text)

    def set_alias(self, alias: str, version: str) -> None:
        """Point an alias to a version."""
        with self._answering():
            self._client.set_registered_model_alias(self.registered_model, alias, version)

    def delete_alias(self, alias: str) -> None:
        """Remove an alias; nothing happens when there is none."""
        if self.by_alias(alias) is not None:
            with self._answering():
                self._client.delete_registered_model_alias(self.registered_model, alias)


def champion_of(settings: Settings) -> ModelVersion | None:
    """The version that is champion. A home in which nothing was tracked yet gets no database for the question."""
    if not settings.mlflow_tracking_uri and not settings.database.exists():
        return None
    return Tracking(settings).by_alias(CHAMPION)


def _save_registered(
    folder: Path,
    run_id: str,
    model: Any,
    contract: Contract,
    decision: Mapping[str, Any],
    pip_requirements: Sequence[str],
) -> None:
    """Write the files of a run's registered model below a folder."""
    import pandas as pd
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    from health_predict.adapters.tracking import registered_model

    code = folder / "code" / "health_predict"
    for name in REGISTERED_CODE:
        target = code / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(health_predict.__path__[0]) / name, target)
    for package in {Path(name).parent for name in REGISTERED_CODE} | {Path("core")}:
        (code / package / "__init__.py").touch()
    (folder / "decision.json").write_text(json.dumps(decision))
    (folder / CONTRACT).write_bytes(contract.to_json())
    save_model(
        folder / REGISTERED,
        mlflow_model=Model(
            artifact_path=model.artifact_location, run_id=run_id, model_uuid=model.model_id, model_id=model.model_id
        ),
        python_model=registered_model.__file__,
        artifacts={
            "pipeline": f"runs:/{run_id}/{MODEL}/model.skops",
            "decision": (folder / "decision.json").as_uri(),
            "contract": (folder / CONTRACT).as_uri(),
        },
        code_paths=[str(code)],
        signature=registered_model.signature(contract),
        input_example=pd.DataFrame([contract.request]),
        pip_requirements=list(pip_requirements),
    )


def _digest(preprocessor: Any) -> str:
    tables = preprocessor.encoder_.to_json()
    return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()


def _version(item: Any) -> ModelVersion:
    return ModelVersion(
        name=item.name,
        version=str(item.version),
        run_id=item.run_id,
        tags=dict(item.tags or {}),
        aliases=tuple(item.aliases or ()),
    )
