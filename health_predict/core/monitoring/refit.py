"""Would newer labels teach the model something? A refit on them, tried on encounters that came later.

The refit is a logistic regression on the model's own log-odds, which are not penalised, and the features of the
encounters, which are. So it starts from the model, recalibrated, and moves away from it only as far as the labels
that became known since its training make it. Tried on a batch that neither has seen, its gain in AUC is a paired
comparison: both rank the same patients, and most of the noise of an AUC cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from health_predict.core.data.contract import Contract
from health_predict.core.model.families import BASELINE, FAMILIES
from health_predict.core.statistics import logit, paired_auc

Floats = npt.NDArray[np.float64]

LEAST_ROWS, LEAST_EVENTS = 1000, 100  # to refit on; fewer teach nothing that could be told from noise
_UNPENALISED = 100.0  # the log-odds are stretched by this, so that their penalty is 1/10,000 of a feature's


@dataclass(frozen=True)
class LabelledRows:
    """Encounters (n, columns) with a model's probabilities (n,) and their outcomes (n,), 1 and 0."""

    frame: pd.DataFrame
    probabilities: Floats
    outcomes: Floats


def refit_gain(earlier: Sequence[LabelledRows], newest: LabelledRows, contract: Contract) -> tuple[float, float] | None:
    """AUC of the refit on `earlier` minus AUC of the model, both on `newest`, and its standard error.

    None when `earlier` has fewer than LEAST_ROWS rows or LEAST_EVENTS outcomes. The penalty is the baseline
    family's first choice. Raises ValueError when an outcome is absent in `newest`.
    """
    rows = sum(len(part.outcomes) for part in earlier)
    if rows < LEAST_ROWS or sum(part.outcomes.sum() for part in earlier) < LEAST_EVENTS:
        return None
    # Late: scikit-learn takes seconds to import, and most batches of a young model need no refit.
    from sklearn.linear_model import LogisticRegression

    from health_predict.core.model.features import EncounterFeatures

    frame = pd.concat([part.frame for part in earlier], ignore_index=True)
    features = EncounterFeatures(contract).fit(frame)
    matrix, newest_matrix = features.transform(frame), features.transform(newest.frame)
    mean, scale = matrix.mean(axis=0, dtype=np.float64), matrix.std(axis=0, dtype=np.float64)
    scale[scale == 0] = 1.0
    odds = logit(np.concatenate([part.probabilities for part in earlier]))
    centre = odds.mean()

    def design(positions: npt.NDArray[np.float32], log_odds: Floats) -> Floats:
        return np.column_stack([(positions - mean) / scale, (log_odds - centre) * _UNPENALISED])

    model = LogisticRegression(C=FAMILIES[BASELINE].first["C"], max_iter=300)
    model.fit(design(matrix, odds), np.concatenate([part.outcomes for part in earlier]))
    refitted = model.decision_function(design(newest_matrix, logit(newest.probabilities)))
    return paired_auc(newest.outcomes, newest.probabilities, refitted)
