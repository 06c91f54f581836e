"""The local endpoint: rollouts under load, and every way its processes can die."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from health_predict.adapters.parent_process import end_descendants, intact, parent_links
from health_predict.adapters.serving import bento_worker
from health_predict.adapters.serving.manager import bound_log
from health_predict.adapters.serving.processes import ProcessTarget
from health_predict.adapters.serving.target import open_target
from health_predict.errors import GateError, StateError, UnreachableError
from health_predict.settings import ServingTarget, Settings

pytestmark = pytest.mark.measured

SERVICE = """
import asyncio, os
import bentoml
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

VERSION = "{version}"

async def predict(request):
    await request.body()
    return JSONResponse({{"model_version": VERSION, "pid": os.getpid()}})

async def slow(request):
    await asyncio.sleep(1)
    return JSONResponse({{"model_version": VERSION, "threads": os.environ["OMP_NUM_THREADS"]}})

async def crash(request):
    os._exit(9)

routes = [Route("/predict", predict, methods=["POST"]), Route("/slow", slow), Route("/crash", crash)]

@bentoml.service
@bentoml.asgi_app(Starlette(routes=routes), path="/")
class Tiny:
    def __init__(self):
        {init}
"""

BENTO = """
service: service:Tiny
name: tiny
version: {version}
bentoml_version: 1.4.39
creation_time: '2026-01-01T00:00:00+00:00'
labels: {{}}
models: []
envs: [{{name: OMP_NUM_THREADS, value: '1'}}, {{name: ONLY_AT_BUILD, value: x, stage: build}}]
entry_service: Tiny
services: [{{name: Tiny, service: '', models: [], dependencies: [], config: {{}}}}]
docker: {{}}
python: {{}}
"""


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of an unpacked Bento that answers with its version."""

    def build(version: str, init: str = "pass") -> Path:
        folder = tmp_path_factory.mktemp(f"bento-{version}")
        (folder / "src").mkdir()
        (folder / "src" / "service.py").write_text(SERVICE.format(version=version, init=init))
        (folder / "bento.yaml").write_text(BENTO.format(version=version))
        return folder

    return build


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", serving_port=free_port(), rollout_timeout=30)


@pytest.fixture
def target(settings: Settings) -> Iterator[ProcessTarget]:
    target = ProcessTarget(settings)
    yield target
    target.stop()


def deploy(target: ProcessTarget, version: str, folder: Path) -> None:
    with target.rollout() as rollout:
        rollout.start(f"oci:images@sha256:{version}", version, folder)
        rollout.switch()
        rollout.commit()


def predict(url: str) -> dict[str, Any]:
    request = urllib.request.Request(f"{url}/predict", data=b"{}", method="POST")
    with urllib.request.urlopen(request, timeout=20) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def manager_pid(target: ProcessTarget) -> int:
    return int(json.loads((target.folder / "manager.json").read_text())["pid"])


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Load:
    """Clients that call /predict in a loop: some keep their connection, some open one for each request."""

    def __init__(self, target: ProcessTarget, keeping: int = 3, opening: int = 2) -> None:
        self._address = (target._settings.serving_host, target._settings.serving_port)
        self._over = threading.Event()
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._loop, args=(keeps,)) for keeps in [True] * keeping + [False] * opening
        ]

    def _loop(self, keeps: bool) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=30)
        while not self._over.is_set():
            try:
                # As every client does: after an answer with `Connection: close` it opens a new connection.
                connection.request("POST", "/predict", body=b"{}")
                response = connection.getresponse()
                body = response.read()
                if response.status == 200:
                    self.answers[json.loads(body)["model_version"]] += 1
                else:
                    self.failures.append(f"{response.status} {body[:200]!r}")
            except OSError as error:
                self.failures.append(repr(error))
                connection.close()
            except http.client.HTTPException as error:
                self.failures.append(repr(error))
                connection.close()
            if not keeps:
                connection.close()
        connection.close()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def seen(self, version: str) -> None:
        before = self.answers[version]
        until(lambda: self.answers[version] > before + 50)


