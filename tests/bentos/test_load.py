"""What one client may take: memory, connections and time of the service."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import psutil
import pytest
import uvicorn

from health_predict.adapters.serving import bento_worker
from health_predict.core.data.cohort import as_requests
from health_predict.serving import middleware
from health_predict.serving.middleware import Route
from tests.contracts import DIABETES
from tests.processes import wait_for
from tests.services import Client, Source, imported

MEBIBYTE = 2**20
EXAMPLE = DIABETES.request
# Of k8s/base/readmission-api.yaml, without the process of `bentoml serve` that waits for the worker.
POD_BYTES = (768 - 110) * MEBIBYTE
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import service, socket, uvicorn
app = service.Readmission.to_asgi()
config = uvicorn.Config(app, lifespan="on", log_config=None, http="h11", access_log=False)
uvicorn.Server(config).run([socket.socket(fileno=int(sys.argv[2]))])
"""


@pytest.fixture
def process(source: Source, tmp_path: Path) -> Iterator[tuple[psutil.Process, str]]:
    """A worker of its own process, as in a pod, and its address."""
    with ExitStack() as ending:
        listener = ending.enter_context(socket.create_server(("127.0.0.1", 0)))
        log = ending.enter_context((tmp_path / "log.txt").open("wb"))
        command = [sys.executable, "-c", PROGRAM, str(source()), str(listener.fileno())]
        settings = {"HEALTH_PREDICT_PREDICTION_LOG": str(tmp_path / "log"), "BENTOML_DO_NOT_TRACK": "true"}
        started = subprocess.Popen(
            command, env={**os.environ, **settings}, pass_fds=[listener.fileno()], stdout=log, stderr=log
        )
        ending.callback(started.wait)
        ending.callback(started.kill)
        url = "http://{}:{}".format(*listener.getsockname())
        listener.close()
        wait_for(lambda: started.poll() is not None or _answers(url), seconds=120)
        yield psutil.Process(started.pid), url


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def hungry(rows: list[dict[str, Any]]) -> dict[str, tuple[str, bytes]]:
    """Paths and bodies that take the most: at the largest size, and of valid encounters."""
    most = 32 * MEBIBYTE
    return {
        "empty lists": ("/predict/batch", b"[" + b"[]," * (most // 3 - 2) + b"[]]"),
        "numbers": ("/predict/batch", b"[" + b"1," * (most // 2 - 2) + b"1]"),
        "one wide text": ("/predict/batch", b'["\xf0\x9f\x98\x80' + b"a" * (most - 10) + b'"]'),
        "encounters": ("/predict/batch", json.dumps(rows).encode()),
        "explanations": ("/predict?explain=true", json.dumps(EXAMPLE).encode()),
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="skipped: only Linux tells the most memory that a process had")
def test_one_client_cannot_take_the_memory_of_a_pod(process: tuple[psutil.Process, str], cohort: pd.DataFrame) -> None:
    # given a worker, and a client that sends what takes the most, again and again at once
    worker, url = process
    place = httpx.URL(url)
    rows = (as_requests(cohort, DIABETES.features) * 4)[:10_000]
    statuses: Counter[str] = Counter()

    def send(path: str, body: bytes) -> None:
        with socket.create_connection((place.host, place.port or 80), 120) as wire:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            with suppress(OSError):  # it may be refused before the end
                wire.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            try:
                statuses[wire.recv(4096)[9:12].decode()] += 1
            except OSError:
                statuses["closed"] += 1

    for path, body in hungry(rows).values():
        clients = [threading.Thread(target=send, args=(path, body)) for _ in range(40 if "?" in path else 12)]
        for client in clients:
            client.start()
        # when others ask meanwhile, then they are answered
        while any(client.is_alive() for client in clients):
            assert httpx.post(f"{url}/predict", json=EXAMPLE, timeout=60).status_code == 200
        assert httpx.get(f"{url}/readyz", timeout=60).status_code == 200
    # and the worker never had more than its pod has
    peak = int(Path(f"/proc/{worker.pid}/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    assert peak < POD_BYTES, f"{peak / MEBIBYTE:.0f} MiB"
    assert set(statuses) <= {"200", "422", "503", "closed"} and statuses["503"]


class Exchange:
    """A request to the middleware alone, sent and answered in steps."""

    def __init__(self, limits: middleware.Limits, path: str = "/predict/batch", query: bytes = b"") -> None:
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.answer: list[Any] = []
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": query, "headers": headers}

        async def keep(message: Any) -> None:
            self.answer.append(message)

        self.task = asyncio.ensure_future(limits(scope, self.sent.get, keep))

    async def send(self, body: bytes, *, more: bool) -> None:
        await self.sent.put({"type": "http.request", "body": body, "more_body": more})
        for _ in range(20):  # the turns of the loop that it may need
            await asyncio.sleep(0)

    async def status(self) -> int:
        await asyncio.wait_for(self.task, 20)
        return int(self.answer[0]["status"])


class TestWhatAWorkerHolds:
    def limits(self, client: Client, app: Any, **route: Any) -> middleware.Limits:
        model = client.predictor._encounter
        values = {"bytes": 100, "seconds": 20.0, "most": 10, "held": 150, "alone": True, **route}
        return middleware.Limits(app, client.predictor, {"/predict/batch": Route(model, **values)}, frozenset())

    @staticmethod
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def test_bodies_above_the_budget_are_asked_to_come_again(self, client: Client) -> None:
        async def story() -> None:
            limits = self.limits(client, self.answer)
            # given two bodies on their way, as much as a worker holds
            first, second = Exchange(limits), Exchange(limits)
            await first.send(b" " * 90, more=True)
            await second.send(b" " * 60, more=True)
            # when a third arrives, then it is refused, and told when to come again
            third = Exchange(limits)
            await third.send(b" " * 10, more=False)
            assert await third.status() == 503 and (b"retry-after", b"1") in third.answer[0]["headers"]
            # and when the first are answered, or have gone, there is room again
            await first.send(b"", more=False)
            assert await first.status() == 200
            await second.sent.put({"type": "http.disconnect"})
            await asyncio.wait_for(second.task, 20)
            fourth = Exchange(limits)
            await fourth.send(b" " * 100, more=False)
            assert await fourth.status() == 200

        asyncio.run(story())

    def test_one_batch_at_a_time_is_read_and_nobody_waits_for_a_slow_reader(self, client: Client) -> None:
        async def story() -> None:
            read, begun, taken = 0, asyncio.Event(), asyncio.Event()

            async def app(scope: Any, receive: Any, send: Any) -> None:
                nonlocal read
                read += 1
                await begun.wait()
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await taken.wait()  # its client does not read on
                await send({"type": "http.response.body", "body": b""})

            # given two whole batches
            limits = self.limits(client, app)
            first, second = Exchange(limits), Exchange(limits)
            for one in (first, second):
                await one.send(b"[]", more=False)
            # then one is handed on, and the other as soon as the answer to the first begins
            assert read == 1
            begun.set()
            await second.send(b"", more=False)
            assert read == 2
            taken.set()
            assert (await first.status(), await second.status()) == (200, 200)

        asyncio.run(story())

    def test_explanations_are_bounded(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(middleware, "WAITING_EXPLANATIONS", 0)
        answer = client.post("/predict?explain=true", json=EXAMPLE)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        assert client.predict(EXAMPLE).status_code == 200

    @pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
    def test_more_values_than_encounters_have_are_not_read(self, client: Client, path: str) -> None:
        body = b"[" + b"[]," * (MEBIBYTE // 4 if path == "/predict" else 2 * MEBIBYTE) + b"[]]"
        answer = client.raw(body, path)
        assert answer.status_code == 422 and "more values than" in answer.json()["detail"][0]["msg"]


class TestConnections:
    @pytest.fixture
    def place(self, source: Source, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
        """The service as a worker of the local endpoint speaks to its clients, with limits that a test can wait for."""
        monkeypatch.setattr(bento_worker, "HEAD_SECONDS", 0.5)
        monkeypatch.setattr(bento_worker, "MOST_CONNECTIONS", 3)
        app = imported(source()).Readmission.to_asgi()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = uvicorn.Server(uvicorn.Config(app, log_config=None, http=bento_worker.Connection))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            wait_for(lambda: server.started)
            yield listener.getsockname()
            server.should_exit = True
            thread.join(20)

    def closed(self, wire: socket.socket) -> bool:
        wire.settimeout(20)
        return wire.recv(4096) == b""

    @pytest.mark.parametrize("head", [b"", b"POST /predict HTTP/1.1\r\nHost: loc"])
    def test_a_head_that_is_late_is_waited_for_no_longer(self, place: tuple[str, int], head: bytes) -> None:
        with socket.create_connection(place, 20) as wire:
            wire.sendall(head)
            assert self.closed(wire)

    def test_nor_is_that_of_a_second_request(self, place: tuple[str, int]) -> None:
        with socket.create_connection(place, 20) as wire:
            wire.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert wire.recv(4096).startswith(b"HTTP/1.1 200")
            wire.sendall(b"GET /livez HT")
            assert self.closed(wire)

    def test_a_body_has_its_own_time(self, place: tuple[str, int]) -> None:
        body = json.dumps(EXAMPLE).encode()
        head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(place, 20) as wire, socket.create_connection(place, 20) as other:
            wire.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:10])
            assert self.closed(other)  # so long it takes until a head is late
            wire.sendall(body[10:])
            assert wire.recv(65536).startswith(b"HTTP/1.1 200")

    def test_there_are_only_so_many(self, place: tuple[str, int]) -> None:
        with ExitStack() as opened:
            first = opened.enter_context(socket.create_connection(place, 20))
            request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
            first.sendall(request)
            assert first.recv(4096).startswith(b"HTTP/1.1 200")
            others = [opened.enter_context(socket.create_connection(place, 20)) for _ in range(5)]
            for wire in others[2:]:
                assert self.closed(wire)
            first.sendall(request)
            assert first.recv(4096).startswith(b"HTTP/1.1 200")
