"""What a rollout deploys to: the port behind which a process and a Kubernetes Deployment look alike."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from health_predict.settings import PREFIX, Settings


@dataclass(frozen=True)
class Active:
    """The version that takes the traffic of the stable endpoint."""

    image_uri: str
    model_version: str
    since: str
    """UTC time of its rollout, ISO 8601."""
    restarts: int
    """How often one of its workers was started again since then."""
    workers: tuple[str, ...]
    """Names of the processes or pods, for people."""


class Rollout(Protocol):
    """One change of version. Whatever is not committed is undone when its context ends, even by kill -9."""

    def start(self, image_uri: str, model_version: str, folder: Path) -> str:
        """Start the candidate outside the traffic; the URL under which it alone answers, once it is ready.

        `folder` holds the image's unpacked Bento. Raises GateError when the candidate does not become ready.
        """

    def switch(self) -> None:
        """Lead the traffic to the candidate; until it is committed, the version before can have it back."""

    def undo(self) -> None:
        """Lead the traffic back and end the candidate. Nothing happens when there is none."""

    def commit(self) -> None:
        """Keep the candidate; the version before it finishes its requests and ends."""


class Target(Protocol):
    """Where the model is served."""

    @property
    def url(self) -> str:
        """Base URL of the stable endpoint."""

    def active(self) -> Active | None:
        """What takes the traffic now; None when nothing runs."""

    def trouble(self) -> str:
        """Why nothing runs although something should; empty when all is well."""

    def rollout(self) -> AbstractContextManager[Rollout]:
        """Begin a rollout. Rollouts wait for each other, with a deadline; a change half done is undone first.

        Raises UnreachableError when the endpoint cannot be had.
        """

    def stop(self) -> bool:
        """End the endpoint; requests under way are answered. False when nothing ran."""


def service_environment(settings: Settings, spool: Path) -> dict[str, str]:
    """The variables that a served Bento reads; `spool` is where predictions wait when the settings name no folder."""
    values = {
        "prediction_log": settings.prediction_log or spool,
        "prediction_log_limit_mb": settings.prediction_log_limit_mb,
        "prediction_log_seconds": settings.prediction_log_seconds,
        "storage_uri": settings.storage,
        "s3_endpoint_url": settings.s3_endpoint_url,
        "serving_threads": settings.serving_threads,
        "serving_batch_rows": settings.serving_batch_rows,
        "serving_batch_mb": settings.serving_batch_mb,
        "serving_host": settings.serving_host,
        "serving_tokens": settings.serving_tokens,
        "serving_tls_certificate": settings.serving_tls_certificate,
        "serving_tls_key": settings.serving_tls_key,
        "serving_hosts": json.dumps(settings.serving_hosts),
        "serving_cors_origins": json.dumps(settings.serving_cors_origins),
    }
    named = {PREFIX + name.upper(): str(value) for name, value in values.items()}
    return {**named, "OMP_NUM_THREADS": str(settings.serving_threads)}
