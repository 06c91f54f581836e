"""bento_build: a version of the registered model becomes a Bento, once it is proven to score the same."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from health_predict.adapters.contracts import contract_of
from health_predict.adapters.data.parts import stored_part
from health_predict.adapters.files import whole_file
from health_predict.adapters.serving.bentoml import Bento, BentoStore, bento_tag, pack
from health_predict.adapters.storage import open_storage
from health_predict.adapters.tracking import ModelVersion, Tag, Tracking
from health_predict.core.data.cohort import as_requests, target
from health_predict.core.model import families, risk_groups
from health_predict.core.serving.compiled_model import TOLERANCE, CompiledModel, compile_pipeline, prove_parity
from health_predict.core.serving.explained_model import explain_pipeline
from health_predict.errors import StateError
from health_predict.settings import Settings
from health_predict.stages.approval import approve, must_be_approved

log = logging.getLogger(__name__)

GOLDEN_REQUESTS = 24
PARITY = "parity.json"


def bento_build(
    settings: Settings, *, model_version: str, bento: Path, approved_by: str = "", approval_why: str = ""
) -> Bento:
    """Compile the version, prove its parity, make its explanations, build its Bento, write its archive to `bento`.

    `approved_by`: the person who approves the version herewith, where it waits for one.

    The rows are those of the version's own dataset in storage. The same version gives the same digest; one that is
    built and undamaged is not built again. Raises GateError when the version waits for
    approval or the compiled model is not the pipeline, StateError
    when the version, its run or its data are missing.
    """
    tracking = Tracking(settings)
    version = tracking.version(model_version)
    needed = (Tag.DATASET_DIGEST, Tag.DATASET_SOURCE, Tag.FAMILY, Tag.THRESHOLD)
    missing = [tag for tag in needed if not version.tags.get(tag)]
    if missing:
        raise StateError(f"model version {model_version} has no tag {', '.join(missing)}", "register it again")
    storage, dataset = open_storage(settings.storage, settings.s3_endpoint_url), version.tags[Tag.DATASET_DIGEST]
    if approved_by:
        approve(tracking, storage, version, approved_by, approval_why)
        version = tracking.version(model_version)
    must_be_approved(settings, tracking, version)
    train = stored_part(storage, dataset, "train")
    prevalence = float(np.mean(target(train, contract_of(settings))))
    identity = _identity(tracking, version, prevalence)
    tag = bento_tag(version.version, identity)
    store = BentoStore(settings.home / "bentoml")
    built = store.find(tag, version.tags.get(Tag.BENTO_DIGEST, ""))
    if built is None:
        frame = stored_part(storage, dataset, "validation")
        compiled = _compiled(tracking, version, train, frame)
        log.info("building %s", tag)
        built = store.build(tag, compiled, identity, golden_requests(compiled, frame, identity["risk_cutoffs"]))
    else:
        log.info("%s is built already", tag)
    with whole_file(bento) as temporary:
        pack(built, temporary)
    tracking.tag_version(version.version, {Tag.BENTO_TAG: built.tag, Tag.BENTO_DIGEST: built.digest})
    return built


def _identity(tracking: Tracking, version: ModelVersion, prevalence: float) -> dict[str, Any]:
    metrics = sorted(tracking.run(version.run_id).metrics.items())
    return {
        "model_name": version.name,
        "model_version": version.version,
        "run_id": version.run_id,
        "dataset_digest": version.tags[Tag.DATASET_DIGEST],
        "dataset_source": version.tags[Tag.DATASET_SOURCE],
        "git_commit": version.tags.get(Tag.GIT_COMMIT, ""),
        "training_prevalence": prevalence,
        "risk_cutoffs": risk_groups.cutoffs(prevalence),
        "metrics": {name: value for name, value in metrics if name.startswith(("validation_", "test_"))},
    }


def _compiled(
    tracking: Tracking, version: ModelVersion, train: pd.DataFrame, validation: pd.DataFrame
) -> CompiledModel:
    """The version compiled, with its explanations, once it is proven to score the same."""
    family = families.named(version.tags[Tag.FAMILY])
    pipeline = tracking.load_pipeline(version.version)
    log.info("compiling version %s", version.version)
    compiled = compile_pipeline(pipeline, family, float(version.tags[Tag.THRESHOLD]))
    compiled = replace(compiled, explainer=explain_pipeline(pipeline, family, train))
    parity = prove_parity(compiled, pipeline, validation)
    log.info(
        "parity: %d validation and %d edge rows, probabilities within %.1g, threshold %.6f",
        parity.rows,
        parity.edge_rows,
        parity.largest_difference,
        parity.threshold,
    )
    for where in parity.near:
        log.warning("within %g of the threshold: %s", TOLERANCE, where)
    tracking.log_json(version.run_id, PARITY, asdict(parity))
    return compiled


def golden_requests(compiled: CompiledModel, frame: pd.DataFrame, cutoffs: list[float]) -> list[dict[str, Any]]:
    """Requests over the whole range of scores, and their answers by the compiled model.

    Each column is shuffled by itself: no request is a patient's. `frame` (n >= 1) is the validation part.
    """
    random, features = np.random.default_rng(0), compiled.contract.features
    mixed = pd.DataFrame(
        {column.name: frame[column.name].to_numpy()[random.permutation(len(frame))] for column in features}
    )
    requests = as_requests(mixed, features)
    rows = np.stack([compiled.encoder.encode(request)[0] for request in requests])
    scores = compiled.scorer()(rows)
    edges = np.array([*cutoffs, compiled.threshold])
    # On another processor the last digit may differ: it must not decide.
    clear = np.flatnonzero((np.abs(scores[:, None] - edges[None, :]) > 10 * TOLERANCE).all(axis=1))
    if not len(clear):
        raise StateError("no validation row is away from every cut-off", "use a larger validation set")
    ranked = clear[np.argsort(scores[clear], kind="stable")]
    chosen = ranked[np.unique(np.linspace(0, len(ranked) - 1, GOLDEN_REQUESTS).astype(int))]
    return [
        {
            "request": requests[index],
            "answer": {
                "prediction": int(scores[index] >= compiled.threshold),
                "probability_score": float(scores[index]),
                "risk_group": str(risk_groups.group_of(scores[index], cutoffs)),
            },
        }
        for index in chosen
    ]
