"""MLflow: runs of a search, and the model registry.

Runs: one parent a search, one child a trial, and one `Best_<Family>_Model` child a family that holds the model
and, beside it, its fitted preprocessor. Trials are written by the driver in one batch each.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from health_predict.adapters.storage import disk_error
from health_predict.core.errors import HealthPredictError, StateError, UnreachableError
from health_predict.settings import Settings

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

CHAMPION = "champion"
CHALLENGER = "challenger"
DATASET_DIGEST_LENGTH = 36  # MLflow takes no more
# What MLflow's pages show above the runs.
EXPERIMENT_NOTE = """Readmission within 30 days of diabetic in-patients. **Not for clinical use.**

A run with the tag `role = search` is one search; below it stand its trials (`role = trial`) and the best model of each
family (`Best_<Family>_Model`, `role = best`), which holds the fitted preprocessor beside the model. The version with
the alias `champion` serves; `challenger` passed its gates and waits for a rollout."""
MODEL = "model"
PREPROCESSOR = "preprocessor"
# The types that a saved model of ours may hold; anything else is refused when it is loaded.
TRUSTED_TYPES = [
    "collections.OrderedDict",
    "collections.defaultdict",
    "health_predict.core.calibration.CalibratedClassifier",
    "health_predict.core.features.EncounterFeatures",
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMClassifier",
    "sklearn.tree._tree.Tree",
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
]
_UNFINISHED = "attributes.status = 'RUNNING'"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it is stored."""

    run_id: str
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version of the registered model."""

    name: str
    version: str
    run_id: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]


class Tracking:
    """The tracking store and registry that the settings name.

    Raises UnreachableError when it does not answer, StateError when a run or version is absent.
    """

    def __init__(self, settings: Settings) -> None:
        self.uri = settings.tracking_uri
        self.registered_model = settings.registered_model
        self._experiment_name = settings.mlflow_experiment
        self._artifacts = (settings.home / "mlartifacts").as_uri()
        self._local = urlsplit(self.uri).scheme not in ("http", "https")
        if self._local:
            try:
                settings.home.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise disk_error(error, settings.home) from error
        self._mlflow = _quiet_mlflow()
        with self._answering():
            self._mlflow.set_tracking_uri(self.uri)
            self._mlflow.set_registry_uri(self.uri)
            self._client = self._mlflow.MlflowClient(self.uri, self.uri)
            self._experiment_id = self._experiment()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn MLflow's many ways to fail into one line with a remedy."""
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except HealthPredictError:
            raise
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise StateError(f"MLflow: {error.message}", "run the stage that writes it") from error
            # A server that is away is wrapped in the whole history of its retries, which is no news to anybody.
            away = "failed with exception" in error.message
            raise UnreachableError(
                f"MLflow at {self.uri} {'does not answer' if away else 'says: ' + _first_line(error)}",
                "check that the server runs and HEALTH_PREDICT_MLFLOW_TRACKING_URI is right",
            ) from error
        except (RequestException, SQLAlchemyError) as error:
            raise UnreachableError(
                f"MLflow at {self.uri} does not answer: {_first_line(error)}",
                "check that the server runs and HEALTH_PREDICT_MLFLOW_TRACKING_URI is right",
            ) from error
        except OSError as error:
            raise disk_error(error, Path(str(error.filename or self.uri))) from error

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment_name)
        if found is not None:
            return str(found.experiment_id)
        location = self._artifacts if self._local else None
        try:
            return str(
                self._client.create_experiment(
                    self._experiment_name, artifact_location=location, tags={"mlflow.note.content": EXPERIMENT_NOTE}
                )
            )
        except self._mlflow.MlflowException as error:
            # Another process created it in between.
            found = self._client.get_experiment_by_name(self._experiment_name)
            if found is None:
                raise error
            return str(found.experiment_id)

    # Runs

    def run(self, run_id: str) -> RunRecord:
        """A run by its id."""
        with self._answering():
            return _record(self._client.get_run(run_id))

    def runs(self, where: str) -> list[RunRecord]:
        """The experiment's runs that MLflow's filter selects, newest first."""
        found: list[RunRecord] = []
        token: str | None = None
        with self._answering():
            while True:
                page = self._client.search_runs(
                    [self._experiment_id],
                    where,
                    max_results=1000,
                    order_by=["attributes.start_time DESC"],
                    page_token=token,
                )
                found += [_record(run) for run in page]
                token = page.token
                if not token:
                    return found

    def children(self, parent_id: str) -> list[RunRecord]:
        """Runs below a parent."""
        return self.runs(f"tags.`mlflow.parentRunId` = '{parent_id}'")

    def finished_search(self, search_digest: str) -> RunRecord | None:
        """The finished parent run of the same search, if there is one."""
        where = f"tags.search_digest = '{search_digest}' and tags.role = 'search' and attributes.status = 'FINISHED'"
        return next(iter(self.runs(where)), None)

    def end_abandoned(self, search_digest: str) -> int:
        """Mark runs of this search KILLED that a killed process left RUNNING; how many there were."""
        abandoned = self.runs(f"tags.search_digest = '{search_digest}' and {_UNFINISHED}")
        with self._answering():
            for run in abandoned:
                self._client.set_terminated(run.run_id, "KILLED")
        return len(abandoned)

    def start_search(self, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
        """Open a parent run; its id."""
        with self._answering():
            run = self._client.create_run(self._experiment_id, run_name=name, tags={**tags, "role": "search"})
            self._log(run.info.run_id, {}, params)
            self._log_dataset(run.info.run_id, tags)
            return str(run.info.run_id)

    def _log_dataset(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Name the dataset of a search, so that MLflow's pages show and filter it."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if "dataset_digest" not in tags:
            return
        digest, source = tags["dataset_digest"], tags.get("dataset_source", "")
        dataset = Dataset(
            name="readmission",
            digest=digest[:DATASET_DIGEST_LENGTH],
            source_type="code",
            source=json.dumps({"tags": {"source": source, "key": f"datasets/{digest}"}}),
        )
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def end_search(self, run_id: str, metrics: Mapping[str, float], status: str = "FINISHED") -> None:
        """Close a parent run."""
        with self._answering():
            self._log(run_id, metrics, {})
            self._client.set_terminated(run_id, status)

    def log_trial(
        self,
        parent_id: str,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        *,
        failed: bool = False,
    ) -> str:
        """Write a finished trial as a child run; its id."""
        with self._answering():
            run = self._client.create_run(
                self._experiment_id,
                run_name=name,
                tags={**tags, "role": "trial", "mlflow.parentRunId": parent_id},
            )
            self._log(run.info.run_id, metrics, params)
            self._client.set_terminated(run.info.run_id, "FAILED" if failed else "FINISHED")
            return str(run.info.run_id)

    def log_best(
        self,
        parent_id: str,
        family: str,
        pipeline: Pipeline,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        files: Mapping[str, Any],
    ) -> str:
        """Write a `Best_<Family>_Model` run: the fitted pipeline, its preprocessor beside it, and JSON files."""
        with self._answering():
            run = self._client.create_run(
                self._experiment_id,
                run_name=f"Best_{family}_Model",
                tags={**tags, "role": "best", "mlflow.parentRunId": parent_id},
            )
            run_id = str(run.info.run_id)
            try:
                self._log(run_id, metrics, params)
                for path, content in files.items():
                    self._client.log_dict(run_id, content, path)
                with self._mlflow.start_run(run_id=run_id):
                    requirements = _requirements()
                    for name, part in ((PREPROCESSOR, pipeline.named_steps["features"]), (MODEL, pipeline)):
                        self._mlflow.sklearn.log_model(
                            part,
                            name=name,
                            serialization_format="skops",
                            skops_trusted_types=TRUSTED_TYPES,
                            pip_requirements=requirements,
                        )
            except BaseException:
                self._client.set_terminated(run_id, "FAILED")
                raise
            return run_id

    def _log(self, run_id: str, metrics: Mapping[str, float], params: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        self._client.log_batch(
            run_id,
            metrics=[Metric(name, float(value), now, 0) for name, value in metrics.items()],
            params=[Param(name, str(value)) for name, value in params.items()],
        )

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Add metrics to a run."""
        with self._answering():
            self._log(run_id, metrics, {})

    def log_json(self, run_id: str, path: str, content: Any) -> None:
        """Store a structure as a JSON file of a run."""
        with self._answering():
            self._client.log_dict(run_id, content, path)

    def log_text(self, run_id: str, path: str, text: str) -> None:
        """Store a text file of a run."""
        with self._answering():
            self._client.log_text(run_id, text, path)

    def read_text(self, run_id: str, path: str) -> str:
        """Read a text file of a run. Raises StateError when there is none."""
        with self._answering():
            try:
                file = self._mlflow.artifacts.download_artifacts(
                    run_id=run_id, artifact_path=path, tracking_uri=self.uri
                )
                return Path(file).read_text()
            except (OSError, self._mlflow.MlflowException) as error:
                raise StateError(f"run {run_id} has no readable file {path}", "run the search again") from error

    def read_json(self, run_id: str, path: str) -> Any:
        """Read a JSON file of a run. Raises StateError when there is none."""
        try:
            return json.loads(self.read_text(run_id, path))
        except ValueError as error:
            raise StateError(f"file {path} of run {run_id} is damaged", "run the search again") from error

    # Models

    def _load(self, uri: str) -> Any:
        with self._answering():
            return self._mlflow.sklearn.load_model(uri)

    def load_run_pipeline(self, run_id: str) -> Pipeline:
        """The fitted pipeline of a `Best_` run. Raises StateError when the run holds none."""
        try:
            loaded: Pipeline = self._load(f"runs:/{run_id}/{MODEL}")
        except (HealthPredictError, OSError) as error:
            raise StateError(f"run {run_id} holds no readable model: {error}", "run the search again") from error
        return loaded

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
            found = self._client.search_model_versions(f"name = '{self.registered_model}'")
        # A search leaves the aliases out; get each version whole.
        return sorted((self.version(str(item.version)) for item in found), key=lambda item: -int(item.version))

    def by_alias(self, alias: str) -> ModelVersion | None:
        """The version that an alias points to, None when there is none."""
        with self._answering():
            try:
                model = self._client.get_registered_model(self.registered_model)
            except self._mlflow.MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
            number = dict(model.aliases).get(alias)
        return None if number is None else self.version(str(number))

    def register(self, run_id: str, tags: Mapping[str, str], description: str) -> ModelVersion:
        """The version of a run's model: the existing one, else a new one. Tags are written either way."""
        with self._answering():
            try:
                self._client.create_registered_model(
                    self.registered_model, description="Readmission within 30 days of diabetic in-patients"
                )
            except self._mlflow.MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self._client.search_model_versions(f"name = '{self.registered_model}' and run_id = '{run_id}'")
            number = str(min(int(item.version) for item in found)) if found else ""
            if not number:
                model_id = next((item.model_id for item in self._logged_models(run_id) if item.name == MODEL), None)
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

    def _logged_models(self, run_id: str) -> list[Any]:
        found = self._client.search_logged_models([self._experiment_id], f"source_run_id = '{run_id}'")
        return list(found)

    def tag_version(self, version: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with self._answering():
            for name, value in tags.items():
                self._client.set_model_version_tag(self.registered_model, version, name, value)

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


def _quiet_mlflow() -> Any:
    # Before the import: MLflow reads these once. An unreachable server is an answer within seconds, not minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


def _requirements() -> list[str]:
    """Exact versions of what a saved pipeline needs; inferring them would take half a minute."""
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in ("lightgbm", "numpy", "pandas", "scikit-learn", "skops", "xgboost")]


def _digest(preprocessor: Any) -> str:
    tables = preprocessor.encoder_.to_json()
    return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _record(run: Any) -> RunRecord:
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
    )


def _version(item: Any) -> ModelVersion:
    return ModelVersion(
        name=item.name,
        version=str(item.version),
        run_id=item.run_id,
        tags=dict(item.tags or {}),
        aliases=tuple(item.aliases or ()),
    )
