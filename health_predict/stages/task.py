"""What every pipeline task does around its stage: settings, structured logs, errors as one line."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from health_predict.adapters.files import owner_only
from health_predict.adapters.parent_process import exit_with_parent
from health_predict.errors import HealthPredictError
from health_predict.settings import Settings, load_settings


@contextmanager
def task(stage: str, **overrides: Any) -> Iterator[Settings]:
    """Settings for a stage, with the pipeline's parameters over the environment; empty ones do not count.

    Logs are JSON lines on standard output. A HealthPredictError ends the process with its exit code and one
    line that holds problem and remedy; anything else keeps its stack trace. The process ends with its parent, and
    what it writes is for its user alone.
    """
    exit_with_parent()
    owner_only()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines(stage))
    # KFP's executor speaks through the root logger of its own files, which are no news to anybody.
    handler.addFilter(lambda record: record.name != "root" or record.levelno >= logging.WARNING)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("botocore", "urllib3", "matplotlib", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        yield load_settings(**{name: value for name, value in overrides.items() if value not in ("", ())})
    except HealthPredictError as error:
        logging.getLogger(__name__).error(
            "%s", error.problem, extra={"remedy": error.remedy, "exit_code": error.exit_code}
        )
        sys.exit(error.exit_code)


class JsonLines(logging.Formatter):
    """One JSON object a record: time, level, stage, message, and what an error or a search's progress carries."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "stage": self.stage,
            "message": record.getMessage(),
        }
        for name in ("remedy", "exit_code", "progress"):
            if hasattr(record, name):
                line[name] = getattr(record, name)
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)
