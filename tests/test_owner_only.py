"""What is written on this machine is its owner's alone, whatever the umask."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from health_predict.settings import PREFIX

COMMAND = str(Path(sys.executable).parent / "health-predict")


def open_to_others(folder: Path) -> list[str]:
    """What below a folder, and the folder itself, others may read, write or enter."""
    found = ((path, path.lstat().st_mode) for path in (folder, *folder.rglob("*")) if not path.is_symlink())
    return [f"{stat.filemode(mode)} {path}" for path, mode in found if stat.S_IMODE(mode) & 0o077]


def run(*command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a umask that lets everybody do everything."""
    return subprocess.run(
        ["sh", "-c", 'umask 000; exec "$@"', "sh", *command],
        cwd=folder,
        env={**os.environ, **{f"{PREFIX}{name}": value for name, value in environment.items()}},
        capture_output=True,
        text=True,
    )


def test_what_a_command_writes_is_closed(tmp_path: Path) -> None:
    # when a command makes the home and brings data to it
    home = tmp_path / "home"
    done = run(COMMAND, "data", "fetch", folder=tmp_path, HOME=str(home), DATA_SOURCE="synthetic")
    assert done.returncode == 0, done.stderr
    # then nothing of it is anybody else's
    assert list(home.glob("data/*.csv"))
    assert open_to_others(home) == []


TASK = """
from pathlib import Path
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import Tracking
from health_predict.stages.task import task
with task("split") as settings:
    Tracking(settings).log_text(Tracking(settings).start_search("s", {}, {}), "page.html", "a patient")
    open_storage(settings.storage).write("raw/data.csv", b"a patient")
"""


def test_what_a_stage_writes_is_closed(tmp_path: Path) -> None:
    home, storage = tmp_path / "home", tmp_path / "storage"
    # when a task of a pipeline writes to MLflow and to a storage outside the home
    done = run(sys.executable, "-c", TASK, folder=tmp_path, HOME=str(home), STORAGE_URI=storage.as_uri())
    assert done.returncode == 0, done.stderr
    # then others may read neither
    assert (home / "mlflow.db").exists() and (storage / "raw" / "data.csv").exists()
    assert open_to_others(home) == open_to_others(storage) == []


LOGGED = """
import sys
from pathlib import Path
from types import SimpleNamespace
from health_predict.serving.prediction_log import PredictionLog
log = PredictionLog(Path(sys.argv[1]))
given = dict(prediction=1, probability_score=0.5, risk_group="high", model_version="1", prediction_id="one")
log.extend([SimpleNamespace(**given)], [SimpleNamespace(age=[70])])
log.close()
"""


def test_the_prediction_log_is_closed_wherever_the_service_runs(tmp_path: Path) -> None:
    # given a process that sets no umask of its own, as in a pod
    done = run(sys.executable, "-c", LOGGED, str(tmp_path / "log"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    [written] = (tmp_path / "log").iterdir()
    assert "high" in written.read_text()
    assert open_to_others(tmp_path / "log") == []
