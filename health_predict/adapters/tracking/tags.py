"""The names of the tags that runs and model versions carry in MLflow."""

from __future__ import annotations

from enum import StrEnum


class Tag(StrEnum):
    """Names of tags. A version takes over what `register` lists from its run."""

    # Of runs and versions.
    FAMILY = "family"
    CONTRACT_DIGEST = "contract_digest"
    DATASET_DIGEST = "dataset_digest"
    DATASET_SOURCE = "dataset_source"
    GIT_COMMIT = "git_commit"
    SEARCH_DIGEST = "search_digest"
    STAGE = "stage"  # which stage made a run; how far a version has come: `VersionStage`
    RECALIBRATES = "recalibrates"  # the version with the same estimator
    LABELLED_BATCHES = "labelled_batches"
    CALIBRATED_ON = "calibrated_on"  # the stream and numbers of the batches that the map was fitted on, as JSON
    ESTIMATOR_BATCHES = "estimator_batches"  # labelled batches that the estimator learned from
    # Of runs.
    ROLE = "role"
    TRIAL = "trial"
    STOPPED_EARLY = "stopped_early"
    ERROR = "error"
    BASELINE = "baseline"
    CHOSEN = "chosen_run_id"  # of a search: the run of the model that it ended with
    REASON = "chosen_because"  # in one sentence
    MODEL_SHA256 = "model_sha256"  # of the file of the model, and of the preprocessor beside it: see `Tracking`
    PREPROCESSOR_SHA256 = "preprocessor_sha256"
    # Of versions.
    RUN_ID = "run_id"
    PARENT_RUN_ID = "parent_run_id"
    THRESHOLD = "threshold"
    DECISION = "decision"
    DECIDED_AGAINST = "decided_against"  # the champion at that time, or none
    BENTO_TAG = "bento_tag"
    BENTO_DIGEST = "bento_digest"
    IMAGE_URI = "image_uri"
    APPROVAL = "approval"  # what a person said, or that it waits for one: `ApprovalState`
    APPROVAL_BY = "approval_by"
    APPROVAL_AT = "approval_at"  # UTC, ISO 8601
    APPROVAL_WHY = "approval_why"
    SERVED = "served"  # when it did: pairs of begin and end (null: it does), UTC, as JSON
    # Of the registered model.
    PINNED = "pinned"  # the version that a rollback brought back, by whom, when and why, as JSON


class Role(StrEnum):
    """What a run is in its search."""

    SEARCH = "search"
    TRIAL = "trial"
    BEST = "best"


class ApprovalState(StrEnum):
    """What a person said of a version that has passed its gates."""

    WAITING = "waiting"  # nothing yet
    APPROVED = "approved"
    REFUSED = "refused"
    REPLACED = "replaced"  # nothing, and a newer one waits in its place


class VersionStage(StrEnum):
    """How far a version has come."""

    STAGING = "Staging"
    PRODUCTION = "Production"
    ARCHIVED = "Archived"
