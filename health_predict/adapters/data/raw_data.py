"""Which raw data a run reads: one rule for training, monitoring and simulation.

Without a champion: what the settings name, else the contract's published file. Once there is one, the file that its
dataset was made from, which lies in storage. Other data are taken only by a training that is told to replace them, or
when real patients take the place of synthetic ones; synthetic ones never take that of real ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from health_predict.adapters import keys
from health_predict.adapters.data.dataset import RawData, fetch, file_sha256
from health_predict.adapters.data.download import say
from health_predict.adapters.storage import Storage, open_storage
from health_predict.adapters.tracking import ModelVersion, Tag, champion_of
from health_predict.core.data.partition import BATCHES, Parameters
from health_predict.core.data.sources import Source
from health_predict.errors import DataError, StateError, UnreachableError
from health_predict.settings import Settings

log = logging.getLogger(__name__)

_REPLACE = "`health-predict pipeline run readmission --replace-data`"
_OWN_HOME = "give them a place of their own: another HEALTH_PREDICT_HOME, or another cluster"


@dataclass(frozen=True)
class Origin:
    """What a model version was made from, as the manifest of its dataset says."""

    version: ModelVersion
    manifest: Mapping[str, Any]
    """Empty when storage has none."""

    @property
    def raw_sha256(self) -> str:
        """SHA-256 of the raw file; empty when it is not known."""
        return str(self.manifest.get("raw_sha256", ""))

    @property
    def source(self) -> str:
        """What the data are; empty when it is not known."""
        return str(self.manifest.get("source", self.version.tags.get(Tag.DATASET_SOURCE, "")))

    @cached_property
    def parameters(self) -> Parameters:
        """How the dataset was cut. Raises StateError when it is not known."""
        if not self.manifest:
            raise self.unknown
        return Parameters.from_json(self.manifest["parameters"])

    @cached_property
    def future(self) -> str:
        """Digest of the future batches of the dataset; empty when it is not known."""
        parts = self.manifest.get("parts", {})
        rows = {name: part["rows_sha256"] for name, part in parts.items() if name.startswith(BATCHES)}
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest() if rows else ""

    @property
    def unknown(self) -> StateError:
        """That nobody knows what the version was trained on."""
        return StateError(
            f"storage has no manifest of the dataset of version {self.version.version}, the champion, so its data "
            "are not known",
            f"check HEALTH_PREDICT_STORAGE_URI, or train on data that you name: {_REPLACE}",
        )

    @property
    def data(self) -> str:
        """The data in a few words: what they are and the start of the raw file's SHA-256."""
        return _words(self.source, self.raw_sha256)

    def __str__(self) -> str:
        return f"version {self.version.version}, the champion, stands on {self.data}"


def _words(source: str, sha256: str) -> str:
    return f"{source or 'unknown'} data" + (f" (SHA-256 {sha256[:12]})" if sha256 else "")


def origin_of(storage: Storage, version: ModelVersion) -> Origin:
    """What a version was made from."""
    key = keys.dataset(version.tags.get(Tag.DATASET_DIGEST, "none"), keys.MANIFEST)
    try:
        manifest = json.loads(storage.read(key)) if storage.exists(key) else {}
        Parameters.from_json(manifest["parameters"]) if manifest else None
    except (ValueError, KeyError, TypeError):
        manifest = {}
    return Origin(version, manifest)


def champion_origin(settings: Settings) -> Origin | None:
    """What the champion was made from, None when there is none."""
    champion = champion_of(settings)
    return None if champion is None else origin_of(open_storage(settings.storage, settings.s3_endpoint_url), champion)


