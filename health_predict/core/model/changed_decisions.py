"""What another version would change: decisions of two versions on the same encounters, overall and by subgroup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from health_predict.core.model.evaluation import Groups

Flags = npt.NDArray[np.bool_]
ALL = ("all", "")


@dataclass(frozen=True, slots=True)
class Changed:
    """Decisions of two versions on some encounters. An empty `level` means all of them."""

    attribute: str
    level: str
    rows: int
    flagged_before: int
    flagged_after: int
    newly_flagged: int
    no_longer_flagged: int

    @property
    def share(self) -> float:
        """Share of the encounters whose decision changes; 0 without any."""
        return (self.newly_flagged + self.no_longer_flagged) / self.rows if self.rows else 0.0

    @property
    def name(self) -> str:
        """Of the group, for people."""
        return f"{self.attribute}: {self.level}" if self.level else self.attribute


def changed_decisions(before: Flags, after: Flags, groups: Groups) -> tuple[Changed, ...]:
    """Decisions (n,) of what serves and of what would, first of all encounters, then of each group."""
    masks = {ALL: np.ones(len(before), dtype=bool), **groups}
    return tuple(
        Changed(
            attribute=attribute,
            level=level,
            rows=int(mask.sum()),
            flagged_before=int(before[mask].sum()),
            flagged_after=int(after[mask].sum()),
            newly_flagged=int((after & ~before)[mask].sum()),
            no_longer_flagged=int((before & ~after)[mask].sum()),
        )
        for (attribute, level), mask in masks.items()
    )


def over_limit(changes: Sequence[Changed], limit: float | None, subgroup_limit: float | None) -> list[str]:
    """In words, where more decisions change than allowed; None allows any share."""
    found = []
    for one in changes:
        allowed = subgroup_limit if one.level else limit
        if allowed is not None and one.share > allowed:
            found.append(f"{one.share:.1%} of the decisions change for {one.name} ({allowed:.1%} are allowed)")
    return found
