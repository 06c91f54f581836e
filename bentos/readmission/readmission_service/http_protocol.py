"""uvicorn's HTTP/1.1 protocol with a shorter way for the request that this service is there for.

A `POST /predict` that has arrived whole and can be scored is answered where its last byte was parsed: without a task,
without the ASGI messages, with one write. They cost more than the model does. Clients repeat themselves, so a head
that was parsed once is known again by its bytes. Every other request, and every one that is wrong in any way, takes
uvicorn's usual way to the ASGI application, which also words all refusals.
"""

from __future__ import annotations

from typing import Any

import uvicorn.protocols.http.auto
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from readmission_service.application import Application

END = b"\r\n\r\n"
# Heads that are known again: how long and how many.
LONGEST_HEAD, MOST_HEADS = 2048, 4096


def install(application: Application) -> None:
    """Let every uvicorn server of this process that is configured from now on speak through `PredictProtocol`.

    BentoML chooses uvicorn's `auto` protocol and lets nobody choose another.
    """
    uvicorn.protocols.http.auto.AutoHTTPProtocol = protocol_of(application)


def protocol_of(application: Application) -> type[PredictProtocol]:
    """The protocol whose connections ask this application."""
    return type("PredictProtocol", (PredictProtocol,), {"application": application, "heads": {}})


class PredictProtocol(HttpToolsProtocol):
    """One connection. The first two attributes are set by `protocol_of`."""

    application: Application
    heads: dict[bytes, int]
    """Heads of requests that were answered at once and left the connection open, with the lengths of their bodies."""
    _segment: bytes | None = None
    """What is being parsed, if it began with a request."""
    _within = False
    """Whether a request has begun and its last byte is not parsed."""
    _held: Any = None
    """The request whose body is being parsed: neither way is taken yet."""
    _head: tuple[Any, bytes, bool] = (None, b"", False)
    """uvicorn's default headers, a new list each second; the answer's head with them; whether they say `close`."""

    def data_received(self, data: bytes) -> None:
        """Answer or parse; a body that goes on in the next segment is left to the ASGI application."""
        if not self._within and (self.cycle is None or self.cycle.response_complete):
            at = data.find(END, 0, LONGEST_HEAD)
            if self.heads.get(data[:at]) == len(data) - at - len(END) and not self.flow.write_paused:
                answer = self.application.score_at_once(data[at + len(END) :])
                if answer is not None:
                    self._write(answer, keep_alive=True)
                    return
        self._segment = None if self._within else data
        super().data_received(data)
        self._segment = None
        if self._held is not None:
            cycle, self._held = self._held, None
            super()._start_asgi_task(cycle, self.app)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._within = True
        super().on_message_begin()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        # Called when the headers are parsed, or when the requests before it have been answered. The application is
        # another where uvicorn limits how many requests it takes.
        if app is self.app and self._segment is not None and cycle.more_body and cycle.scope["path"] == "/predict":
            self._held = cycle
        else:
            super()._start_asgi_task(cycle, app)

    def on_message_complete(self) -> None:
        """Answer the request if it can be, else start its ASGI application."""
        self._within = False
        super().on_message_complete()
        if self._held is None:
            return
        cycle, self._held = self._held, None
        answer = None
        if not cycle.waiting_for_100_continue and not self.flow.write_paused and self.application.plain(cycle.scope):
            answer = self.application.score_at_once(bytes(cycle.body))
        if answer is None:
            super()._start_asgi_task(cycle, self.app)
            return
        if cycle.keep_alive and self.limit_concurrency is None:
            self._remember(len(cycle.body))
        cycle.response_started = cycle.response_complete = True
        self._write(answer, keep_alive=cycle.keep_alive)

    def _remember(self, length: int) -> None:
        """Keep the head of the segment, if the segment is this request and nothing else."""
        assert self._segment is not None
        at = self._segment.find(END, 0, LONGEST_HEAD)
        # A body in chunks is longer than what it holds.
        if at > 0 and len(self._segment) - at - len(END) == length:
            if len(self.heads) >= MOST_HEADS:
                self.heads.clear()
            self.heads[self._segment[:at]] = length

    def _write(self, answer: bytes, *, keep_alive: bool) -> None:
        headers, head, closing = self._head
        if headers is not self.server_state.default_headers:
            headers, head, closing = self._head = self._new_head()
        if keep_alive and not closing:
            self.transport.write(b"%b%d\r\n\r\n%b" % (head, len(answer), answer))
        else:
            close = b"" if closing else b"\r\nconnection: close"
            self.transport.write(b"%b%d%b\r\n\r\n%b" % (head, len(answer), close, answer))
            self.transport.close()
        self.on_response_complete()

    def _new_head(self) -> tuple[Any, bytes, bool]:
        headers = self.server_state.default_headers
        lines = [b"%b: %b\r\n" % header for header in headers]
        head = b"".join([STATUS_LINE[200], *lines, b"content-type: application/json\r\ncontent-length: "])
        return headers, head, (b"connection", b"close") in headers