@pytest.mark.slow
def test_rollouts_under_load_lose_no_request(target: ProcessTarget, bento: Callable[..., Path]) -> None:
    # given a served version and clients that never pause
    first, second = bento("one"), bento("two")
    deploy(target, "one", first)
    with Load(target) as load:
        load.seen("one")
        # when it is replaced, replaced back, and a third rollout is undone after its switch
        deploy(target, "two", second)
        load.seen("two")
        deploy(target, "one", first)
        load.seen("one")
        with target.rollout() as rollout:
            rollout.start("oci:images@sha256:two", "two", second)
            rollout.switch()
            load.seen("two")
            rollout.undo()
            load.seen("one")
    # then not one request failed, and the version before serves
    print(f"{sum(load.answers.values())} requests, {len(load.failures)} lost")
    assert load.failures == []
    active = target.active()
    assert active is not None and active.model_version == "one" and active.restarts == 0
    assert predict(target.url)["model_version"] == "one"


def test_a_candidate_that_does_not_start_leaves_nothing_behind(
    target: ProcessTarget, bento: Callable[..., Path]
) -> None:
    # given nothing served
    # when the first candidate fails while it loads
    with (
        pytest.raises(GateError, match=r"ended before it was ready.*the model is damaged"),
        target.rollout() as rollout,
    ):
        rollout.start("oci:images@sha256:bad", "bad", bento("bad", init="raise RuntimeError('the model is damaged')"))
    # then no process is left and the port is free
    assert target.active() is None and target.trouble() == "" and target.place() == {}
    with socket.create_server(("127.0.0.1", target._settings.serving_port)):
        pass


def test_what_a_killed_command_left_is_undone(
    target: ProcessTarget, settings: Settings, bento: Callable[..., Path]
) -> None:
    # given a served version, and a command that has switched to the next one without committing it
    deploy(target, "one", bento("one"))
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from health_predict.adapters.serving.processes import ProcessTarget\n"
        "from health_predict.settings import load_settings\n"
        "with ProcessTarget(load_settings()).rollout() as rollout:\n"
        "    rollout.start('oci:images@sha256:two', 'two', Path(sys.argv[1]))\n"
        "    rollout.switch()\n"
        "    print('switched', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", script, str(bento("two"))],
        stdout=subprocess.PIPE,
        env={**os.environ, **settings.environment()},
    )
    assert command.stdout is not None
    assert command.stdout.readline() == b"switched\n"
    candidate = predict(target.url)
    assert candidate["model_version"] == "two"
    # when the command is killed
    command.kill()
    command.communicate()
    # then the next command gives the traffic back to the version before, and the candidate ends
    active = target.active()
    assert active is not None and active.model_version == "one"
    assert predict(target.url)["model_version"] == "one"
    until(lambda: gone(candidate["pid"]))
    with target.rollout():
        pass  # and the next rollout need not wait


def test_a_killed_worker_is_replaced(target: ProcessTarget, bento: Callable[..., Path]) -> None:
    # given a served version
    deploy(target, "one", bento("one"))
    before = predict(target.url)["pid"]
    # when its worker is killed
    os.kill(before, signal.SIGKILL)
    until(lambda: gone(before))
    # then the next request waits for the one that replaces it
    assert predict(target.url)["pid"] != before
    active = target.active()
    assert active is not None and active.restarts == 1 and active.workers == (f"process {predict(target.url)['pid']}",)


@pytest.mark.slow
def test_a_version_that_keeps_crashing_is_given_up(target: ProcessTarget, bento: Callable[..., Path]) -> None:
    # given a version that starts as a candidate and as a server, and never again
    init = (
        "marks = [__file__ + end for end in '12' if not os.path.exists(__file__ + end)]; "
        "marks or os._exit(7); open(marks[0], 'w').close()"
    )
    deploy(target, "one", bento("one", init=init))
    # when its worker crashes
    with pytest.raises(OSError), urllib.request.urlopen(f"{target.url}/crash", timeout=20) as response:
        response.read()
    # then after a few attempts the endpoint ends and says why
    until(lambda: target.place() == {})
    assert target.active() is None
    assert "given up: its workers ended" in target.trouble()
    # and `down` settles it
    assert target.stop() is False
    assert target.trouble() == ""


