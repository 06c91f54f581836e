"""No private part of an installed distribution is used, replaced or inherited."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.private_names import findings

ROOT = Path(__file__).parents[1]
FOLDERS = ("health_predict", "bentos", "components", "pipelines", "pulumi")

# By file and name: why, what breaks without it, and the upstream issue.
EXCEPTIONS = {
    ("health_predict/adapters/serving/kubernetes/cluster.py", "self.ask(_preload_content=)"): (
        "an argument that the client documents under this name; without it a log of one line of JSON comes as a dict"
    ),
    ("health_predict/adapters/serving/kubernetes/cluster.py", "call(_request_timeout=)"): (
        "an argument that the client documents under this name; without it a dead API server is waited for without end"
    ),
    ("health_predict/adapters/pipelines/local.py", "sys.executable ="): (
        "while a pipeline runs; KFP writes it unquoted into a shell line, and into all that says python3 in an "
        "argument: without it no pipeline runs in a checkout whose path has a space, or holds python3"
    ),
}


def test_the_code_keeps_to_what_is_public() -> None:
    found: dict[tuple[str, str], int] = {}
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            if "/.venv/" not in name:
                found.update({(name, finding.name): finding.line for finding in findings(file.read_text())})

    new = [f"{file}:{line}: {name}" for (file, name), line in found.items() if (file, name) not in EXCEPTIONS]
    assert not new, "\n".join(["private names of other distributions:", *new])
    # and no exception outlives its reason
    assert not [exception for exception in EXCEPTIONS if exception not in found]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # names that an import reaches
        ("import ray._private.node", ["ray._private.node"]),
        ("from ray._private import node", ["ray._private.node"]),
        ("from ray import _version", ["ray._version"]),
        ("import importlib\nimportlib.import_module('ray._private.node')", ["ray._private.node"]),
        ("def start():\n    from bentoml._internal.log import configure", ["bentoml._internal.log.configure"]),
        # attributes
        ("import hashlib\nhashlib._Hash", ["hashlib._Hash"]),
        ("def f(client):\n    return client._get_location()", ["client._get_location"]),
        ("def f():\n    return client()._location", ["client()._location"]),
        ("def f(a):\n    return a.b[0]._c", ["a.b._c"]),
        ("def f(client):\n    return getattr(client, '_location')", ["client._location"]),
        ("import hashlib\ndef f(digest: hashlib._Hash): ...", ["hashlib._Hash"]),
        ("import hashlib\ndef f(digest: 'hashlib._Hash'): ...", ["hashlib._Hash"]),
        ("import ray\nray.init(_temp_dir='/tmp')", ["ray.init(_temp_dir=)"]),
        # behind a decorator
        ("import functools\ndef f(g):\n    g.__wrapped__()", ["g.__wrapped__"]),
        # methods of a library's class, at any distance
        (
            "import threading\nclass A(threading.Thread):\n    def _bootstrap(self): ...",
            ["A._bootstrap"],
        ),
        (
            "from threading import Thread\nclass A(Thread): ...\nclass B(A):\n    def _bootstrap(self): ...",
            ["B._bootstrap"],
        ),
        ("from threading import Thread\nclass A(Thread):\n    def f(self):\n        self._delete()", ["A._delete"]),
        ("from logging import Logger\nclass A(Logger):\n    _log = None", ["A._log"]),
        # what is assigned at run time
        ("import uvicorn\nuvicorn.Server.run = None", ["uvicorn.Server.run ="]),
        ("from uvicorn import Server as S\nS.run, x = None, 1", ["uvicorn.Server.run ="]),
        ("import uvicorn\nsetattr(uvicorn.Server, 'run', None)", ["uvicorn.Server.run ="]),
        ("def replace(owner, name):\n    setattr(owner, name, None)", ["setattr of any name"]),
        ("import json\ndel json.loads", ["json.loads ="]),
        # programs as text
        ("PROGRAM = '''\nimport bentoml._internal.log\n'''", ["bentoml._internal.log"]),
        ("def f(x):\n    return f'import bentoml; bentoml._x({x})'", ["bentoml._x"]),
        ("run(['python', '-c', 'import ray; ray.init = None'])", ["ray.init ="]),
    ],
)
def test_what_is_private_is_found(source: str, expected: list[str]) -> None:
    assert [finding.name for finding in findings(source)] == expected


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos._exit(1)\nos.environ['A'] = 'b'",
        "import sys\nsys.tracebacklimit = 0",
        "from health_predict.adapters.ray_session import _short_folder",
        "from __future__ import annotations\nfrom importlib.metadata import version as __version__",
        "class A:\n    def __init__(self):\n        self._a = 1\n    def f(self, other):\n        return other._a",
        "from threading import Thread\nclass A(Thread):\n    def _mine(self):\n        return self._mine()",
        "def f(point):\n    return point._replace(x=1), point._asdict()",
        "import enum\nclass A(enum.Enum):\n    @classmethod\n    def _missing_(cls, value): ...",
        "def f(model):\n    model.coef_ = model.coef_ / 2\n    return model.__class__",
        "for _ in range(3):\n    _ = 1",
        '"""A text that tells of import of ray._private, and is no program."""',
    ],
)
def test_what_is_public_or_ours_is_not(source: str) -> None:
    assert findings(source) == []
