"""A way to the API server that fails for a while: in front of the real one, on loopback."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml


class Faults:
    """Which requests fail, and how."""

    def __init__(self) -> None:
        self.status: Callable[[str, str], int] = lambda _method, _path: 0
        self.given: list[tuple[str, str, int]] = []


@contextmanager
def in_front_of(kubeconfig: Path, folder: Path) -> Iterator[tuple[Path, Faults]]:
    """A kubeconfig whose server is this one; the real one is asked with the real credentials."""
    config = yaml.safe_load(kubeconfig.read_text())
    context = next(item["context"] for item in config["contexts"] if item["name"] == config["current-context"])
    cluster = next(item["cluster"] for item in config["clusters"] if item["name"] == context["cluster"])
    user = next(item["user"] for item in config["users"] if item["name"] == context["user"])
    secure = ssl.create_default_context(cadata=_pem(cluster, "certificate-authority", kubeconfig))
    if "client-certificate" in user or "client-certificate-data" in user:
        with tempfile.NamedTemporaryFile("w", dir=folder) as pair:
            pair.write(_pem(user, "client-certificate", kubeconfig) + "\n" + _pem(user, "client-key", kubeconfig))
            pair.flush()
            secure.load_cert_chain(pair.name)
    address = urlsplit(cluster["server"]).netloc
    faults = Faults()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else None
            status = faults.status(self.command, self.path)
            if status:
                faults.given.append((self.command, self.path, status))
                self._send(
                    status, json.dumps({"kind": "Status", "message": "made to fail"}).encode(), "application/json"
                )
                return
            if self.headers.get("Upgrade"):
                self._tunnel()
                return
            connection = http.client.HTTPSConnection(address, context=secure, timeout=30)
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")
            }
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            self._send(response.status, response.read(), response.headers.get("Content-Type", "application/json"))
            connection.close()

        def _tunnel(self) -> None:
            """Web sockets, as a port-forward uses them, pass as they are."""
            host, _, port = address.partition(":")
            with (
                socket.create_connection((host, int(port or 443))) as plain,
                secure.wrap_socket(plain, server_hostname=host) as far,
            ):
                head = f"{self.requestline}\r\nHost: {address}\r\n"
                head += "".join(f"{name}: {value}\r\n" for name, value in self.headers.items() if name != "Host")
                far.sendall(f"{head}\r\n".encode())
                back = threading.Thread(target=_copy, args=(far, self.connection), daemon=True)
                back.start()
                _copy(self.connection, far)
                back.join(5)
            self.close_connection = True

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    file = folder / "kubeconfig"
    file.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "faulty",
                "contexts": [{"name": "faulty", "context": {"cluster": "faulty", "user": "none"}}],
                "clusters": [{"name": "faulty", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
                "users": [{"name": "none", "user": {}}],
            }
        )
    )
    try:
        yield file, faults
    finally:
        server.shutdown()
        server.server_close()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _pem(entry: dict[str, Any], name: str, kubeconfig: Path) -> str:
    if f"{name}-data" in entry:
        return base64.b64decode(entry[f"{name}-data"]).decode()
    return (kubeconfig.parent / entry[name]).read_text()
