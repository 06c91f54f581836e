"""Every path that a person's folders may have comes back whole from what our values go into.

Many paths through what quotes them; a few through the shell, the database and the pipeline that read them.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest
from circus.util import replace_gnu_args
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, make_url, text

from health_predict.adapters.images import open_registry
from health_predict.adapters.pipelines.local import run_locally
from health_predict.adapters.storage import FolderStorage, file_path, open_storage
from health_predict.errors import SettingsError
from health_predict.settings import Settings, load_settings
from tests.conftest import environment_in
from tests.pipeline_of_one import says

# One folder's name: anything but a slash and NUL, and neither `.` nor `..`; at most 255 bytes.
LETTERS = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
NAMES = st.text(LETTERS, min_size=1, max_size=60).filter(lambda name: name not in (".", ".."))
WORST = "a b  !\"#$%&'()*+,;<=>?@[\\]^`{|}~ü%20"


@given(name=NAMES)
@example(WORST)
@example("%")
@example("a\nb")
@example("..a?b#c")
def test_a_home_is_found_by_each_of_its_addresses(name: str) -> None:
    home = Path("/folder") / name
    values = Settings(home=home)
    assert make_url(values.tracking_uri).database == str(home / "mlflow.db")
    storage = open_storage(values.storage)
    assert isinstance(storage, FolderStorage) and storage.root == home / "storage"
    assert file_path(storage.uri("models/1/card.html")) == home / "storage" / "models/1/card.html"
    assert file_path((home / "mlartifacts").as_uri()) == home / "mlartifacts"
    assert open_registry(values).root == home / "images"


@given(name=NAMES)
@example(WORST)
def test_a_manager_starts_its_workers_with_the_paths_it_was_given(name: str) -> None:
    # given a command as it is handed to Circus, which fills its own variables in and splits it
    command = shlex.join([f"/folder/{name}", "$(circus.sockets.stable)"])
    # then only its own were filled in
    filled = replace_gnu_args(command, sockets={"stable": 7})
    assert shlex.split(filled) == [f"/folder/{name}", "7"]


@given(name=NAMES)
@settings(max_examples=20)
@example(WORST)
def test_a_shell_a_database_and_a_folder_take_it_as_it_is(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / name
        home.mkdir()
        values = Settings(home=home)
        # a shell, as for the line that the demo ends with
        (home / "encounter.json").write_text("{}")
        line = f"cat < {shlex.quote(str(home / 'encounter.json'))}"
        assert subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout == "{}"
        # a database
        with create_engine(values.tracking_uri).begin() as connection:
            connection.execute(text("create table one (number integer)"))
        assert values.database.stat().st_size
        # a folder behind an address
        storage = open_storage(values.storage)
        storage.write("a/b", b"c")
        assert (home / "storage" / "a" / "b").read_bytes() == storage.read("a/b") == b"c"


def test_a_pipeline_runs_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = WORST + "\n\t\x1b…\U0001f3e5"
    python = environment_in(tmp_path / name)
    monkeypatch.setattr("sys.executable", str(python))
    run = run_locally(says, {"words": name}, Settings(home=python.parent / "home"), lambda event: None)
    assert run.outputs == {"Output": name}


def test_a_folder_that_no_text_can_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a home whose name is in another encoding
    monkeypatch.setenv("HEALTH_PREDICT_HOME", b"/folder/\xfc".decode(errors="surrogateescape"))
    with pytest.raises(SettingsError, match=r"HOME: .*no UTF-8: rename it"):
        load_settings()
