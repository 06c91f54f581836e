"""What a prediction costs over HTTP: the usual services and ours, for a model of each family.

The same rows, one machine, one load client (`parts/load.py`), one run. Each service has two workers and one native
thread in each. CPU is that of the whole tree of the server's processes; the client's is not counted. The rounds
alternate between the services, and the median of the rounds is shown.

    naive     FastAPI, pydantic, a one-row DataFrame, the pickled scikit-learn pipeline
    mlflow    `mlflow models serve` of the same pipeline (of one family only)
    echo      BentoML, every setting tuned, checks the body and answers a constant
    ours      the Bento in its own environment, which has no httptools, with its prediction log on
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

import joblib
import pandas as pd
from mlflow.sklearn import save_model

from benchmarks.parts import load, results, servers
from health_predict.adapters.tokens import Role, add_token
from health_predict.core.model.families import FAMILIES

CLIENTS = (1, 8, 32)
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
WARM_SECONDS, SECONDS = 1.0, float(os.environ.get("BENCH_SECONDS", "4"))
WORKERS = 2
ASKED_ROWS = 1000
# A round's: the system counts CPU in hundredths of a second.
BATCHES = 5
# The prediction log is written after the answer.
LOG_SECONDS = 3.0
# The prediction log costs less than a machine varies from one second to the next, and two processes of the same code
# differ as much: many short pairs, each longer than the log's pause, of several pairs of servers.
LOG_SERVERS, LOG_PAIRS, LOG_PAIR_SECONDS, LOG_CLIENTS = int(os.environ.get("BENCH_LOG_SERVERS", "6")), 4, 2.0, 32


Up = dict[str, tuple[servers.Server, str, list[bytes]]]


def main() -> None:
    """Train, start the services of a family, ask them; print the tables and the least favourable ratios."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            home = Path(folder) / family
            home.mkdir()
            model = servers.train(home, family)
            with ExitStack() as running:
                found[family] = compare(family, home, model, start(home, model, running, mlflow=not found))
            print(family, json.dumps(found[family]), flush=True)
        logging_costs = measure_pairs(home, model, lambda turn: {"prediction_log": str(home / f"log {turn}")})
        asking_costs = measure_pairs(home, model, lambda turn: {"serving_tokens": str(home / f"tokens {turn}")})
        for what, (cpu, rate) in (("the prediction log", logging_costs), ("asking for tokens", asking_costs)):
            print(f"{what}, {LOG_SERVERS * LOG_PAIRS} pairs: CPU {cpu:+.1%}, throughput {rate:+.1%}")
    worst = {"cpu_vs_naive": min, "cpu_vs_echo": max, "p99_vs_echo": max, "batch_cpu_vs_pandas": min}
    figures = {name: pick(ratios[name] for ratios in found.values()) for name, pick in worst.items()}
    pairs = {"log_cpu": logging_costs[0], "log_rate": logging_costs[1], "tokens_cpu": asking_costs[0]}
    pairs = {name: round(value, 3) for name, value in pairs.items()}
    results.save("serving", figures | pairs)


def compare(family: str, home: Path, model: servers.Model, up: Up) -> dict[str, float]:
    """The ratios of one family, each at the least favourable number of clients."""
    compare_answers(model, up)
    cells: dict[tuple[str, int], list[tuple[float, float, float, float]]] = {}
    for _ in range(ROUNDS):
        for clients in CLIENTS:
            for name, (server, path, bodies) in up.items():
                cells.setdefault((name, clients), []).append(measure(server, path, bodies, clients))
    table = {cell: [statistics.median(column) for column in zip(*rows, strict=True)] for cell, rows in cells.items()}
    print(f"{family:<20} {'clients':>8} {'CPU ms':>9} {'req/s':>9} {'p50 ms':>9} {'p99 ms':>9}")
    for (name, clients), (cpu, rate, p50, p99) in table.items():
        print(f"{name:<20} {clients:>8} {cpu:>9.3f} {rate:>9.0f} {p50:>9.2f} {p99:>9.2f}")
    for name, (server, _, _) in up.items():
        print(f"{name:<20} memory of the whole tree {server.memory():.0f} MB")
    batch = measure_batch(model, up)
    for name, seconds in batch.items():
        print(f"10,000 rows, {name:<44} {seconds * 1000:>7.0f} ms CPU")

    def ratios(column: int, over: str, under: str) -> list[float]:
        return [table[over, clients][column] / table[under, clients][column] for clients in CLIENTS]

    return {
        "cpu_vs_naive": round(min(ratios(0, "naive", "ours")), 1),
        "cpu_vs_echo": round(max(ratios(0, "ours", "echo")), 2),
        "p99_vs_echo": round(max(ratios(3, "ours", "echo")), 2),
        "batch_cpu_vs_pandas": round(batch["naive"] / batch["ours"], 1),
    }


