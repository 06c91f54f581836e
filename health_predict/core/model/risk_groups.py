"""Risk groups: how many times as likely as usual the outcome is, in words."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Lowest probability of the groups medium, high and very high, as multiples of the training prevalence.
MULTIPLES = (1.0, 1.5, 2.5)
GROUPS = ("low", "medium", "high", "very high")


def cutoffs(prevalence: float) -> list[float]:
    """Lowest probabilities of the groups medium, high and very high."""
    return [multiple * prevalence for multiple in MULTIPLES]


def group_of(probabilities: npt.ArrayLike, lowest: npt.ArrayLike) -> npt.NDArray[np.object_]:
    """The group (n,) of each probability (n,); `lowest` (3,) are the `cutoffs`."""
    groups: npt.NDArray[np.object_] = np.array(GROUPS, dtype=object)
    return groups[np.searchsorted(np.asarray(lowest), np.asarray(probabilities), side="right")]
