"""What is said about an image, beside it in the registry: its components, where it came from, and who vouches for it.

The components are a CycloneDX document; the origin is an in-toto statement with SLSA's provenance, which names that
document by its digest. Where a key is set, the statement lies in a DSSE envelope with the key's signature, so that one
signature covers all. The same image gives the same documents: they hold no time.
Sources: CycloneDX 1.5, in-toto attestation framework 1.0, SLSA provenance 1.0, DSSE 1.0.
"""

from __future__ import annotations

import base64
import json
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from health_predict.adapters.images.layers import canonical, sha256
from health_predict.adapters.images.registry import ImageRegistry
from health_predict.adapters.images.wheels import LOCK_FILE, find_uv, uv_program
from health_predict.errors import GateError, SettingsError, StateError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

COMPONENTS = "application/vnd.cyclonedx+json"
STATEMENT = "application/vnd.in-toto+json"
ENVELOPE = "application/vnd.dsse.envelope.v1+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PROVENANCE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE, BUILDER = "urn:health-predict:image:1", "urn:health-predict:builder"
# What uv exports of the project, by image: the extras and groups of the lock file that are in it.
CONTENT: Mapping[str, tuple[str, ...]] = {
    "readmission": ("--extra", "serving"),
    "pipeline": ("--extra", "serving", "--extra", "training", "--extra", "operations"),
    "mlflow": ("--only-group", "mlflow-server"),
}
EXPORT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Origin:
    """Of an image: its digest (`sha256:...`), what it was asked for by, and what it was made from, by digest."""

    name: str
    digest: str
    parameters: Mapping[str, str]
    materials: Mapping[str, Mapping[str, str]]
    """By name, the digests by algorithm."""


def can_list() -> bool:
    """Whether the lock file is there, and uv, which reads it."""
    return LOCK_FILE.is_file() and find_uv() is not None


def components(content: str, digest: str, installed: Sequence[str] | None = None) -> bytes:
    """The CycloneDX document of an image with this `content`; with `installed` (`name==version`), of these alone.

    Raises StateError when uv cannot read the lock file.
    """
    command = [uv_program(), "export", "--quiet", "--no-config", "--no-cache", "--offline", "--frozen"]
    command += ["--project", str(LOCK_FILE.parent), "--no-default-groups", "--format", "cyclonedx1.5"]
    done = subprocess.run(
        [*command, *CONTENT[content]], capture_output=True, text=True, timeout=EXPORT_SECONDS, check=False
    )
    if done.returncode:
        raise StateError(
            f"uv exports no components: {' '.join(done.stderr.split())[-300:]}",
            "run from a clone of the repository or its image",
        )
    found = json.loads(done.stdout)
    if installed is not None:
        kept = {*installed}
        found["components"] = [one for one in found["components"] if f"{one['name']}=={one.get('version')}" in kept]
        names = {one["bom-ref"] for one in found["components"]} | {found["metadata"]["component"]["bom-ref"]}
        found["dependencies"] = [
            {**one, "dependsOn": [name for name in one.get("dependsOn", ()) if name in names]}
            for one in found["dependencies"]
            if one["ref"] in names
        ]
    del found["metadata"]["timestamp"]
    found["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest)}"
    return canonical(found)


def provenance(origin: Origin, document: bytes) -> bytes:
    """The in-toto statement of where an image came from; `document` is its components."""
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": origin.name, "digest": _digest(origin.digest)}],
        "predicateType": PROVENANCE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": dict(origin.parameters),
                "resolvedDependencies": [
                    {"name": name, "digest": dict(digests)} for name, digests in origin.materials.items()
                ],
            },
            "runDetails": {
                "builder": {"id": BUILDER},
                "byproducts": [{"name": "components", "mediaType": COMPONENTS, "digest": _digest(sha256(document))}],
            },
        },
    }
    return canonical(statement)


def attest(registry: ImageRegistry, image_uri: str, document: bytes, origin: Origin, key_file: Path | None) -> None:
    """Lay both documents beside an image; the statement of its origin signed, where there is a key."""
    statement = provenance(origin, document)
    registry.attach(image_uri, COMPONENTS, document)
    if key_file is None:
        registry.attach(image_uri, STATEMENT, statement)
    else:
        registry.attach(image_uri, ENVELOPE, sign(statement, key_file))


class Attested(NamedTuple):
    """What lies beside an image: the statement of its origin, the components that it names, and who signed it."""

    statement: dict[str, Any]
    document: bytes
    signer: str
    """Id of the trusted key; empty where none is asked for."""


