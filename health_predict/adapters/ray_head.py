"""Ray's head process for a machine without shared memory, where `ray.init` starts none.

`ray start` takes another folder for what Ray shares between processes; `ray.init` does not.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from health_predict.errors import UnreachableError

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - Ray writes there
START_SECONDS = 120.0
END_SECONDS = 15.0
# The command `ray`, which ends with the process that started it.
RAY = """
from health_predict.adapters.parent_process import exit_with_parent
from ray.scripts.scripts import main
exit_with_parent()
main()
"""


def shares_memory() -> bool:
    """Whether processes of this machine can share memory as Ray's do; on macOS they do it in other ways."""
    return sys.platform != "linux" or os.access(SHARED_MEMORY, os.R_OK | os.W_OK)


@contextmanager
def head(cpus: int, object_store_bytes: int, folder: Path) -> Iterator[str]:
    """The address of a head of our own, which ends with the block. Its files lie in `folder`, which RAY_TMPDIR names.

    Raises UnreachableError with Ray's own last line when it does not start.
    """
    said = folder / "ray.log"
    command = [sys.executable, "-c", RAY, "start", "--head", "--block", "--log-style=record"]
    command += ["--node-ip-address=127.0.0.1", "--port=0", f"--ray-client-server-port={_free_port()}"]
    command += [f"--num-cpus={cpus}", "--include-dashboard=false"]
    command += [f"--object-store-memory={object_store_bytes}", f"--plasma-directory={folder}"]
    with said.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield _address(process, folder / "ray" / "ray_current_cluster", said)
    finally:
        _end(process)


def _address(process: subprocess.Popen[bytes], file: Path, said: Path) -> str:
    """What Ray writes once it has started: the file is that which `ray.init(address="auto")` reads."""
    deadline = time.monotonic() + START_SECONDS
    while not (file.exists() and file.read_text(encoding="utf-8").strip()):
        if process.poll() is not None or time.monotonic() > deadline:
            lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UnreachableError(lines[-1] if lines else "it said nothing")
        time.sleep(0.1)
    return file.read_text(encoding="utf-8").strip()


def _free_port() -> int:
    """For Ray's clients, of which there are none: Ray would take a port that another Ray may have."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        started = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        started = []
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(started, timeout=END_SECONDS)
    for one in left:
        one.kill()
