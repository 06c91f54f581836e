"""backup and restore: the databases of a cluster to the bucket and back.

Artifacts and data lie in the versioned bucket already. The nightly CronJob (`k8s/base/backup.yaml`) writes
dumps to the same place under the same names.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from health_predict.adapters.databases import DATABASES, Database, KubectlDatabases
from health_predict.adapters.notifications import Event, tell
from health_predict.adapters.storage import Storage, open_storage
from health_predict.errors import HealthPredictError, SettingsError, StateError
from health_predict.settings import Settings

FOLDER = "backups"


@dataclass(frozen=True, slots=True)
class Backup:
    """One dump in the bucket."""

    database: str
    name: str
    uri: str


def backup(settings: Settings) -> list[Backup]:
    """Dump every database that the cluster has and store the dumps, each under the time it was begun.

    People are told when that fails.
    """
    try:
        return _backup(settings)
    except HealthPredictError as error:
        why = f"The databases were not saved: {error.problem}."
        tell(settings, Event.BACKUP, datetime.now(UTC).isoformat(), why, error.remedy)
        raise


def _backup(settings: Settings) -> list[Backup]:
    databases, storage = KubectlDatabases(settings.kube_context), _storage(settings)
    made = []
    with tempfile.TemporaryDirectory(prefix="health-predict-backup-") as folder:
        for database in DATABASES:
            if not databases.present(database):
                continue
            name = f"{database.name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}{database.suffix}"
            file = Path(folder) / name
            databases.dump(database, file)
            storage.upload(file, name)
            made.append(Backup(database.name, name, storage.uri(name)))
    if not made:
        raise StateError("the cluster has none of our databases", "`make cluster-up`, or `make kind-up`")
    return made


def backups(settings: Settings) -> list[Backup]:
    """The dumps in the bucket, newest first."""
    storage = _storage(settings)
    found = [
        Backup(database.name, key, storage.uri(key))
        for key in storage.keys("")
        if (database := _database(key)) is not None
    ]
    return sorted(found, key=lambda item: item.name.partition("-")[2], reverse=True)


def restore(settings: Settings, name: str) -> None:
    """Put a dump back in place of what its database holds now. Raises StateError for a name that is not there."""
    database, storage = _database(name), _storage(settings)
    if database is None or not storage.exists(name):
        raise StateError(f"there is no backup {name} in {storage.uri('')}", "`health-predict restore` lists them")
    with tempfile.TemporaryDirectory(prefix="health-predict-restore-") as folder:
        file = Path(folder) / name
        storage.download(name, file)
        KubectlDatabases(settings.kube_context).restore(database, file)


def _storage(settings: Settings) -> Storage:
    place = urlsplit(settings.storage)
    if place.scheme != "s3":
        raise SettingsError(
            f"the storage {settings.storage} is no bucket", "name the cluster: `--on kind` or `--on aws`"
        )
    return open_storage(f"s3://{place.netloc}/{FOLDER}", settings.s3_endpoint_url)


def _database(name: str) -> Database | None:
    return next((item for item in DATABASES if name.startswith(f"{item.name}-") and name.endswith(item.suffix)), None)
