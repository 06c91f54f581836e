"""One worker process of the local endpoint: serves an unpacked Bento on two sockets it inherited.

The private socket is open from the start, for probes and golden requests. The stable one, shared with the
workers of the other version, is accepted on only while the supervisor says so. It is never closed itself (the
supervisor holds it), so a connection that waits in its queue is taken by whoever accepts next.

Started by `health_predict.adapters.supervisor` only, which talks to it in JSON lines over a socket pair. When
that ends, the supervisor is dead and the worker exits at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

KEEP_ALIVE_SECONDS = 5
BACKLOG = 2048
CLOSE = (b"connection", b"close")


class _Listener(uvicorn.Server):
    """A uvicorn server on one inherited socket, which says when it listens and leaves signals alone."""

    def __init__(self, app: Any, lifespan: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan=lifespan,
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )
        self.listening = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.listening.set()

    def stop_accepting(self) -> None:
        """Close this process's handle of the socket; open connections go on and are closed with their next answer.

        An idle connection is not cut: a request may be on its way, and no client repeats a POST by itself.
        """
        if CLOSE not in self.config.encoded_headers:
            # With every answer; uvicorn makes its list anew each second.
            self.config.encoded_headers.append(CLOSE)
            self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]
        for server in self.servers:
            server.close()

    @property
    def idle(self) -> bool:
        return not self.server_state.connections and not self.server_state.tasks


class Control:
    """The supervisor's end of the socket pair. A thread reads it, so that the supervisor's death ends the worker
    even while it loads or while a request holds its loop."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        # The supervisor sends nothing before it heard `ready`, by when the worker has put its own function here.
        self.deliver: Callable[[dict[str, Any]], object] = lambda command: None
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            with self._channel.makefile("rb") as lines:
                for line in lines:
                    self.deliver(json.loads(line))
        finally:
            os._exit(1)

    def say(self, event: str) -> None:
        """Tell the supervisor that something is done."""
        self._channel.sendall(json.dumps({"event": event}).encode() + b"\n")


class Worker:
    """The commands of the supervisor: accept, pause, stop."""

    def __init__(self, app: Any, private: socket.socket, stable: socket.socket, control: Control) -> None:
        self._app = app
        self._private = private
        self._stable = stable
        self._control = control
        self._listeners: list[tuple[_Listener, asyncio.Task[None]]] = []
        self._accepting: _Listener | None = None
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Serve until told to stop."""
        loop = asyncio.get_running_loop()
        commands: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._control.deliver = lambda command: loop.call_soon_threadsafe(commands.put_nowait, command)
        # Long enough for every idle connection to end by itself.
        stop = {"do": "stop", "patience": KEEP_ALIVE_SECONDS + 1, "deadline": 10}
        loop.add_signal_handler(signal.SIGTERM, commands.put_nowait, stop)
        await self._listen_on(self._private, lifespan="on")
        self._control.say("ready")
        while not self._stopped.is_set():
            command = await commands.get()
            match command["do"]:
                case "accept" if self._accepting is None:
                    self._accepting = await self._listen_on(self._stable, lifespan="off")
                case "pause" if self._accepting is not None:
                    self._accepting.stop_accepting()
                    self._accepting = None
                case "stop":
                    await self._stop(patience=command["patience"], deadline=command["deadline"])
                    self._stopped.set()
            self._control.say(command["do"])

    async def _listen_on(self, inherited: socket.socket, lifespan: str) -> _Listener:
        listener = _Listener(self._app, lifespan)
        task = asyncio.create_task(listener.serve(sockets=[inherited.dup()]))
        listening = asyncio.create_task(listener.listening.wait())
        await asyncio.wait((task, listening), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            raise SystemExit(1)
        self._listeners.append((listener, task))
        return listener

    async def _stop(self, patience: float, deadline: float) -> None:
        """Give clients `patience` seconds to leave by themselves, then close; requests end within `deadline`."""
        for listener, _ in self._listeners:
            listener.stop_accepting()
        end = time.monotonic() + patience
        while time.monotonic() < end and not all(listener.idle for listener, _ in self._listeners[1:]):
            await asyncio.sleep(0.05)
        # The first listener runs the application's shutdown, so it ends last.
        for listener, task in reversed(self._listeners):
            listener.config.timeout_graceful_shutdown = max(1, int(deadline))
            listener.should_exit = True
            await task


def load_application(folder: Path) -> Any:
    """The ASGI application of an unpacked Bento, set up as `bentoml serve` does it in a worker."""
    from bentoml._internal.context import server_context
    from bentoml._internal.log import configure_server_logging
    from bentoml._internal.service.loader import load

    configure_server_logging()
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # not a line for each listener that opens
    server_context.worker_index = 1
    service = load(str(folder), standalone_load=True)
    server_context.service_type = "entry_service"
    server_context.service_name = service.name
    server_context.service_routes = [api.route for api in service.apis.values()]
    if service.bento is not None:
        server_context.bento_name = service.bento.tag.name
        server_context.bento_version = service.bento.tag.version or "not available"
    return service.to_asgi(is_main=True)


def set_environment(folder: Path) -> None:
    """The Bento's own environment variables, before anything that reads them is imported; those already set win."""
    import yaml

    bento = yaml.safe_load((folder / "bento.yaml").read_text(encoding="utf-8"))
    entries = list(bento.get("envs") or ())
    for service in bento.get("services") or ():
        entries.extend((service.get("config") or {}).get("envs") or ())
    for entry in entries:
        if entry.get("stage") != "build" and entry.get("value") is not None:
            os.environ.setdefault(entry["name"], str(entry["value"]))


def main(arguments: list[str]) -> None:
    """`bento_worker FOLDER CONTROL_FD PRIVATE_FD STABLE_FD`."""
    folder = Path(arguments[0])
    channel, private, stable = (socket.socket(fileno=int(number)) for number in arguments[1:4])
    control = Control(channel)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_environment(folder)
    app = load_application(folder)

    async def run() -> None:
        await Worker(app, private, stable, control).run()

    with asyncio.Runner(loop_factory=uvicorn.Config(app, log_config=None).get_loop_factory()) as runner:
        runner.run(run())


if __name__ == "__main__":
    main(sys.argv[1:])
