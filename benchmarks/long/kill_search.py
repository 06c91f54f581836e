"""What a search survives, and where its winners stay the same: on a small synthetic cohort, with every part real.

    cluster   a Ray cluster of two nodes that was started separately: by the address of its head, and as a client
    server    100 trials with an MLflow server that is killed and started again twice
    kills     the search is killed with -9 at random trials, and run again

Each ends with the winners of an undisturbed search on this machine, with one child run a trial, all of them finished,
and with nothing left running. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.parts.cohorts import DIABETES, synthesize
from health_predict.adapters.tracking import Tag, Tracking
from health_predict.core.data.cohort import save_part, without_excluded
from health_predict.settings import PREFIX, Settings, load_settings
from health_predict.stages.hpo import hpo
from tests.mlflow_server import mlflow_server
from tests.processes import carriers

MARK = "KILL_SEARCH"
FAMILIES = ("LogisticRegression", "LightGBM", "XGBoost")
TRIALS, MANY = 4, 50  # of a family
PARTS = ("cluster", "server", "kills")
DEADLINE = 1200.0
LEAVE_SECONDS = 30.0
START_ATTEMPTS = 4
# Where a search was killed, these two of Ray's try for a minute to tell the dead head that its raylet is dead.
AGENTS, AGENT_SECONDS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent"), 60.0


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all without one")
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.parts == ["search"]:
        search()
        return
    asked = chosen.parts or PARTS
    if unknown := set(asked) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    os.environ[MARK] = str(os.getpid())
    # Whoever reaches the ports of a cluster runs code on it.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="hp-kill-") as name:
        folder = Path(name)
        cohort = without_excluded(synthesize(6000, seed=3), DIABETES)
        for part, rows in (("train", cohort[:4000]), ("validation", cohort[4000:])):
            save_part(rows.reset_index(drop=True), folder / part)
        calm = Search(folder, "calm")
        calm.run()
        expected = winners(calm.tracking())
        print("undisturbed:", expected, flush=True)
        if "cluster" in asked:
            found["same_winners_on_a_cluster"] = on_a_cluster(folder, expected)
        if "server" in asked:
            found["finished_with_a_server_killed_twice"] = with_a_dying_server(folder)
        if "kills" in asked:
            found["kills"] = with_kills(folder, chosen.kills, random.Random(chosen.seed), expected)
    left = left_running()
    found["left_running"] = [process.name() for process in left]
    print(json.dumps(found))
    sys.exit(1 if left else 0)


def search() -> None:
    """The stage with the settings of the environment: what the processes of this script run."""
    settings = load_settings()
    parts = settings.home.parent
    hpo(
        settings,
        dataset_digest="0" * 64,
        dataset_source="synthetic",
        train=parts / "train",
        validation=parts / "validation",
        leaderboard=settings.home / "leaderboard.html",
    )


class Search:
    """A search in a home and a process of its own."""

    def __init__(self, folder: Path, name: str, **values: object) -> None:
        values = {"home": folder / name, "families": json.dumps(FAMILIES), "trials": TRIALS, **values}
        plain = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
        self._environment = {**plain, **{PREFIX + key.upper(): str(value) for key, value in values.items()}}
        self._log = folder / f"{name}.log"
        uri = values.get("mlflow_tracking_uri", "")
        self._settings = Settings(home=folder / name, mlflow_tracking_uri=str(uri))

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process."""
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "benchmarks.long.kill_search", "search"]
            return subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def require_success(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for its end."""
        if process.wait(DEADLINE):
            raise SystemExit(f"the search failed:\n{self._log.read_text()[-3000:]}")

    def run(self) -> None:
        """To the end."""
        self.require_success(self.start())

    def tracking(self) -> Tracking:
        """Its MLflow."""
        return Tracking(self._settings)

    def trials(self) -> int:
        """How many trials are recorded."""
        return len(self.tracking().runs("tags.role = 'trial'"))


def winners(tracking: Tracking) -> dict[str, tuple[str, float]]:
    """Trial and AUC of each family's best model. Fails when a run is missing, doubled or not finished."""
    [parent] = tracking.runs("tags.role = 'search'")
    children = tracking.children(parent.run_id)
    names = sorted(child.name for child in children)
    expected = [f"{name}-{index:03d}" for name in FAMILIES for index in range(int(parent.params["trials"]))]
    assert parent.params["families"] == ",".join(FAMILIES)
    assert names == sorted([*expected, *(f"Best_{name}_Model" for name in FAMILIES)]), names
    assert {run.status for run in (parent, *children)} == {"FINISHED"}
    return {
        run.tags[Tag.FAMILY]: (run.params["trial"], round(run.metrics["validation_auc"], 9))
        for run in children
        if run.tags[Tag.ROLE] == "best"
    }


def on_a_cluster(folder: Path, expected: dict[str, Any]) -> list[str]:
    """The kinds of address under which the winners were the same."""
    same = []
    with cluster() as (head, client, nodes):
        for name, address in (("head", head), ("client", f"ray://{client}")):
            there = Search(folder, name, ray_address=address)
            began = time.monotonic()
            process = there.start()
            busy: set[int] = set()
            while process.poll() is None:
                busy |= {number for number, node in enumerate(nodes) if runs_trials(node)}
                time.sleep(0.2)
            there.require_success(process)
            found = winners(there.tracking())
            print(f"{name}: {found} in {time.monotonic() - began:.0f} s on {len(busy)} nodes", flush=True)
            assert len(busy) == len(nodes), "a node took no trial"
            if found == expected:
                same.append(name)
    return same


def runs_trials(node: subprocess.Popen[bytes]) -> bool:
    """Whether an actor of the search is at work below a node's process."""
    for process in psutil.Process(node.pid).children(recursive=True):
        try:
            # Ray names a process after what it does, and Tune makes this class of a function.
            if "ray::ImplicitFunc" in " ".join(process.cmdline()):
                return True
        except psutil.Error:
            continue
    return False


@contextmanager
def cluster() -> Iterator[tuple[str, str, list[subprocess.Popen[bytes]]]]:
    """A head with one core and a second node with another: the head's address, its client's port, their processes."""
    ports = [free_port() for _ in range(2)]
    head, client = (f"127.0.0.1:{port}" for port in ports)
    common = ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--object-store-memory=200000000"]
    common += ["--disable-usage-stats"]
    nodes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="hp-ray-", ignore_cleanup_errors=True) as folder:
        starts = (
            f"--head --temp-dir={folder} --port={ports[0]} --ray-client-server-port={ports[1]}",
            f"--address={head}",
        )
        try:
            for start in starts:
                command = [str(Path(sys.executable).parent / "ray"), "start", "--block", *start.split(), *common]
                nodes.append(started(command, Path(folder) / f"{len(nodes)}.log"))
            yield head, client, nodes
        finally:
            for node in reversed(nodes):
                node.terminate()
                node.wait(LEAVE_SECONDS)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def started(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A node that runs; a busy machine needs longer than the half minute Ray gives itself, so it is tried again."""
    for _ in range(START_ATTEMPTS):
        with log.open("wb") as output:
            node = subprocess.Popen(command, stdout=output, stderr=output)
        while node.poll() is None:
            if "Ray runtime started" in log.read_text():
                return node
            time.sleep(0.5)
    raise SystemExit(f"Ray did not start:\n{log.read_text()[-3000:]}")


def with_a_dying_server(folder: Path) -> int:
    """Finished trials of a search whose MLflow server was killed twice on the way."""
    families = FAMILIES[:2]
    with mlflow_server(folder / "server.db", folder / "artifacts") as server:
        many = Search(folder, "server", mlflow_tracking_uri=server.uri, trials=MANY, families=json.dumps(families))
        process = many.start()
        for least in (MANY // 2, MANY):
            while process.poll() is None and many.trials() < least:
                time.sleep(1)
            server.kill()
            print(f"the server was killed after {least} trials or more", flush=True)
            time.sleep(5)
            server.start()
        many.require_success(process)
        tracking = many.tracking()
        [parent] = tracking.runs("tags.role = 'search'")
        runs = [run for run in tracking.children(parent.run_id) if run.tags[Tag.ROLE] == "trial"]
    assert parent.status == "FINISHED"
    assert len({run.name for run in runs}) == len(runs) == MANY * len(families), len(runs)
    assert {run.status for run in runs} == {"FINISHED"}
    return len(runs)


def with_kills(folder: Path, kills: int, chance: random.Random, expected: dict[str, Any]) -> int:
    """How often the search was killed, before it ended as the undisturbed one."""
    killed = Search(folder, "killed")
    deaths = 0
    while deaths < kills:
        before = killed.trials() if deaths else 0
        process = killed.start()
        least = before + chance.randint(1, 3)
        while process.poll() is None and killed.trials() < least:
            time.sleep(0.2)
        if process.poll() is not None:
            break
        time.sleep(chance.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        deaths += 1
        print(f"kill {deaths}: {killed.trials()} trials are recorded", flush=True)
        left = left_running()
        assert not left, f"a killed search left {[process.name() for process in left]}"
    killed.run()
    assert winners(killed.tracking()) == expected
    return deaths


def left_running() -> list[psutil.Process]:
    """What does not end in time."""
    left: list[psutil.Process]
    late: list[psutil.Process]
    _, left = psutil.wait_procs(marked(), timeout=LEAVE_SECONDS)
    agents = [process for process in left if process.name() in AGENTS]
    _, late = psutil.wait_procs(agents, timeout=AGENT_SECONDS)
    return [process for process in left if process not in agents] + late


def marked() -> list[psutil.Process]:
    """Processes of this script's, but for itself."""
    me = psutil.Process()
    found = {process for process in carriers(MARK, str(me.pid)) if process != me}
    # The agents may have written their title over their environment: those are told by their names and age.
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            if process.name() in AGENTS and process.create_time() >= me.create_time():
                found.add(process)
    return list(found)


if __name__ == "__main__":
    main()
