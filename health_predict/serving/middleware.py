"""What stands between a client and BentoML, as ASGI middleware: limits, the wording of refusals, and counts.

BentoML validates with the models of the contract, but it takes bodies of any size, type and slowness, answers a wrong
one with 400 and logs it with its values. Here such an answer becomes a 422 that names every violation.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from starlette.authentication import AuthCredentials, SimpleUser
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware

from health_predict.adapters.tokens import Role, TokenFile
from health_predict.serving.metrics import Metrics
from health_predict.serving.predictor import MEBIBYTE, Predictor
from health_predict.serving.schemas import Options, Problem, Violation, Violations, violations, worded

# How much of a body that is too large is read before the refusal.
DRAINED_BYTES = 128 * MEBIBYTE
WAITING_BATCHES, WAITING_EXPLANATIONS = 16, 32
# Of these nobody writes down who asked.
PROBES = frozenset({"/livez", "/healthz", "/readyz"})
# Probes, and what tells nothing about the model that serves.
OPEN = PROBES | {"/health", "/", "/docs", "/docs.json", "/schema.json"}
NOBODY, CLIENT, ALL = AuthCredentials(), AuthCredentials([Role.CLIENT]), AuthCredentials([*Role])

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    """What a path takes: the model and the largest size of its body, and how long it may take to arrive."""

    model: type[BaseModel]
    bytes: int
    seconds: float
    most: int
    """How many requests may be under way."""
    held: int
    """How many bytes of bodies a worker holds at once; at least `bytes`."""
    explains: bool = False
    values: int = 0
    """How many values a body may have, so that reading it takes no more memory than an honest one; 0: any number."""
    alone: bool = False
    """Whether one is read and scored at a time: what a body is read into takes many times its size."""


access = logging.getLogger("health_predict.access")


class RefusalError(Exception):
    """A request that is answered with a problem and goes no further."""

    def __init__(self, status: int, answer: str | Violations, *, close: bool = False, **headers: str) -> None:
        super().__init__(status)
        self.status = status
        self.answer = answer if isinstance(answer, Violations) else Problem(detail=answer)
        self.headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self.headers += [(b"connection", b"close")] if close else []


class DisconnectedError(Exception):
    """The client went away before its body was complete."""


def options_of(query: bytes) -> Options:
    """What a query asks for. Raises ValidationError."""
    if not query:
        return Options()
    return Options.model_validate(dict(parse_qsl(query.decode("ascii", "replace"), keep_blank_values=True)))


class Door:
    """Lets in who has a token; without a file of tokens, who asks from this machine."""

    def __init__(self, tokens: TokenFile | None, metrics: Metrics) -> None:
        self._tokens, self._metrics = tokens, metrics

    @property
    def asks(self) -> bool:
        """Whether those who ask have names."""
        return self._tokens is not None

    def let_in(self, scope: Any) -> AuthCredentials:
        """The roles of the one who asks, none on an open path without a token. Raises RefusalError."""
        if self._tokens is None:
            # Whatever the server was told to listen on: the address that this connection came to counts.
            if scope["path"] not in OPEN and _reachable(*(scope.get("server") or ("", None))):
                raise self._refusal("none", "this endpoint has no file of tokens, so it answers its own machine only")
            return ALL
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if not given:
            if scope["path"] in OPEN:
                return NOBODY
            raise self._refusal("none", "send a token: Authorization: Bearer <token>")
        scheme, _, token = given[0].partition(b" ")
        holder = self._tokens.known(token.strip()) if len(given) == 1 and scheme.lower() == b"bearer" else None
        if holder is None:
            raise self._refusal("wrong", "the token is not one that this endpoint takes")
        self._metrics.called("taken")
        scope["user"] = SimpleUser(holder.name)
        return ALL if holder.role is Role.OPERATOR else CLIENT

    def _refusal(self, outcome: str, answer: str) -> RefusalError:
        self._metrics.called(outcome)
        return RefusalError(401, answer, close=True, www_authenticate="Bearer")


@lru_cache(64)
def _reachable(address: str, _: int | None) -> bool:
    """Whether other machines reach the server's end of a connection. That of a Unix socket is no address."""
    try:
        return not ip_address(address).is_loopback
    except ValueError:
        return False


