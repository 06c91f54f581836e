"""Many minutes at 80 % of the peak, through a rollout and a worker's end: nothing lost, nothing twice, no leak.

The endpoint is the local one with two workers. After a third of the time the next version takes over; after two
thirds one of its workers gets SIGTERM. At the end every answer must stand in the prediction log in storage exactly
once. SOAK_SECONDS sets the length. Ends with exit code 1 when something is not as it should be.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
import uuid
from itertools import cycle
from pathlib import Path

import psutil

from benchmarks.parts import load, servers
from health_predict.adapters import keys
from health_predict.adapters.serving.processes import ProcessTarget
from health_predict.adapters.storage import open_storage
from health_predict.settings import Settings

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
PEAK_SECONDS, SHARE, CONNECTIONS = 30.0, 0.8, 32
ASKED_ROWS = 1000
# For the service's `traffic.timeout` of 40 s BentoML holds each request: so long a worker's memory fills up.
SETTLED_SECONDS, SAMPLE_SECONDS = 45.0, 2.0
GROWTH = 1.1
ID = b'"prediction_id":"'


def roll_out(target: ProcessTarget, model: servers.Model, version: str) -> None:
    """Bring a version up and let it take over."""
    with target.rollout() as change:
        change.start(model.bento.tag, version, model.bento.folder)
        change.switch()
        change.commit()


def workers(target: ProcessTarget) -> list[int]:
    """Process ids of what takes the traffic."""
    active = target.active()
    return [int(name.split()[1]) for name in active.workers] if active else []


class Events(threading.Thread):
    """What happens meanwhile, and the memory of each worker by time."""

    def __init__(self, target: ProcessTarget, following: servers.Model) -> None:
        super().__init__()
        self.target, self.following = target, following
        self.memory: dict[int, list[float]] = {}
        self.seen: dict[int, float] = {}
        self.happened: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        begin = time.monotonic()
        while not self.ended.wait(SAMPLE_SECONDS):
            now = time.monotonic() - begin
            if now > SECONDS / 3 and not self.happened:
                roll_out(self.target, self.following, "2")
                self.happened.append("rollout")
            elif now > 2 * SECONDS / 3 and len(self.happened) == 1:
                os.kill(workers(self.target)[0], signal.SIGTERM)
                self.happened.append("SIGTERM")
            for worker in workers(self.target):
                if now - self.seen.setdefault(worker, now) >= SETTLED_SECONDS:
                    try:
                        used = psutil.Process(worker).memory_full_info().uss / 1e6
                    except psutil.NoSuchProcess:
                        continue
                    self.memory.setdefault(worker, []).append(used)


def main() -> None:  # long: one service from its start to its end, and what is counted on the way
    """Serve, ask, change the version, end a worker, count."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = Settings(home=home, serving_port=servers.free_port(), serving_workers=2, prediction_log_seconds=10)
        first = servers.train(home / "first")
        second = servers.train(home / "second", version="2", seed=2)
        target = ProcessTarget(settings)
        roll_out(target, first, "1")
        requests = [load.post("/predict", json.dumps(row).encode()) for row in first.rows[:ASKED_ROWS]]
        ids: list[bytes] = []

        def keep(body: bytes) -> None:
            at = body.index(ID) + len(ID)
            ids.append(uuid.UUID(body[at : at + 36].decode()).bytes)

        try:
            port = settings.serving_port
            peak = load.run(port, cycle(requests), connections=CONNECTIONS, seconds=PEAK_SECONDS, on_answer=keep)
            events = Events(target, second)
            events.start()
            result = load.run(
                port,
                cycle(requests),
                connections=CONNECTIONS,
                seconds=SECONDS,
                rate=SHARE * peak.rate,
                on_answer=keep,
            )
            events.ended.set()
            events.join()
            restarts = target.active()
        finally:
            target.stop()
        storage = open_storage(settings.storage)
        logged: list[bytes] = []
        for key in storage.keys(keys.PREDICTIONS):
            logged += [uuid.UUID(json.loads(line)["prediction_id"]).bytes for line in storage.read(key).splitlines()]
        p50, p99, worst = result.milliseconds(50, 99, 100)
        print(
            f"{SECONDS:.0f} s at {result.rate:.0f} requests a second ({SHARE:.0%} of {peak.rate:.0f}), "
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, slowest {worst:.0f} ms; {dict(result.statuses)}, {result.lost} lost"
        )
        for worker, samples in events.memory.items():
            print(
                f"worker {worker}: {samples[0]:.0f} MB at first, {max(samples):.0f} at most, {samples[-1]:.0f} at last"
            )
        print(f"{len(ids)} answers, {len(logged)} lines in {len(storage.keys(keys.PREDICTIONS))} files of the log")
        long = [samples for samples in events.memory.values() if len(samples) >= 10]
        growth = round(max((samples[-1] / samples[0] for samples in long), default=-1.0), 3)
        found = {
            "answers": len(ids),
            "errors": sum(count for status, count in result.statuses.items() if status != 200),
            "lost": result.lost + peak.lost,
            "not_logged": len(set(ids) - set(logged)),
            "logged_twice": len(logged) - len(set(logged)),
            "logged_without_answer": len(set(logged) - set(ids)),
            "memory_growth": growth,
            "events": events.happened,
            "restarts": restarts.restarts if restarts else -1,
        }
        print(json.dumps(found))
        wrong = [found[name] for name in ("errors", "lost", "not_logged", "logged_twice", "logged_without_answer")]
        if any(wrong) or not 0 < growth <= GROWTH or events.happened != ["rollout", "SIGTERM"]:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
