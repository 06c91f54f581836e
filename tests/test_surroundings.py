"""What surrounds a command decides nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from health_predict.settings import PREFIX
from health_predict.surroundings import FIXED, FOREIGN, LOOPBACK, surroundings

COMMAND = str(Path(sys.executable).parent / "health-predict")
HOSTS = st.lists(st.sampled_from(["*", "example.org", ".example.org", "10.0.0.1", *LOOPBACK, ""]), max_size=4)
VALUES = st.dictionaries(
    st.sampled_from(
        ["HOME", "LC_ALL", "LANG", "http_proxy", "PYTHONUTF8", "TZ", "PYTHONPATH", "GIT_DIR", "BENTOML_CONFIG"]
    ),
    st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), max_size=20),
)


@given(values=VALUES, lower=HOSTS, upper=HOSTS)
def test_they_are_the_same_once_they_are_set_and_lead_to_loopback_directly(
    values: dict[str, str], lower: list[str], upper: list[str]
) -> None:
    proxies = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ",".join(lower), "NO_PROXY": ",".join(upper)}
    with mock.patch.dict(os.environ, {**proxies, **values}, clear=True):
        found = surroundings()
    with mock.patch.dict(os.environ, found, clear=True):
        # a process that begins in them goes on with them
        assert surroundings() == found
        assert all(urllib.request.proxy_bypass(host) for host in ("127.0.0.1", "localhost"))
        # and what was set for other programs is left out
        assert not any(name.startswith(FOREIGN) and name not in FIXED for name in os.environ)
    # and what a person excepted stays so
    assert {*lower, *upper} - {""} <= {*found["no_proxy"].split(",")} or found["no_proxy"] == "*"


@pytest.mark.parametrize(
    ("locale", "zone", "umask", "files"),
    [
        ("C", "Pacific/Kiritimati", "077", "1024"),
        ("tr_TR.UTF-8", "nonsense", "022", "256"),
        ("de_DE.ISO-8859-1", "", "000", "256"),
    ],
)
def test_a_command_does_the_same_everywhere(tmp_path: Path, locale: str, zone: str, umask: str, files: str) -> None:
    # given a locale that this machine may have or not, a folder of files that are named like modules, modules and a
    # Python of another project, a proxy that answers nobody, and a user without name and home
    (tmp_path / "other").mkdir()
    for name in ("token", "typing", "health_predict", "other/pipelines", "other/random", "other/mlflow", "other/utils"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('mine')")
    (tmp_path / "data.csv").write_text("ü,:x:,[red]\n1,2,3\n", encoding="utf-8")
    environment = {
        "PATH": os.environ["PATH"],
        "LC_ALL": locale,
        "TZ": zone,
        "PYTHONPATH": str(tmp_path / "other"),
        "PYTHONOPTIMIZE": "2",
        "PYTHONWARNINGS": "error",
        "http_proxy": "http://127.0.0.1:9",
        f"{PREFIX}HOME": str(tmp_path / "ü #%'"),
        f"{PREFIX}DATA_SOURCE": "data.csv",
    }
    nobody = ["unshare", "--user", "--map-user=12345"]  # where the system permits it
    known = subprocess.run([*nobody, "true"], capture_output=True).returncode
    narrow = ["sh", "-c", f'umask {umask}; ulimit -n {files}; exec "$@"', "sh"]
    # when a pipeline is run, then its first stage comes as far as the data
    done = subprocess.run(
        [*narrow, *([] if known else nobody), COMMAND, "pipeline", "run", "training"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
    )
    assert (done.returncode, done.stderr.count(b"\n")) == (3, 1), done.stderr
    assert "mine" not in done.stderr.decode("utf-8")
