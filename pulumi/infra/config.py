"""The stack's configuration as Pulumi hands it over, typed and checked."""

from __future__ import annotations

import json
from typing import Any

import pulumi

from health_predict.aws.stack_config import PROJECT, StackConfig, read_config
from health_predict.errors import SettingsError

# Keys that hold more than a text, and how each is set.
_STRUCTURED = {
    "schedule": "--path schedule.timezone Europe/Berlin",
    "tags": "--path tags.team ml",
    "open_ports": "--path 'open_ports[0]' api",
    "operators": "--path 'operators[0]' arn:aws:iam::ACCOUNT:user/NAME",
}


def stack_config() -> StackConfig:
    """The configuration of the stack under way. Raises RunError, which Pulumi shows without a stack trace."""
    values: dict[str, Any] = {}
    try:
        for key, text in _own_keys().items():
            if key in _STRUCTURED:
                values[key] = _parsed(text)
                if not isinstance(values[key], list | dict):
                    raise SettingsError(
                        f"{PROJECT}:{key}: {text!r} is one text, not a list or a map",
                        f"`pulumi config rm {key} && pulumi config set {_STRUCTURED[key]}`",
                    )
            else:
                values[key] = text
        return read_config(values)
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _own_keys() -> dict[str, str]:
    # Read whole, not key by key, so that a misspelt key is refused instead of ignored.
    from pulumi.runtime.config import CONFIG

    return {key.partition(":")[2]: text for key, text in CONFIG.get().items() if key.partition(":")[0] == PROJECT}
