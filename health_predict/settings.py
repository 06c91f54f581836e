"""The one place that reads the environment.

A profile is a set of default values, nothing else: no other module asks where it runs. Every setting is an
environment variable `HEALTH_PREDICT_<NAME>`; an unknown one is an error, so that a typing mistake cannot be
silently ignored.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pydantic_settings
from pydantic import AwareDatetime, Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from health_predict.core.choices import Approval, Policy
from health_predict.errors import SettingsError

PREFIX = "HEALTH_PREDICT_"
SYNTHETIC_SOURCE = "synthetic"


class Profile(StrEnum):
    """Where the pipelines run."""

    LOCAL = "local"
    KIND = "kind"
    AWS = "aws"


class ServingTarget(StrEnum):
    """What a rollout deploys to."""

    PROCESS = "process"
    KUBERNETES = "kubernetes"


class Settings(BaseSettings):
    """All values that differ by place. Frozen; unknown names are refused."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    profile: Profile = Field(Profile.LOCAL, description="Which set of defaults applies: local, kind or aws")
    home: Path = Field(Path(".health-predict"), description="Folder of everything that the local profile writes")

    contract: str = Field("", description="Data contract (path, URI or digest); empty: the one in use, else built in")
    data_source: str = Field(
        "", description="Raw CSV (path or URI) or `synthetic`; empty: the champion's, else published"
    )
    data_sha256: str = Field(
        "", description="SHA-256 that the uncompressed raw CSV must have; empty: the published file's only"
    )
    data_copy: str = Field("", description="Path or URI of a copy of the published file, in place of its download")
    replace_data: bool = Field(False, description="Train on other data than the champion's when asked to")
    storage_uri: str = Field("", description="Where bulk data lies: file:///folder or s3://bucket/prefix")
    s3_endpoint_url: str = Field("", description="S3 endpoint when it is not Amazon's")

    initial_share: float = Field(0.2, gt=0, lt=1, description="Share of encounters that trains the first model")
    future_batches: int = Field(16, ge=1, le=1000, description="How many batches the remaining encounters make")
    salt: str = Field("readmission", min_length=1, description="Salt of the patient split")

    stream: str = Field("live", pattern=r"^[a-z0-9][a-z0-9-]*$", description="Name of the batches and watermarks")
    window: str = Field(
        "week",
        pattern=r"^(day|week|month|[1-9][0-9]*)$",
        description="What makes a batch: day, week, month, or a count",
    )
    time_zone: str = Field("UTC", description="Time zone of the days, such as Europe/Berlin")
    follow_up_days: float | None = Field(
        None, ge=0, description="Days until an arrival's outcome counts; 0: when delivered; empty: the contract's"
    )
    derive_outcomes: bool = Field(False, description="Take outcomes from later arrivals of the same patient")
    keep_arrivals_days: int = Field(0, ge=0, description="Days that arrivals of judged batches are kept; 0: for ever")
    keep_outcomes_days: int = Field(0, ge=0, description="Days that taken files of outcomes are kept; 0: for ever")
    keep_quarantine_days: int = Field(0, ge=0, description="Days that what was set aside is kept; 0: for ever")
    as_of: AwareDatetime | None = Field(None, description="What monitoring takes for now, with its zone; empty: now")
    policy: Policy = Field(Policy.DRIFT, description="What changes the model: never, every, scheduled or drift")
    policy_interval: int = Field(4, ge=1, description="Batches between the retrainings of the policy scheduled")
    training_window: int = Field(0, ge=0, description="Newest labelled encounters that a model learns from; 0: all")
    approval: Approval = Field(Approval.AUTO, description="Whether a new version waits for a person: auto or ask")
    shadow_rows: int = Field(
        1000, ge=0, le=100_000, description="Newest encounters that a candidate scores before it takes traffic; 0: none"
    )
    shadow_limit: float | None = Field(
        None, ge=0, le=1, description="Share of changed decisions that a rollout may bring; empty: any"
    )
    shadow_subgroup_limit: float | None = Field(
        None, ge=0, le=1, description="The same within each subgroup; empty: any"
    )
    evidently: Literal["never", "alarm", "always"] = Field("alarm", description="When Evidently reports on a batch")

    mlflow_tracking_uri: str = Field("", description="MLflow tracking and registry URI")
    mlflow_patience: float = Field(300, ge=0, description="Seconds that a search waits for an MLflow that is away")
    mlflow_experiment: str = Field("readmission", min_length=1, description="MLflow experiment of the searches")
    registered_model: str = Field(
        "", pattern="^[^/:'\"]*$", description="Name in MLflow's model registry; empty: that of the data contract"
    )

    families: tuple[str, ...] = Field((), description="Model families to search, as a JSON list; empty: all")
    trials: int = Field(6, ge=1, le=10_000, description="Trials of each family's search")
    seed: int = Field(17, ge=0, description="Seed of the search")
    search_seconds: float = Field(0, ge=0, description="Seconds after which no further trial is drawn; 0: no limit")
    search_concurrency: int = Field(2, ge=1, le=1000, description="A family's trials at once; more keep a cluster busy")
    search_cpus: int = Field(0, ge=0, description="Processor cores of the search; 0: all")
    trial_cpus: int = Field(1, ge=1, le=256, description="Processor cores of one trial")
    trial_memory_mb: int = Field(0, ge=0, description="Memory that Ray sets aside for one trial, in MiB; 0: none")
    ray_address: str = Field("", description="Existing Ray cluster (ray://host:10001); empty: Ray on this machine")

    image_registry: str = Field("", description="Where images go: oci:/folder or registry.host/repository")
    registry_endpoint: str = Field("", description="URL of the registry from here; empty: its host, http on loopback")
    base_image: str = Field(
        "docker.io/library/python:3.11-slim-bookworm", description="Python image below the service's, best by digest"
    )
    signing_key: str = Field("", description="Private key (PEM, Ed25519) that signs images; empty: none does")
    trusted_keys: str = Field(
        "", description="Public keys (PEM) of which one must have signed an image to be rolled out; empty: none must"
    )
    pipeline_image: str = Field("health-predict/pipeline", description="Image of the pipeline's tasks, by digest")

    serving_target: ServingTarget = Field(ServingTarget.PROCESS, description="What a rollout deploys to")
    serving_host: str = Field("127.0.0.1", description="Address the endpoint listens on")
    serving_port: int = Field(3000, ge=1, le=65535, description="Stable port of the endpoint")
    serving_workers: int = Field(1, ge=1, le=64, description="Worker processes of the endpoint")
    rollout_timeout: float = Field(120, gt=0, description="Seconds a rollout waits for a candidate to be ready")
    rollout_observation: float = Field(
        0, ge=0, le=3600, description="Seconds a ready candidate must stay ready before it takes traffic (kubernetes)"
    )
    kube_context: str = Field("", description="Context of the kubeconfig; empty: its current one")
    kube_namespace: str = Field("health-predict", min_length=1, description="Namespace of the serving Deployment")
    kube_deployment: str = Field("readmission-api", min_length=1, description="Name of the serving Deployment")
    kube_account: str = Field(
        "/var/run/secrets/health-predict/rollout",
        description="Folder with token and ca.crt of the account that a rollout takes in a cluster; missing: its pod's",
    )
    serving_threads: int = Field(1, ge=1, le=256, description="Native threads of each worker's model")
    serving_batch_rows: int = Field(10_000, ge=1, le=1_000_000, description="Encounters that a batch may have")
    serving_batch_mb: int = Field(32, ge=1, le=1024, description="Size that the body of a batch may have, in MiB")
    serving_cors_origins: tuple[str, ...] = Field(
        (), description='Origins of web pages that may ask the endpoint, as a JSON list; ["*"]: all; empty: none'
    )
    serving_tokens: str = Field(
        "", description="File of the tokens that the endpoint takes; needed beyond this machine; empty: it asks nobody"
    )
    serving_token_file: str = Field("", description="File of the token that our own clients send to the endpoint")
    serving_tls_certificate: str = Field("", description="PEM file of the endpoint's certificate; empty: plain HTTP")
    serving_tls_key: str = Field(
        "", validate_default=True, description="PEM file of that certificate's key, without a password"
    )
    serving_tls_ca: str = Field(
        "", description="PEM file of the authorities by which our clients know the endpoint; they ask by https then"
    )
    serving_hosts: tuple[str, ...] = Field(
        (), description="Names, as a JSON list, by which an endpoint without tokens is asked beside localhost"
    )
    prediction_log: str = Field("", description="Folder of predictions to be shipped; empty: one in the home")
    prediction_log_limit_mb: int = Field(1024, ge=0, description="MiB of predictions waiting for storage; 0: log none")
    prediction_log_seconds: int = Field(60, ge=1, description="Seconds until a file of the prediction log is shipped")

    notify: tuple[SecretStr, ...] = Field(
        (), description="Who is told what happens, as a JSON list: addresses of apprise, ARNs of SNS topics; secret"
    )

    kfp_host: str = Field("", description="Kubeflow Pipelines API")
    git_commit: str = Field("", description="Commit of the code that runs; empty: asked from git")

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"there is no time zone {value}") from None
        return value

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        # Stages run in other working folders than the command that started them.
        path = value.expanduser().absolute()
        if not _is_text(str(path)):
            raise ValueError("the folder's path is no UTF-8: rename it, or name another")
        return path

    @field_validator("data_source", "data_copy", "contract")
    @classmethod
    def _absolute_source(cls, value: str) -> str:
        if not value or value == SYNTHETIC_SOURCE or "://" in value or re.fullmatch("[0-9a-f]{64}", value):
            return value
        return str(Path(value).expanduser().absolute())

    @field_validator(
        "signing_key",
        "trusted_keys",
        "serving_tokens",
        "serving_token_file",
        "serving_tls_certificate",
        "serving_tls_key",
        "serving_tls_ca",
    )
    @classmethod
    def _absolute_file(cls, value: str) -> str:
        return str(Path(value).expanduser().absolute()) if value else ""

    @field_validator("serving_tls_key")
    @classmethod
    def _with_its_certificate(cls, value: str, info: ValidationInfo) -> str:
        if bool(value) != bool(info.data.get("serving_tls_certificate")):
            raise ValueError("a certificate and its key belong together: set SERVING_TLS_CERTIFICATE, too, or neither")
        return value

    @model_validator(mode="before")
    @classmethod
    def _profile_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**PROFILE_DEFAULTS.get(values.get("profile", ""), {}), **values}

    @property
    def serving_scheme(self) -> str:
        """How the endpoint is asked: http or https."""
        return "https" if self.serving_tls_certificate or self.serving_tls_ca else "http"

    @property
    def now(self) -> datetime:
        """The present moment, or the one that the settings name."""
        return self.as_of or datetime.now(UTC)

    # Derived defaults: one property a place, so that a stage never builds a path itself.

    @cached_property
    def storage(self) -> str:
        """URI of the bulk storage."""
        return self.storage_uri or (self.home / "storage").as_uri()

    @cached_property
    def tracking_uri(self) -> str:
        """URI of MLflow's tracking store and registry."""
        # Only with its driver named MLflow leaves the path to SQLAlchemy; else it makes a folder of the quoted name.
        return self.mlflow_tracking_uri or f"sqlite+pysqlite:///{quote(str(self.database))}"

    @property
    def database(self) -> Path:
        """MLflow's database where no other tracking store is named."""
        return self.home / "mlflow.db"

    @cached_property
    def registry(self) -> str:
        """Where images are pushed."""
        return self.image_registry or f"oci:{self.home / 'images'}"

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, for the tasks of a pipeline. Only what differs from a default.

        With the secrets among them: not to be shown.
        """
        values = {"home": str(self.home), **self.model_dump(mode="json", exclude_defaults=True)}
        if self.notify:
            values["notify"] = [one.get_secret_value() for one in self.notify]
        return {
            PREFIX + name.upper(): json.dumps(value) if isinstance(value, list) else str(value)
            for name, value in values.items()
        }


# What the kind and aws profiles set. The local profile has the defaults of the class.
PROFILE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    Profile.KIND: {
        "serving_target": ServingTarget.KUBERNETES,
        "rollout_timeout": 300.0,
        "rollout_observation": 75.0,
        "mlflow_tracking_uri": "http://127.0.0.1:5050",
        "storage_uri": "s3://mlpipeline/health-predict",
        "s3_endpoint_url": "http://127.0.0.1:9000",
        "image_registry": "localhost:5001/health-predict/readmission",
        "kfp_host": "http://127.0.0.1:8888",
    },
    Profile.AWS: {
        "serving_target": ServingTarget.KUBERNETES,
        "rollout_timeout": 300.0,
        "rollout_observation": 75.0,
    },
}


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def load_settings(**overrides: Any) -> Settings:
    """Settings from explicit values, the environment and the profile's defaults, in that order.

    Raises SettingsError that names each wrong or unknown variable, and each explicit value as a parameter.
    """
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]}?" if close else "docs/reference/settings.md lists the known ones"
        raise SettingsError(f"unknown setting {', '.join(unknown)}", hint)
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        problems = {str(item["loc"][0]): item["msg"] for item in error.errors() if item["loc"]}
        names = {name: f"parameter {name}" if name in overrides else PREFIX + name.upper() for name in problems}
        said = "; ".join(f"{names[name]}: {problem}" for name, problem in problems.items())
        what = "parameter" if overrides.keys() & problems else "variable"
        raise SettingsError(f"wrong setting: {said}", f"correct the {what}, or leave it out") from None
    except pydantic_settings.SettingsError as error:
        raise SettingsError(f"wrong setting: {error}", 'lists are written as JSON, like ["XGBoost"]') from None
    os.environ.setdefault("MPLCONFIGDIR", str(settings.home / "matplotlib"))  # else it writes into the person's home
    return settings


def settings_on(place: Profile | None, as_of: datetime | None = None) -> Settings:
    """Settings with the defaults of a place that a command line names, else of the environment's profile.

    `as_of`: what counts as now; without a zone, it is the settings'.
    """
    settings = load_settings(**({"profile": place} if place else {}))
    if as_of is None:
        return settings
    zoned = as_of if as_of.tzinfo else as_of.replace(tzinfo=ZoneInfo(settings.time_zone))
    return settings.model_copy(update={"as_of": zoned})
