"""One worker process of the local endpoint: serves an unpacked Bento by uvicorn.

The manager holds two sockets for as long as it lives: `stable`, the endpoint's, and `probe`, where a candidate answers
outside the traffic. A worker accepts on the one that its version's orders name, or on neither. It never closes a socket
itself, so a connection that waits in its queue is taken by whoever accepts next. What the worker does at present stands
in a file that is named by its process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.lifespan.on import LifespanOn

from health_predict.adapters.parents import exit_with_parent
from health_predict.adapters.storage import whole_file

KEEP_ALIVE_SECONDS = 5
# An idle connection ends by itself before: no request that is on its way is cut off.
PATIENCE_SECONDS = KEEP_ALIVE_SECONDS + 1
REQUEST_SECONDS = 10
LOOK_SECONDS = 0.1
CLOSE = (b"connection", b"close")


def config(app: Any) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        # Not httptools: of a request that offers another protocol it loses the body (uvicorn #2722).
        http="h11",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=REQUEST_SECONDS,
    )


class Listener(uvicorn.Server):
    """A uvicorn server that leaves signals alone, and answers all who are connected before it ends."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop_accepting(self) -> None:
        """Take no new connection; those that are open are closed with their next answer, and then the server ends."""
        for server in self.servers:
            server.close()
        # With every answer; uvicorn makes its list anew each second.
        if CLOSE not in self.config.encoded_headers:
            self.config.encoded_headers.append(CLOSE)
        self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while self.server_state.connections and time.monotonic() < end:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


async def serve(app: Any, version: Path, sockets: dict[str, socket.socket]) -> None:
    """Do what the orders in the version's folder say, until told to end."""
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    lifespan = LifespanOn(config(app))
    await lifespan.startup()
    if lifespan.should_exit:
        raise SystemExit(1)
    does, listener, listening = "", None, []
    while not ending.is_set():
        orders = (version / "orders").read_text()
        if orders != does:
            if listener is not None:
                listener.stop_accepting()
                listener = None
            if orders in sockets:
                listener = Listener(config(app))
                listening.append(asyncio.create_task(listener.serve([sockets[orders].dup()])))
                while not listener.started:
                    await asyncio.sleep(0.01)
            does = orders
            say(version, does)
        await asyncio.sleep(LOOK_SECONDS)
    if listener is not None:
        listener.stop_accepting()
    await asyncio.gather(*listening)
    await lifespan.shutdown()


def say(version: Path, state: str) -> None:
    """Tell what this worker does."""
    with whole_file(version / str(os.getpid())) as temporary:
        temporary.write_text(state)


def main(arguments: list[str]) -> None:
    """`bento_worker FOLDER VERSION_FOLDER STABLE_FD PROBE_FD`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent(poll_seconds=0.2)  # of kill -9, too
    version = Path(arguments[1])
    say(version, "starting")
    import bentoml

    stable, probe = (socket.socket(fileno=int(number)) for number in arguments[2:])
    app = bentoml.load(arguments[0]).to_asgi()
    with asyncio.Runner(loop_factory=config(app).get_loop_factory()) as runner:
        runner.run(serve(app, version, {"stable": stable, "probe": probe}))


if __name__ == "__main__":
    main(sys.argv[1:])
