"""What moto lacks, Systems Manager with an agent; for tests without moto also who calls, and how the instance is."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Commands have UUIDs: one is the rollout, the other asks what it is doing.
SCRIPT, STATE = f"{1:036d}", f"{2:036d}"
INSTANCES = """<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><reservationSet><item>
<instancesSet><item><instanceState><code>0</code><name>{}</name></instanceState></item></instancesSet></item>
</reservationSet></DescribeInstancesResponse>"""
IDENTITY = """<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>
<Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"""


class Host:
    """One host behind Systems Manager. Tests set how it is; it keeps the scripts that it was given."""

    def __init__(self) -> None:
        self.state = "running"
        self.scripts: list[str] = []
        self.pending = 0  # how often a command that is asked about has not ended yet
        self.answer: dict[str, Any] = {"Status": "Success", "StandardOutputContent": "ready: bundle=1"}
        self.url = ""

    def ssm(self, action: str, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to one call of Systems Manager."""
        if action == "GetParameter":
            return {"Parameter": {"Name": asked["Name"], "Value": "ami-0abc", "Type": "String", "Version": 1}}
        if action == "DescribeInstanceInformation":
            return {"InstanceInformationList": [{"PingStatus": "Online", "InstanceId": "i-0abc"}]}
        if action == "SendCommand":
            script = asked["Parameters"]["commands"][0]
            if script.startswith("cat "):
                return {"Command": {"CommandId": STATE}}
            self.scripts.append(script)
            return {"Command": {"CommandId": SCRIPT}}
        if action == "GetCommandInvocation" and asked["CommandId"] == STATE:
            return {"Status": "Success", "StandardOutputContent": "step=20-volume doing=Mount the data volume at /data"}
        if action == "GetCommandInvocation":
            self.pending -= 1
            return {"Status": "InProgress"} if self.pending >= 0 else self.answer
        raise LookupError(action)


@contextmanager
def answering() -> Iterator[Host]:
    """A host that answers at `url` until the block ends."""
    host = Host()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            action = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
            if action:
                text = json.dumps(host.ssm(action, json.loads(body)))
            else:
                text = IDENTITY if "GetCallerIdentity" in body else INSTANCES.format(host.state)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-amz-json-1.1" if action else "text/xml")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()
