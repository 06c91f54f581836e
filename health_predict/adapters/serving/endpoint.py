"""The running endpoint, as a client sees it."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Iterator, Sequence
from functools import partial
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from health_predict.adapters.tokens import own_token
from health_predict.errors import DataError, SettingsError, UnreachableError
from health_predict.settings import Settings

ANSWER_SECONDS = 60.0
ONE_ANSWER_SECONDS = 10.0
# A rollout may close a connection, and a busy service may ask to come again.
ATTEMPTS = 4
PAUSE_SECONDS = 0.5
SHOWN = 5
REFUSED = (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN)
NOT_LET_IN = "name a file with a token that it takes in HEALTH_PREDICT_SERVING_TOKEN_FILE"


class Endpoint:
    """Scores encounters by the service at a base URL, over one connection; with the token of the settings."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = url.rstrip("/")
        self._path = urlsplit(self.url).path
        self._connection = _connection(url, settings, ANSWER_SECONDS)
        self._headers = {"Content-Type": "application/json", **_authorization(settings)}

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def predict(
        self, encounters: Sequence[dict[str, Any]], portion: int, *, log: bool = True
    ) -> Iterator[list[dict[str, Any]]]:
        """Answers in order, `portion` encounters at a time; with `log` they come into the prediction log.

        Raises DataError when the service refuses an encounter, SettingsError when it refuses the token, and
        UnreachableError when it does not answer.
        """
        for start in range(0, len(encounters), portion):
            yield self._batch(encounters[start : start + portion], start, log)

    def _batch(self, encounters: Sequence[dict[str, Any]], start: int, log: bool) -> list[dict[str, Any]]:
        status, body = self._post(f"/predict/batch{'' if log else '?log=false'}", json.dumps(encounters).encode())
        if status == http.HTTPStatus.UNPROCESSABLE_ENTITY:
            found = json.loads(body)["detail"]
            shown = "; ".join(f"encounter {_place(item['loc'], start)}: {item['msg']}" for item in found[:SHOWN])
            more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise DataError(f"{self.url} refuses: {shown}{more}", "correct the values")
        if status in REFUSED:
            raise SettingsError(f"{self.url} does not let us in: {json.loads(body)['detail']}", NOT_LET_IN)
        if status != http.HTTPStatus.OK:
            raise UnreachableError(
                f"{self.url} answers {status}: {body[:200].decode(errors='replace')}", "see `health-predict status`"
            )
        answers: list[dict[str, Any]] = json.loads(body)
        return answers

    def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        attempt = 1
        while True:
            try:
                self._connection.request("POST", self._path + path, body, self._headers)
                response = self._connection.getresponse()
                answer = response.read()
                if response.status != http.HTTPStatus.SERVICE_UNAVAILABLE or attempt == ATTEMPTS:
                    return response.status, answer
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                if attempt == ATTEMPTS:
                    raise UnreachableError(
                        f"{self.url} does not answer: {error}", "`health-predict serve` brings the champion up"
                    ) from None
            time.sleep(PAUSE_SECONDS * attempt)
            attempt += 1


class Answer(NamedTuple):
    """An answer of the endpoint."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """The body as JSON. Raises ValueError when it is none."""
        return json.loads(self.body)


def ask(url: str, settings: Settings, body: Any = None) -> Answer:
    """The answer to one request with the token of the settings, GET or with a `body` POST as JSON.

    The connection is its own, so it comes from whoever takes the traffic now. No proxy stands before our own endpoint.
    Raises UnreachableError when there is no answer.
    """
    parts, headers = urlsplit(url), _authorization(settings)
    connection = _connection(url, settings, ONE_ANSWER_SECONDS)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    try:
        if body is None:
            connection.request("GET", path, headers=headers)
        else:
            connection.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return Answer(response.status, response.read())
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"{url} gives no answer: {error!r}", "see `health-predict status`") from None
    finally:
        connection.close()


class _Secured(http.client.HTTPConnection):
    """A connection by TLS to who has the certificate of `name`, whatever the address."""

    def __init__(self, host: str, port: int, seconds: float, context: ssl.SSLContext, name: str) -> None:
        super().__init__(host, port, timeout=seconds)
        self._secure = partial(context.wrap_socket, server_hostname=name)

    def connect(self) -> None:
        super().connect()
        self.sock = self._secure(self.sock)


def _connection(url: str, settings: Settings, seconds: float) -> http.client.HTTPConnection:
    """A connection to a URL's host. Raises SettingsError for what is no URL, or for authorities that cannot be read."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"{url!r} is no address of an endpoint", "give one like http://127.0.0.1:3000")
    if parts.scheme == "http":
        return http.client.HTTPConnection(parts.netloc, timeout=seconds)
    try:
        context = ssl.create_default_context(cafile=settings.serving_tls_ca or None)
    except OSError as error:
        raise SettingsError(
            f"the authorities {settings.serving_tls_ca} cannot be read: {error.strerror or 'they are no PEM'}",
            "correct HEALTH_PREDICT_SERVING_TLS_CA",
        ) from None
    # A candidate is asked by its address, and has the certificate of the endpoint.
    named = _is_address(parts.hostname) and not _is_address(settings.serving_host)
    name = settings.serving_host if named else parts.hostname
    return _Secured(parts.hostname, parts.port or 443, seconds, context, name)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _authorization(settings: Settings) -> dict[str, str]:
    token = own_token(settings)
    return {"Authorization": f"Bearer {token}"} if token else {}


def _place(loc: list[Any], start: int) -> str:
    """Number of the encounter in the whole list, counted from 1, and its field."""
    numbers = [part + start + 1 for part in loc if isinstance(part, int)]
    return ", ".join(map(str, [*numbers, *(part for part in loc[2:] if isinstance(part, str))]))
