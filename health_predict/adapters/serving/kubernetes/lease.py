"""A Lease keeps rollouts apart."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from datetime import UTC, datetime
from typing import Any

from kubernetes import client

from health_predict.adapters.serving.kubernetes.cluster import CONFLICT, NOT_FOUND, Cluster
from health_predict.errors import GateError, HealthPredictError, UnreachableError

log = logging.getLogger(__name__)

LEASE_SECONDS = 15
RENEW_SECONDS = 4.0
PAUSE_SECONDS = 1.0
# Others' rollouts take a candidate's time, twice.
WAIT_SECONDS = 900.0


class Lease:
    """Held by one rollout at a time. Who dies holding it is followed after `LEASE_SECONDS`."""

    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._ended = threading.Event()
        self._lost = ""
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        end = time.monotonic() + WAIT_SECONDS
        seen, since = "", time.monotonic()
        while True:
            lease = self._read()
            # By our own clock: how long nothing has changed, whatever the holder's says.
            now = f"{lease.spec.holder_identity} {lease.spec.renew_time}" if lease else ""
            if now != seen:
                seen, since = now, time.monotonic()
            free = lease is None or not lease.spec.holder_identity or time.monotonic() - since > LEASE_SECONDS
            if free and self._write(lease, self._holder):
                break
            if time.monotonic() > end:
                raise UnreachableError(
                    f"another rollout, {seen}, has been under way for {WAIT_SECONDS:g} s",
                    "let it finish, then try again",
                )
            time.sleep(PAUSE_SECONDS)
        self._renewer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._renewer.join()
        with contextlib.suppress(HealthPredictError):
            if (lease := self._read()) and lease.spec.holder_identity == self._holder:
                self._write(lease, "")

    def check(self) -> None:
        """Raises GateError when somebody else took over."""
        if self._lost:
            raise GateError(f"the rollout's lease was lost: {self._lost}", "run the stage again")

    def _read(self) -> Any:
        read = self._cluster.coordination.read_namespaced_lease
        return self._cluster.ask(read, self._name, self._namespace, allowed=(NOT_FOUND,))

    def _write(self, lease: Any, holder: str) -> bool:
        """Whether the lease is written: not when somebody else changed it since it was read."""
        now = datetime.now(UTC)
        spec = client.V1LeaseSpec(
            holder_identity=holder, lease_duration_seconds=LEASE_SECONDS, renew_time=now, acquire_time=now
        )
        ask, leases = self._cluster.ask, self._cluster.coordination
        if lease is None:
            new = client.V1Lease(metadata=client.V1ObjectMeta(name=self._name), spec=spec)
            return ask(leases.create_namespaced_lease, self._namespace, new, allowed=(CONFLICT,)) is not None
        # The resource version in it makes the server refuse what is not what was read.
        lease.spec = spec
        written = ask(leases.replace_namespaced_lease, self._name, self._namespace, lease, allowed=(CONFLICT,))
        return written is not None

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                lease = self._read()
                if lease is None or lease.spec.holder_identity != self._holder:
                    self._lost = f"{lease.spec.holder_identity or 'nobody' if lease else 'nobody'} holds it"
                    return
                self._write(lease, self._holder)
            except Exception as error:  # whatever it is, the next attempt may do
                log.warning("the lease could not be renewed: %s", error)