class TrustedHosts(TrustedHostMiddleware):
    """Starlette's check of `Host`, which also takes any name without a dot: public DNS leads none of these here."""

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 400."""
        local = scope["type"] == "http" and re.fullmatch(r"[\w-]+(:\d+)?", Headers(scope=scope).get("host", ""))
        await (self.app if local else super().__call__)(scope, receive, send)


class Limits:
    """The middleware; `predictor` tells whether a model is ready and has the metrics."""

    def __init__(
        self,
        app: Application,
        predictor: Predictor,
        routes: dict[str, Route],
        others: frozenset[str],
        tokens: TokenFile | None = None,
    ) -> None:
        """`routes` are those with a body, `others` the remaining paths that are counted by their names."""
        self._app, self._predictor, self._routes = app, predictor, routes
        self._door = Door(tokens, predictor.metrics)
        self._names = {name: name for name in (*routes, *others)}
        self._under_way, self._held = dict.fromkeys(routes, 0), dict.fromkeys(routes, 0)
        self._explaining, self._batch, self._explanation = 0, asyncio.Lock(), asyncio.Lock()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, path = time.perf_counter(), 0, scope["path"]

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            route = self._routes.get(path)
            try:
                scope["auth"] = self._door.let_in(scope)
            except RefusalError:
                await _drain(scope, receive)
                raise
            if route is None:
                await self._app(scope, receive, counted)
            else:
                await self._post(route, path, scope, receive, counted)
        except RefusalError as refusal:
            body = refusal.answer.model_dump_json().encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            await counted(
                {"type": "http.response.start", "status": refusal.status, "headers": headers + refusal.headers}
            )
            await counted({"type": "http.response.body", "body": body})
        except DisconnectedError:
            return
        if status:
            name, seconds = self._names.get(path, "other"), time.perf_counter() - start
            self._predictor.metrics.answered(name, status, seconds)
            if self._door.asks and name not in PROBES:
                _tell(scope, name, status, seconds)

    async def _post(self, route: Route, path: str, scope: Any, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise RefusalError(405, "use POST", allow="POST")
        try:
            options = options_of(scope["query_string"])
        except ValidationError as error:
            raise RefusalError(422, Violations(detail=list(worded(error, ("query",))))) from None
        if not options.log and Role.OPERATOR not in scope["auth"].scopes:
            await _drain(scope, receive)
            raise RefusalError(403, "only an operator's token keeps a prediction out of the log", close=True)
        if options.explain and not (route.explains and self._predictor.explains):
            problem = (
                "this model has no explanation" if route.explains else "only /predict explains; send one encounter"
            )
            violation = Violation(loc=["query", "explain"], msg=problem, type="value_error")
            raise RefusalError(422, Violations(detail=[violation]))
        if self._under_way[path] >= route.most or (options.explain and self._explaining >= WAITING_EXPLANATIONS):
            raise _busy()
        held = Held(self._held, path, route.held)
        self._under_way[path] += 1
        self._explaining += options.explain
        try:
            body = await _body(route, held, scope, receive)
            if self._predictor.problem:
                raise RefusalError(503, self._predictor.problem)
            if route.values and sum(map(body.count, (b",", b"[", b"{"))) > route.values:
                violation = Violation(loc=["body"], msg="has more values than encounters have", type="too_long")
                raise RefusalError(422, Violations(detail=[violation]))
            async with AsyncExitStack() as turn:
                if route.alone or options.explain:
                    await turn.enter_async_context(self._batch if route.alone else self._explanation)
                await self._hand_on(route, body, scope, receive, send, turn)
        finally:
            self._under_way[path] -= 1
            self._explaining -= options.explain
            held.let_go()

    async def _hand_on(
        self, route: Route, body: bytes, scope: Any, receive: Receive, send: Send, turn: AsyncExitStack
    ) -> None:
        """Let BentoML answer this body; its refusals are worded anew."""
        whole: list[Message] = [{"type": "http.request", "body": body}]
        failed = 0

        async def replayed() -> Message:
            return whole.pop() if whole else await receive()

        async def worded_anew(message: Message) -> None:
            nonlocal failed
            status = message.get("status", 0)
            if status >= 400:
                failed = status
            elif status:
                await turn.aclose()  # who reads the answer slowly keeps nobody waiting
            if not failed:
                await send(message)

        await self._app(scope, replayed, worded_anew)
        if failed == 400:
            found = violations(route.model, body)
            if found:
                raise RefusalError(422, Violations(detail=found))
        if failed:
            raise RefusalError(500, "internal error")


def _tell(scope: Any, name: str, status: int, seconds: float) -> None:
    """Write down who asked what, as a line of JSON. Of the request only what is known by name: no value, no token."""
    caller = scope["user"].username if "user" in scope else None
    record = {"caller": caller, "method": scope["method"], "path": name, "status": status, "seconds": round(seconds, 4)}
    access.info(json.dumps(record))


class Held:
    """The bytes of one body among those that a worker holds for a path."""

    def __init__(self, counts: dict[str, int], path: str, most: int) -> None:
        self._counts, self._path, self._most, self._own = counts, path, most, 0

    def check(self, more: int) -> None:
        """Raises RefusalError when so many bytes more would be too many."""
        if self._counts[self._path] + more > self._most:
            raise _busy()

    def add(self, count: int) -> None:
        """Hold more bytes. Raises RefusalError when there are too many."""
        self.check(count)
        self._counts[self._path] += count
        self._own += count

    def let_go(self) -> None:
        """Hold none any more."""
        self._counts[self._path] -= self._own
        self._own = 0


def _busy() -> RefusalError:
    return RefusalError(503, "too many requests wait; try again later", close=True, retry_after="1")


async def _body(route: Route, held: Held, scope: Any, receive: Receive) -> bytes:
    """The whole body.

    Raises RefusalError for another type, one that is too large or too slow, or when others hold too much.
    """
    headers = dict(scope["headers"])
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RefusalError(415, "send the body uncompressed", close=True)
    if not _is_json(headers.get(b"content-type", b"")):
        raise RefusalError(415, "send application/json in UTF-8", close=True)
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length[:20]) > route.bytes:
        await _refuse_large(route, scope, receive)
    # What is announced is not counted until it comes: it need not come.
    held.check(int(length[:20]) if length.isdigit() else 0)
    try:
        async with asyncio.timeout(route.seconds):
            parts, size, more = [], 0, True
            while more and size <= route.bytes:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise DisconnectedError
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                held.add(len(parts[-1]))
                more = message.get("more_body", False)
    except TimeoutError:
        raise RefusalError(408, f"the body took longer than {route.seconds:.0f} s", close=True) from None
    if size > route.bytes:
        await _refuse_large(route, scope, receive, wait=more)
    return b"".join(parts)


async def _drain(scope: Any, receive: Receive) -> None:
    """Read some of what the client is still sending, or it would never see the answer."""
    if b"expect" in dict(scope["headers"]):
        return  # it waits for a word before it sends
    with suppress(TimeoutError):
        async with asyncio.timeout(5):
            size, more = 0, True
            while more and size < DRAINED_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)


async def _refuse_large(route: Route, scope: Any, receive: Receive, *, wait: bool = True) -> None:
    if wait:
        await _drain(scope, receive)
    raise RefusalError(413, f"the body is larger than {route.bytes // MEBIBYTE} MiB", close=True)


def _is_json(kind: bytes) -> bool:
    # JSON has no parameters: it is UTF-8, whatever they say (RFC 8259).
    return kind.lower().partition(b";")[0].strip() == b"application/json"


class WithoutValues(logging.Filter):
    """Keeps values of requests out of a log: of an exception only the type and the place are told.

    A refused request leaves no line: its answer says what is wrong, and the metrics count it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged; it is changed in place."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return True
        place = "".join(traceback.format_tb(error.__traceback__))
        record.msg, record.args = f"{record.getMessage()}: {type(error).__name__}\n{place}", ()
        record.exc_info = record.exc_text = None
        return not isinstance(error, ValidationError)


def keep_values_out_of_logs() -> None:
    """Filter all that this process writes to its log by what handlers it has now, and write down who asks what."""
    access.setLevel(logging.INFO)
    access.propagate = False
    access.handlers = [logging.StreamHandler(sys.stdout)]
    access.handlers[0].setFormatter(logging.Formatter("%(asctime)s access %(message)s"))
    logging.basicConfig()  # where nobody has set up a handler
    for name in ("", "bentoml"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(WithoutValues())
