"""Which family's model a search ends with, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy.typing as npt

from health_predict.core.model.evaluation import Labels, Scored, resample


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen family and why, in one sentence."""

    family: str
    reason: str


def select(
    labels: Labels,
    models: Mapping[str, Scored],
    patients: npt.ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Selection:
    """The best of the families' models on the same validation rows: labels (n,), patients (n,).

    F1 at each model's threshold orders them. Those whose paired 95 % interval against the best F1 includes 0 are tied;
    of these the largest average precision wins, then the smallest Brier score.
    """
    drawn = resamples if len(models) > 1 else 0  # the only one is compared with nothing
    found = {
        name: resample(labels, model, patients, seed=seed, resamples=drawn, slope=False)
        for name, model in models.items()
    }
    by_f1 = sorted(found, key=lambda name: -found[name].point["f1"])
    best = by_f1[0]
    tied = [name for name in by_f1 if name == best or found[name].less(found[best], "f1").high >= 0]
    ranked = sorted(tied, key=lambda name: (-found[name].point["average_precision"], found[name].point["brier"]))
    chosen = ranked[0]
    f1 = found[chosen].point["f1"]
    if len(found) == 1:
        return Selection(chosen, f"{chosen} was the only family that was searched: F1 {f1:.3f}.")
    if len(tied) == 1:
        behind = found[chosen].less(found[by_f1[1]], "f1")
        return Selection(chosen, f"{chosen} has surely the largest F1: {f1:.3f}, {behind} above {by_f1[1]}.")
    ahead = found[chosen].less(found[ranked[1]], "average_precision")
    certainty = "surely" if ahead.low > 0 else "not surely"
    others = ", ".join(tied[:-1]) + f" and {tied[-1]}"
    values = ", ".join(f"{found[name].point['f1']:.3f}" for name in tied)
    return Selection(
        chosen,
        f"F1 cannot tell {others} apart ({values}); {chosen} has "
        f"the largest average precision of them: {found[chosen].point['average_precision']:.3f}, {certainty} above "
        f"{ranked[1]} (difference {ahead}).",
    )
