"""One worker process of the local endpoint: uvicorn over an unpacked Bento, on a socket that the manager holds.

The socket is never closed there, so a connection that waits in its queue is taken by whoever accepts next. A worker
that is ready makes a file that is named by its process.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from health_predict.adapters.parent_process import exit_with_parent
from health_predict.settings import Settings, load_settings

KEEP_ALIVE_SECONDS = 5
# An idle connection ends by itself before: no request that is on its way is cut off.
PATIENCE_SECONDS = KEEP_ALIVE_SECONDS + 1
REQUEST_SECONDS = 10
# uvicorn bounds requests and their bodies, but not how many connections there are and how slowly a head arrives.
HEAD_SECONDS, MOST_CONNECTIONS = 10, 1000
CLOSE = (b"connection", b"close")


class Connection(H11Protocol):
    """A connection of uvicorn's that ends when the head of a request is late, or when there are too many of them."""

    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.close()
        else:
            self.late = self.loop.call_later(HEAD_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waits = self.conn.their_state is h11.IDLE  # for the rest of a head
        if waits and self.late is None:
            self.late = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        elif not waits:
            self.in_time()

    def connection_lost(self, exc: Exception | None) -> None:
        self.in_time()
        super().connection_lost(exc)

    def in_time(self) -> None:
        """The head is complete, or nobody sends it any more."""
        if self.late is not None:
            self.late.cancel()
            self.late = None


class Worker(uvicorn.Server):
    """A uvicorn server that tells when it is ready, and answers all who are connected before it ends."""

    def __init__(self, app: Any, version: Path, settings: Settings) -> None:
        self._file = version / str(os.getpid())
        super().__init__(
            uvicorn.Config(
                app,
                # By h11. Not httptools: of a request that offers another protocol it loses the body (uvicorn #2722).
                http=Connection,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                ssl_certfile=settings.serving_tls_certificate or None,
                ssl_keyfile=settings.serving_tls_key or None,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=REQUEST_SECONDS,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._file.touch()

    def stop_accepting(self) -> None:
        """Take no new connection; those that are open are closed with their next answer."""
        for server in self.servers:
            server.close()
        # With every answer; uvicorn makes its list anew each second.
        self.config.encoded_headers.append(CLOSE)
        self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stop_accepting()
        end = time.monotonic() + PATIENCE_SECONDS
        while self.server_state.connections and time.monotonic() < end:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def main(arguments: list[str]) -> None:
    """`bento_worker FOLDER VERSION_FOLDER SOCKET_FD`."""
    exit_with_parent(poll_seconds=0.2)  # of kill -9, too
    import bentoml

    app = bentoml.load(arguments[0]).to_asgi()
    Worker(app, Path(arguments[1]), load_settings()).run([socket.socket(fileno=int(arguments[2]))])


if __name__ == "__main__":
    main(sys.argv[1:])
