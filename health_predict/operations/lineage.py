"""lineage: from the endpoint back to the data and the commit, every link checked against what it names."""

from __future__ import annotations

import hashlib
import http.client
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from health_predict.adapters.dataset import FILE_NAME
from health_predict.adapters.images import open_registry
from health_predict.adapters.mlflow import CHAMPION, ModelVersion, RunRecord, Tracking
from health_predict.adapters.source_control import UNKNOWN, contains
from health_predict.adapters.storage import open_storage
from health_predict.adapters.target import Active, open_target
from health_predict.core.cohort import load_part
from health_predict.core.content import content_digest
from health_predict.core.errors import HealthPredictError, StateError, UnreachableError
from health_predict.core.partition import Parameters, dataset_digest, rows_digest
from health_predict.settings import Settings
from health_predict.stages.rollout import unpacked

ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Link:
    """One link of the chain: what it is, how it was verified, or what is wrong with it."""

    name: str
    identity: str
    evidence: str = ""
    problem: str = ""
    remedy: str = ""


class _Chain:
    """What the links found so far; a link that cannot be read ends the chain."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.target = open_target(settings)
        self.tracking = Tracking(settings)
        self.active: Active
        self.health: dict[str, Any]
        self.version: ModelVersion
        self.run: RunRecord


def lineage(settings: Settings) -> list[Link]:
    """The chain from the serving process to data and commit, in this order; it ends at the first broken link.

    Raises UnreachableError when the registry does not answer.
    """
    chain = _Chain(settings)
    links: list[Link] = []
    for name, verify in _LINKS.items():
        try:
            identity, evidence = verify(chain)
        except UnreachableError:
            raise
        except HealthPredictError as error:
            links.append(Link(name, "", problem=error.problem, remedy=error.remedy))
            break
        links.append(Link(name, identity, evidence))
    return links


def _endpoint(chain: _Chain) -> tuple[str, str]:
    active = chain.target.active()
    if active is None:
        raise StateError(chain.target.trouble() or "nothing serves", "`health-predict serve`")
    chain.active = active
    chain.health = _health(chain.target.url)
    _same("the version", "the process", chain.health.get("model_version"), "its rollout", active.model_version)
    return f"{', '.join(active.workers)} at {chain.target.url}", "asked at /health"


def _image(chain: _Chain) -> tuple[str, str]:
    open_registry(chain.settings).verify(chain.active.image_uri)
    return chain.active.image_uri, "manifest and layers hashed again"


def _bento(chain: _Chain) -> tuple[str, str]:
    folder = unpacked(chain.settings, chain.active.image_uri)
    if not folder.is_dir():  # another machine rolled it out
        open_registry(chain.settings).unpack(chain.active.image_uri, folder)
    digest = content_digest(folder)
    _same("the digest", "the unpacked Bento", digest, "the serving process", chain.health.get("bento_digest"))
    return f"{chain.health.get('bento_tag')} {digest}", "content hashed again, equal in the process"


def _model_version(chain: _Chain) -> tuple[str, str]:
    version = chain.version = chain.tracking.version(chain.active.model_version)
    expected = {"image_uri": chain.active.image_uri} | {
        name: chain.health.get(name) for name in ("bento_tag", "bento_digest", "run_id", "dataset_digest", "git_commit")
    }
    for name, value in expected.items():
        _same(f"tag {name}", "the registry", version.tags.get(name), "the Bento", value)
    champion = chain.tracking.by_alias(CHAMPION)
    _same("the champion", "the registry", champion.version if champion else None, "the endpoint", version.version)
    return f"{version.name} {version.version}", f"alias {CHAMPION}, {len(expected)} tags equal to the Bento's identity"


def _run(chain: _Chain) -> tuple[str, str]:
    _same("the run", "the version", chain.version.run_id, "its tag", chain.version.tags.get("run_id"))
    run = chain.run = chain.tracking.run(chain.version.run_id)
    for name in ("dataset_digest", "git_commit"):
        _same(f"tag {name}", "the run", run.tags.get(name), "the version", chain.version.tags.get(name))
    _same("the status", "the run", run.status, "a run that ended well", "FINISHED")
    return f"{run.name} {run.run_id}", "finished, tags equal to the version's"


def _dataset(chain: _Chain) -> tuple[str, str]:
    digest = chain.run.tags["dataset_digest"]
    storage = open_storage(chain.settings.storage, chain.settings.s3_endpoint_url)
    try:
        manifest = json.loads(storage.read(f"datasets/{digest}/manifest.json"))
        recorded = manifest["parameters"]
        parameters = Parameters.from_json(recorded)
        rows = {name: str(part["rows_sha256"]) for name, part in manifest["parts"].items()}
        files = dict(manifest["files"])
        raw = str(manifest["raw_sha256"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"the manifest of dataset {digest} cannot be read: {error!r}", _SPLIT_AGAIN) from None
    _same("the digest", "the manifest", dataset_digest(raw, parameters, rows), "the run", digest, _SPLIT_AGAIN)
    data = storage.read(f"raw/{raw}/{FILE_NAME}")
    _same("the SHA-256", "the raw file", hashlib.sha256(data).hexdigest(), "the manifest", raw, _SPLIT_AGAIN)
    with tempfile.TemporaryDirectory(prefix="health-predict-lineage-") as folder:
        file = Path(folder) / "part.parquet"
        for name, expected in rows.items():
            storage.download(f"datasets/{digest}/{name}.parquet", file)
            found = hashlib.sha256(file.read_bytes()).hexdigest()
            _same("the SHA-256", f"part {name}", found, "the manifest", files.get(f"{name}.parquet"), _SPLIT_AGAIN)
            _same("the rows", f"part {name}", rows_digest(load_part(file)), "the manifest", expected, _SPLIT_AGAIN)
    return digest, f"raw file and rows of {len(rows)} parts hashed again"


def _commit(chain: _Chain) -> tuple[str, str]:
    found = chain.run.tags["git_commit"]
    if found == UNKNOWN:
        return found, "the code ran outside a checkout"
    clean, _, dirty = found.partition("-")
    known = {True: "found in this checkout", False: "not in this checkout", None: "no checkout to look it up in"}
    return found, known[contains(clean)] + (", with uncommitted changes" if dirty else "")


_LINKS: dict[str, Callable[[_Chain], tuple[str, str]]] = {
    "endpoint": _endpoint,
    "image": _image,
    "Bento": _bento,
    "model version": _model_version,
    "MLflow run": _run,
    "dataset": _dataset,
    "git commit": _commit,
}


_SPLIT_AGAIN = "run the training pipeline again: the same data give the same dataset"
_DEPLOY_AGAIN = "build and roll out again: `health-predict pipeline run deployment`"


def _same(what: str, here: str, found: object, there: str, expected: object, remedy: str = _DEPLOY_AGAIN) -> None:
    if found is None or str(found) != str(expected):
        raise StateError(f"{what} of {here} is {found}, of {there} {expected}", remedy)


def _health(url: str) -> dict[str, Any]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/health")
        health: dict[str, Any] = json.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise StateError(f"{url}/health gives no answer: {error!r}", "`health-predict serve`") from None
    finally:
        connection.close()
    return health
