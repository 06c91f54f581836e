"""Scores of a field that a model has to beat: a contract names a plug-in for them.

A plug-in is a function from a cohort frame of n rows to points of shape (n,) by the name of a score, installed under
the entry point group `health_predict.scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.data.contract import Contract
from health_predict.core.model.evaluation import single_predictor
from health_predict.errors import SettingsError

GROUP = "health_predict.scores"

Points = npt.NDArray[np.float64]
PlugIn = Callable[[pd.DataFrame], Mapping[str, Points]]


def clinical_scores(contract: Contract, frame: pd.DataFrame) -> Mapping[str, Points]:
    """Points of each score by name, last those of the single predictor; `frame` is a cohort frame (n, columns).

    Raises SettingsError when the contract's plug-in is not installed.
    """
    alone = contract.single_predictor
    theirs = plug_in(contract)
    return {**(theirs(frame) if theirs else {}), f"{alone} alone": single_predictor(frame, contract)}


def plug_in(contract: Contract) -> PlugIn | None:
    """The contract's plug-in, None where it names none. Raises SettingsError when it is not installed."""
    if not contract.scores:
        return None
    found = entry_points(group=GROUP)
    if contract.scores not in found.names:
        names = ", ".join(sorted(found.names)) or "none"
        raise SettingsError(
            f"the contract {contract.name} asks for the scores {contract.scores}, which are not installed ({names})",
            f"install the package that has them as an entry point of {GROUP}, ours with `make install`, "
            "or leave `scores` out of the contract",
        )
    loaded: PlugIn = found[contract.scores].load()
    return loaded
