"""A load client for HTTP/1.1 on loopback: one thread, one epoll, requests prepared beforehand.

The same client asks every service of a benchmark, so that what it costs is the same for all. It opens a connection
again when the server asks for it, and tells apart what was answered, refused and lost.
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

CONNECT_SECONDS = 5.0
# A request without an answer for so long is lost.
ANSWER_SECONDS = 30.0


def post(path: str, body: bytes, kind: bytes = b"application/json", token: str = "") -> bytes:
    """The bytes of a POST request with a body of that type, and with a token where one is asked for."""
    sent = f"Authorization: Bearer {token}\r\n" if token else ""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{sent}Content-Length: {len(body)}\r\nContent-Type: "
    return head.encode() + kind + b"\r\n\r\n" + body


@dataclass
class Result:
    """What came of the requests of one run."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    """Of each answer, in seconds, from the moment at which the request was due."""
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    """Requests that were sent and never answered."""

    @property
    def answered(self) -> int:
        """Number of answers with status 200."""
        return self.statuses[200]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return sum(self.statuses.values()) / self.seconds

    def milliseconds(self, *percentiles: float) -> npt.NDArray[np.float64]:
        """Percentiles of the latencies."""
        return np.asarray(np.percentile(np.array(self.latencies), percentiles) * 1000, dtype=np.float64)


class _Connection:
    """A socket, what was read of an answer, and when its request was due; 0 when it is free."""

    __slots__ = ("buffer", "due", "end", "socket")

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self.buffer = b""
        self.due = 0.0
        self.end = 0

    def reset(self) -> None:
        self.buffer, self.due, self.end = b"", 0.0, 0


def run(
    port: int,
    requests: Iterable[bytes],
    *,
    connections: int,
    seconds: float = math.inf,
    rate: float = 0.0,
    on_answer: Callable[[bytes], None] | None = None,
) -> Result:
    """Ask over some connections, the requests in turn, until they or the seconds are at their end.

    `rate` 0: each connection asks again as soon as it is answered. Otherwise so many requests a second are due at
    even distances, whether the service keeps up or not. `on_answer` gets the body of each answer of status 200.
    """
    result = Result()
    with _Pool(port, connections, result, on_answer) as pool:
        begin = time.perf_counter()
        end = begin + seconds
        for sent, request in enumerate(requests):
            due = begin + sent / rate if rate else 0.0
            while (now := time.perf_counter()) < end and (now < due or not pool.free):
                pool.wait(min(0.05, max(0.0, due - now)) if pool.free else 0.05)
            if now >= end:
                break
            pool.send(request, due or now)
        result.seconds = time.perf_counter() - begin
        limit = time.perf_counter() + ANSWER_SECONDS
        while pool.busy and time.perf_counter() < limit:
            pool.wait(0.05)
        result.lost += pool.busy
    return result


class _Pool:
    def __init__(self, port: int, size: int, result: Result, on_answer: Callable[[bytes], None] | None) -> None:
        self._port, self._result, self._on_answer = port, result, on_answer
        self._epoll = select.epoll()
        self._by_descriptor: dict[int, _Connection] = {}
        self.free: deque[_Connection] = deque()
        self.busy = 0
        for _ in range(size):
            self._open()

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._by_descriptor.values():
            connection.socket.close()
        self._epoll.close()

    def _open(self) -> None:
        opened = socket.create_connection(("127.0.0.1", self._port), CONNECT_SECONDS)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(opened)
        self._by_descriptor[opened.fileno()] = connection
        self._epoll.register(opened.fileno(), select.EPOLLIN)
        self.free.append(connection)

    def _close(self, connection: _Connection) -> None:
        descriptor = connection.socket.fileno()
        self._epoll.unregister(descriptor)
        del self._by_descriptor[descriptor]
        connection.socket.close()
        self._open()

    def send(self, request: bytes, due: float) -> None:
        connection = self.free.popleft()
        connection.due = due
        self.busy += 1
        try:
            connection.socket.sendall(request)
        except OSError:
            self._lose(connection)

    def wait(self, timeout: float) -> None:
        for descriptor, _ in self._epoll.poll(timeout):
            connection = self._by_descriptor.get(descriptor)
            if connection is not None:
                self._read(connection)

    def _lose(self, connection: _Connection) -> None:
        self._result.lost += 1
        self.busy -= 1
        self._close(connection)

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(1 << 18)
        except OSError:
            data = b""
        if not data:
            if connection.due:
                self._lose(connection)
            else:
                self.free.remove(connection)
                self._close(connection)
            return
        buffer = connection.buffer = connection.buffer + data if connection.buffer else data
        if not connection.end:
            head = buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            at = buffer[:head].lower().index(b"content-length:") + 15
            connection.end = head + 4 + int(buffer[at : buffer.find(b"\r", at)])
        if len(buffer) < connection.end:
            return
        self._result.latencies.append(time.perf_counter() - connection.due)
        status = int(buffer[9:12])
        self._result.statuses[status] += 1
        head = buffer.index(b"\r\n\r\n")
        if status == 200 and self._on_answer is not None:
            self._on_answer(buffer[head + 4 :])
        closing = b"connection: close" in buffer[:head].lower()
        connection.reset()
        self.busy -= 1
        if closing:
            self._close(connection)
        else:
            self.free.append(connection)