def start(home: Path, model: servers.Model, running: ExitStack, *, mlflow: bool) -> Up:
    """All services, ready, each with its path and its bodies."""
    joblib.dump({"pipeline": model.pipeline, "threshold": model.threshold}, home / "pipeline.joblib")
    bodies = [json.dumps(row).encode() for row in model.rows[:ASKED_ROWS]]
    records = model.frame[list(model.rows[0])].head(ASKED_ROWS).to_dict("records")
    invocations = [json.dumps({"dataframe_records": [record]}).encode() for record in records]
    up: Up = {}

    def add(
        name: str, command: list[str], port: int, path: str, asked: list[bytes], environment: dict[str, str]
    ) -> None:
        server = running.enter_context(
            servers.serve(command, port, home / f"{name}.log", probe=(path, asked[0]), environment=environment)
        )
        up[name] = (server, path, asked)

    port = servers.free_port()
    command = [sys.executable, "-m", "uvicorn", "naive_service:app", "--port", str(port), "--workers", str(WORKERS)]
    environment = {"NAIVE_MODEL": str(home / "pipeline.joblib")}
    add("naive", [*command, "--no-access-log", "--log-level", "warning"], port, "/predict", bodies, environment)
    if mlflow:
        save_model(
            model.pipeline,
            home / "mlflow",
            serialization_format="cloudpickle",
            pyfunc_predict_fn="predict_proba",
            pip_requirements=[],
        )
        port = servers.free_port()
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "models",
            "serve",
            "-m",
            str(home / "mlflow"),
            "--env-manager",
            "local",
        ]
        command += ["--port", str(port), "--workers", str(WORKERS)]
        # It starts `uvicorn` by name.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        add("mlflow", command, port, "/invocations", invocations, {"PATH": path})
    port = servers.free_port()
    command = [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        "echo_service:Echo",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    add("echo", command, port, "/predict", bodies, {"BENTOML_HOME": str(home / "echo")})
    settings = {"prediction_log": str(home / "log")}
    up["ours"] = serve_ours(home / "ours", model, running, bodies[0], **settings), "/predict", bodies
    return up


def serve_ours(folder: Path, model: servers.Model, running: ExitStack, asked: bytes, **settings: str) -> servers.Server:
    """Our service with these settings, ready; it asks for a token when they name a file of those that it takes."""
    port, tokens = servers.free_port(), settings.get("serving_tokens", "")
    token = add_token(Path(tokens), folder.name.replace(" ", "-"), Role.CLIENT) if tokens else ""
    command, environment = servers.ours(model.bento, port, folder, WORKERS, **settings)
    log = folder.with_suffix(".log")
    return running.enter_context(
        servers.serve(command, port, log, probe=("/predict", asked), environment=environment, token=token)
    )


def compare_answers(model: servers.Model, up: Up) -> None:
    """The services that have a model give the same answers."""
    expected = model.pipeline.predict_proba(model.frame.head(20))[:, 1]
    for number, probability in enumerate(expected.tolist()):
        for name in ("naive", "ours"):
            server, path, bodies = up[name]
            answer = server.ask(path, bodies[number])
            assert abs(answer["probability_score"] - probability) < 1e-6, name
            assert answer["prediction"] == int(probability >= model.threshold), name
        if "mlflow" not in up:
            continue
        server, path, bodies = up["mlflow"]
        assert abs(server.ask(path, bodies[number])["predictions"][0][1] - probability) < 1e-6


def measure(
    server: servers.Server,
    path: str,
    bodies: list[bytes],
    clients: int,
    seconds: float = SECONDS,
    warm: float = WARM_SECONDS,
) -> tuple[float, float, float, float]:
    """CPU milliseconds a request, requests a second, median and 99th percentile of the latency in milliseconds."""
    requests = [load.post(path, body, token=server.token) for body in bodies]
    load.run(server.port, cycle(requests), connections=clients, seconds=warm)
    before = server.cpu()
    result = load.run(server.port, cycle(requests), connections=clients, seconds=seconds)
    cpu = server.cpu() - before
    assert not result.lost and set(result.statuses) == {200}, (result.lost, result.statuses)
    p50, p99 = result.milliseconds(50, 99)
    return cpu / result.answered * 1000, result.rate, p50, p99


def measure_pairs(
    home: Path, model: servers.Model, settings_of: Callable[[int], dict[str, str]]
) -> tuple[float, float]:
    """What some settings change: medians over the pairs, of the CPU a request and of the throughput.

    `settings_of` gives them for the number of a pair of servers.
    """
    bodies = [json.dumps(row).encode() for row in model.rows[:ASKED_ROWS]]
    pairs = []
    for turn in range(LOG_SERVERS):
        with ExitStack() as running:
            up = {
                name: (serve_ours(home / f"{name} {turn}", model, running, bodies[0], **settings), "/predict", bodies)
                for name, settings in (("with", settings_of(turn)), ("without", {}))
            }
            for number in range(LOG_PAIRS):
                names = ("with", "without") if number % 2 else ("without", "with")
                found = {name: measure(*up[name], LOG_CLIENTS, LOG_PAIR_SECONDS) for name in names}
                pairs.append(tuple(found["with"][column] / found["without"][column] - 1 for column in (0, 1)))
    cpu, rate = (statistics.median(column) for column in zip(*pairs, strict=True))
    return cpu, rate


def measure_batch(model: servers.Model, up: Up) -> dict[str, float]:
    """Smallest CPU seconds of 10,000 rows: the services' batch paths, and the pipeline alone without any service."""
    body = json.dumps(model.rows).encode()
    records = model.frame[list(model.rows[0])].to_dict("records")
    rounds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name in ("naive", "ours"):
            server = up[name][0]
            before = server.cpu()
            for _ in range(BATCHES):
                assert len(server.ask("/predict/batch", body)) == len(model.rows)
            time.sleep(LOG_SECONDS)
            rounds.setdefault(name, []).append((server.cpu() - before) / BATCHES)
        begin = time.process_time()
        model.pipeline.predict_proba(pd.DataFrame(records))
        rounds.setdefault("the pandas pipeline alone, rows already parsed", []).append(time.process_time() - begin)
    return {name: min(found) for name, found in rounds.items()}


if __name__ == "__main__":
    main()