def attested(registry: ImageRegistry, image_uri: str, keys_file: Path | None) -> Attested:
    """What one of the trusted keys signed; without such keys what anybody who may push has laid there last.

    Raises GateError when no trusted key vouches for the image or its components are not those that were signed, and
    StateError when nothing lies there.
    """
    envelopes = registry.attached(image_uri, ENVELOPE)
    if keys_file:
        statement, signer = verified(envelopes, image_uri.rpartition("@")[2], keys_file)
    else:
        statements = [*registry.attached(image_uri, STATEMENT), *map(_payload, envelopes)]
        if not statements:
            raise StateError(
                f"nothing is said about the image {image_uri}",
                "`health-predict pipeline run deployment -p model_version=N` writes it",
            )
        statement, signer = json.loads(statements[-1]), ""
    named = document_of(statement)
    for document in registry.attached(image_uri, COMPONENTS):
        if sha256(document) == named:
            return Attested(statement, document, signer)
    raise GateError(f"the components of {image_uri} are not those that were signed", "run ecr_push again")


def _digest(value: str) -> dict[str, str]:
    algorithm, _, digest = value.partition(":")
    return {algorithm: digest}


def sign(statement: bytes, key_file: Path) -> bytes:
    """The statement in a DSSE envelope with the signature of a private key (PEM, Ed25519, without a password)."""
    key = _private(key_file)
    signature = {"keyid": key_id(key.public_key()), "sig": _text(key.sign(_encoded(statement)))}
    return canonical({"payload": _text(statement), "payloadType": STATEMENT, "signatures": [signature]})


def verified(envelopes: Sequence[bytes], digest: str, keys_file: Path) -> tuple[dict[str, Any], str]:
    """The statement about the image `digest` that one of the public keys in a file (PEM) signed, and that key's id.

    Raises GateError when there is none.
    """
    keys = _public(keys_file)
    for envelope in envelopes:
        statement, signer = _opened(envelope, keys)
        if (
            statement is not None
            and statement.get("predicateType") == PROVENANCE_TYPE
            and [one.get("digest") for one in statement.get("subject", ())] == [_digest(digest)]
        ):
            return statement, signer
    raise GateError(
        f"no key in {keys_file} vouches for the image {digest}",
        "push it by a stage that has the signing key, see docs/security.md; or find out who pushed it",
    )


def _opened(envelope: bytes, keys: Mapping[str, Ed25519PublicKey]) -> tuple[dict[str, Any] | None, str]:
    """What an envelope holds, if one of the keys signed it."""
    from cryptography.exceptions import InvalidSignature

    try:
        content = json.loads(envelope)
        payload = base64.b64decode(content["payload"], validate=True)
        signatures = [(str(one["keyid"]), base64.b64decode(one["sig"], validate=True)) for one in content["signatures"]]
        if content["payloadType"] != STATEMENT:
            return None, ""
    except (ValueError, KeyError, TypeError):
        return None, ""
    for name, signature in signatures:
        if name in keys:
            try:
                keys[name].verify(signature, _encoded(payload))
            except InvalidSignature:
                continue
            statement = json.loads(payload)
            return (statement, name) if isinstance(statement, dict) else (None, "")
    return None, ""


def _payload(envelope: bytes) -> bytes:
    return base64.b64decode(json.loads(envelope)["payload"], validate=True)


def document_of(statement: Mapping[str, Any]) -> str:
    """Digest of the components that a statement of provenance names."""
    (found,) = statement["predicate"]["runDetails"]["byproducts"]
    return f"sha256:{found['digest']['sha256']}"


def _encoded(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(STATEMENT), STATEMENT.encode(), len(payload), payload)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of a public key as it is written in a PEM file."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _private(file: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    remedy = "make one: `openssl genpkey -algorithm ed25519 -out FILE`, and set HEALTH_PREDICT_SIGNING_KEY"
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except OSError as error:
        raise SettingsError(f"the signing key {file} cannot be read: {error.strerror}", remedy) from None
    except (ValueError, TypeError):
        raise SettingsError(f"{file} holds no private key without a password", remedy) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"the key in {file} is not of the kind Ed25519", remedy)
    return key


def _public(file: Path) -> dict[str, Ed25519PublicKey]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    remedy = "write it: `openssl pkey -in KEY -pubout >> FILE`, and set HEALTH_PREDICT_TRUSTED_KEYS"
    end = b"-----END PUBLIC KEY-----"
    try:
        blocks = [block + end for block in file.read_bytes().split(end)[:-1]]
        found = [load_pem_public_key(block.lstrip()) for block in blocks]
    except OSError as error:
        raise SettingsError(f"the trusted keys {file} cannot be read: {error.strerror}", remedy) from None
    except ValueError:
        raise SettingsError(f"{file} holds what is no public key", remedy) from None
    keys = {key_id(key): key for key in found if isinstance(key, Ed25519PublicKey)}
    if not keys or len(keys) != len({*map(id, found)}):
        raise SettingsError(f"{file} holds no public key of the kind Ed25519, or another one too", remedy)
    return keys
