"""scikit-learn's random forest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from health_predict.core.model.contributions import PROBABILITY, Explainer
from health_predict.core.model.families import scikit_learn
from health_predict.core.model.families.family import Choice, Family, Range
from health_predict.core.model.tree_tables import Tree, at_most, tree_explainer

if TYPE_CHECKING:
    import pandas as pd

    from health_predict.core.model.features import EncounterFeatures


def _build(parameters: Mapping[str, Any], seed: int, threads: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(random_state=seed, n_jobs=threads, **parameters)


def _explain(estimator: Any, features: EncounterFeatures, training: pd.DataFrame) -> Explainer:
    def trees() -> Iterator[Tree]:
        for member in estimator.estimators_:
            tree = member.tree_
            share = tree.value[:, 0, 1] / tree.value[:, 0, :].sum(axis=1)
            yield Tree(
                tree.children_left,
                tree.children_right,
                tree.feature,
                at_most(tree.threshold),
                tree.weighted_n_node_samples,
                share / len(estimator.estimators_),
            )

    return tree_explainer(trees(), PROBABILITY)


FAMILY = Family(
    "RandomForest",
    space={
        "min_samples_leaf": Range(5, 40, log=True, integer=True),
        "max_features": Choice(("log2", "sqrt")),
        "max_samples": Range(0.2, 0.6),
        "max_depth": Range(8, 24, integer=True),
    },
    first={"min_samples_leaf": 10, "max_features": "log2", "max_samples": 0.4, "max_depth": 24},
    build=_build,
    to_onnx=scikit_learn.to_onnx,
    explain=_explain,
    trusted_types=("sklearn.tree._tree.Tree",),
    fixed={"n_estimators": 200},
    rounds="n_estimators",
    watched=scikit_learn.warm_start("n_estimators"),
    importance="mean decrease of impurity by the splits on a feature",
)
