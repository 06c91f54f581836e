"""What kind of patients data are of, and the words for those who do not exist."""

from __future__ import annotations

from enum import StrEnum

SYNTHETIC_WARNING = "SYNTHETIC DATA: these patients do not exist, and no figure says anything about real ones"


class Source(StrEnum):
    """What data are that are not the contract's published ones, which have a name of their own.

    Whatever stands on synthetic data says so.
    """

    CUSTOM = "custom"
    SYNTHETIC = "synthetic"


def warning(source: str) -> str:
    """What to say about whatever stands on data of this source; empty for real patients."""
    return SYNTHETIC_WARNING if source == Source.SYNTHETIC else ""