def test_a_killed_manager_takes_its_workers_along_and_is_replaced(
    target: ProcessTarget, bento: Callable[..., Path]
) -> None:
    # given a served version
    folder = bento("one")
    deploy(target, "one", folder)
    worker = predict(target.url)["pid"]
    # when the manager is killed
    os.kill(manager_pid(target), signal.SIGKILL)
    # then its worker ends, the stale files are recognised, and a new rollout gets the same port
    until(lambda: target.active() is None)
    assert "was killed" in target.trouble()
    deploy(target, "one", folder)
    assert gone(worker)
    assert predict(target.url)["model_version"] == "one" and target.trouble() == ""


def test_requests_under_way_are_answered_when_it_is_stopped(target: ProcessTarget, bento: Callable[..., Path]) -> None:
    # given a request that takes a second
    deploy(target, "one", bento("one"))
    manager = manager_pid(target)
    worker = predict(target.url)["pid"]
    connection = http.client.HTTPConnection("127.0.0.1", target._settings.serving_port, timeout=20)
    connection.request("GET", "/slow")
    predict(target.url)  # by now the other was accepted too
    # when the manager gets SIGTERM
    os.kill(manager, signal.SIGTERM)
    # then the request is answered before everything ends
    assert json.loads(connection.getresponse().read()) == {"model_version": "one", "threads": "1"}
    connection.close()
    until(lambda: gone(manager) and gone(worker))
    assert target.trouble() == ""
    assert target.stop() is False


def test_a_worker_that_stops_says_close_for_good(tmp_path: Path) -> None:
    worker = bento_worker.Worker(None, tmp_path, Settings())
    worker.config.load()
    worker.servers = []
    # when it is told, and uvicorn makes its list of headers anew
    worker.stop_accepting()
    asyncio.run(worker.on_tick(0))
    assert worker.server_state.default_headers.count(bento_worker.CLOSE) == 1


def test_a_worker_that_is_to_end_loses_no_open_connection(target: ProcessTarget, bento: Callable[..., Path]) -> None:
    # given a client that keeps its connection
    deploy(target, "one", bento("one"))
    connection = http.client.HTTPConnection("127.0.0.1", target._settings.serving_port, timeout=20)

    def ask() -> tuple[int, bool]:
        connection.request("POST", "/predict", b"{}")
        response = connection.getresponse()
        return json.loads(response.read())["pid"], response.getheader("connection") == "close"

    worker, leave = ask()
    # when the worker gets SIGTERM
    os.kill(worker, signal.SIGTERM)
    # then it answers there until it has asked the client to leave
    while not leave:
        answered, leave = ask()
        assert answered == worker
    connection.close()

    # and another takes its place
    def successor() -> tuple[str, ...]:
        active = target.active()
        return () if active is None else active.workers

    until(lambda: successor() not in ((), (f"process {worker}",)))
    assert successor() == (f"process {predict(target.url)['pid']}",)
    assert gone(worker)


def test_several_workers_serve_one_version(settings: Settings, bento: Callable[..., Path]) -> None:
    # given two workers a version
    target = ProcessTarget(settings.model_copy(update={"serving_workers": 2}))
    deploy(target, "one", bento("one"))
    try:
        active = target.active()
        assert active is not None and len(active.workers) == 2
        # when a rollout asks for another number, then it is refused
        with pytest.raises(StateError, match="with 2 workers"), ProcessTarget(settings).rollout():
            pass
        # and so is another port
        moved = ProcessTarget(settings.model_copy(update={"serving_workers": 2, "serving_port": free_port()}))
        with pytest.raises(StateError, match="the settings say"), moved.rollout():
            pass
        # and nobody but the owner comes to its control socket
        control = Path(json.loads((target.folder / "manager.json").read_text())["control"])
        assert oct(control.stat().st_mode & 0o777) == "0o700" and (control / "control").is_socket()
        assert predict(target.url)["model_version"] == "one"
    finally:
        assert target.stop() is True


