"""Kubeflow Pipelines: compiling, and running on this machine with kfp.local."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from health_predict.adapters.files import disk_error, whole_file, write_json
from health_predict.adapters.locks import is_held
from health_predict.adapters.notifications import tell_failure
from health_predict.errors import HealthPredictError, StateError, UnreachableError
from health_predict.settings import Settings
from health_predict.surroundings import surroundings

# What compiled pipelines name where nobody names another.
COMPILED_IMAGE = str(Settings.model_fields["pipeline_image"].default)
NO_IMAGE = f"""\
# The image {COMPILED_IMAGE} stands for a cluster's own, and none can pull it by this name. To upload this file by hand,
# make one with `health-predict pipeline compile --image IMAGE`; `health-predict pipeline upload` puts the image in.
"""

RUNS_KEPT = 10
TEMPORARY, LOCK = "tmp", ".lock"
_EXECUTING = re.compile(r"Executing task .*?'([\w-]+)'")
_OF_KFP = re.compile(r"\d\d:\d\d:\d\d\.\d{3} - |----|\[|Traceback")
_ERRORS = {error.exit_code: error for error in HealthPredictError.__subclasses__()}


@dataclass(frozen=True, slots=True)
class Event:
    """Something a running pipeline said: a task that begins (`message` empty), or a line of a stage's log.

    `progress` is where a search is, with the fields of `adapters.ray.Progress`.
    """

    stage: str
    message: str
    level: str = "info"
    progress: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LocalRun:
    """A finished run on this machine."""

    run_id: str
    pipeline: str
    folder: Path
    outputs: Mapping[str, Any] = field(default_factory=dict)


def compile_pipeline(pipeline: Any, file: Path, image: str = "") -> None:
    """Write a pipeline's compiled form, with this image of its tasks; without one no cluster can run it."""
    from kfp import compiler

    with whole_file(file) as temporary:
        # The compiler looks at the ending, which a temporary name has not.
        compiled = temporary.with_suffix(".yaml")
        try:
            compiler.Compiler().compile(pipeline, str(compiled))
            text = compiled.read_text(encoding="utf-8")
            named = text.replace(f"image: {COMPILED_IMAGE}\n", f"image: {image}\n") if image else NO_IMAGE + text
            temporary.write_text(named, encoding="utf-8")
        finally:
            compiled.unlink(missing_ok=True)


def run_locally(
    pipeline: Any, arguments: Mapping[str, Any], settings: Settings, tell: Callable[[Event], None]
) -> LocalRun:
    """Run a pipeline function under SubprocessRunner, with what it says as events.

    One run at a time in a home. Artifacts and the whole log lie in `runs/<run id>`; the newest ten are kept.
    Raises the stage's own error with its remedy; StateError when a stage breaks or another run is going on.
    """
    runs = settings.home / "runs"
    with _only_run(runs):
        name = str(pipeline.pipeline_spec.pipeline_info.name)
        run_id = f"{_next_begin(settings.home):%Y%m%dT%H%M%S}-{name}"
        folder = runs / run_id
        (folder / TEMPORARY).mkdir(parents=True)
        record = {"run_id": run_id, "pipeline": name, "arguments": dict(arguments), "started": _now()}
        write_json(folder / "run.json", {**record, "state": "running"})
        listener = _Listener(tell)
        try:
            with (folder / "pipeline.log").open("w") as log:
                outputs = _run(pipeline, arguments, settings, folder, listener.attach(log))
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            ended = {"state": state, "ended": _now(), "error": str(listener.error or error)}
            write_json(folder / "run.json", {**record, **ended})
            if state == "failed":
                known = listener.error or (error if isinstance(error, HealthPredictError) else None)
                tell_failure(settings, run_id, name, known)
            if listener.error is not None:
                raise listener.error from None
            if isinstance(error, HealthPredictError) or not isinstance(error, Exception):
                raise
            raise StateError(
                f"stage {listener.stage or name} broke: {listener.last_line or error}", f"see {folder / 'pipeline.log'}"
            ) from error
        write_json(folder / "run.json", {**record, "state": "succeeded", "ended": _now(), "outputs": outputs})
        _forget_old(runs)
        return LocalRun(run_id, name, folder, outputs)


