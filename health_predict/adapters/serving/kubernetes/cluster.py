"""A cluster's API server: who is asked, how often, and what its errors mean."""

from __future__ import annotations

import contextlib
import json
import logging
import select
import socketserver
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.incluster_config import InClusterConfigLoader
from kubernetes.stream import portforward
from tenacity import before_sleep_log, retry, stop_after_delay, wait_fixed
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from health_predict.errors import HealthPredictError, StateError, UnreachableError

log = logging.getLogger(__name__)

NOT_FOUND, CONFLICT = 404, 409
TEMPORARY = (408, 429, 500, 502, 503, 504)
REQUEST_SECONDS = 10.0
# While the API server is away or busy a request is repeated, for about a minute.
RETRIES, LONGEST_PAUSE = 12, 6.0
# Less than a client waits for its answer.
CONNECT_SECONDS = 6.0
IDLE_SECONDS = 60.0


class Cluster:
    """The API server of the kubeconfig's context, or of the cluster that this process runs in.

    `account` is a folder with the `token` and `ca.crt` of an account, as Kubernetes mounts them; where it has a token,
    a process inside the cluster asks by that account instead of its pod's own.
    `core`, `apps` and `coordination` are the client's typed APIs; `applying` is `apps` for server-side apply.
    Raises UnreachableError where no cluster is configured.
    """

    def __init__(self, context: str = "", *, account: str = "", retries: int = RETRIES) -> None:
        configuration = client.Configuration()
        self.inside = _configure(configuration, context, account)
        configuration.retries = Retry(
            retries,
            backoff_factor=0.5,
            backoff_max=LONGEST_PAUSE,
            status_forcelist=TEMPORARY,
            allowed_methods=None,
            raise_on_status=False,
        )
        self.address = str(configuration.host)
        self.api = client.ApiClient(configuration)
        self.core, self.apps = client.CoreV1Api(self.api), client.AppsV1Api(self.api)
        self.coordination = client.CoordinationV1Api(self.api)
        self.applying = client.AppsV1Api(
            client.ApiClient(configuration, "Content-Type", "application/apply-patch+yaml")
        )

    def ask(self, call: Callable[..., Any], *arguments: Any, allowed: Sequence[int] = (), **options: Any) -> Any:
        """What a call of the client gives; None when the server answers with an allowed status.

        Raises UnreachableError when the server does not answer in time, StateError when it refuses.
        """
        try:
            return call(*arguments, _request_timeout=REQUEST_SECONDS, **options)
        except ApiException as error:
            if error.status in allowed:
                return None
            problem = f"Kubernetes does not do {call.__name__} {' '.join(map(str, arguments[:1]))}"
            said = f"{error.status or ''} {_message(error)}"
            if not error.status or error.status in TEMPORARY:
                raise UnreachableError(f"{problem}: {said}", _REMEDY) from None
            if error.status in (401, 403):
                raise StateError(f"{problem}: {said}", "give this account the role of k8s/base/rbac.yaml") from None
            raise StateError(
                f"{problem}: {said}", "check that the manifests of k8s/ are applied: `make cluster-up`"
            ) from None
        except (HTTPError, OSError) as error:
            raise UnreachableError(f"Kubernetes at {self.address} does not answer: {error}"[:400], _REMEDY) from None

    def logs(self, namespace: str, pod: str, container: str, *, lines: int = 20) -> list[str]:
        """The last lines that a pod wrote; none when they cannot be had."""
        read = self.core.read_namespaced_pod_log
        # Undecoded: the client would take a line of JSON for an object.
        with contextlib.suppress(HealthPredictError):
            said = self.ask(read, pod, namespace, container=container, tail_lines=lines, _preload_content=False)
            return [line for line in said.data.decode(errors="replace").splitlines() if line.strip()]
        return []

    @contextmanager
    def forwarded(self, namespace: str, pod: str, port: int) -> Iterator[str]:
        """A URL on loopback that leads to a port of a pod, for who is outside the cluster's network."""

        @retry(stop=stop_after_delay(CONNECT_SECONDS), wait=wait_fixed(1), before_sleep=before_sleep_log(log, 30))
        def connect() -> Any:
            # A client of its own: while it connects, the library makes the client speak web sockets only.
            core = client.CoreV1Api(client.ApiClient(self.api.configuration))
            return portforward(core.connect_get_namespaced_pod_portforward, pod, namespace, ports=str(port)).socket(
                port
            )

        class Tunnel(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                near = self.request
                with contextlib.closing(connect()) as far:
                    while readable := select.select([near, far], [], [], IDLE_SECONDS)[0]:
                        for source in readable:
                            data = source.recv(65536)
                            if not data:
                                return
                            (far if source is near else near).sendall(data)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Say nothing: the client sees a closed connection."""

        with Server(("127.0.0.1", 0), Tunnel) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_address[1]}"
            server.shutdown()


def _configure(configuration: client.Configuration, context: str, account: str) -> bool:
    """Whether this process runs in the cluster that the configuration names from then on."""
    try:
        if account and (Path(account) / "token").is_file():
            token, authority = (str(Path(account) / name) for name in ("token", "ca.crt"))
            InClusterConfigLoader(token, authority).load_and_set(configuration)
            return True
        config.load_kube_config(context=context or None, client_configuration=configuration)
    except config.ConfigException as outside:
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            raise UnreachableError(
                f"no cluster is configured: {outside}", "set KUBECONFIG and HEALTH_PREDICT_KUBE_CONTEXT"
            ) from None
        return True
    return False


_REMEDY = "check the API server, KUBECONFIG and HEALTH_PREDICT_KUBE_CONTEXT"


def _message(error: ApiException) -> str:
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or error.reason)
    try:
        return str(json.loads(body)["message"])[:400]
    except (ValueError, KeyError, TypeError):
        return body[:400]