def test_a_taken_port_is_named(settings: Settings, target: ProcessTarget) -> None:
    with (
        socket.create_server(("127.0.0.1", settings.serving_port)),
        pytest.raises(UnreachableError, match=rf"port 127.0.0.1:{settings.serving_port} is taken") as caught,
        target.rollout(),
    ):
        pass
    assert "HEALTH_PREDICT_SERVING_PORT" in caught.value.remedy


def test_an_address_of_another_machine_is_refused(settings: Settings, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch()
    settings = settings.model_copy(update={"serving_tokens": str(tokens)})
    elsewhere = ProcessTarget(settings.model_copy(update={"serving_host": "192.0.2.1"}))
    with pytest.raises(UnreachableError, match="cannot be had"), elsewhere.rollout():
        pass
    nowhere = ProcessTarget(settings.model_copy(update={"serving_host": "name.invalid"}))
    with pytest.raises(UnreachableError, match="cannot be had"), nowhere.rollout():
        pass


def test_rollouts_wait_for_each_other_with_a_deadline(settings: Settings, tmp_path: Path) -> None:
    # given a rollout under way
    impatient = ProcessTarget(settings.model_copy(update={"rollout_timeout": 0.2}))
    # when another begins, then it gives up after its deadline
    with impatient._alone(1), pytest.raises(UnreachableError, match="another rollout"), impatient.rollout():
        pass


def test_urls_name_an_address_that_a_client_can_use(settings: Settings) -> None:
    everywhere = ProcessTarget(settings.model_copy(update={"serving_host": "0.0.0.0", "serving_port": 3000}))
    assert everywhere.url == "http://127.0.0.1:3000"
    six = ProcessTarget(settings.model_copy(update={"serving_host": "::", "serving_port": 3000}))
    assert six.url == "http://[::1]:3000"


def test_the_settings_choose_the_target(settings: Settings) -> None:
    assert isinstance(open_target(settings), ProcessTarget)
    with pytest.raises(UnreachableError, match="no cluster is configured"):
        open_target(settings.model_copy(update={"serving_target": ServingTarget.KUBERNETES}))


def test_a_log_is_bounded(tmp_path: Path) -> None:
    # given a log that a worker has open for appending
    log = tmp_path / "serving.log"
    with log.open("ab", buffering=0) as stream:
        stream.write(b"x" * 100)
        # when it grew beyond its bound
        bound_log(log, 200)
        assert log.stat().st_size == 100
        bound_log(log, 99)
        stream.write(b"new")
    # then it is set aside and the worker goes on in the emptied file
    assert log.read_bytes() == b"new"
    assert (tmp_path / "serving.log.1").stat().st_size == 100


def test_descendants_are_ended_and_a_broken_link_is_seen() -> None:
    # given a child
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    # when
    end_descendants()
    # then
    assert child.wait() == -signal.SIGKILL
    # and the links to the parents of this process hold, those of the child do not
    links = parent_links()
    assert intact(links)
    assert not intact([(os.getpid(), child.pid)])
    assert not intact([*links[:1], (child.pid, os.getpid())])


@pytest.mark.parametrize("through_shell", [False, True], ids=["direct", "through a shell"])
def test_a_stage_ends_with_the_program_that_runs_it(through_shell: bool) -> None:
    # given a runner, maybe a shell, a stage that watches, and a child of the stage
    stage = (
        "import subprocess, sys, os\n"
        "from health_predict.adapters.parent_process import exit_with_parent\n"
        "exit_with_parent(poll_seconds=0.05)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(os.getpid(), child.pid, flush=True)\n"
        "child.wait()\n"
    )
    runner = (
        "import subprocess, sys\n"
        "stage = [sys.executable, '-c', sys.argv[1]]\n"
        "if sys.argv[2] == 'True': stage = ['sh', '-c', '\"$@\"; true', 'sh', *stage]\n"
        "subprocess.run(stage)\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", runner, stage, str(through_shell)], stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    pids = [int(pid) for pid in running.stdout.readline().split()]
    assert not any(gone(pid) for pid in pids)
    # when the runner is killed
    running.kill()
    running.wait()
    # then neither of them is left
    until(lambda: all(gone(pid) for pid in pids))
    running.stdout.close()
