"""Kubeflow Pipelines in a cluster: runs, uploaded versions and schedules of the compiled pipelines."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from health_predict.adapters import keys
from health_predict.adapters.pipelines.local import COMPILED_IMAGE, Event, compile_pipeline, error_of
from health_predict.adapters.serving.kubernetes import NOT_FOUND, Cluster
from health_predict.adapters.storage import open_storage
from health_predict.errors import HealthPredictError, SettingsError, StateError, UnreachableError
from health_predict.settings import PREFIX, Settings

log = logging.getLogger(__name__)

NAMESPACE = "kubeflow"
ACCOUNT = "health-predict-pipeline"
SETTINGS_MAP = "health-predict-settings"
EXPERIMENT = "health-predict"
# As the compiled pipelines name it.
POLL_SECONDS = 3.0
# How long the API may be away while a run is watched.
PATIENCE_SECONDS = 120.0
# What is told of a task in these states: message and level.
_TOLD = {"RUNNING": ("", "info"), "FAILED": ("failed", "warning"), "SUCCEEDED": ("done", "info")}
FINAL = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
# What Argo adds to the tasks: their drivers and executors, each attempt, and the groups.
_INNER = re.compile(r"\(\d+\)$|-driver$|^executor$|^root$|^condition-|^exit-handler-")


@dataclass(frozen=True, slots=True)
class ClusterRun:
    """A run in a cluster."""

    run_id: str
    pipeline: str
    state: str
    url: str
    dataset_source: str = ""
    """What the champion stands on at its end, as the record of that says; empty where it is not known."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A recurring run."""

    name: str
    recurring_run_id: str
    cron: str
    changed: bool


