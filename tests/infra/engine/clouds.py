"""Moto in AWS's place: a proxy, so that the plugin and boto3 use the names that they always use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path


@contextmanager
def moto() -> Iterator[dict[str, str]]:
    """The environment of those who ask the proxy, until the block ends."""
    program = Path(sys.executable).parent / "moto_proxy"
    with subprocess.Popen(
        [program, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as proxy:
        assert proxy.stdout is not None
        try:
            said = next(line for line in proxy.stdout if "Serving" in line)
            found = re.search(r"127\.0\.0\.1:\d+", said)
            assert found, said
            yield {
                "HTTPS_PROXY": f"http://{found[0]}",
                "HTTP_PROXY": f"http://{found[0]}",
                "NO_PROXY": "127.0.0.1,localhost",
                "AWS_CA_BUNDLE": str(files("moto.moto_proxy") / "ca.crt"),
                "AWS_REGION": "us-east-1",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            proxy.kill()
