"""Whose turn it is to monitor a stream: one run at a time, wherever it runs.

Where storage lies in the home, the home's own lock does that already. Runs of several homes or of a cluster meet in
storage: one takes its turn before it takes in arrivals and gives it back once its look has ended, by a write that
storage refuses when somebody else wrote meanwhile. Who died is followed by its own repetition at once, and by others
once its end was recorded, or after `LONGEST`.
"""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime, timedelta

from health_predict.adapters import keys
from health_predict.adapters.storage import Storage
from health_predict.errors import UnreachableError
from health_predict.settings import Profile, Settings

LONGEST = timedelta(hours=8)  # a search may take six


class Turn:
    """The turn of one run, by Kubeflow's id of it; a machine's own runs take turns by its home."""

    def __init__(self, settings: Settings, storage: Storage, run_id: str = "") -> None:
        here = f"{socket.gethostname()}:{settings.home}"
        self._holder = run_id if run_id and settings.profile is not Profile.LOCAL else here
        self._storage, self._key = storage, keys.turn(settings.stream)
        self._alone = settings.profile is Profile.LOCAL and not settings.storage_uri

    def take(self) -> None:
        """Raises UnreachableError while it is another run's."""
        if self._alone:
            return
        found = self._storage.tagged(self._key)
        told = json.loads(found[0]) if found else {}
        holder, since = str(told.get("holder", "")), str(told.get("since", ""))
        now = datetime.now(UTC)
        gone = not holder or holder == self._holder or self._storage.exists(keys.run_end(holder))
        if gone or now - datetime.fromisoformat(since) > LONGEST:
            turn = {"holder": self._holder, "since": now.isoformat(timespec="seconds")}
            if self._storage.exchange(self._key, json.dumps(turn).encode(), found[1] if found else None):
                return
            holder, since = "which began at the same moment", turn["since"]
        raise UnreachableError(
            f"another run of monitoring, {holder}, has been at work since {since}",
            f"let it end, then start this one again; a run that was killed is followed after {LONGEST}",
        )

    def end(self) -> None:
        """Give the turn back; nothing happens when it is another run's by now."""
        found = self._storage.tagged(self._key)
        if found and json.loads(found[0])["holder"] == self._holder:
            self._storage.delete(self._key)
