"""Configuration of the AWS stack: what `Pulumi.<stack>.yaml` may say, checked before anything is created.

Pure, since both `pulumi up` and `health-predict cost` read it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from health_predict.aws.cost import PRICES, machine
from health_predict.errors import SettingsError

PROJECT = "health-predict"
_DAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_TAGS = 40  # AWS takes 50, ours included
RESERVED_TAGS = ("Project", "Stack", "ManagedBy", "Name")


def _like(pattern: str, problem: str) -> AfterValidator:
    """A text that matches as a whole; `problem` goes on after the text, and names the remedy."""

    def matching(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{text!r} {problem}")
        return text

    return AfterValidator(matching)


_Clock = Annotated[str, _like(r"([01]\d|2[0-3]):[0-5]\d", "is no time of day -> write HH:MM, as in 08:00")]
_Email = Annotated[
    str, _like(r"([^@\s]+@[^@\s]+\.[^@\s]+)?", "is no e-mail address -> write one, as in you@example.org")
]
_Zone = Annotated[str, _like("[a-f]", "is no zone -> write its letter alone, as in a")]
_Account = Annotated[str, _like(r"(\d{12})?", "is no account -> write its 12 digits in quotes")]
_ImageTag = Annotated[
    str,
    _like(
        r"((?!latest$)[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?",
        "is no image tag, or names another image every day -> use a tag of `aws ecr describe-images`",
    ),
]
_PinnedImage = Annotated[
    str,
    _like(r"([^@\s]+@sha256:[0-9a-f]{64})?", "has no digest -> write it as mirror.example.org/python@sha256:..."),
]
_KeyArn = Annotated[
    str,
    _like(
        r"(arn:[a-z-]+:kms:[a-z0-9-]+:\d{12}:key/[A-Za-z0-9-]+)?",
        "is no key's ARN -> write it as `aws kms describe-key` does, arn:aws:kms:REGION:ACCOUNT:key/ID",
    ),
]
_Principal = Annotated[
    str,
    _like(
        r"arn:[a-z-]+:iam::\d{12}:(user|role)/[\w+=,.@/-]+",
        "is no user's or role's ARN -> write it as `aws iam get-user` does, arn:aws:iam::ACCOUNT:user/NAME",
    ),
]
_Cron = Annotated[
    str,
    _like(
        r"(([\d*/,-]+|\?)( ([\d*/,?-]+)){5})?",
        "has not six fields -> as in '0 0 2 * * *': each night at two, UTC",
    ),
]
_TagKey = Annotated[
    str,
    _like(r"[\w .:/=+\-@]{1,128}", "has characters or a length that AWS refuses -> letters, digits, _.:/=+-@"),
    _like(f"(?!(?i:aws:)|({'|'.join(RESERVED_TAGS)})$).*", "is set by the stack or by AWS -> choose another name"),
]
_TagText = Annotated[
    str, _like(r"[\w .:/=+\-@]{1,256}", "is a value that AWS refuses -> letters, digits, spaces, _.:/=+-@")
]


class OpenPort(StrEnum):
    """What may be opened to an operator's address, by name: only what asks who is there.

    MLflow and the pipelines ask nobody; they are forwarded through Systems Manager.
    """

    API = "api"

    @property
    def number(self) -> int:
        """The port on the host."""
        return 3000


class Schedule(BaseModel):
    """Office hours: the host starts and stops by the clock of a time zone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: _Clock = Field("08:00", description="When the host starts, HH:MM")
    stop: _Clock = Field("18:00", description="When the host stops, HH:MM")
    days: tuple[str, ...] = Field(_DAYS[:5], description="Days of the week, MON to SUN")
    timezone: str = Field(description="IANA time zone, such as Europe/Berlin")

    @field_validator("days")
    @classmethod
    def _weekdays(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        days = tuple(day.upper() for day in value)
        if not days or len(set(days)) < len(days) or not set(days) <= set(_DAYS):
            raise ValueError(f"{list(value)} are no days of the week -> list some of {', '.join(_DAYS)}, each once")
        return tuple(day for day in _DAYS if day in days)

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{value!r} is no time zone -> use an IANA name, as in Europe/Berlin") from None
        return value

    @model_validator(mode="after")
    def _in_order(self) -> Schedule:
        if self.start >= self.stop:
            raise ValueError(f"the host would stop at {self.stop}, before it starts at {self.start} -> swap them")
        return self

    @property
    def hours_a_week(self) -> float:
        """How long the host runs in a week."""
        return (_minutes(self.stop) - _minutes(self.start)) / 60 * len(self.days)


def _minutes(clock: str) -> int:
    hour, minute = clock.split(":")
    return int(hour) * 60 + int(minute)


class StackConfig(BaseModel):
    """All that differs between two stacks."""

    # `pulumi config set --path tags.cost_center 4711` stores a number.
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    region: str = Field("us-east-1", description="AWS region; one whose prices are known")
    zone: _Zone = Field("a", description="Letter of the availability zone of host and data volume")
    account_id: _Account = Field(
        "", description="The only AWS account to deploy to; empty: whichever the credentials name"
    )
    instance_type: str = Field("t3a.xlarge", description="x86 machine with at least 4 vCPU and 16 GiB")
    unlimited_burst: bool = Field(
        False, description="Let a T3 machine burst beyond its credits, at extra cost; false: it slows down instead"
    )
    root_gib: int = Field(40, ge=40, le=500, description="Size of the root volume: system, tools, container images")
    data_gib: int = Field(50, ge=20, le=2000, description="Size of the data volume; can grow, never shrink")
    operator_cidr: str = Field("", description="The address that may reach open_ports, as /32")
    open_ports: tuple[OpenPort, ...] = Field((), description="Opened to operator_cidr: api, which asks for a token")
    schedule: Schedule | None = Field(None, description="Office hours; none: always on")
    budget_usd: int = Field(150, ge=1, description="Monthly budget that the alarm watches")
    budget_email: _Email = Field("", description="Address of the budget's alarm; empty: no alarm")
    alarm_email: _Email = Field(
        "", description="Address told when the host is down, a disk fills, a backup or a run fails; empty: none"
    )
    tags: Mapping[_TagKey, _TagText] = Field(
        default_factory=dict, max_length=_TAGS, description="Tags of every resource, beside our own"
    )
    images: Literal["build", "push"] = Field(
        "build", description="`build`: the host builds the images that ECR lacks; `push`: you do, with `make images`"
    )
    image_tag: _ImageTag = Field(
        "", description="Tag in ECR of the images to run, to go back; empty: the digest of what they are built from"
    )
    python_image: _PinnedImage = Field(
        "", description="Base of the images, with its digest, from your own mirror; empty: the Dockerfile's"
    )
    first_run: bool = Field(True, description="Train and deploy a first model when there is no champion")
    monitor: _Cron = Field(
        "",
        description="When the cluster judges what has arrived, and recalibrates or retrains where that follows: "
        "second minute hour day month weekday, in UTC; empty: never",
    )
    kms_key: _KeyArn = Field("", description="ARN of the KMS key that encrypts the bucket; empty: S3's own key")
    operators: tuple[_Principal, ...] = Field(
        (), description="ARNs of users and roles who may take the role that removes a patient's data, with MFA"
    )
    record_access: bool = Field(
        False, description="Have CloudTrail record who reads and writes encounters in the bucket; costs by the event"
    )
    keep_data: bool = Field(True, description="Protect volume, bucket and images against deletion")
    recreate_cluster: str = Field("", description="Hash of the cluster configuration that may replace the running one")

    @field_validator("region")
    @classmethod
    def _region(cls, value: str) -> str:
        if value not in PRICES:
            raise ValueError(
                f"no prices are known for region {value!r} -> choose from {', '.join(PRICES)}, or add its prices "
                "to health_predict/aws/cost.py"
            )
        return value

    @field_validator("operator_cidr")
    @classmethod
    def _narrow(cls, value: str) -> str:
        if not value:
            return value
        try:
            network = ipaddress.IPv4Network(value)
        except ValueError as error:
            raise ValueError(f"{value!r} is no IPv4 network ({error}) -> write one, as in 203.0.113.7/32") from None
        if network.num_addresses > 1:
            raise ValueError(
                f"{value} opens the host to {network.num_addresses} addresses -> name your own address, as in "
                "203.0.113.7/32, or leave it empty and use the session commands"
            )
        return value

    @model_validator(mode="after")
    def _fits(self) -> StackConfig:
        machine(self.instance_type)
        if bool(self.open_ports) != bool(self.operator_cidr):
            raise ValueError("operator_cidr and open_ports belong together -> set both, or neither")
        return self

    @property
    def availability_zone(self) -> str:
        """Where host and data volume live; a volume cannot leave its zone."""
        return self.region + self.zone

    def resource_tags(self, stack: str) -> dict[str, str]:
        """Tags of every resource of a stack."""
        return {**self.tags, "Project": PROJECT, "Stack": stack, "ManagedBy": "pulumi"}


def read_config(values: Mapping[str, Any]) -> StackConfig:
    """Configuration from plain values. Raises SettingsError that names every wrong key and its remedy."""
    try:
        return StackConfig.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False, include_input=False):
            key = ".".join(str(part) for part in item["loc"])
            problem = item["msg"].removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                problem = f"there is no such key -> choose from {', '.join(StackConfig.model_fields)}"
            problems.append(f"{PROJECT}:{key}: {problem}" if key else problem)
        raise SettingsError(
            "wrong stack configuration: " + "; ".join(problems), f"`pulumi config set {PROJECT}:<key> <value>`"
        ) from None