def _run(
    pipeline: Any, arguments: Mapping[str, Any], settings: Settings, folder: Path, stream: io.TextIOBase
) -> dict[str, Any]:
    from kfp import local

    # KFP deletes the workspace after every pipeline, so it gets a folder of its own.
    workspace = folder / "workspace"
    environment = {**settings.environment(), "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    # Each task leaves its program there.
    environment["TMPDIR"] = str(folder / TEMPORARY)
    with (
        _environment(environment),
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # KFP warns of every base image without `python` in its name
        local.init(
            runner=local.SubprocessRunner(use_venv=False),
            pipeline_root=str(folder / "artifacts"),
            workspace_root=str(workspace),
            raise_on_error=True,
        )
        try:
            task = _single_attempts(pipeline)(**arguments)
        finally:
            for left in (workspace, folder / TEMPORARY):
                shutil.rmtree(left, ignore_errors=True)
    return {name: task.outputs[name] for name in pipeline.component_spec.outputs or {}}


def _single_attempts(pipeline: Any) -> Any:
    """Attempts are for a cluster, where pods and networks come and go; here a failure is the answer."""
    here = copy.deepcopy(pipeline)
    spec = here.pipeline_spec
    for dag in (spec.root.dag, *(component.dag for component in spec.components.values())):
        for task in dag.tasks.values():
            task.ClearField("retry_policy")
    return here


def error_of(said: Mapping[str, Any], problem: str) -> HealthPredictError:
    """The error that a stage's last line tells of, as a mapping with `exit_code` and `remedy`."""
    kind = _ERRORS.get(int(said["exit_code"]), HealthPredictError)
    return kind(problem, str(said.get("remedy", "")))


class _Listener:
    """Turns the output of kfp.local into events and remembers what a failure needs."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        self.stage = ""
        self.last_line = ""
        self.error: HealthPredictError | None = None

    def attach(self, log: io.TextIOBase | Any) -> _Lines:
        return _Lines(self._line, log)

    def _line(self, line: str) -> None:
        text = line.strip()
        if not text:
            return
        executing = _EXECUTING.search(text)
        if executing:
            self.stage, self.last_line = executing[1], ""
            self._tell(Event(self.stage, ""))
            return
        try:
            said = json.loads(text)
            message, level = str(said["message"]), str(said["level"])
        except (ValueError, TypeError, KeyError):
            # An exception is named in the last line of its stack; a program or shell that failed says what it likes.
            if not _OF_KFP.match(text) and ("Error" in text or "Error" not in self.last_line):
                self.last_line = text[:300]
            return
        if "exit_code" in said:
            self.error = error_of(said, message)
        else:
            self._tell(Event(str(said.get("stage", self.stage)), message, level, said.get("progress")))


class _Lines(io.TextIOBase):
    """A stream that keeps everything in a log and hands on whole lines."""

    def __init__(self, line: Callable[[str], None], log: Any) -> None:
        self._line = line
        self._log = log
        self._rest = ""

    def write(self, text: str) -> int:
        self._log.write(text)
        self._log.flush()
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(line)
        return len(text)

    def flush(self) -> None:
        self._log.flush()

    def writable(self) -> bool:
        return True


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before, interpreter = dict(os.environ), sys.executable
    os.environ.update({**surroundings(), **values})
    # KFP writes the interpreter's path for each `python3` of a shell line, unquoted: it is to find it by that name.
    os.environ["PATH"] = f"{Path(interpreter).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    sys.executable = "python3"
    try:
        yield
    finally:
        sys.executable = interpreter
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _only_run(runs: Path) -> Iterator[None]:
    """One run at a time in a home; the lock goes with its process, however that ends."""
    path = runs / LOCK
    try:
        runs.mkdir(parents=True, exist_ok=True)
        held = FileLock(path).acquire(timeout=1)  # who lists the runs may hold it for a moment
    except Timeout:
        raise StateError(
            f"another pipeline runs in {runs.parent} (process {path.read_text().strip() or 'unknown'})",
            "wait for it, or end that process",
        ) from None
    except OSError as error:
        raise disk_error(error, runs) from error
    with held:
        path.write_text(str(os.getpid()))
        # Whoever held the lock before is gone: what it left as running was killed.
        for record in list_runs(runs.parent):
            if record["state"] == "running":
                write_json(runs / record["run_id"] / "run.json", {**record, "state": "killed"})
                shutil.rmtree(runs / record["run_id"] / TEMPORARY, ignore_errors=True)
        yield


def list_runs(home: Path) -> list[dict[str, Any]]:
    """Records of the runs in a home, newest first. One that does not go on though it never ended was killed."""
    records = []
    for file in sorted((home / "runs").glob("*/run.json"), reverse=True):
        with contextlib.suppress(ValueError, OSError):
            records.append(json.loads(file.read_text()))
    with contextlib.suppress(UnreachableError):  # where a person may only read, nobody knows
        if any(record["state"] == "running" for record in records) and not is_held(home / "runs" / LOCK):
            return [{**record, "state": "killed"} if record["state"] == "running" else record for record in records]
    return records


def _next_begin(home: Path) -> datetime:
    """Now; after a run that seems to have begun later, since the clock was set back, a second after that."""
    now = datetime.now(UTC)
    newest = next(iter(list_runs(home)), None)
    if newest is None:
        return now
    stamp = datetime.strptime(newest["run_id"][:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    return max(now, stamp + timedelta(seconds=1))


def _forget_old(runs: Path) -> None:
    folders = sorted((path for path in runs.iterdir() if path.is_dir()), reverse=True)
    for folder in folders[RUNS_KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
