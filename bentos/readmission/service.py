"""Readmission within 30 days as a BentoML service.

`bentoml serve`, `bentoml containerize` and any ASGI server work on it as on every Bento. The routes are answered by
`readmission_service.application`; BentoML starts the workers and runs the life cycle.
"""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import bentoml
from readmission_service import http_protocol
from readmission_service.application import Application
from readmission_service.settings import load_settings

from health_predict.core.content import content_digest

# Objects made and not yet freed before the collector looks at them.
COLLECTED_AFTER = 10_000
HERE = Path(__file__).resolve().parent
# `bentoml serve` gives warnings only.
logging.getLogger("readmission_service").setLevel(logging.INFO)

APPLICATION = Application(load_settings())
http_protocol.install(APPLICATION)


@bentoml.service(
    name="readmission",
    image=bentoml.images.Image(
        base_image="python:3.11-slim",
        distro="none",
        python_version="3.11",
        lock_python_packages=False,
        # Not `requirements_file`: that refuses a Bento below a hidden folder.
    ).python_packages(*(HERE / "requirements.txt").read_text(encoding="utf-8").split()),
    # Native threads of several workers would fight for the processors.
    envs=[
        {"name": name, "value": value}
        for name, value in (
            ("OMP_NUM_THREADS", "1"),
            ("OPENBLAS_NUM_THREADS", "1"),
            ("BENTOML_DO_NOT_TRACK", "true"),
        )
    ],
    # Counted by the service itself, with bounded labels.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": [".*"]},
)
class Readmission:
    """Probability that a diabetic in-patient comes back within 30 days of discharge."""

    def __init__(self) -> None:
        APPLICATION.open(HERE, lambda: content_digest(HERE.parent))
        # What was loaded stays for good: the collector need not walk it in the middle of a request.
        gc.collect()
        gc.freeze()
        # A batch makes thousands of short-lived tuples, which refer to nothing that could lead back to them.
        gc.set_threshold(COLLECTED_AFTER)

    @bentoml.on_shutdown
    def close(self) -> None:
        """Finish the prediction log."""
        APPLICATION.close()


Readmission.add_asgi_middleware(lambda app: APPLICATION.in_front_of(app))
