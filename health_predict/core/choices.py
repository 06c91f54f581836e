"""What a stream may undergo and what may change the model: names for `--help`, which imports nothing heavy for them."""

from __future__ import annotations

from enum import StrEnum


class Scenario(StrEnum):
    """What changes in the stream, from one row on."""

    NONE = "none"
    AGE_SHIFT = "age-shift"
    ADMISSION_TYPE_SHIFT = "admission-type-shift"
    MISSINGNESS_SWITCH = "missingness-switch"
    ICD_RECODING = "icd-recoding"
    CAPPED_COUNTS = "capped-counts"
    PREVALENCE_DOWN = "prevalence-down"
    PREVALENCE_UP = "prevalence-up"
    CONCEPT_FLIP = "concept-flip"
    DRUG_WITHDRAWAL = "drug-withdrawal"
    DELAYED_LABELS = "delayed-labels"


class Approval(StrEnum):
    """Who brings a version into service that has passed its gates: the pipeline, or a person that it waits for."""

    AUTO = "auto"
    ASK = "ask"


class Policy(StrEnum):
    """Who decides that the model is changed: nobody, the calendar, or what was found."""

    NEVER = "never"
    EVERY = "every"
    SCHEDULED = "scheduled"
    DRIFT = "drift"
