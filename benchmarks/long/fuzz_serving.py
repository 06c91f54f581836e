"""Hostile clients against a running service: no failure of ours, no hang, no memory that grows.

The service asks for tokens. Bodies of every kind in `tests/hostile.py` come without a token, and 20,000 with one; then
bodies of 100 MB, clients that never finish their body or their headers, and Schemathesis over the OpenAPI document.
Ends with exit code 1 when something is not as it should be.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from itertools import cycle, islice
from pathlib import Path

from benchmarks.parts import load, servers
from health_predict.adapters.contracts import built_in
from health_predict.adapters.tokens import Role, add_token
from tests import hostile

BODIES, WARM_BODIES, STRANGERS = 20_000, 5_000, 2_000
CONNECTIONS = 16
SLOW_CLIENTS = 50
HUGE_BYTES = 100_000_000
GROWTH = 1.15
FAULTS = ("server_errors", "lost", "let_in", "schemathesis_failed", "tracebacks")
EXAMPLES = 200


def main() -> None:
    """Serve, attack, and say what came of it."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        home = Path(folder)
        model = servers.train(home)
        port = servers.free_port()
        tokens = home / "tokens"
        token, client = add_token(tokens, "fuzz", Role.OPERATOR), add_token(tokens, "ward-7", Role.CLIENT)
        settings = {"prediction_log": str(home / "log"), "serving_tokens": str(tokens)}
        command, environment = servers.ours(model.bento, port, home, 2, **settings)
        honest = json.dumps(built_in().request).encode()
        server = running.enter_context(
            servers.serve(
                command, port, home / "log.txt", probe=("/predict", honest), environment=environment, token=token
            )
        )
        unknown = load.run(
            port,
            (
                load.post(path, body, kind, wrong)
                for path, kind, body in hostile.bodies(STRANGERS, seed=11)
                for wrong in ("", client[:-1])
            ),
            connections=CONNECTIONS,
        )
        print(
            f"{sum(unknown.statuses.values())} without a token that is taken: {dict(unknown.statuses)}, "
            f"{unknown.lost} without an answer"
        )
        requests = (load.post(path, body, kind, token) for path, kind, body in hostile.bodies(BODIES, seed=7))
        begin = time.monotonic()
        first = load.run(port, islice(requests, WARM_BODIES), connections=CONNECTIONS)
        warm = server.memory()
        rest = load.run(port, requests, connections=CONNECTIONS)
        grown = server.memory()
        statuses = first.statuses + rest.statuses
        lost = first.lost + rest.lost
        print(
            f"{sum(statuses.values())} hostile bodies in {time.monotonic() - begin:.0f} s: "
            f"{dict(sorted(statuses.items()))}, "
            f"{lost} without an answer; memory {warm:.0f} MB after {WARM_BODIES}, {grown:.0f} MB at the end"
        )
        huge = Counter(send_huge(port, path, token) for path in ("/predict", "/predict/batch") for _ in range(3))
        print(f"bodies of 100 MB: {dict(huge)}")
        slow, slowest = slow_clients(port, honest, token)
        print(
            f"{SLOW_CLIENTS} clients that never end their body: {dict(slow)}; meanwhile the slowest honest answer took "
            f"{slowest:.0f} ms"
        )
        kept = schemathesis(port, token)
        again = server.memory()
        print(f"memory at the end {again:.0f} MB")
        text = (home / "log.txt").read_text(errors="replace")
        result = {
            "bodies": sum(statuses.values()),
            "server_errors": sum(count for status, count in (statuses + huge + slow).items() if status >= 500),
            "lost": lost + unknown.lost,
            "let_in": sum(count for status, count in unknown.statuses.items() if status != 401),
            "memory_growth": round(max(grown, again) / warm, 3),
            "schemathesis_failed": int(not kept),
            "tracebacks": text.count("Traceback") + text.count("[ERROR]"),
        }
        print(json.dumps(result))
        good = result["bodies"] == BODIES and result["memory_growth"] <= GROWTH and set(huge) == {413}
        if not good or set(slow) != {408} or any(result[name] for name in FAULTS):
            raise SystemExit(1)


def send_huge(port: int, path: str, token: str) -> int:
    """The status of a body of 100 MB; 0 when there was no answer."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {token}\r\n"
        with suppress(OSError):  # it need not read all of it
            connection.sendall(f"{head}Content-Length: {HUGE_BYTES}\r\n\r\n".encode() + b" " * HUGE_BYTES)
        return read_status(connection)


def read_status(connection: socket.socket) -> int:
    """Status of the answer that waits on a connection; 0 when it was closed without one."""
    try:
        return int((connection.recv(4096) or b"HTTP/1.1 000")[9:12])
    except OSError:
        return 0


def slow_clients(port: int, honest: bytes, token: str) -> tuple[Counter[int], float]:
    """Answers to clients that never end their body, and milliseconds of the slowest honest one in the meantime."""
    with ExitStack() as opened:
        half_head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Ty"
        head = load.post("/predict", b" " * 900, token=token)[:-900]
        waiting = []
        for number in range(2 * SLOW_CLIENTS):
            connection = opened.enter_context(socket.create_connection(("127.0.0.1", port), 30))
            connection.sendall(head + honest[:20] if number % 2 else half_head)
            if number % 2:
                waiting.append(connection)
        result = load.run(port, cycle([load.post("/predict", honest, token=token)]), connections=4, seconds=12)
        assert not result.lost and set(result.statuses) == {200}
        return Counter(read_status(connection) for connection in waiting), float(result.milliseconds(100)[0])


def schemathesis(port: int, token: str) -> bool:
    """Whether every answer to requests made from the OpenAPI document is one that the document allows."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{port}/docs.json"),
            *("--header", f"Authorization: Bearer {token}"),
            # Its own phases and checks, all of them.
            *("--max-examples", str(EXAMPLES), "--seed", "1", "--no-color"),
        ],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    print("\n".join(done.stdout.splitlines()[-40:]), done.stderr[-2000:])
    return done.returncode == 0


if __name__ == "__main__":
    main()
