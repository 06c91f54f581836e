"""One worker process of the local endpoint: serves an unpacked Bento by uvicorn.

A port of its own is open from the start, for probes and golden requests. The stable socket, which the manager holds, is
accepted on only while the version's orders say so. It is never closed itself, so a connection that waits in its queue
is taken by whoever accepts next. What the worker does at present stands in a file that is named by its process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from health_predict.adapters.storage import whole_file

KEEP_ALIVE_SECONDS = 5
# An idle connection ends by itself before: no request that is on its way is cut off.
PATIENCE_SECONDS = KEEP_ALIVE_SECONDS + 1
REQUEST_SECONDS = 10
LOOK_SECONDS = 0.1
BACKLOG = 2048
CLOSE = (b"connection", b"close")


class Listener(uvicorn.Server):
    """A uvicorn server that leaves signals alone, and answers all who are connected before it ends."""

    def __init__(self, app: Any, lifespan: Any) -> None:
        options: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "log_config": None, "log_level": "warning"}
        # Not httptools: of a request that offers another protocol it loses the body (uvicorn #2722).
        options |= {"http": "h11"}
        options |= {"access_log": False, "server_header": False, "backlog": BACKLOG}
        options |= {"timeout_keep_alive": KEEP_ALIVE_SECONDS, "timeout_graceful_shutdown": REQUEST_SECONDS}
        super().__init__(uvicorn.Config(app, lifespan=lifespan, **options))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop_accepting(self) -> None:
        """Take no new connection; those that are open are closed with their next answer."""
        for server in self.servers:
            server.close()
        # With every answer; uvicorn makes its list anew each second.
        if CLOSE not in self.config.encoded_headers:
            self.config.encoded_headers.append(CLOSE)
        self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stop_accepting()
        end = time.monotonic() + PATIENCE_SECONDS
        while self.server_state.connections and time.monotonic() < end:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


class Worker:
    """Follows the orders of its version: wait, accept, retire."""

    def __init__(self, version: Path, stable: socket.socket) -> None:
        self._version = version
        self._stable = stable
        self._ending = asyncio.Event()
        self.retired = threading.Event()

    def say(self, state: str, port: int = 0) -> None:
        """Tell what this worker does: starting, wait, accept or retire."""
        with whole_file(self._version / str(os.getpid())) as temporary:
            temporary.write_text(f"{state} {port}")

    async def run(self, app: Any) -> None:
        """Serve until told to stop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._ending.set)
        own, serving = await _listen(Listener(app, "on"))
        port = own.servers[0].sockets[0].getsockname()[1]
        accepting: Listener | None = None
        shared: list[asyncio.Task[None]] = []
        does = ""
        while not self._ending.is_set():
            orders = (self._version / "orders").read_text()
            if orders == "accept" and accepting is None:
                accepting, task = await _listen(Listener(app, "off"), self._stable.dup())
                shared.append(task)
            elif orders != "accept" and accepting is not None:
                accepting.stop_accepting()
                accepting.should_exit, accepting = True, None
            if orders != does:
                does = orders
                if does == "retire":
                    break
                self.say(does, port)
            await asyncio.sleep(LOOK_SECONDS)
        own.stop_accepting()
        if accepting is not None:
            accepting.should_exit = True
        if does == "retire":
            self.retired.set()
            self.say(does)
        await asyncio.gather(*shared)
        own.should_exit = True  # the application's own end, after the last answer
        await serving


async def _listen(listener: Listener, stable: socket.socket | None = None) -> tuple[Listener, asyncio.Task[None]]:
    task = asyncio.create_task(listener.serve(sockets=[stable] if stable else None))
    while not listener.started:
        if task.done():
            task.result()
            raise SystemExit(1)
        await asyncio.sleep(0.01)
    return listener, task


def _end_with(parent: int, retired: threading.Event) -> None:
    """End when the manager dies, even by kill -9; one that retires only finishes what it has."""
    while os.getppid() == parent:
        time.sleep(0.2)
    if not retired.is_set():
        os._exit(1)


def main(arguments: list[str]) -> None:
    """`bento_worker FOLDER VERSION_FOLDER STABLE_FD`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(Path(arguments[1]), socket.socket(fileno=int(arguments[2])))
    worker.say("starting")
    threading.Thread(target=_end_with, args=(os.getppid(), worker.retired), daemon=True).start()
    import bentoml

    app = bentoml.load(arguments[0]).to_asgi()
    with asyncio.Runner(loop_factory=uvicorn.Config(app, log_config=None).get_loop_factory()) as runner:
        runner.run(worker.run(app))


if __name__ == "__main__":
    main(sys.argv[1:])
