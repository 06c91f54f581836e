"""Which serving target a home has: processes of this machine, or a Deployment."""

from __future__ import annotations

from health_predict.adapters.serving.port import Target
from health_predict.settings import ServingTarget, Settings


def open_target(settings: Settings) -> Target:
    """The serving target that the settings name."""
    if settings.serving_target is ServingTarget.PROCESS:
        from health_predict.adapters.serving.processes import ProcessTarget

        return ProcessTarget(settings)
    from health_predict.adapters.serving.kubernetes import KubernetesTarget

    return KubernetesTarget(settings)
