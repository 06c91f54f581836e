"""A Prometheus of a test, with the configuration of k8s/monitoring, on a port of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.shell import free_port

MONITORING = Path(__file__).resolve().parents[1] / "k8s" / "monitoring"


def needs(*programs: str) -> Any:
    absent = [name for name in programs if shutil.which(name) is None]
    reason = f"skipped: no {', '.join(absent)} (Debian: prometheus prometheus-alertmanager)"
    return pytest.mark.skipif(bool(absent), reason=reason)


@contextmanager
def prometheus(folder: Path, ports: Mapping[str, int]) -> Iterator[Callable[[str], dict[tuple[str, ...], float]]]:
    """Scrape these ports, by job, each second; what comes gives a query's series, by the values of their labels."""
    config = yaml.safe_load((MONITORING / "scrape.yaml").read_text())
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] in ports]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [f"127.0.0.1:{ports[job['job_name']]}"]}]
    times = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump({"global": times, "rule_files": [str(MONITORING / "rules.yaml")], **config}))
    port = free_port()
    command = ("prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'series'}")
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT
        )

    def ask(query: str) -> dict[tuple[str, ...], float]:
        try:
            url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
            with urllib.request.urlopen(url, timeout=5) as answer:
                found = json.load(answer)["data"]["result"]
        except (urllib.error.URLError, ConnectionError):
            return {}
        return {tuple(one["metric"].values()): float(one["value"][1]) for one in found}

    def until_there(query: str) -> dict[tuple[str, ...], float]:
        deadline = time.monotonic() + 60
        while not (found := ask(query)):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "prometheus.log").read_text()
            time.sleep(0.2)
        return found

    try:
        yield until_there
    finally:
        process.terminate()
        process.wait(timeout=20)
