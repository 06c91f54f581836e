"""The runs of a search.

One parent a search, one child a trial, and one `Best_<Family>_Model` child a family that holds the model and, beside
it, its fitted preprocessor. Trials are written by the driver in one batch each.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from health_predict.adapters import keys
from health_predict.adapters.tracking.connection import Connection
from health_predict.adapters.tracking.tags import Role, Tag
from health_predict.core.data.sources import warning
from health_predict.core.model import families
from health_predict.core.model.families import Family
from health_predict.errors import StateError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

log = logging.getLogger(__name__)

DATASET_DIGEST_LENGTH = 36  # MLflow takes no more
MOST_RUNS = 50_000  # of one answer; a search has some hundreds
# Files of a registered run: how it was judged, and the page about it.
EVALUATION, CARD = "evaluation.json", "model_card.html"
# The two models of a run that our own stages load.
MODEL, PREPROCESSOR = "model", "preprocessor"
# The types of ours that a saved model may hold; those of its estimator its family names.
TRUSTED_TYPES = (
    "health_predict.core.model.calibration.CalibratedClassifier",
    "health_predict.core.model.features.EncounterFeatures",
)
LIBRARIES = ("numpy", "pandas", "scikit-learn", "scipy", "skops")


def trial_name(family: str, index: int | str) -> str:
    """What a trial is called, in MLflow, in the log and on the leaderboard: `XGBoost-003`."""
    return f"{family}-{int(index):03d}"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it is stored."""

    run_id: str
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]


class Runs(Connection):
    """The runs of the settings' experiment."""

    def run(self, run_id: str) -> RunRecord:
        """A run by its id."""
        return _record(self._insist(lambda again: self._client.get_run(run_id)))

    def runs(self, where: str) -> list[RunRecord]:
        """The experiment's runs that MLflow's filter selects, newest first."""

        def read(again: bool) -> list[RunRecord]:
            newest = ["attributes.start_time DESC"]
            stored = self._client.search_runs([self._experiment_id], where, max_results=MOST_RUNS, order_by=newest)
            return [_record(run) for run in stored]

        return self._insist(read)

    def children(self, parent_id: str) -> list[RunRecord]:
        """Runs below a parent."""
        return self.runs(f"tags.`mlflow.parentRunId` = '{parent_id}'")

    def finished_search(self, search_digest: str, page: str = "") -> RunRecord | None:
        """The newest finished parent run of the same search whose model is still there, and its page, if any."""
        where = f"{_same_search(search_digest)} and attributes.status = 'FINISHED'"
        for search in self.runs(where):
            chosen = search.tags.get(Tag.CHOSEN, "")
            if chosen and self.has_model(chosen) and (not page or self._has_file(search.run_id, page)):
                return search
            log.warning("the same search is there, run %s, but its files are not: searching again", search.run_id)
        return None

    def has_model(self, run_id: str) -> bool:
        """Whether the fitted model of a `Best_` run is still there."""
        return self._has_file(run_id, f"{MODEL}/MLmodel")

    def _has_file(self, run_id: str, path: str) -> bool:
        try:
            self.read_text(run_id, path)
        except StateError:
            return False
        return True

    def resume_search(self, search_digest: str) -> str | None:
        """Reopen the newest unfinished parent run of this search, None when there is none.

        Of its children the finished ones stay. The others go: their trials will be done again. Other unfinished
        parents of the same search are marked KILLED.
        """
        where = f"{_same_search(search_digest)} and attributes.status != 'FINISHED'"
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
            run_id = self.resume_search(tags.get(Tag.SEARCH_DIGEST, "")) if again else None
            if run_id is None:
                run = self._client.create_run(
                    self._experiment_id, run_name=name, tags={**_noted(tags), Tag.ROLE: Role.SEARCH}
                )
                run_id = str(run.info.run_id)
            self._log(run_id, {}, params)
            self._log_dataset(run_id, tags)
            return run_id

        return self._insist(write)

    def _log_dataset(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Name the dataset of a search, so that MLflow's pages show and filter it."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if Tag.DATASET_DIGEST not in tags:
            return
        digest, source = tags[Tag.DATASET_DIGEST], tags.get(Tag.DATASET_SOURCE, "")
        dataset = Dataset(
            name=self.contract.name,
            digest=digest[:DATASET_DIGEST_LENGTH],
            source_type="code",
            source=json.dumps({"tags": {"source": source, "key": keys.dataset(digest)}}),
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
        by_name: dict[str, list[RunRecord]] = {}
        for child in self.children(parent_id):
            by_name.setdefault(child.name, []).append(child)
        return by_name

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
            run_id = made[0].run_id if made else self._create_child(parent_id, name, tags, Role.TRIAL)
            self._log(run_id, metrics, params)
            self._client.set_terminated(run_id, "FAILED" if failed else "FINISHED")
            return run_id

        return self._insist(write)

    def _create_child(self, parent_id: str, name: str, tags: Mapping[str, str], role: Role) -> str:
        tags = {**_noted(tags), Tag.ROLE: role, "mlflow.parentRunId": parent_id}
        return str(self._client.create_run(self._experiment_id, run_name=name, tags=tags).info.run_id)

    def log_best(  # all that a run holds
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
            run_id = self._create_child(parent_id, name, tags, Role.BEST)
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
                            pip_requirements=requirements(kind),
                            tags=origin(tags),
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


def _same_search(search_digest: str) -> str:
    """MLflow's filter for the parent runs of a search."""
    return f"tags.{Tag.SEARCH_DIGEST} = '{search_digest}' and tags.{Tag.ROLE} = '{Role.SEARCH}'"


def _noted(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags of a run, with what its page in MLflow says above all else."""
    said = warning(tags.get(Tag.DATASET_SOURCE, ""))
    return {**origin(tags), **tags, **({"mlflow.note.content": f"**{said}**"} if said else {})}


def origin(tags: Mapping[str, str]) -> dict[str, str]:
    """What MLflow's columns Source and Created by show, for a run or model with these tags."""
    commit = tags.get(Tag.GIT_COMMIT, "unknown")
    return {
        "mlflow.source.name": f"health-predict {tags.get(Tag.STAGE, '')}".strip(),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        **({"mlflow.source.git.commit": commit} if commit != "unknown" else {}),
    }


def _user() -> str:
    """Who runs this; in a container the number may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def requirements(kind: Family) -> list[str]:
    """Exact versions of what the pipeline of a family needs; inferring them would take half a minute."""
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in sorted({*LIBRARIES, *kind.libraries})]


def _record(run: Any) -> RunRecord:
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
    )
