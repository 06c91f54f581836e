"""The running endpoint, as a client sees it."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import requests

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
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(f"{url!r} is no address of an endpoint", "give one like http://127.0.0.1:3000")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.url = url.rstrip("/")
        self._path = parts.path.rstrip("/")
        self._connection = kind(parts.netloc, timeout=ANSWER_SECONDS)
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


def ask(url: str, settings: Settings, body: Any = None) -> requests.Response:
    """The answer to one request with the token of the settings, GET or with a `body` POST as JSON.

    The connection is its own, so it comes from whoever takes the traffic now. Raises UnreachableError when there is no
    answer.
    """
    with requests.Session() as session:
        session.trust_env = False  # no proxy stands before our own endpoint
        try:
            method, headers = "GET" if body is None else "POST", _authorization(settings)
            # It sends no redirections, and the token is for nobody else.
            return session.request(
                method, url, json=body, headers=headers, timeout=ONE_ANSWER_SECONDS, allow_redirects=False
            )
        except requests.RequestException as error:
            raise UnreachableError(f"{url} gives no answer: {error!r}", "see `health-predict status`") from None


def _authorization(settings: Settings) -> dict[str, str]:
    token = own_token(settings)
    return {"Authorization": f"Bearer {token}"} if token else {}


def _place(loc: list[Any], start: int) -> str:
    """Number of the encounter in the whole list, counted from 1, and its field."""
    numbers = [part + start + 1 for part in loc if isinstance(part, int)]
    return ", ".join(map(str, [*numbers, *(part for part in loc[2:] if isinstance(part, str))]))
