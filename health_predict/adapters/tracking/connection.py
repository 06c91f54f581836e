"""The connection to MLflow: what its errors mean, and patience with a server that is away."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from pathlib import Path
from sysconfig import get_path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from health_predict.adapters.contracts import contract_of
from health_predict.adapters.files import disk_error
from health_predict.adapters.storage import file_path
from health_predict.core.data.contract import Contract
from health_predict.errors import HealthPredictError, StateError, UnreachableError
from health_predict.settings import Settings

# What MLflow's pages show above the runs.
EXPERIMENT_NOTE = """Models of risk, each by its data contract. **Not for clinical use.**

A run with the tag `role = search` is one search; below it stand its trials (`role = trial`) and the best model of each
family (`Best_<Family>_Model`, `role = best`), which holds the fitted preprocessor beside the model. The version with
the alias `champion` serves; `challenger` passed its gates and waits for a rollout. For use elsewhere, load a version by
the name of its contract: `mlflow.pyfunc.load_model("models:/NAME@champion")`."""
# Of an experiment: MLflow opens it with runs and models, not with the traces of a language model.
KIND, MODEL_DEVELOPMENT = "mlflow.experimentKind", "custom_model_development"
# What a server answers, or a proxy in its place, that will be up again.
_PASSING_CODES = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
_PASSING = re.compile(r"failed with exception|error code (429|5\d\d)|database is locked")
# What goes wrong with a database of this machine: its words, what that means, and the remedy.
_DATABASE = (
    ("database is locked", "is held by another program", "end that program"),
    ("file is not a database|is malformed|no such table", "is damaged, or not MLflow's", "restore it, or move it away"),
    (
        "database schema|Can't locate revision",
        "is of another version of MLflow",
        "use that version, or copy the file and run `.venv/bin/mlflow db upgrade` with its address",
    ),
)

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class _AwayError(UnreachableError):
    """MLflow does not answer at the moment: asking again may help."""


class Connection:
    """The tracking store and registry that the settings name.

    Raises UnreachableError when it does not answer, StateError when a run or version is absent. What a search writes
    is tried again for `patience` seconds after MLflow went away; a repeat changes nothing that was written already.
    """

    def __init__(self, settings: Settings, *, patience: float = 0) -> None:
        self.settings, self.uri = settings, settings.tracking_uri
        self.patience = patience
        self._experiment_name = settings.mlflow_experiment
        self._artifacts = (settings.home / "mlartifacts").as_uri()
        self._local = urlsplit(self.uri).scheme not in ("http", "https")
        self._elsewhere = bool(settings.mlflow_tracking_uri)
        if self._local:
            try:
                settings.home.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise disk_error(error, settings.home) from error
        self._mlflow = quiet_mlflow()
        with self._answering():
            self._mlflow.set_tracking_uri(self.uri)
            self._mlflow.set_registry_uri(self.uri)
            self._client = self._mlflow.MlflowClient(self.uri, self.uri)
            self._experiment_id = self._experiment()

    @cached_property
    def contract(self) -> Contract:
        """The contract of the run, asked for late: not everybody needs it, and it may lie in a storage that is away."""
        return contract_of(self.settings)

    @cached_property
    def registered_model(self) -> str:
        """The registered model's name: the contract's, unless the settings name another."""
        return self.settings.registered_model or self.contract.name

    @property
    def page(self) -> str:
        """The experiment's page in MLflow, below the server's address: its runs and models, not the GenAI view."""
        return f"#/experiments/{self._experiment_id}/runs?workflowType=machine_learning"

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
            if known := self._of_database(error.message):
                raise known from error
            # A server that is away is wrapped in the whole history of its retries, which is no news to anybody.
            away = "failed with exception" in error.message
            passing = error.error_code in _PASSING_CODES or _PASSING.search(error.message)
            raise (_AwayError if passing else UnreachableError)(
                f"MLflow at {self.uri} {'does not answer' if away else 'says: ' + _first_line(error)}",
                "check that the server runs and HEALTH_PREDICT_MLFLOW_TRACKING_URI is right",
            ) from error
        except (RequestException, SQLAlchemyError) as error:
            raise self._of_database(str(error)) or _AwayError(
                f"MLflow at {self.uri} does not answer: {_first_line(error)}",
                "check that the server runs and HEALTH_PREDICT_MLFLOW_TRACKING_URI is right",
            ) from error
        except OSError as error:
            raise disk_error(error, Path(str(error.filename or self.uri))) from error

    def _of_database(self, message: str) -> HealthPredictError | None:
        """What is known to go wrong with a database of this machine."""
        for words, problem, remedy in _DATABASE:
            if re.search(words, message):
                kind = _AwayError if _PASSING.search(message) else StateError
                return kind(f"MLflow's database {self.uri} {problem}", remedy)
        return None

    def _insist(self, write: Callable[[bool], Result]) -> Result:
        """What `write` gives, tried again while MLflow is away; it is told whether it was tried before."""

        attempts = count()

        def ask() -> Result:
            with self._answering():
                return write(next(attempts) > 0)

        return Retrying(
            retry=retry_if_exception_type(_AwayError),
            stop=stop_after_delay(self.patience),
            wait=wait_exponential(0.5, max=5),
            before_sleep=lambda state: log.warning("%s; asking again", state.outcome and state.outcome.exception()),
            reraise=True,
        )(ask)

    def _experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(self._experiment_name)
        if experiment is not None:
            if experiment.lifecycle_stage == "deleted":
                self._client.restore_experiment(experiment.experiment_id)
                log.warning("experiment %s was deleted in MLflow: it is restored", self._experiment_name)
            self._refuse_moved(experiment.artifact_location)
            if KIND not in experiment.tags:
                self._client.set_experiment_tag(experiment.experiment_id, KIND, MODEL_DEVELOPMENT)
            return str(experiment.experiment_id)
        location = self._artifacts if self._local else None
        try:
            return str(
                self._client.create_experiment(
                    self._experiment_name,
                    artifact_location=location,
                    tags={"mlflow.note.content": EXPERIMENT_NOTE, KIND: MODEL_DEVELOPMENT},
                )
            )
        except self._mlflow.MlflowException as error:
            # Another process created it in between.
            experiment = self._client.get_experiment_by_name(self._experiment_name)
            if experiment is None:
                raise error
            return str(experiment.experiment_id)

    def _refuse_moved(self, location: str) -> None:
        """MLflow knows its files by absolute addresses: what is written would go to where the home was made."""
        before, now = file_path(location), file_path(self._artifacts)
        if self._elsewhere or before is None or now is None or before.name != now.name:  # somebody's choice
            return
        made, home = before.parent, now.parent
        if not made.exists():
            raise StateError(
                f"the home was moved from {made} to {home}", "move it back, or set HEALTH_PREDICT_HOME to a new folder"
            )
        if not made.samefile(home):
            raise StateError(
                f"the home {home} is a copy of {made}, where its models' files are",
                f"set HEALTH_PREDICT_HOME to {made}, or to a new folder",
            )


def quiet_mlflow() -> Any:
    """MLflow, told to be quiet and quick to give up."""
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
    with _without_percent():
        import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they log as an error they raise
    return mlflow


def libraries_without_percent() -> str:
    """A path of the libraries that has no percent sign; empty where theirs has none.

    MLflow gives its own path to ConfigParser, to which such a sign means something. The path is there as long as this
    process lives, also when it becomes another program, and leads its children there, too.
    """
    site = get_path("purelib")
    if "%" not in site:
        return ""
    folder = os.open(site, os.O_RDONLY)
    os.set_inheritable(folder, True)
    return f"/proc/{os.getpid()}/fd/{folder}"


@contextmanager
def _without_percent() -> Iterator[None]:
    if "mlflow" in sys.modules or not (alias := libraries_without_percent()):
        yield
        return
    sys.path.insert(0, alias)
    try:
        yield
    finally:
        sys.path.remove(alias)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
