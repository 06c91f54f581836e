"""Model families and their search spaces: a module here, and its line in FAMILIES, are all that a new one needs.

`docs/extend.md` shows an example.
"""

from __future__ import annotations

from collections.abc import Mapping

from health_predict.core.model.families import lightgbm, logistic_regression, random_forest, xgboost
from health_predict.core.model.families.family import Choice, Family, Range, draws
from health_predict.errors import SettingsError, StateError

__all__ = ["BASELINE", "FAMILIES", "Choice", "Family", "Range", "choose", "draws", "named"]

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        logistic_regression.FAMILY,
        random_forest.FAMILY,
        xgboost.FAMILY,
        lightgbm.FAMILY,
    )
}
BASELINE = logistic_regression.FAMILY.name


def choose(names: tuple[str, ...]) -> tuple[Family, ...]:
    """The families of these names, all when there are none. Raises SettingsError for an unknown name."""
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise SettingsError(f"unknown model family {', '.join(unknown)}", f"choose from {', '.join(FAMILIES)}")
    return tuple(FAMILIES[name] for name in names or FAMILIES)


def named(name: str) -> Family:
    """The family of a model that exists. Raises StateError when this release has none of that name."""
    if name not in FAMILIES:
        raise StateError(
            f"this release knows no model family {name}", "use the release that trained the model, or train again"
        )
    return FAMILIES[name]