class ClusterPipelines:
    """The Kubeflow Pipelines that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self.host = settings.kfp_host.rstrip("/")
        if not self.host:
            raise SettingsError("no Kubeflow Pipelines is named", "set HEALTH_PREDICT_KFP_HOST, or use --on kind")
        self._settings = settings
        with self._answering():
            import kfp

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns of servers of 2022
                self._client = kfp.Client(host=self.host, namespace=NAMESPACE)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        import kfp_server_api
        from urllib3.exceptions import HTTPError

        try:
            yield
        except kfp_server_api.ApiException as error:
            message = str(error.reason)
            with contextlib.suppress(ValueError, TypeError, KeyError):
                message = json.loads(error.body)["message"]
            if error.status and 400 <= error.status < 500:
                raise StateError(f"Kubeflow Pipelines refuses: {message}"[:500], "see the pipeline's inputs") from None
            raise UnreachableError(f"Kubeflow Pipelines at {self.host}: {message}"[:500], _REMEDY) from None
        except (HTTPError, OSError, TimeoutError) as error:
            raise UnreachableError(f"Kubeflow Pipelines at {self.host} does not answer: {error}", _REMEDY) from None

    def cluster_settings(self) -> dict[str, str]:
        """The settings of the cluster's tasks, by their names in the environment."""
        cluster = Cluster(self._settings.kube_context)
        read = cluster.core.read_namespaced_config_map
        config_map = cluster.ask(read, SETTINGS_MAP, NAMESPACE, allowed=(NOT_FOUND,))
        if config_map is None:
            raise StateError(
                f"the cluster has no ConfigMap {SETTINGS_MAP} in namespace {NAMESPACE}", "`make cluster-up` writes it"
            )
        return dict(config_map.data or {})

    def image(self) -> str:
        """Image of the tasks by its digest: the settings', or else the cluster's."""
        image = self._settings.pipeline_image
        if image == COMPILED_IMAGE:
            image = self.cluster_settings().get(f"{PREFIX}PIPELINE_IMAGE", "")
        if "@sha256:" not in image:
            raise SettingsError(
                f"the pipeline image {image or COMPILED_IMAGE!r} is not named by its digest",
                "`make images` prints it; give it to `make cluster-up` as PIPELINE_IMAGE",
            )
        return image

    @contextmanager
    def _package(self, pipeline: Any) -> Iterator[str]:
        """The compiled pipeline with the image's digest in it."""
        with tempfile.TemporaryDirectory(prefix="health-predict-pipeline-") as folder:
            file = Path(folder) / "pipeline.yaml"
            compile_pipeline(pipeline, file, self.image())
            yield str(file)

    # Runs

    def start(self, name: str, pipeline: Any, arguments: Mapping[str, Any]) -> ClusterRun:
        """Begin a run."""
        with self._package(pipeline) as package, self._answering():
            run = self._client.create_run_from_pipeline_package(
                package,
                arguments=dict(arguments),
                experiment_name=EXPERIMENT,
                run_name=f"{name} {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}",
                service_account=ACCOUNT,
            )
        return ClusterRun(run.run_id, name, "PENDING", self._url(run.run_id))

    def wait(self, run: ClusterRun, seconds: float, tell: Callable[[Event], None]) -> ClusterRun:
        """Wait for a run's end and tell what its tasks do.

        Raises the failed stage's own error where its log still says it, StateError otherwise, and UnreachableError
        when the run is not done in time.
        """
        end = time.monotonic() + seconds
        seen: dict[str, str] = {}
        silent_since = time.monotonic()
        while True:
            try:
                with self._answering():
                    kfp_run = self._client.get_run(run.run_id)
                silent_since = time.monotonic()
            except UnreachableError:
                if time.monotonic() - silent_since > PATIENCE_SECONDS:
                    raise
                time.sleep(POLL_SECONDS)
                continue
            self._tell(kfp_run, run.pipeline, seen, tell)
            if kfp_run.state in FINAL:
                break
            if time.monotonic() > end:
                raise UnreachableError(
                    f"run {run.run_id} is not done after {seconds:g} s", f"it goes on in the cluster: {run.url}"
                )
            time.sleep(POLL_SECONDS)
        if kfp_run.state != "SUCCEEDED":
            raise self._reason(kfp_run, run)
        record = self._ends([run.run_id]).get(run.run_id, {})
        return ClusterRun(run.run_id, run.pipeline, kfp_run.state, run.url, record.get("dataset_source", ""))

    def _tell(self, kfp_run: Any, pipeline: str, seen: dict[str, str], tell: Callable[[Event], None]) -> None:
        details = kfp_run.run_details.task_details if kfp_run.run_details else None
        for task in details or ():
            name, state = task.display_name, task.state
            if not name or not state or seen.get(task.task_id) == state:
                continue
            if _INNER.search(name) or name.startswith(f"{pipeline}-"):  # the workflow itself has a name like this
                continue
            seen[task.task_id] = state
            if state in _TOLD:
                message, level = _TOLD[state]
                tell(Event(name, message, level))

    def _reason(self, kfp_run: Any, run: ClusterRun) -> HealthPredictError:
        """What the failed stage said last."""
        with contextlib.suppress(HealthPredictError):
            error = failure(run.run_id, self._settings.kube_context)
            if error is not None:
                return type(error)(error.problem, f"{error.remedy} ({run.url})")
        return StateError(f"run {run.run_id} ended {kfp_run.state.lower()}", f"see {run.url}")

    def runs(self, count: int = 20) -> list[dict[str, Any]]:
        """The newest runs, as `list_runs` of `local.py` has them, with what the records of their ends say."""
        with self._answering():
            newest = self._client.list_runs(page_size=count, sort_by="created_at desc", namespace=NAMESPACE).runs or []
        ends = self._ends([str(run.run_id) for run in newest])
        return [
            {
                "run_id": run.run_id,
                "pipeline": run.display_name.partition(" ")[0],
                "state": str(run.state).lower(),
                "started": run.created_at.isoformat(timespec="seconds"),
                "ended": run.finished_at.isoformat(timespec="seconds") if run.finished_at else "",
                "outputs": {name: end[name] for name in ("champion", "dataset_source") if end.get(name)},
                "error": end.get("error") or (run.error.message if run.error else ""),
            }
            for run, end in ((run, ends.get(run.run_id, {})) for run in newest)
        ]

    def _ends(self, run_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Records of runs that ended, by run. Without keys for the storage the list of runs is still worth having."""
        try:
            storage = open_storage(self._settings.storage, self._settings.s3_endpoint_url)
            there = set(storage.keys(keys.RUNS))
            return {one: json.loads(storage.read(keys.run_end(one))) for one in run_ids if keys.run_end(one) in there}
        except HealthPredictError as error:
            log.warning("why runs ended is not known: %s", error)
            return {}

    def _url(self, run_id: str) -> str:
        parts = urlsplit(self.host)
        return f"{parts.scheme}://{parts.netloc}/#/runs/details/{run_id}"

    # Versions

    def upload(self, name: str, pipeline: Any, commit: str) -> tuple[str, str]:
        """Make the pipeline known under its name, its version under the commit's; their ids. Once."""
        with self._package(pipeline) as package, self._answering():
            pipeline_id = self._client.get_pipeline_id(name)
            if pipeline_id is None:
                created = self._client.upload_pipeline(package, pipeline_name=name)
                pipeline_id = created.pipeline_id
            known = self._client.list_pipeline_versions(pipeline_id, page_size=100).pipeline_versions or []
            version = next((item for item in known if item.display_name == commit), None)
            if version is None:
                version = self._client.upload_pipeline_version(
                    package, pipeline_version_name=commit, pipeline_id=pipeline_id
                )
        return str(pipeline_id), str(version.pipeline_version_id)

    # Schedules

    def schedule(self, name: str, pipeline: Any, commit: str, cron: str, arguments: Mapping[str, Any]) -> Schedule:
        """Run an uploaded version again and again; what was missed is not caught up, and runs do not overlap.

        Kubeflow cannot change a schedule: one that differs is replaced. A repeat changes nothing.
        """
        if len(cron.split()) != 6:
            raise SettingsError(
                f"schedule {cron!r} has not six fields", "write second minute hour day month weekday: '0 30 2 * * *'"
            )
        pipeline_id, version_id = self.upload(name, pipeline, commit)
        with self._answering():
            experiment = self._client.create_experiment(EXPERIMENT)
            existing = self._schedules(name)
            for item in existing:
                if (
                    item.trigger.cron_schedule
                    and item.trigger.cron_schedule.cron == cron
                    and item.pipeline_version_reference.pipeline_version_id == version_id
                    and dict(item.runtime_config.parameters or {}) == dict(arguments)
                    and item.status == "ENABLED"
                ):
                    return Schedule(name, item.recurring_run_id, cron, changed=False)
            created = self._client.create_recurring_run(
                experiment.experiment_id,
                name,
                cron_expression=cron,
                max_concurrency=1,
                no_catchup=True,
                params=dict(arguments),
                pipeline_id=pipeline_id,
                version_id=version_id,
                service_account=ACCOUNT,
            )
            for item in existing:
                self._client.delete_recurring_run(item.recurring_run_id)
        return Schedule(name, created.recurring_run_id, cron, changed=True)

    def unschedule(self, name: str) -> int:
        """Delete the pipeline's schedules; how many there were."""
        with self._answering():
            schedules = self._schedules(name)
            for item in schedules:
                self._client.delete_recurring_run(item.recurring_run_id)
        return len(schedules)

    def _schedules(self, name: str) -> list[Any]:
        recurring = self._client.list_recurring_runs(page_size=100, namespace=NAMESPACE).recurring_runs or []
        return [item for item in recurring if item.display_name == name]


def failure(run_id: str, context: str = "") -> HealthPredictError | None:
    """Why a run failed: the one line of JSON with problem and remedy that the failed stage ended with.

    None when no log of its pods says it. Raises UnreachableError without an API server.
    """
    cluster = Cluster(context, retries=4)
    pods = cluster.ask(cluster.core.list_namespaced_pod, NAMESPACE, label_selector=f"pipeline/runid={run_id}")
    failed = [pod.metadata for pod in pods.items if pod.status.phase == "Failed"]
    for pod in sorted(failed, key=lambda pod: pod.creation_timestamp, reverse=True):
        for line in reversed(cluster.logs(NAMESPACE, pod.name, "main", lines=200)):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                said = json.loads(line[line.index("{") :])
                return error_of(said, f"{said.get('stage', '')}: {said['message']}")
    return None


_REMEDY = "check that it runs and HEALTH_PREDICT_KFP_HOST is right"
