"""A real registry on loopback."""

from __future__ import annotations

import http.client
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

BINARY = shutil.which("docker-registry")

needs_registry = pytest.mark.skipif(BINARY is None, reason="skipped: no docker-registry (apt-get install it)")


class Served:
    """A registry process and what it was asked for."""

    def __init__(self, folder: Path, *, password: str = "") -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.host = f"localhost:{self.port}"
        folder.mkdir(parents=True)
        auth = ""
        if password:
            import bcrypt

            line = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$")
            (folder / "htpasswd").write_text(f"someone:{line}\n")
            auth = f"auth: {{htpasswd: {{realm: registry, path: {folder / 'htpasswd'}}}}}\n"
        (folder / "config.yml").write_text(
            "version: 0.1\nlog: {accesslog: {disabled: false}}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '127.0.0.1:{self.port}'}}\n{auth}"
        )
        self.log = folder / "log"
        self.start()

    def start(self) -> None:
        assert BINARY is not None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([BINARY, "serve", str(self.folder / "config.yml")], stdout=log, stderr=log)
        end = time.monotonic() + 30
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/v2/")
                connection.getresponse()
                return
            except OSError:
                assert time.monotonic() < end and self.process.poll() is None, self.log.read_text()
                time.sleep(0.05)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def uploads(self) -> int:
        """How many blobs were uploaded so far."""
        return self.log.read_text().count('" 201 ') + self.log.read_text().count("http.response.status=201")

    def blob(self, digest: str) -> Path:
        value = digest.removeprefix("sha256:")
        return self.folder / "data" / "docker/registry/v2/blobs/sha256" / value[:2] / value / "data"
