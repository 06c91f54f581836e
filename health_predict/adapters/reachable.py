"""Whether a server answers at all, asked before a client that would wait for minutes."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

from health_predict.errors import UnreachableError
from health_predict.settings import PREFIX, Settings

ANSWER_SECONDS = 5.0


def must_answer(settings: Settings, *names: str) -> None:
    """Ask the servers that these settings name; what is no HTTP address, or not set, is passed over.

    Args:
        settings: Where the servers are.
        names: Of `s3_endpoint_url`, `mlflow_tracking_uri`, `kfp_host`.

    Raises:
        UnreachableError: when one gives no answer, whatever its content, within five seconds.
    """
    for name in names:
        address = getattr(settings, name)
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            continue
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=ANSWER_SECONDS)
        try:
            connection.request("GET", "/")
            connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(
                f"{address} does not answer within {ANSWER_SECONDS:g} s ({error or type(error).__name__})",
                f"see that the server runs and lets this machine in, and that {PREFIX}{name.upper()} is right",
            ) from None
        finally:
            connection.close()
