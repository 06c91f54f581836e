"""What kind of patients data are of, and the words for those who do not exist."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from health_predict.core.data.contract import Contract

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


def provenance(contract: Contract, source: str) -> str:
    """Where the encounters of a data set come from, in words; the contract's description is of its own table alone."""
    if source == Source.SYNTHETIC:
        return "Made-up encounters, drawn to look like the table of the data contract: no patient stands behind them."
    if contract.published and source != contract.published.name:
        return f"A table that was given as a file, not {contract.published.name}, with the columns of that contract."
    return contract.description
