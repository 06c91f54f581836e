"""Image registries: where a Bento becomes an image that is named by its digest, laid there without a daemon.

Two of them: a repository of a registry, and a folder in the OCI image layout: `oci-layout`, `index.json` and
`blobs/sha256/...`, so `oras`, `skopeo` and `crane` read it. In a registry an image has three parts: a Python base, the
libraries of the service on it, and the Bento. The first two make the `runtime` image, which is pushed once for each
base and lock file under a tag that names its content; a model then costs its own layer, a config and a manifest. In
the folder an image has one layer, the Bento's own archive, since a process runs it on the installed Python.
Sources: OCI image specification 1.1, OCI distribution specification 1.1.
"""

from __future__ import annotations

from pathlib import Path

from health_predict.adapters.images.layout import SCHEME, LayoutRegistry
from health_predict.adapters.images.registry import ImageRegistry
from health_predict.adapters.images.remote import RemoteRegistry
from health_predict.errors import SettingsError
from health_predict.settings import Settings

__all__ = ["ImageRegistry", "LayoutRegistry", "RemoteRegistry", "open_registry"]


def open_registry(settings: Settings) -> ImageRegistry:
    """The registry that the settings name: `oci:/folder`, or `host/repository`. Raises SettingsError for another."""
    uri = settings.registry
    if not uri.startswith(SCHEME):
        return RemoteRegistry(uri, endpoint=settings.registry_endpoint, base_image=settings.base_image)
    folder = Path(uri.removeprefix(SCHEME))
    if not folder.is_absolute():
        raise SettingsError(
            f"image registry {uri!r} is not supported",
            "set HEALTH_PREDICT_IMAGE_REGISTRY to oci:/folder or registry.host/repository",
        )
    return LayoutRegistry(folder)
