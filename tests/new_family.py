"""The stages from the search to a served explanation, for a test that runs them with another `health_predict`."""

from __future__ import annotations

import http.client
import json
import sys
from pathlib import Path
from typing import Any

from health_predict.adapters.serving.target import open_target
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import Tracking
from health_predict.core.data.cohort import as_requests, load_part
from health_predict.settings import Settings
from health_predict.stages.bento_build import bento_build
from health_predict.stages.ecr_push import ecr_push
from health_predict.stages.hpo import hpo
from health_predict.stages.register import register
from health_predict.stages.rollout import rollout
from tests.contracts import DIABETES

DATASET = "d" * 64


def main(home: Path, parts: Path, port: int, families: tuple[str, ...]) -> dict[str, Any]:
    """What the service says about the first test encounters, and what the pipeline says."""
    settings = Settings(home=home, families=families, trials=2, serving_port=port, git_commit="c" * 40)
    train, validation, test = (parts / f"{name}.parquet" for name in ("train", "validation", "test"))
    storage = open_storage(settings.storage)
    for part in (train, validation):
        storage.upload(part, f"datasets/{DATASET}/{part.name}")
    searched = hpo(
        settings,
        dataset_digest=DATASET,
        dataset_source="custom",
        train=train,
        validation=validation,
        leaderboard=home / "board.html",
    )
    registered = register(
        settings, parent_run_id=searched.parent_run_id, validation=validation, test=test, card=home / "card.html"
    )
    version = registered.model_version
    bento_build(settings, model_version=version, bento=home / "bento.tar")
    pushed = ecr_push(settings, bento=home / "bento.tar", model_version=version)
    rollout(settings, image_uri=pushed, model_version=version, report=home / "rollout.html")
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        frame = load_part(test).head(20)
        answers = []
        for encounter in as_requests(frame, DIABETES.features):
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/predict?explain=true", json.dumps(encounter), headers)
            answers.append(json.loads(connection.getresponse().read()))
    finally:
        open_target(settings).stop()
    pipeline = Tracking(settings).load_pipeline(version)
    return {"family": registered.family, "answers": answers, "scores": pipeline.predict_proba(frame)[:, 1].tolist()}


if __name__ == "__main__":
    _, home, parts, port, *families = sys.argv
    print(json.dumps(main(Path(home), Path(parts), int(port), tuple(families))))
