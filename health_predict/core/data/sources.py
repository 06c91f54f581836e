"""What kind of patients data are of, and the words for those who do not exist."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from health_predict.errors import SettingsError

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


def refuse_changeable(where: str, sha256: str) -> None:
    """Raise SettingsError for an address whose content somebody may change on its way to a cluster, or there."""
    if not where.startswith(("s3://", "https://")):
        raise SettingsError(
            f"the data source {where} is neither an s3 nor an https address",
            "a cluster reads no other: on the way of http anybody could change the patients",
        )
    if not sha256:
        raise SettingsError(
            f"the data source {where} has no checksum, and who may write there could change the patients",
            "name that of the CSV file, unpacked: -p data_sha256=..., from `sha256sum FILE`",
        )