def raw_data(
    settings: Settings,
    origin: Origin | None,
    console: Console | None = None,
    *,
    continues: bool = False,
    stand_in: bool = False,
) -> RawData:
    """The raw data of a run, by the rule above; `origin` is the champion's. What is unusual is said loudly.

    `continues`: the run goes on with what the champion has learned and seen, so other data are out of the question.
    `stand_in`: without a champion the synthetic cohort may take the place of a published file that cannot be had.
    Raises DataError when other data are asked for than may be taken, StateError when the champion's are gone or
    damaged, and what `fetch` raises.
    """
    if origin is None:
        return fetch(settings, console, stand_in=stand_in)
    if settings.data_source:
        asked = fetch(settings, console)
        if asked.sha256 == origin.raw_sha256:
            _mend(settings, asked)
        else:
            _admit(asked, origin, settings, console, continues)
        return asked
    if not origin.raw_sha256:
        raise origin.unknown
    if origin.source == Source.SYNTHETIC and not continues:
        try:
            real = fetch(settings, console)
        except UnreachableError as error:
            say(console, f"{origin} and goes on with it: no real data are at hand ({error.problem})", loudly=True)
        else:
            say(console, f"{origin}; real patients take its place: {_words(real.source, real.sha256)}", loudly=True)
            return real
    return _stored(settings, origin)


def refuse_other_data(settings: Settings, origin: Origin) -> None:
    """Refuse a run that judges or recalibrates the champion while the settings ask for other data than its own."""
    if settings.data_source:
        asked = fetch(settings)
        if asked.sha256 != origin.raw_sha256:
            _admit(asked, origin, settings, None, continues=True)


def _admit(asked: RawData, origin: Origin, settings: Settings, console: Console | None, continues: bool) -> None:
    both = f"{origin}, and {_words(asked.source, asked.sha256)} were asked for"
    if asked.source == Source.SYNTHETIC and origin.source != Source.SYNTHETIC:
        raise DataError(f"{both}: synthetic patients never take the place of real ones", _OWN_HOME)
    if continues:
        raise DataError(
            f"{both}: what was judged and learned so far is of the champion's patients",
            f"leave HEALTH_PREDICT_DATA_SOURCE out, or train on the other data first: {_REPLACE}",
        )
    if origin.source == Source.SYNTHETIC and asked.source != Source.SYNTHETIC:
        say(console, f"{both}: real patients take the place of synthetic ones", loudly=True)
    elif settings.replace_data:
        say(
            console,
            f"{both}: they take its place, as told; the gates compare both models on the new patients",
            loudly=True,
        )
    else:
        raise DataError(
            both,
            "name no data to go on with the champion's; to replace them: --replace-data, "
            "HEALTH_PREDICT_REPLACE_DATA=1 or -p replace_data=true",
        )


def _stored(settings: Settings, origin: Origin) -> RawData:
    """The champion's raw data from storage, when they are whole there."""
    path = settings.home / "data" / f"{origin.raw_sha256}.csv"
    problem = _read(open_storage(settings.storage, settings.s3_endpoint_url), origin.raw_sha256, path)
    if problem:
        raise StateError(
            f"{origin}, and storage has them {problem}",
            "give the same file once more: `health-predict pipeline run training -p data_source=<path or URI>`",
        )
    return RawData(path, origin.raw_sha256, origin.source)


def _read(storage: Storage, sha256: str, path: Path) -> str:
    """Bring the raw file from storage to `path`; what is wrong with it there, else nothing."""
    if not storage.exists(keys.raw(sha256)):
        return "no more"
    storage.download(keys.raw(sha256), path)
    if file_sha256(path) == sha256:
        return ""
    path.unlink()
    return "damaged"


def _mend(settings: Settings, raw: RawData) -> None:
    """See to it that storage has the champion's raw data whole."""
    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    with tempfile.TemporaryDirectory(prefix="health-predict-raw-") as folder:
        problem = _read(storage, raw.sha256, Path(folder) / "raw.csv")
    if problem:
        log.warning("%s: written again from %s", storage.uri(keys.raw(raw.sha256)), raw.path)
        storage.upload(raw.path, keys.raw(raw.sha256))
