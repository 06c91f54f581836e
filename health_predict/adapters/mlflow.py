"""MLflow: runs of a search, and the model registry.

Runs: one parent a search, one child a trial, and one `Best_<Family>_Model` child a family that holds the model
and, beside it, its fitted preprocessor. Trials are written by the driver in one batch each. The run whose model is
registered holds a third one, which others load.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import health_predict.core
from health_predict.adapters.storage import disk_error
from health_predict.core import families
from health_predict.core.errors import HealthPredictError, StateError, UnreachableError
from health_predict.core.families import Family
from health_predict.core.sources import warning
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
the alias `champion` serves; `challenger` passed its gates and waits for a rollout. For use elsewhere, load a version:
`mlflow.pyfunc.load_model("models:/readmission@champion")`."""
# Tags of a search's parent run: the run of the model that it ended with, and why, in one sentence.
CHOSEN, REASON = "chosen_run_id", "chosen_because"
EVALUATION = "evaluation.json"  # file of a registered run: how it was judged
# The models of a run: the two that our own stages load, and the one that is registered, for everybody else.
MODEL, PREPROCESSOR, REGISTERED = "model", "preprocessor", "registered"
# The types of ours that a saved model may hold; those of its estimator its family names.
TRUSTED_TYPES = (
    "health_predict.core.calibration.CalibratedClassifier",
    "health_predict.core.features.EncounterFeatures",
)
LIBRARIES = ("numpy", "pandas", "scikit-learn", "scipy", "skops")
# Of the library, what the registered model needs where nothing of it is installed.
REGISTERED_CODE = (
    "calibration",
    "columns",
    "errors",
    "features",
    "performance",
    "raw_encounters",
    "risk_groups",
    "row_encoder",
)
# What a server answers, or a proxy in its place, that will be up again.
_PASSING_CODES = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
_PASSING = re.compile(r"failed with exception|error code (429|5\d\d)")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0  # seconds between attempts

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class _AwayError(UnreachableError):
    """MLflow does not answer at the moment: asking again may help."""


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

    Raises UnreachableError when it does not answer, StateError when a run or version is absent. What a search writes
    is tried again for `patience` seconds after MLflow went away; a repeat changes nothing that was written already.
    """

    def __init__(self, settings: Settings, *, patience: float = 0) -> None:
        self.uri = settings.tracking_uri
        self.patience = patience
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
            if "untrusted types" in error.message:
                raise StateError(
                    f"the model holds types that nobody vouched for: {error.message.partition('Root error: ')[2]}",
                    "name them in the `trusted_types` of the model's family, see docs/extend.md",
                ) from error
            # A server that is away is wrapped in the whole history of its retries, which is no news to anybody.
            away = "failed with exception" in error.message
            passing = error.error_code in _PASSING_CODES or _PASSING.search(error.message)
            raise (_AwayError if passing else UnreachableError)(
                f"MLflow at {self.uri} {'does not answer' if away else 'says: ' + _first_line(error)}",
                "check that the server runs and HEALTH_PREDICT_MLFLOW_TRACKING_URI is right",
            ) from error
        except (RequestException, SQLAlchemyError) as error:
            raise _AwayError(
                f"MLflow at {self.uri} does not answer: {_first_line(error)}",
                "check that the server runs and HEALTH_PREDICT_MLFLOW_TRACKING_URI is right",
            ) from error
        except OSError as error:
            raise disk_error(error, Path(str(error.filename or self.uri))) from error

    def _insist(self, write: Callable[[bool], Result]) -> Result:
        """What `write` gives, tried again while MLflow is away; it is told whether it was tried before."""
        end = time.monotonic() + self.patience
        pause, again = _FIRST_PAUSE, False
        while True:
            try:
                with self._answering():
                    return write(again)
            except _AwayError as error:
                left = end - time.monotonic()
                if left <= 0:
                    raise
                if not again:
                    log.warning("%s; what it missed waits up to %.0f s for it", error.problem, self.patience)
                again = True
                time.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)

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
        return _record(self._insist(lambda again: self._client.get_run(run_id)))

    def runs(self, where: str) -> list[RunRecord]:
        """The experiment's runs that MLflow's filter selects, newest first."""

        def read(again: bool) -> list[RunRecord]:
            found: list[RunRecord] = []
            token: str | None = None
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

        return self._insist(read)

    def children(self, parent_id: str) -> list[RunRecord]:
        """Runs below a parent."""
        return self.runs(f"tags.`mlflow.parentRunId` = '{parent_id}'")

    def finished_search(self, search_digest: str) -> RunRecord | None:
        """The finished parent run of the same search, if there is one."""
        where = f"tags.search_digest = '{search_digest}' and tags.role = 'search' and attributes.status = 'FINISHED'"
        return next(iter(self.runs(where)), None)

    def resume_search(self, search_digest: str) -> str | None:
        """Reopen the newest unfinished parent run of this search, None when there is none.

        Of its children the finished ones stay. The others go: their trials will be done again. Other unfinished
        parents of the same search are marked KILLED.
        """
        where = f"tags.search_digest = '{search_digest}' and tags.role = 'search' and attributes.status != 'FINISHED'"
        unfinished = self.runs(where)
        if not unfinished:
            return None
        newest, *others = unfinished
        for run in others:
            if run.status == "RUNNING":
                self._end(run.run_id, "KILLED")
        for child in self.children(newest.run_id):
            if child.status != "FINISHED":
                self._delete(child.run_id)
        self._insist(lambda again: self._client.update_run(newest.run_id, status="RUNNING"))
        return newest.run_id

    def _end(self, run_id: str, status: str) -> None:
        self._insist(lambda again: self._client.set_terminated(run_id, status))

    def _delete(self, run_id: str) -> None:
        self._insist(lambda again: self._client.delete_run(run_id))

    def start_search(self, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
        """Open a parent run; its id."""

        def write(again: bool) -> str:
            # An attempt whose answer got lost may have made the run.
            run_id = self.resume_search(tags.get("search_digest", "")) if again else None
            if run_id is None:
                run = self._client.create_run(
                    self._experiment_id, run_name=name, tags={**_noted(tags), "role": "search"}
                )
                run_id = str(run.info.run_id)
            self._log(run_id, {}, params)
            self._log_dataset(run_id, tags)
            return run_id

        return self._insist(write)

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
        """Close a parent run. Of children with one name, which an answer that got lost leaves, one stays."""
        for doubles in self._by_name(run_id).values():
            doubles.sort(key=lambda child: child.status == "RUNNING")
            for child in doubles[1:]:
                self._delete(child.run_id)

        def write(again: bool) -> None:
            self._log(run_id, metrics, {})
            self._client.set_terminated(run_id, status)

        self._insist(write)

    def _by_name(self, parent_id: str) -> dict[str, list[RunRecord]]:
        found: dict[str, list[RunRecord]] = {}
        for child in self.children(parent_id):
            found.setdefault(child.name, []).append(child)
        return found

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

        def write(again: bool) -> str:
            # An attempt whose answer got lost may have made the run.
            made = self._by_name(parent_id).get(name, []) if again else []
            run_id = made[0].run_id if made else self._create_child(parent_id, name, tags, "trial")
            self._log(run_id, metrics, params)
            self._client.set_terminated(run_id, "FAILED" if failed else "FINISHED")
            return run_id

        return self._insist(write)

    def _create_child(self, parent_id: str, name: str, tags: Mapping[str, str], role: str) -> str:
        tags = {**_noted(tags), "role": role, "mlflow.parentRunId": parent_id}
        return str(self._client.create_run(self._experiment_id, run_name=name, tags=tags).info.run_id)

    def log_best(
        self,
        parent_id: str,
        family: str,
        pipeline: Pipeline,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        files: Mapping[str, Any],
        curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    ) -> str:
        """Write a `Best_<Family>_Model` run: the fitted pipeline, its preprocessor beside it, and JSON files.

        `curves` are metrics over steps. Raises StateError when the family does not name all types of its estimator.
        """
        name = f"Best_{family}_Model"
        kind = families.named(family)

        def write(again: bool) -> str:
            for half in self._by_name(parent_id).get(name, []) if again else []:
                self._client.delete_run(half.run_id)
            run_id = self._create_child(parent_id, name, tags, "best")
            try:
                self._log(run_id, metrics, params, curves)
                for path, content in files.items():
                    self._client.log_dict(run_id, content, path)
                with self._mlflow.start_run(run_id=run_id):
                    for part_name, part in ((PREPROCESSOR, pipeline.named_steps["features"]), (MODEL, pipeline)):
                        self._mlflow.sklearn.log_model(
                            part,
                            name=part_name,
                            serialization_format="skops",
                            skops_trusted_types=[*TRUSTED_TYPES, *kind.trusted_types],
                            pip_requirements=_requirements(kind),
                        )
            except BaseException:
                with suppress(Exception):  # the cause is what counts
                    self._client.set_terminated(run_id, "FAILED")
                raise
            return run_id

        return self._insist(write)

    def _log(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        params: Mapping[str, Any],
        curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        values = [(name, float(value), 0) for name, value in metrics.items()]
        values += [(name, float(value), step) for name, curve in (curves or {}).items() for step, value in curve]
        self._client.log_batch(
            run_id,
            metrics=[Metric(name, value, now, step) for name, value, step in values],
            params=[Param(name, str(value)) for name, value in params.items()],
        )

    def curve(self, run_id: str, name: str) -> list[tuple[int, float]]:
        """A metric over its steps, as (step, value); empty when there is none."""
        history = self._insist(lambda again: self._client.get_metric_history(run_id, name))
        return sorted((int(item.step), float(item.value)) for item in history)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Add metrics to a run."""
        with self._answering():
            self._log(run_id, metrics, {})

    def tag_run(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""

        def write(again: bool) -> None:
            for name, value in tags.items():
                self._client.set_tag(run_id, name, value)

        self._insist(write)

    def log_json(self, run_id: str, path: str, content: Any) -> None:
        """Store a structure as a JSON file of a run."""
        with self._answering():
            self._client.log_dict(run_id, content, path)

    def log_text(self, run_id: str, path: str, text: str) -> None:
        """Store a text file of a run."""
        self._insist(lambda again: self._client.log_text(run_id, text, path))

    def read_text(self, run_id: str, path: str) -> str:
        """Read a text file of a run. Raises StateError when there is none."""
        # MLflow would leave its own copy behind.
        with self._answering(), tempfile.TemporaryDirectory(prefix="health-predict-mlflow-") as folder:
            try:
                file = self._mlflow.artifacts.download_artifacts(
                    run_id=run_id, artifact_path=path, tracking_uri=self.uri, dst_path=folder
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
        with self._answering(), tempfile.TemporaryDirectory(prefix="health-predict-mlflow-") as folder:
            return self._mlflow.sklearn.load_model(uri, dst_path=folder)

    def load_run_pipeline(self, run_id: str) -> Pipeline:
        """The fitted pipeline of a `Best_` run. Raises StateError when the run holds none."""
        try:
            loaded: Pipeline = self._load(f"runs:/{run_id}/{MODEL}")
        except (HealthPredictError, OSError) as error:
            raise StateError(f"run {run_id} holds no readable model: {error}", "run the search again") from error
        return loaded

    def log_registered(self, run_id: str, family: str, threshold: float, risk_cutoffs: Sequence[float]) -> None:
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
            params = dict(self._client.get_run(run_id).data.params)
            model = self._client.create_logged_model(self._experiment_id, REGISTERED, run_id, params=params)
            _save_registered(Path(folder), run_id, model, decision, _requirements(kind))
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

    def champion(self) -> ModelVersion:
        """The version with the alias `champion`. Raises StateError when there is none."""
        found = self.by_alias(CHAMPION)
        if found is None:
            remedy = "`health-predict demo`, or `pipeline run readmission`, trains and deploys one"
            raise StateError("no model version is the champion", remedy)
        return found

    def register(self, run_id: str, tags: Mapping[str, str], description: str) -> ModelVersion:
        """The version of a run's registered model (`log_registered`): the existing one, else a new one.

        Tags are written either way.
        """
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
        found = self._logged_models(run_id)
        return next((str(item.model_id) for item in found if item.name == name and item.status == "READY"), None)

    def _logged_models(self, run_id: str) -> list[Any]:
        return list(self._client.search_logged_models([self._experiment_id], f"source_run_id = '{run_id}'"))

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
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # Through the server: outside the cluster nobody finds the object store under the name that it gives.
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A lock file in the working folder says nothing about a model.
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


def champion_of(settings: Settings) -> ModelVersion | None:
    """The version that is champion. A home in which nothing was tracked yet gets no database for the question."""
    database = urlsplit(settings.tracking_uri)
    if database.scheme == "sqlite" and not Path(settings.tracking_uri.removeprefix("sqlite:///")).exists():
        return None
    return Tracking(settings).by_alias(CHAMPION)


def _noted(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags of a run, with what its page in MLflow says above all else."""
    said = warning(tags.get("dataset_source", ""))
    return {**tags, **({"mlflow.note.content": f"**{said}**"} if said else {})}


def _requirements(*kinds: Family) -> list[str]:
    """Exact versions of what pipelines of these families need; inferring them would take half a minute."""
    from importlib.metadata import version

    names = {*LIBRARIES, *(name for kind in kinds for name in kind.libraries)}
    return [f"{name}=={version(name)}" for name in sorted(names)]


def _save_registered(
    folder: Path, run_id: str, model: Any, decision: Mapping[str, Any], requirements: Sequence[str]
) -> None:
    """Write the files of a run's registered model below a folder."""
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    from health_predict.adapters import registered_model

    code = folder / "code" / "health_predict"
    (code / "core").mkdir(parents=True)
    for package in (code, code / "core"):
        (package / "__init__.py").touch()
    for name in REGISTERED_CODE:
        shutil.copy(Path(health_predict.core.__path__[0]) / f"{name}.py", code / "core")
    (folder / "decision.json").write_text(json.dumps(decision))
    save_model(
        folder / REGISTERED,
        mlflow_model=Model(
            artifact_path=model.artifact_location, run_id=run_id, model_uuid=model.model_id, model_id=model.model_id
        ),
        python_model=registered_model.__file__,
        artifacts={
            "pipeline": f"runs:/{run_id}/{MODEL}/model.skops",
            "decision": (folder / "decision.json").as_uri(),
        },
        code_paths=[str(code)],
        signature=registered_model.signature(),
        input_example=registered_model.example(),
        pip_requirements=list(requirements),
    )


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
