"""The HTTP interface as a small ASGI application.

It stands in front of BentoML's own application, which keeps the life cycle, the workers and the command line.
A request that is scored here passes none of BentoML's layers: they cost several times what the model does, and
their timeout leaves a timer behind for each finished request.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import numpy as np

from readmission_service.column_encoder import Entries
from readmission_service.contract import DECODER, ROWS_DECODER, Violation, limited, not_json, violations
from readmission_service.metrics import CONTENT_TYPE, Metrics
from readmission_service.openapi import document
from readmission_service.page import page
from readmission_service.prediction_log import PredictionLog, breaks
from readmission_service.scorer import Answer, Identity, MalformedCodeError, Scorer, new_ids
from readmission_service.settings import MEBIBYTE, ServiceSettings
from readmission_service.shipping import Shipper, Store, open_store

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# The largest body of /predict; that of a batch is a setting.
ENCOUNTER_BYTES = MEBIBYTE
# Prediction ids drawn at once.
IDS = 256
# Rows between two looks at the other requests.
PORTION = 512
# How long a body may take to arrive, and how much of one that is too large is read before the refusal.
BODY_SECONDS = {"/predict": 10.0, "/predict/batch": 30.0}
DRAINED_BYTES = 128 * MEBIBYTE
# Large batches that wait would hold their bodies in memory.
WAITING_BATCHES = 16

JSON = (b"content-type", b"application/json")
OTHER = "other"
ROUTES = ("/predict", "/predict/batch", "/health", "/livez", "/readyz", "/metrics", "/docs.json", "/", OTHER)
# What BentoML's own clients ask for.
BENTOML_PATHS = ("/schema.json",)


class RefusalError(Exception):
    """A request that is answered with a problem and nothing else."""

    def __init__(self, status: int, problem: str, *, close: bool = False) -> None:
        super().__init__(problem)
        self.status, self.problem, self.close = status, problem, close


class DisconnectedError(Exception):
    """The client went away before its body was complete."""


class Application:
    """Routes, and the model once `open` has loaded and checked it."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._limits = {"/predict": ENCOUNTER_BYTES, "/predict/batch": settings.batch_bytes}
        self._scorer: Scorer | None = None
        self._problem = "the model is being loaded"
        self._identity: Identity | None = None
        self._digest = ""
        self._log: PredictionLog | None = None
        self._shipper: Shipper | None = None
        self._metrics: Metrics | None = None
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._documents: dict[str, tuple[bytes, bytes]] = {}
        self._batch_turn: asyncio.Lock | None = None
        self._batches = 0
        self._ids: list[str] = []
        self._encode = msgspec.json.Encoder().encode
        self._gets: dict[str, Callable[[], tuple[int, bytes, bytes]]] = {
            "/health": self._health,
            "/livez": lambda: (200, b"text/plain; charset=utf-8", b"ok\n"),
            "/healthz": lambda: (200, b"text/plain; charset=utf-8", b"ok\n"),
            "/readyz": self._ready,
            "/metrics": self._metrics_text,
            "/docs.json": lambda: self._document("/docs.json"),
            "/": lambda: self._document("/"),
        }
        self._posts = {"/predict": self._predict, "/predict/batch": self._predict_batch}

    def open(self, folder: Path, digest: Callable[[], str]) -> None:
        """Load the model of `folder` and check its golden requests.

        A model that fails stays out of service: `/livez` answers, `/readyz` says 503 and why.
        """
        try:
            scorer = Scorer(folder, self._settings.threads)
            self._identity = scorer.identity
            self._digest = digest()
            scorer.check()
            store = self._store()
        except Exception as error:  # onnxruntime's have no base of their own
            self._problem = f"the model cannot be served: {error}"
            logger.error("%s", self._problem)
            return
        if self._metrics is None:
            self._metrics = Metrics(ROUTES, scorer.names, self._settings.metrics_folder)
        self._metrics.model(scorer.identity)
        self._open_log(self._metrics, store)
        openapi = document(scorer.identity, maximum_rows=self._settings.batch_rows, limits=self._limits)
        self._documents = {
            "/docs.json": (JSON[1], self._encode(openapi)),
            "/": (b"text/html; charset=utf-8", page(scorer.identity, self._warning(), openapi)),
        }
        self._problem = ""
        self._scorer = scorer

    def _store(self) -> Store | None:
        settings = self._settings
        if settings.prediction_log is None or not settings.storage_uri:
            return None
        return open_store(settings.storage_uri, settings.s3_endpoint_url)

    def _open_log(self, metrics: Metrics, store: Store | None) -> None:
        settings = self._settings
        if settings.prediction_log is None:
            return
        self._log = PredictionLog(
            settings.prediction_log,
            written=metrics.log_written.inc,
            dropped=metrics.log_dropped.inc,
            spooled=metrics.log_spool.set,
            file_seconds=settings.prediction_log_seconds,
            spool_bytes=settings.prediction_log_limit,
        )
        if store is not None:
            self._shipper = Shipper(
                settings.prediction_log, store, shipped=metrics.log_shipped.inc, failed=metrics.log_failures.inc
            )

    def close(self) -> None:
        """Finish the prediction log and ship it; count what waits to be counted."""
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._shipper is not None:
            self._shipper.close()
            self._shipper = None
        if self._metrics is not None:
            self._metrics.flush()

    def in_front_of(self, inner: Any) -> Any:
        """An ASGI application that answers the routes here and leaves the rest to `inner`."""
        return _Front(self, inner)

    async def answer(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        start = time.perf_counter()
        path, method = scope["path"], scope["method"]
        route = path if path in self._limits or path in self._documents or path in self._gets else OTHER
        route = "/livez" if route == "/healthz" else route
        kind, headers = JSON[1], []
        try:
            post = self._posts.get(path)
            if post is not None:
                if method != "POST":
                    headers = [(b"allow", b"POST")]
                    raise RefusalError(405, "use POST")
                status, body = await post(scope, receive)
            else:
                get = self._gets.get(path)
                if get is None:
                    raise RefusalError(404, "no such path; GET / lists them")
                if method not in ("GET", "HEAD"):
                    headers = [(b"allow", b"GET, HEAD")]
                    raise RefusalError(405, "use GET")
                status, kind, body = get()
        except RefusalError as refusal:
            status, body = refusal.status, self._encode({"detail": refusal.problem})
            if refusal.close:
                headers = [*headers, (b"connection", b"close")]
        except DisconnectedError:
            return
        except Exception as error:
            # Messages of exceptions may hold values of the request: only the type and the place are logged.
            place = "".join(traceback.format_tb(error.__traceback__))
            logger.error("unexpected %s\n%s", type(error).__name__, place)
            status, body = 500, self._encode({"detail": "internal error"})
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *headers],
            }
        )
        await send({"type": "http.response.body", "body": body})
        metrics = self._metrics
        if metrics is not None:
            metrics.answered(route, status, time.perf_counter() - start)

    # One encounter.

    async def _predict(self, scope: Any, receive: Receive) -> tuple[int, bytes]:
        body = await self._body(scope, receive, "/predict")
        scorer, metrics = self._scorer, self._metrics
        if scorer is None or metrics is None:
            raise RefusalError(503, self._problem)
        try:
            encounter = DECODER.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return 422, self._encode({"detail": limited(violations(body))})
        query = scope["query_string"]
        options, wrong = _options(query) if query else (NO_OPTIONS, [])
        if options.explain and scorer.explainer is None:
            wrong = [Violation(("query", "explain"), "this model has no explanation", "value_error")]
        if wrong:
            return self._violated(wrong)
        try:
            answer = self._scored(scorer, metrics, encounter, body, log=options.log)
        except MalformedCodeError:
            return self._violated(violations(body))
        if options.explain:
            # Not on the loop: a large forest takes some 50 ms.
            explanation = await asyncio.to_thread(scorer.explain, msgspec.structs.astuple(encounter))
            return 200, b'%b,"explanation":%b}' % (answer[:-1], self._encode(explanation))
        return 200, answer

    def _scored(self, scorer: Scorer, metrics: Metrics, encounter: Any, body: bytes, *, log: bool) -> bytes:
        """The answer to one encounter, counted and logged. Raises MalformedCodeError before it does either."""
        probability, unseen = scorer.score(msgspec.structs.astuple(encounter))
        answer = scorer.answer(probability, self._new_id())
        metrics.scored(probability, answer.prediction)
        for position in unseen:
            metrics.unseen[position].inc()
        encoded = self._encode(answer)
        if self._log is not None and log:
            self._log.append(encoded, body)
        return encoded

    def _new_id(self) -> str:
        if not self._ids:
            self._ids = new_ids(IDS)
        return self._ids.pop()

    def plain(self, scope: Any) -> bool:
        """Whether a request to `/predict` asks for nothing but the score of a body that is JSON as it stands."""
        headers = dict(scope["headers"])
        return (
            scope["method"] == "POST"
            and not scope["query_string"]
            and b"content-encoding" not in headers
            and _is_json(headers.get(b"content-type", b""))
        )

    def score_at_once(self, body: bytes) -> bytes | None:
        """The answer to a plain request with this body, if it can be scored.

        None: only `answer` can tell, and nothing was counted or logged.
        """
        start = time.perf_counter()
        scorer, metrics = self._scorer, self._metrics
        if scorer is None or metrics is None or len(body) > ENCOUNTER_BYTES:
            return None
        try:
            answer = self._scored(scorer, metrics, DECODER.decode(body), body, log=True)
        except Exception:  # `answer` meets it again, and words it
            return None
        metrics.answered("/predict", 200, time.perf_counter() - start)
        return answer

    # Many encounters.

    async def _predict_batch(self, scope: Any, receive: Receive) -> tuple[int, bytes]:
        options, wrong = _options(scope["query_string"])
        if options.explain:
            wrong = [Violation(("query", "explain"), "only /predict explains; send one encounter", "value_error")]
        if wrong:
            return self._violated(wrong)
        if self._batches >= WAITING_BATCHES:
            raise RefusalError(503, "too many batches wait; try again later", close=True)
        if self._batch_turn is None:
            self._batch_turn = asyncio.Lock()
        self._batches += 1
        try:
            body = await self._body(scope, receive, "/predict/batch")
            # One at a time: they would only slow each other down.
            async with self._batch_turn:
                return await self._score_batch(body, log=options.log)
        finally:
            self._batches -= 1

    async def _score_batch(self, body: bytes, *, log: bool) -> tuple[int, bytes]:
        scorer, metrics = self._scorer, self._metrics
        if scorer is None or metrics is None:
            raise RefusalError(503, self._problem)
        try:
            bodies = ROWS_DECODER.decode(body)
        except msgspec.ValidationError:
            return self._violated([Violation(("body",), "must be a list of encounters", "list_type")])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._violated([not_json(("body",))])
        if not bodies:
            return 200, self._encode([])
        most = self._settings.batch_rows
        if len(bodies) > most:
            return self._violated([Violation(("body",), f"must have at most {most} encounters", "too_long")])
        found: list[Entries] = []
        unseen: Counter[int] = Counter()
        wrong: list[Violation] = []
        for start in range(0, len(bodies), PORTION):
            await asyncio.sleep(0)
            portion, invalid = _decoded(bodies[start : start + PORTION])
            try:
                if portion:
                    entries, new = scorer.entries_of([msgspec.structs.astuple(encounter) for encounter in portion])
                    found.append(entries)
                    unseen.update(new)
            except MalformedCodeError as error:
                numbers = [number for number in range(len(portion) + len(invalid)) if number not in set(invalid)]
                invalid = sorted(invalid + [numbers[row] for row in error.rows])
            for number in invalid:
                wrong += violations(bodies[start + number], loc=("body", start + number))
                if len(limited(wrong)) < len(wrong):
                    return self._violated(wrong)
        if wrong:
            return self._violated(wrong)
        entries = np.concatenate(found, axis=1)
        answers: list[Answer] = []
        for start in range(0, len(bodies), scorer.portion):
            await asyncio.sleep(0)
            scores = scorer.score_many(entries[:, start : start + scorer.portion]).tolist()
            answers += map(scorer.answer, scores, new_ids(len(scores)))
        for position, count in unseen.items():
            metrics.unseen[position].inc(count)
        await asyncio.sleep(0)
        metrics.scored_many([answer.probability_score for answer in answers], [answer.prediction for answer in answers])
        broken = breaks(body)
        for start in range(0, len(bodies), PORTION):
            await asyncio.sleep(0)
            if self._log is not None and log:
                part = slice(start, start + PORTION)
                self._log.extend(answers[part], bodies[part], broken=broken)
        await asyncio.sleep(0)
        return 200, self._encode(answers)

    def _violated(self, found: list[Violation]) -> tuple[int, bytes]:
        return 422, self._encode({"detail": limited(found)})

    async def _body(self, scope: Any, receive: Receive, path: str) -> bytes:
        """The whole body. Raises RefusalError for another type, a body that is too large or too slow."""
        kind = b""
        limit = self._limits[path]
        for name, value in scope["headers"]:
            if name == b"content-type":
                kind = value
            elif name == b"content-length" and value.isdigit() and int(value[:20]) > limit:
                await self._refuse_large(scope, receive, limit)
            elif name == b"content-encoding" and value.lower() != b"identity":
                raise RefusalError(415, "send the body uncompressed", close=True)
        if kind != b"application/json" and not _is_json(kind):
            raise RefusalError(415, "send application/json in UTF-8", close=True)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False) and len(body) <= limit:
            return body
        try:
            async with asyncio.timeout(BODY_SECONDS[path]):
                parts, size, more = [body], len(body), message.get("more_body", False)
                while more and size <= limit:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise DisconnectedError
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RefusalError(408, f"the body took longer than {BODY_SECONDS[path]:.0f} s", close=True) from None
        if size > limit:
            await self._refuse_large(scope, receive, limit)
        return b"".join(parts)

    async def _refuse_large(self, scope: Any, receive: Receive, limit: int) -> None:
        """Read some of what the client is still sending, or it would never see the answer; then refuse."""
        waits = any(name == b"expect" for name, _ in scope["headers"])
        try:
            async with asyncio.timeout(5):
                size, more = 0, not waits
                while more and size < DRAINED_BYTES:
                    message = await receive()
                    size += len(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            pass
        raise RefusalError(413, f"the body is larger than {limit // MEBIBYTE} MiB", close=True)

    # What the service says about itself.

    def _warning(self) -> str:
        if self._identity is None or self._identity.dataset_source == "uci":
            return ""
        if self._identity.dataset_source == "synthetic":
            return "TRAINED ON SYNTHETIC DATA: the scores say nothing about real patients"
        return f"trained on {self._identity.dataset_source} data, not on the published data set"

    def _health(self) -> tuple[int, bytes, bytes]:
        health: dict[str, Any] = {
            "ready": self._scorer is not None,
            "problem": self._problem,
            "warning": self._warning(),
            "since": self._since,
        }
        if self._identity is not None:
            health |= msgspec.to_builtins(self._identity) | {"bento_digest": self._digest}
        return (200 if self._scorer is not None else 503), JSON[1], self._encode(health)

    def _ready(self) -> tuple[int, bytes, bytes]:
        if self._scorer is None:
            raise RefusalError(503, self._problem)
        return 200, b"text/plain; charset=utf-8", b"ready\n"

    def _metrics_text(self) -> tuple[int, bytes, bytes]:
        if self._metrics is None:
            raise RefusalError(503, self._problem)
        return 200, CONTENT_TYPE.encode(), self._metrics.text()

    def _document(self, path: str) -> tuple[int, bytes, bytes]:
        if path not in self._documents:
            raise RefusalError(503, self._problem)
        return 200, *self._documents[path]


class Options(msgspec.Struct, frozen=True):
    """What the query of a request may ask for."""

    explain: bool = False
    log: bool = True
    """False for probes, such as golden requests: nobody's prediction."""


NO_OPTIONS = Options()
TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def _options(query: bytes) -> tuple[Options, list[Violation]]:
    """The options of a query and what is wrong with it; names that mean nothing here are left alone."""
    try:
        asked = dict(parse_qsl(query.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=100))
    except ValueError:
        return NO_OPTIONS, [Violation(("query",), "has too many parts", "too_long")]
    given = {name: asked[name].lower() for name in Options.__struct_fields__ if name in asked}
    wrong = [
        Violation(("query", name), "must be true or false", "bool_parsing")
        for name, text in given.items()
        if text not in TRUTHS
    ]
    return (NO_OPTIONS, wrong) if wrong else (Options(**{name: TRUTHS[text] for name, text in given.items()}), [])


def _decoded(bodies: Sequence[msgspec.Raw]) -> tuple[list[Any], list[int]]:
    """The encounters that can be read, and the numbers of the others."""
    encounters, invalid = [], []
    for number, body in enumerate(bodies):
        try:
            encounters.append(DECODER.decode(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            invalid.append(number)
    return encounters, invalid


def _is_json(kind: bytes) -> bool:
    media, _, parameters = kind.lower().partition(b";")
    charset = parameters.replace(b'"', b"").replace(b" ", b"")
    return media.strip() == b"application/json" and charset in (b"", b"charset=utf-8", b"charset=utf8")


class _Front:
    """Middleware of BentoML's application, which it moves from its innermost to its outermost place."""

    def __init__(self, application: Application, inner: Any) -> None:
        self._application = application
        self._inner = inner

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in BENTOML_PATHS:
            await self._application.answer(scope, receive, send)
            return
        if scope["type"] == "lifespan":
            outer = scope["app"]
            if not isinstance(outer.middleware_stack, _Front):
                outer.middleware_stack = _Front(self._application, outer.middleware_stack)
        await self._inner(scope, receive, send)
