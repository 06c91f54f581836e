"""`health-predict image`: what an image is made of, where it came from, and who vouches for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from health_predict.commands.operate import AsJson
from health_predict.commands.progress import console_of, working
from health_predict.errors import StateError
from health_predict.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="Images: their components, their origin and their signature.")


DEPLOY = "`health-predict pipeline run deployment -p model_version=N` writes it"


@app.command()
def show(
    version: Annotated[str, typer.Argument(help="Version of the model; by default the champion")] = "",
    components: Annotated[bool, typer.Option("--components", help="Print the CycloneDX document")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a version's image is made of, where it came from and whether a trusted key has signed it."""
    settings = load_settings()
    with working(console_of(), "asking the registry"):
        from health_predict.adapters.images import open_registry
        from health_predict.adapters.images.attestations import ENVELOPE, attested
        from health_predict.adapters.tracking import CHAMPION, Tag, Tracking

        tracking = Tracking(settings)
        found = tracking.version(version) if version else tracking.by_alias(CHAMPION)
        uri = found.tags.get(Tag.IMAGE_URI) if found else None
        if found is None or not uri:
            raise StateError(f"version {version} has no image" if version else "there is no champion", DEPLOY)
        registry = open_registry(settings)
        keys = Path(settings.trusted_keys) if settings.trusted_keys else None
        beside = attested(registry, uri, keys)
        content, build = json.loads(beside.document), beside.statement["predicate"]["buildDefinition"]
        signed = f"by the key {beside.signer}"
        if not beside.signer:
            unknown = "yes, not verified: HEALTH_PREDICT_TRUSTED_KEYS names no key"
            signed = unknown if registry.attached(uri, ENVELOPE) else "no"
    if components:
        typer.echo(json.dumps(content, indent=1))
        return
    said = {
        "image": uri,
        "components": len(content["components"]),
        "asked for": build["externalParameters"],
        "made from": {one["name"]: next(iter(one["digest"].values())) for one in build["resolvedDependencies"]},
        "signed": signed,
    }
    if as_json:
        typer.echo(json.dumps(said))
        return
    for name, value in said.items():
        lines = [f"{key}: {one}" for key, one in value.items()] if isinstance(value, dict) else [str(value)]
        for line in lines:
            typer.echo(f"{name:<12}{line}")
            name = ""


@app.command()
def attest(
    uri: Annotated[str, typer.Argument(help="Image by its digest, host/repository@sha256:...")],
    of: Annotated[Literal["pipeline", "mlflow"], typer.Option(help="Which image of `make images` it is")],
    revision: Annotated[str, typer.Option(help="Commit that it was built from")] = "unknown",
    base: Annotated[str, typer.Option(help="Image that it was built on, by its digest")] = "",
) -> None:
    """Lay its components and its origin beside an image that `make images` has pushed; signed, where there is a key."""
    settings = load_settings()
    name, _, digest = uri.rpartition("@")
    from health_predict.adapters.images import open_registry
    from health_predict.adapters.images.attestations import Origin
    from health_predict.adapters.images.attestations import attest as lay
    from health_predict.adapters.images.attestations import components as listed

    materials = {"git commit": {"gitCommit": revision}}
    if "@sha256:" in base:
        materials[base.partition("@")[0]] = {"sha256": base.rpartition(":")[2]}
    registry = open_registry(settings.model_copy(update={"image_registry": name}))
    key = Path(settings.signing_key) if settings.signing_key else None
    lay(registry, uri, listed(of, digest), Origin(name, digest, {"image": of}, materials), key)
    typer.echo(f"{uri}: components and origin{', signed' if key else ''}")
