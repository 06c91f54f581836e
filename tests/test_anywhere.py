"""The demo on a table of one's own, where all that may be odd about a machine is odd, watched by strace.

It runs once, with a contract that was drafted and edited, in an environment and a home whose paths hold what means
something to shells and addresses, with a temporary folder that is too long for a socket, in Turkish, with proxies that
answer nobody, what was set for another project's Python, Ray, MLflow, BentoML and git, a narrow umask and few open
files, for a user whom the system does not know and whose home cannot be written.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from health_predict.core.data.contract import Contract
from health_predict.settings import PREFIX
from tests.conftest import environment_in
from tests.own_table import Table, contract_for, goes_on, modern_extract
from tests.shell import Shell

PROJECT = "my project ü #%'?&@"
SHORT = re.compile(r"/tmp/(hp-\d+|health-predict)-[^/]+(/|$)")  # of sockets: their paths have a hundred characters
# What is written elsewhere, and why.
ELSEWHERE = {
    re.compile(r"/dev/null$"): "no file",
    re.compile(r"/proc/\d+/oom_score_adj$"): "no file, either: Ray has its workers die first",
    re.compile(r"/dev/shm/(plasma|sem\.)\w+$"): "Ray's shared memory and Python's semaphores, which have no name then",
    re.compile(r".*/__pycache__(/|$)"): "what Python compiles beside its source",
    SHORT: "the sockets of Ray and of the endpoint's manager, gone when these end",
}
needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="skipped: no strace")


@dataclass(frozen=True)
class Seen:
    """What a demo said, with the seconds of each line, and the traces of all its threads."""

    folder: Path
    shell: Shell
    table: Table
    contract: Contract
    code: int
    lines: list[tuple[float, str]]
    trace: str

    @property
    def said(self) -> str:
        return "".join(line for _, line in self.lines)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("anywhere")
    traces = folder / "traces"
    traces.mkdir()
    temporary = folder / "temporary ü" / ("t" * 60)
    temporary.mkdir(parents=True)
    (folder / "person").mkdir(mode=0o555)
    other = folder / "other" / "pipelines"
    other.mkdir(parents=True)
    for file in (other / "__init__.py", other.parent / "random.py"):
        file.write_text("raise RuntimeError('mine')")
    python = environment_in(folder / PROJECT / ".venv")
    table = modern_extract(folder)
    shell = Shell(folder / PROJECT, **table.settings, FAMILIES='["LogisticRegression"]')
    contract = contract_for(shell, table)
    plain = {name: value for name, value in shell.environment.items() if not name.startswith(("LC_", "LANG"))}
    environment = {
        **plain,
        PREFIX + "CONTRACT": "mine.yaml",
        PREFIX + "DATA_SOURCE": str(table.file),
        "HOME": str(folder / "person"),
        "TMPDIR": str(temporary),
        "LC_ALL": "tr_TR.ISO-8859-9",
        "TZ": "Asia/Kathmandu",
        "PYTHONPATH": str(folder / "other"),
        "PYTHONOPTIMIZE": "2",
        "RAY_ADDRESS": "auto",
        "RAY_RUNTIME_ENV_HOOK": "mine.hook",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
        "BENTOML_CONFIG": str(folder / "missing"),
        "GIT_DIR": str(folder / "other"),
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"), "http://127.0.0.1:9"),
        "PYTHONUTF8": "1",  # the Makefile's: Python finds the library in this folder by it
    }
    nobody = ["unshare", "--user", "--map-user=12345"]  # where the system permits it
    nobody = [] if subprocess.run([*nobody, "true"], capture_output=True).returncode else nobody
    watched = ["strace", "-ff", "--seccomp-bpf", "-qq", "-y", "-e", "trace=connect,openat,creat,mkdir"]
    watched = [*watched, "-o", str(traces / "trace")] if shutil.which("strace") else []
    command = [*nobody, *watched, str(python), "-m", "health_predict"]
    narrow = ["sh", "-c", 'umask 077; ulimit -n 512; exec "$@"', "sh"]
    begin, lines = time.monotonic(), []

    def down() -> None:
        subprocess.run([*nobody, python, "-m", "health_predict", "down"], cwd=shell.folder, env=environment, check=True)

    demo = subprocess.Popen(
        [*narrow, *command, "demo"],
        cwd=shell.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    assert demo.stdout is not None
    try:
        for line in demo.stdout:
            lines.append((time.monotonic() - begin, line))
            if line.startswith("done in"):  # what is watched includes the endpoint, whose end strace waits for
                down()
    finally:
        down()
    trace = "\n".join(file.read_text(errors="replace") for file in traces.iterdir())
    return Seen(folder, shell, table, contract, demo.wait(), lines, trace)


def _plain(escaped: str) -> str:
    """A path as strace escapes it: octal for what is no ASCII."""
    return re.sub(rb"\\(\d{3})", lambda at: bytes([int(at[1], 8)]), escaped.encode()).decode()


def test_it_ends_as_anywhere(seen: Seen) -> None:
    assert seen.code == 0, seen.said
    assert "serves: LogisticRegression" in seen.said and "answers {" in seen.said
    assert "Traceback" not in seen.said and "mine" not in seen.said.replace("mine.yaml", "")
    assert seen.contract.outcome.happened in seen.said and '"risk_group"' in seen.said


@pytest.mark.no_cover  # its stages have tests of their own, and coverage doubles what they take
def test_its_model_goes_the_whole_way(seen: Seen) -> None:
    # given the same home, later, in a shell that names neither contract nor data
    try:
        seen.shell.ask("serve")
        goes_on(seen.shell, seen.table, seen.contract)
    finally:
        seen.shell.end()


@needs_strace
def test_nothing_is_written_outside_the_home(seen: Seen) -> None:
    flags = r"[A-Z_|]*(?:O_WRONLY|O_RDWR|O_CREAT)[A-Z_|]*(?:, 0\d+)?"
    opened = re.findall(rf'^(?:openat\(.*", {flags}|creat\(.*)\) = \d+<(.*)>$', seen.trace, re.M)
    made = re.findall(r'mkdir\("(/[^"]*)".* = 0$', seen.trace, re.M)
    written = {_plain(path).removesuffix(" (deleted)") for path in (*opened, *made)}
    home = str(seen.shell.home)
    assert any(path.startswith(home) for path in written)
    outside = {path for path in written if not f"{path}/".startswith(f"{home}/")}
    assert sorted(path for path in outside if not any(known.match(path) for known in ELSEWHERE)) == []
    # and no folder of sockets is left
    short = {found[0] for path in outside if (found := SHORT.match(path))}
    assert [path for path in short if Path(path).exists()] == []
    assert list((seen.folder / "temporary ü").rglob("*/*")) == []


@needs_strace
def test_nobody_is_asked_but_this_machine(seen: Seen) -> None:
    addresses = re.findall(r'connect\(.*sa_family=AF_INET6?,.*"([^"\n]+)"', seen.trace)
    assert addresses
    assert {address for address in addresses if address not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")} == set()


def test_a_line_comes_every_few_seconds(seen: Seen) -> None:
    moments = [0.0, *(moment for moment, _ in seen.lines)]
    gaps = {line: later - earlier for (later, line), earlier in zip(seen.lines, moments, strict=False)}
    # a sign of life comes every four seconds; the rest is what a busy machine and strace add
    assert {line: gap for line, gap in gaps.items() if gap > 8} == {}
