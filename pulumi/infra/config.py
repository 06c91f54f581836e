"""The stack's configuration as Pulumi hands it over, typed and checked."""

from __future__ import annotations

import json
from typing import Any

import pulumi

from health_predict.core.errors import SettingsError
from health_predict.core.stack_config import PROJECT, StackConfig, read_config

_STRUCTURED = ("schedule", "tags", "open_ports")


def stack_config() -> StackConfig:
    """The configuration of the stack under way. Raises RunError, which Pulumi shows without a stack trace."""
    values: dict[str, Any] = {}
    try:
        for key, text in _own_keys().items():
            if key in _STRUCTURED:
                try:
                    values[key] = json.loads(text)
                except ValueError:
                    raise SettingsError(
                        f"{PROJECT}:{key}: {text!r} is no JSON", f"edit Pulumi.{pulumi.get_stack()}.yaml"
                    ) from None
            else:
                values[key] = text
        return read_config(values)
    except SettingsError as error:
        raise pulumi.RunError(str(error)) from None


def _own_keys() -> dict[str, str]:
    # Read whole, not key by key, so that a misspelt key is refused instead of ignored.
    from pulumi.runtime.config import CONFIG

    return {key.partition(":")[2]: text for key, text in CONFIG.get().items() if key.partition(":")[0] == PROJECT}
