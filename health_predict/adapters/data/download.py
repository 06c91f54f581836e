"""One file over HTTP, by pooch: shown while it comes, whole or not there."""

from __future__ import annotations

import logging
import os
import re
import ssl
import time
from pathlib import Path

from rich.console import Console

from health_predict.adapters.files import whole_file
from health_predict.core.data import csv_file
from health_predict.errors import UnreachableError

log = logging.getLogger(__name__)

SILENCE = 8.0  # seconds without a byte after which a connection counts as dead
ATTEMPTS = 3
_BLOCK = 1 << 16
_LINE_EVERY = 2.0  # seconds between two lines of progress
_MEGABYTE = 1_000_000


class NoAnswer(Exception):
    """The server does not begin to send: no network, no such host, or it refuses."""


def say(console: Console | None, text: str, *, loudly: bool = False) -> None:
    """Tell people on the console, or where there is none in the log; loudly is in red, and a warning."""
    if console is None:
        log.log(logging.WARNING if loudly else logging.INFO, "%s", text)
    else:
        console.print(text, style="bold red" if loudly else None, markup=False, soft_wrap=True, highlight=False)


def download(url: str, file: Path, console: Console | None = None) -> None:
    """Download to `file`; what breaks off begins anew, three times in all.

    Raises NoAnswer when the server does not begin to send, UnreachableError when the download breaks off again and
    again or the disk refuses, DataError when more is sent than a file may hold (`csv_file.MOST_BYTES`).
    """
    import pooch
    import requests

    name = re.sub(r"^(https?://[^/]+)/.*/", r"\1/.../", url)
    progress = _Lines(name, console)
    fetch = pooch.HTTPDownloader(
        progressbar=progress,
        chunk_size=_BLOCK,
        timeout=SILENCE,
        headers={"User-Agent": "health-predict", "Accept-Encoding": "identity"},
        verify=_certificates(),
    )
    for _ in range(ATTEMPTS):
        progress.reset()
        try:
            with whole_file(file) as temporary:
                fetch(url, str(temporary), None)
            return
        except requests.RequestException as error:
            problem = error
        if not (progress.n or progress.total):
            raise NoAnswer(str(problem))
        log.info("%s: %s", name, problem)
    raise UnreachableError(f"the download of {name} broke off {ATTEMPTS} times: {problem}", "try again")


def _certificates() -> str | bool:
    """The system's certificates, a company proxy's among them, ahead of those that requests brings."""
    if os.environ.get("REQUESTS_CA_BUNDLE"):
        return True  # requests looks there by itself
    paths = ssl.get_default_verify_paths()  # SSL_CERT_FILE and SSL_CERT_DIR count
    return paths.cafile or paths.capath or True


class _Lines:
    """What pooch asks of a progress bar: here a line every two seconds, on the console or in the log."""

    def __init__(self, name: str, console: Console | None) -> None:
        self._name, self._console = name, console
        self._last = time.monotonic()
        self.total = self.n = 0  # bytes
        say(self._console, f"downloading {name}")

    def _tell(self) -> None:
        of = f" of {self.total / _MEGABYTE:.1f}" if self.total else ""
        say(self._console, f"{self.n / _MEGABYTE:.1f}{of} MB")

    def reset(self) -> None:
        self.n = 0

    def update(self, bytes_more: int) -> None:
        self.n += bytes_more
        if self.n > csv_file.MOST_BYTES:
            raise csv_file.too_large(self._name)
        if time.monotonic() - self._last >= _LINE_EVERY:
            self._last = time.monotonic()
            self._tell()

    def close(self) -> None:
        self._tell()
