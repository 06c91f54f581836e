"""One file over HTTP: resumed where it broke off, shown while it runs, whole or not there."""

from __future__ import annotations

import fcntl
import http.client
import logging
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from rich.console import Console

from health_predict.adapters.storage import disk_error
from health_predict.core.errors import UnreachableError

log = logging.getLogger(__name__)

SILENCE = 8.0  # seconds without a byte after which a connection counts as dead
FAILURES = 5  # requests in a row that bring nothing, before giving up
REQUESTS = 50  # in all
_PAUSE = 0.2  # seconds, longer after each failure
_BLOCK = 1 << 16
_LINE_EVERY = 2.0  # seconds between two lines of progress
_MEGABYTE = 1_000_000


class NoAnswer(Exception):
    """The server did not give a single byte: no network, no such host, or it refuses."""


class _Show(Protocol):
    def __call__(self, done: int, total: int) -> None: ...


def download(url: str, file: Path, console: Console | None = None, *, keep_start: bool = True) -> bool:
    """Download to `file`; whether the start of it came from an earlier call that broke off.

    What arrived lies in `file.part` until all is there; with `keep_start` it stays there for the next call when the
    connection breaks. Raises NoAnswer when nothing arrives at all, UnreachableError when the download breaks off
    again and again, another process is at it, or the disk refuses.
    """
    part = file.with_name(file.name + ".part")
    name = re.sub(r"^(https?://[^/]+)/.*/", r"\1/.../", url)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as output, _progress(name, console) as show:
            _lock(output, part, name)
            if not keep_start:
                output.truncate(0)
            resumed = part.stat().st_size > 0
            try:
                resumed = _transfer(url, name, output, show) and resumed
            except (NoAnswer, UnreachableError):
                if not keep_start or not part.stat().st_size:
                    part.unlink()
                raise
            part.replace(file)
    except OSError as error:
        raise disk_error(error, part) from error
    return resumed


def _lock(output: IO[bytes], part: Path, name: str) -> None:
    try:
        fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between opening and locking, the other process may have finished and renamed the very file we opened.
        ours = part.exists() and os.path.samestat(os.fstat(output.fileno()), part.stat())
    except BlockingIOError:
        ours = False
    if not ours:
        raise UnreachableError(f"another process is downloading {name}", "wait until it is done")


def _transfer(url: str, name: str, output: IO[bytes], show: _Show) -> bool:
    """Append what is missing; whether what was there before is part of it."""
    kept = True
    arrived = False
    failures = 0
    for request in range(1, REQUESTS + 1):
        before = output.seek(0, os.SEEK_END)
        try:
            complete, kept_now = _request(url, output, show)
            kept = kept and kept_now
            if complete:
                return kept
            problem: object = "the connection closed early"
        except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError) as error:
            problem = getattr(error, "reason", "") or error
        now = output.seek(0, os.SEEK_END)
        arrived = arrived or now > before
        if not arrived:
            raise NoAnswer(str(problem))
        failures = 0 if now > before else failures + 1
        if failures == FAILURES or request == REQUESTS:
            break
        log.info("%s: %s; asking for the rest", name, problem)
        time.sleep(_PAUSE * failures)
    raise UnreachableError(
        f"the download of {name} broke off after {now / _MEGABYTE:.1f} MB: {problem}",
        "run it again; it goes on where it stopped",
    )


def _request(url: str, output: IO[bytes], show: _Show) -> tuple[bool, bool]:
    """One request for the rest of the file: whether it is complete, and whether what was there before was kept."""
    have = output.seek(0, os.SEEK_END)
    headers = {"User-Agent": "health-predict", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(  # noqa: S310 (callers give http and https only)
            urllib.request.Request(url, headers=headers),  # noqa: S310
            timeout=SILENCE,
        )
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
                raise
            if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                return True, True  # nothing was missing
        output.truncate(0)
        return _request(url, output, show)
    with response:
        continued = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if continued and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise http.client.HTTPException("the server sent another part of the file than asked for")
        if not continued:
            output.truncate(0)
            have = 0
        total = have + int(response.headers.get("Content-Length") or 0)
        while block := response.read(_BLOCK):
            output.write(block)
            have += len(block)
            show(have, total)
        output.flush()
    return have >= total, continued


@contextmanager
def _progress(name: str, console: Console | None) -> Iterator[_Show]:
    """A bar on a terminal, elsewhere a line every two seconds, on the console or in the log."""
    if console is not None and console.is_terminal:
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

        with Progress(
            "{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console
        ) as bars:
            task = bars.add_task(f"asking {name}", total=None)
            yield lambda done, total: bars.update(task, description=name, completed=done, total=total or None)
        return

    def say(text: str) -> None:
        if console is None:
            log.info("%s", text)
        else:
            console.print(text, soft_wrap=True, highlight=False, markup=False)

    say(f"downloading {name}")
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= _LINE_EVERY:
            last = time.monotonic()
            say(f"{done / _MEGABYTE:.1f} of {total / _MEGABYTE:.1f} MB" if total else f"{done / _MEGABYTE:.1f} MB")

    yield show
