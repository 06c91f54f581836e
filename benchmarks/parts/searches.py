"""One contender of `benchmarks/search.py`, as a process of its own: `searches.py NAME TRIALS FOLDER HOME`.

Each reads the two CSV files in the folder, makes TRIALS trials of each family, writes every trial to an MLflow store
of its own and prints the best validation AUC as its last line.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from search_space import NAMES, SEED

from health_predict.core.cohort import read_cohort, target
from health_predict.core.evaluation import metrics
from health_predict.core.families import FAMILIES, Choice, Range
from health_predict.core.features import EncounterFeatures


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and validation encounters."""
    return read_cohort(folder / "train.csv"), read_cohort(folder / "validation.csv")


def auc(labels: Any, scores: Any) -> float:
    """AUC as everywhere else."""
    return metrics(labels, scores.astype(float), 0.5)["auc"]


def experiment(home: Path) -> Any:
    """MLflow with an empty store."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    mlflow.set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}")
    mlflow.set_experiment("search")
    return mlflow


def usual(trials: int, folder: Path, home: Path) -> float:
    """The script of the tutorials: every trial reads, prepares, fits and logs for itself."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import tune

    with experiment(home).start_run() as parent:
        parent_id = parent.info.run_id

    def space(dimension: Range | Choice) -> Any:
        if isinstance(dimension, Choice):
            return tune.choice(list(dimension.options))
        if dimension.integer:
            return (tune.lograndint if dimension.log else tune.randint)(int(dimension.low), int(dimension.high) + 1)
        return (tune.loguniform if dimension.log else tune.uniform)(dimension.low, dimension.high)

    def trial(config: dict[str, Any]) -> None:
        train, validation = read(folder)
        features = EncounterFeatures().fit(train)
        name, parameters = config["family"], {key: value for key, value in config.items() if key != "family"}
        mlflow = experiment(home)
        with mlflow.start_run(tags={"mlflow.parentRunId": parent_id}):
            mlflow.log_params(config)
            model = FAMILIES[name].fit(parameters, features.transform(train), target(train), seed=SEED)
            found = auc(target(validation), model.predict_proba(features.transform(validation))[:, 1])
            mlflow.log_metric("auc", found)
        tune.report({"auc": found})

    ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    best = 0.0
    for name in NAMES:
        found = tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            param_space={"family": name, **{key: space(value) for key, value in FAMILIES[name].space.items()}},
            tune_config=tune.TuneConfig(metric="auc", mode="max", num_samples=trials),
            run_config=tune.RunConfig(storage_path=str(home / "ray"), verbose=0),
        ).fit()
        best = max(best, found.get_best_result().metrics["auc"])
    ray.shutdown()
    return best


def optuna(trials: int, folder: Path, home: Path) -> float:
    """Optuna alone, in one process: TPE and median pruning a family."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    mlflow = experiment(home)
    train, validation = read(folder)
    features = EncounterFeatures().fit(train)
    rows, labels = features.transform(train), target(train)
    validation_rows, validation_labels = features.transform(validation), target(validation)
    best = 0.0
    with mlflow.start_run():
        for name in NAMES:
            family = FAMILIES[name]

            def suggest(trial: Any, space: Mapping[str, Range | Choice]) -> dict[str, Any]:
                values: dict[str, Any] = {}
                for key, value in space.items():
                    if isinstance(value, Choice):
                        values[key] = trial.suggest_categorical(key, value.options)
                    elif value.integer:
                        values[key] = trial.suggest_int(key, int(value.low), int(value.high), log=value.log)
                    else:
                        values[key] = trial.suggest_float(key, value.low, value.high, log=value.log)
                return values

            def objective(trial: Any, family: Any = family) -> float:
                parameters = suggest(trial, family.space)

                def watch(rounds: int, score: Any) -> bool:
                    trial.report(auc(validation_labels, score(validation_rows)), rounds)
                    return trial.should_prune()

                model = family.fit(parameters, rows, labels, seed=SEED, shares=(0.25, 0.5), watch=watch)
                found = auc(validation_labels, model.predict_proba(validation_rows)[:, 1])
                with mlflow.start_run(nested=True):
                    mlflow.log_params({"family": family.name, **parameters})
                    mlflow.log_metric("auc", found)
                if family.rounds and trial.should_prune():
                    raise optuna.TrialPruned
                return found

            study = optuna.create_study(
                direction="maximize",
                sampler=optuna.samplers.TPESampler(seed=SEED),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=2),
            )
            study.optimize(objective, n_trials=trials)
            best = max(best, study.best_value)
    return best


def halving(trials: int, folder: Path, home: Path) -> float:
    """scikit-learn's HalvingRandomSearchCV, one a family, on two processes."""
    import numpy as np
    from scipy import stats
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import HalvingRandomSearchCV, PredefinedSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from xgboost import XGBClassifier

    forest_or_xgboost = {"RandomForest": RandomForestClassifier, "XGBoost": XGBClassifier}
    mlflow = experiment(home)
    train, validation = read(folder)
    features = EncounterFeatures().fit(train)
    rows = np.vstack([features.transform(train), features.transform(validation)])
    labels = np.concatenate([target(train), target(validation)])
    fold = PredefinedSplit(np.repeat([-1, 0], [len(train), len(validation)]))

    def space(dimension: Range | Choice) -> Any:
        if isinstance(dimension, Choice):
            return list(dimension.options)
        if dimension.integer:
            return stats.randint(int(dimension.low), int(dimension.high) + 1)
        if dimension.log:
            return stats.loguniform(dimension.low, dimension.high)
        return stats.uniform(dimension.low, dimension.high - dimension.low)

    best = 0.0
    for name in NAMES:
        family, prefix = FAMILIES[name], ""
        if name == "LogisticRegression":
            estimator: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            prefix = "logisticregression__"
        else:
            estimator = forest_or_xgboost[name](random_state=SEED, n_jobs=1, **family.fixed)
        search = HalvingRandomSearchCV(
            estimator,
            {prefix + key: space(value) for key, value in family.space.items()},
            n_candidates=trials,
            min_resources="exhaust",
            cv=fold,
            scoring="roc_auc",
            random_state=SEED,
            n_jobs=2,
            refit=False,
        ).fit(rows, labels)
        with mlflow.start_run():
            for parameters, found in zip(
                search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
            ):
                with mlflow.start_run(nested=True):
                    mlflow.log_params({"family": name, **parameters})
                    mlflow.log_metric("auc", found)
        best = max(best, search.best_score_)
    return best


if __name__ == "__main__":
    contenders = {contender.__name__: contender for contender in (usual, optuna, halving)}
    name, trials, folder, home = sys.argv[1:]
    began = time.monotonic()
    best = contenders[name](int(trials), Path(folder), Path(home))
    print(json.dumps({"auc": best, "seconds": time.monotonic() - began}))
