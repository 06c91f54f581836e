"""Receivers of messages: a webhook and a mail server on ports of this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Webhook:
    """What came to a webhook, and how it behaves: it answers with `status`, and only once `open` is set."""

    def __init__(self, port: int = 0) -> None:
        self.letters: list[dict[str, str]] = []
        self.status = 200
        self.open = threading.Event()
        self.open.set()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                webhook.open.wait()
                if webhook.status == 200:
                    webhook.letters.append(body)
                self.send_response(webhook.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"json://127.0.0.1:{self.port}"

    @property
    def titles(self) -> list[str]:
        return [letter["title"].removeprefix("health-predict: ") for letter in self.letters]

    def end(self) -> None:
        self.open.set()
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def webhook(port: int = 0) -> Iterator[Webhook]:
    """A webhook until the end of the block."""
    found = Webhook(port)
    try:
        yield found
    finally:
        found.end()
