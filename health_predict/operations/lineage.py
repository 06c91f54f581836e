"""lineage: from the endpoint back to the data and the commit, every link checked against what it names."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from health_predict.adapters import keys
from health_predict.adapters.archives import content_digest
from health_predict.adapters.contracts import stored_contract
from health_predict.adapters.images import open_registry
from health_predict.adapters.images.attestations import attested
from health_predict.adapters.serving.endpoint import NOT_LET_IN, ask
from health_predict.adapters.serving.target import open_target
from health_predict.adapters.source_control import UNKNOWN, contains
from health_predict.adapters.storage import Storage, open_storage
from health_predict.adapters.tracking import CHAMPION, Tag, Tracking
from health_predict.core.data.cohort import load_part
from health_predict.core.data.partition import Parameters, dataset_digest, rows_digest
from health_predict.errors import HealthPredictError, SettingsError, StateError, UnreachableError
from health_predict.settings import Settings
from health_predict.stages.rollout import unpacked

_SPLIT_AGAIN = "run the training pipeline again: the same data give the same dataset"
_DEPLOY_AGAIN = "build and roll out again: `health-predict pipeline run deployment`"


@dataclass(frozen=True, slots=True)
class Link:
    """One link of the chain: what it is, how it was verified, or what is wrong with it."""

    name: str
    identity: str
    evidence: str = ""
    problem: str = ""
    remedy: str = ""


NAMES = ("endpoint", "image", "Bento", "model version", "MLflow run", "dataset", "git commit")


def lineage(settings: Settings) -> list[Link]:
    """The chain from the serving process to data and commit, in this order; it ends at the first broken link.

    Raises UnreachableError when the registry does not answer.
    """
    links: list[Link] = []
    try:
        for identity, evidence in _verified(settings):
            links.append(Link(NAMES[len(links)], identity, evidence))
    except UnreachableError:
        raise
    except HealthPredictError as error:
        links.append(Link(NAMES[len(links)], "", problem=error.problem, remedy=error.remedy))
    return links


def _verified(settings: Settings) -> Iterator[tuple[str, str]]:
    """Identity and evidence of each link of `NAMES`, when it has been verified; one that is broken raises."""
    target, tracking = open_target(settings), Tracking(settings)
    active = target.active()
    if active is None:
        raise StateError(target.trouble() or "nothing serves", "`health-predict serve`")
    try:
        health = ask(f"{target.url}/health", settings).json()
    except (UnreachableError, ValueError) as error:
        raise StateError(f"{target.url}/health gives no answer: {error}", "`health-predict serve`") from None
    if "since" not in health:
        raise SettingsError(f"{target.url}/health does not tell us what serves", NOT_LET_IN)
    _same("the version", "the process", health.get("model_version"), "its rollout", active.model_version)
    yield f"{', '.join(active.workers)} at {target.url}", "asked at /health"

    registry = open_registry(settings)
    registry.verify(active.image_uri)
    trusted = settings.trusted_keys
    signed = f", signed by the key {attested(registry, active.image_uri, Path(trusted)).signer}" if trusted else ""
    yield active.image_uri, f"manifest and layers hashed again{signed}"

    folder = unpacked(settings, active.image_uri)
    if not folder.is_dir():  # another machine rolled it out
        registry.unpack(active.image_uri, folder)
    digest = content_digest(folder)
    _same("the digest", "the unpacked Bento", digest, "the serving process", health.get("bento_digest"))
    yield f"{health.get('bento_tag')} {digest}", "content hashed again, equal in the process"

    version = tracking.version(active.model_version)
    names = (Tag.BENTO_TAG, Tag.BENTO_DIGEST, Tag.RUN_ID, Tag.CONTRACT_DIGEST, Tag.DATASET_DIGEST, Tag.GIT_COMMIT)
    expected = {Tag.IMAGE_URI: active.image_uri, **{name: health.get(name) for name in names}}
    for name, value in expected.items():
        _same(f"tag {name}", "the registry", version.tags.get(name), "the Bento", value)
    champion = tracking.by_alias(CHAMPION)
    _same("the champion", "the registry", champion.version if champion else None, "the endpoint", version.version)
    yield f"{version.name} {version.version}", f"alias {CHAMPION}, {len(expected)} tags equal to the Bento's identity"

    _same("the run", "the version", version.run_id, "its tag", version.tags.get(Tag.RUN_ID))
    run = tracking.run(version.run_id)
    for name in (Tag.CONTRACT_DIGEST, Tag.DATASET_DIGEST, Tag.GIT_COMMIT):
        _same(f"tag {name}", "the run", run.tags.get(name), "the version", version.tags.get(name))
    _same("the status", "the run", run.status, "a run that ended well", "FINISHED")
    yield f"{run.name} {run.run_id}", "finished, tags equal to the version's"

    storage = open_storage(settings.storage, settings.s3_endpoint_url)
    contract, digest = run.tags[Tag.CONTRACT_DIGEST], run.tags[Tag.DATASET_DIGEST]
    _same("the digest", "the data contract", stored_contract(storage, contract).digest, "the run", contract)
    yield digest, _verify_dataset(storage, digest)

    revision = run.tags[Tag.GIT_COMMIT]
    clean, _, dirty = revision.partition("-")
    known = {True: "found in this checkout", False: "not in this checkout", None: "no checkout to look it up in"}
    evidence = known[contains(clean)] + (", with uncommitted changes" if dirty else "")
    yield revision, "the code ran outside a checkout" if revision == UNKNOWN else evidence


def _verify_dataset(storage: Storage, digest: str) -> str:
    """Hash the raw file and every part again; the evidence, with what was removed on purpose and what arrived."""
    try:
        manifest = json.loads(storage.read(keys.dataset(digest, keys.MANIFEST)))
        parameters = Parameters.from_json(manifest["parameters"])
        rows = {name: str(part["rows_sha256"]) for name, part in manifest["parts"].items()}
        files, raw = dict(manifest["files"]), str(manifest["raw_sha256"])
        forgotten = dict(manifest.get("forgotten", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"the manifest of dataset {digest} cannot be read: {error!r}", _SPLIT_AGAIN) from None
    _same("the digest", "the manifest", dataset_digest(raw, parameters, rows), "the run", digest, _SPLIT_AGAIN)
    data = storage.read(keys.raw(raw))
    _same("the SHA-256", "the raw file", hashlib.sha256(data).hexdigest(), "the manifest", raw, _SPLIT_AGAIN)
    with tempfile.TemporaryDirectory(prefix="health-predict-lineage-") as folder:
        file = Path(folder) / "part.parquet"
        for name, expected in rows.items():
            storage.download(keys.part(digest, name), file)
            actual = hashlib.sha256(file.read_bytes()).hexdigest()
            _same("the SHA-256", f"part {name}", actual, "the manifest", files.get(f"{name}.parquet"), _SPLIT_AGAIN)
            left = forgotten.get(name, {}).get("rows_sha256", expected)
            _same("the rows", f"part {name}", rows_digest(load_part(file)), "the manifest", left, _SPLIT_AGAIN)
    said = f"raw file and rows of {len(rows)} parts hashed again"
    if arrivals := manifest.get("arrivals"):
        count = sum(one["rows"] for one in arrivals)
        said += f"; {count:,} encounters are of arrivals, batches {arrivals[0]['batch']} to {arrivals[-1]['batch']}"
    if forgotten:
        said += f"; {sum(one['rows'] for one in forgotten.values()):,} encounters were removed on purpose since"
    return said


def _same(what: str, here: str, actual: object, there: str, expected: object, remedy: str = _DEPLOY_AGAIN) -> None:
    if actual is None or str(actual) != str(expected):
        raise StateError(f"{what} of {here} is {actual}, of {there} {expected}", remedy)
