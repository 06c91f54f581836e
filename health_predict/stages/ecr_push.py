"""ecr_push: a Bento becomes an image in the registry, named by its digest."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

from health_predict.adapters.images import ImageRegistry, open_registry
from health_predict.adapters.images.attestations import Origin, attest, can_list, components
from health_predict.adapters.images.layers import requirements_of
from health_predict.adapters.tracking import Tag, Tracking
from health_predict.errors import StateError
from health_predict.settings import Settings

log = logging.getLogger(__name__)

IDENTITY = (
    Tag.BENTO_TAG,
    Tag.BENTO_DIGEST,
    Tag.RUN_ID,
    Tag.DATASET_DIGEST,
    Tag.DATASET_SOURCE,
    Tag.GIT_COMMIT,
    Tag.FAMILY,
)


def ecr_push(settings: Settings, *, bento: Path, model_version: str) -> str:
    """Push what the registry lacks of the archive that bento_build wrote for this version; the image's URI by digest.

    Raises StateError when the archive is not the version's own.
    """
    tracking = Tracking(settings)
    version = tracking.version(model_version)
    expected = version.tags.get(Tag.BENTO_DIGEST, "")
    if not bento.is_file():
        raise StateError(f"{bento} does not exist", "run bento_build again")
    with bento.open("rb") as file:
        found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    if found != expected:
        raise StateError(
            f"{bento} is {found}, but the Bento of model version {model_version} is {expected or 'not built'}",
            "run bento_build again",
        )
    identity = {"model_name": version.name, "model_version": version.version}
    identity |= {str(tag): version.tags.get(tag, "") for tag in IDENTITY}
    registry = open_registry(settings)
    image_uri = registry.push(bento, identity)
    registry.verify(image_uri)
    _attest(settings, registry, image_uri, requirements_of(bento), identity)
    tracking.tag_version(version.version, {Tag.IMAGE_URI: image_uri})
    return image_uri


def _attest(
    settings: Settings, registry: ImageRegistry, image_uri: str, requirements: str, identity: Mapping[str, str]
) -> None:
    """Lay beside an image what it is made of, where it came from and, where a key is set, who vouches for that."""
    name, _, digest = image_uri.rpartition("@")
    materials = {
        "git commit": {"gitCommit": identity[Tag.GIT_COMMIT]},
        f"dataset {identity[Tag.DATASET_SOURCE]}": {"sha256": identity[Tag.DATASET_DIGEST]},
        f"Bento {identity[Tag.BENTO_TAG]}": {"sha256": identity[Tag.BENTO_DIGEST].removeprefix("sha256:")},
    }
    parameters = {name: identity[name] for name in ("model_name", "model_version", Tag.RUN_ID, Tag.FAMILY)}
    origin = Origin(
        name, digest, parameters, {one: digests for one, digests in materials.items() if all(digests.values())}
    )
    key = Path(settings.signing_key) if settings.signing_key else None
    if key is None and not can_list():
        log.warning("uv or the lock file is not here, so the image gets no list of its components")
        return
    attest(registry, image_uri, components("readmission", digest, requirements.split()), origin, key)
