"""One contender of `benchmarks/search.py`, as a process of its own: `searches.py NAME TRIALS FOLDER HOME`.

Each reads the two CSV files in the folder, makes TRIALS trials of each family, writes every trial to an MLflow store
of its own and leaves the best validation AUC in `result.json` of HOME. `usual` is made of public libraries as their
documentation shows them; `optuna` and `halving` are given this project's reader, encoder and families, too.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.parts.cohorts import DIABETES
from benchmarks.parts.search_space import NAMES, SEED
from health_predict.adapters.contracts import built_in
from health_predict.core.data.cohort import read_cohort, target
from health_predict.core.model.evaluation import metrics
from health_predict.core.model.families import FAMILIES, Choice, Range
from health_predict.core.model.features import EncounterFeatures


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and validation encounters."""
    return read_cohort(folder / "train.csv", DIABETES), read_cohort(folder / "validation.csv", DIABETES)


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


NUMBERS = (
    "time_in_hospital",
    "num_lab_procedures",
    "num_procedures",
    "num_medications",
    "number_outpatient",
    "number_emergency",
    "number_inpatient",
    "number_diagnoses",
)
# The groups of diagnoses that work on these data commonly takes, by ICD-9 codes from one up to another.
DIAGNOSES = {
    "circulatory": ((390, 460), (785, 786)),
    "respiratory": ((460, 520), (786, 787)),
    "digestive": ((520, 580), (787, 788)),
    "diabetes": ((250, 251),),
    "injury": ((800, 1000),),
    "musculoskeletal": ((710, 740),),
    "genitourinary": ((580, 630), (788, 789)),
    "neoplasms": ((140, 240),),
}


def diagnosis(code: str) -> str:
    """The group of a code."""
    number = float(code) if code[0].isdigit() else 0.0
    for group, ranges in DIAGNOSES.items():
        if any(low <= number < high for low, high in ranges):
            return group
    return "other"


def usual(trials: int, folder: Path, home: Path) -> float:  # long: a script, as its libraries' tutorials write one
    """The script of the tutorials: every trial reads, prepares, fits and logs for itself."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray import tune
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from xgboost import XGBClassifier

    with experiment(home).start_run() as parent:
        parent_id = parent.info.run_id

    def space(dimension: Range | Choice) -> Any:
        if isinstance(dimension, Choice):
            return tune.choice(list(dimension.options))
        if dimension.integer:
            return (tune.lograndint if dimension.log else tune.randint)(int(dimension.low), int(dimension.high) + 1)
        return (tune.loguniform if dimension.log else tune.uniform)(dimension.low, dimension.high)

    # As values: nothing of this project is imported in a trial.
    spaces = {name: {key: space(value) for key, value in FAMILIES[name].space.items()} for name in NAMES}
    fixed = {name: dict(FAMILIES[name].fixed) for name in NAMES}

    def load(path: Path) -> tuple[pd.DataFrame, Any]:
        frame = pd.read_csv(path, keep_default_na=False)
        for column in ("diag_1", "diag_2", "diag_3"):
            frame[column] = frame[column].astype(str).map(diagnosis)
        labels = (frame["readmitted"] == "<30").astype(int)
        return frame.drop(columns=["encounter_id", "patient_nbr", "readmitted"]), labels

    def trial(config: dict[str, Any]) -> None:
        name, parameters = config["family"], {key: value for key, value in config.items() if key != "family"}
        train, labels = load(folder / "train.csv")
        validation, validation_labels = load(folder / "validation.csv")
        levels = [column for column in train.columns if column not in NUMBERS]
        if name == "LogisticRegression":
            estimator: Any = LogisticRegression(max_iter=1000, **parameters)
        elif name == "RandomForest":
            estimator = RandomForestClassifier(random_state=SEED, **fixed[name], **parameters)
        else:
            estimator = XGBClassifier(random_state=SEED, n_jobs=1, **fixed[name], **parameters)
        preprocessor = ColumnTransformer(
            [("numbers", StandardScaler(), list(NUMBERS)), ("levels", OneHotEncoder(handle_unknown="ignore"), levels)]
        )
        mlflow = experiment(home)
        with mlflow.start_run(tags={"mlflow.parentRunId": parent_id}):
            mlflow.log_params(config)
            model = make_pipeline(preprocessor, estimator).fit(train, labels)
            found = roc_auc_score(validation_labels, model.predict_proba(validation)[:, 1])
            mlflow.log_metric("auc", found)
        tune.report({"auc": found})

    best = 0.0
    for name in NAMES:
        results = tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            param_space={"family": name, **spaces[name]},
            tune_config=tune.TuneConfig(metric="auc", mode="max", num_samples=trials),
            run_config=tune.RunConfig(storage_path=str(home / "ray")),
        ).fit()
        best = max(best, results.get_best_result().metrics["auc"])
    return best


def optuna(trials: int, folder: Path, home: Path) -> float:
    """Optuna alone, in one process: TPE and median pruning a family."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    mlflow = experiment(home)
    train, validation = read(folder)
    features = EncounterFeatures(built_in()).fit(train)
    rows, labels = features.transform(train), target(train, DIABETES)
    validation_rows, validation_labels = features.transform(validation), target(validation, DIABETES)
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
                found: list[float] = []

                def watch(rounds: int, score: Any) -> None:
                    found.append(auc(validation_labels, score(validation_rows)))
                    trial.report(found[-1], rounds)
                    if trial.should_prune():
                        raise optuna.TrialPruned

                try:
                    model = family.fit(parameters, rows, labels, seed=SEED, shares=(0.25, 0.5), watch=watch)
                    found.append(auc(validation_labels, model.predict_proba(validation_rows)[:, 1]))
                finally:
                    with mlflow.start_run(nested=True):
                        mlflow.log_params({"family": family.name, **parameters})
                        mlflow.log_metric("auc", found[-1])
                return found[-1]

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
    features = EncounterFeatures(built_in()).fit(train)
    rows = np.vstack([features.transform(train), features.transform(validation)])
    labels = np.concatenate([target(train, DIABETES), target(validation, DIABETES)])
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
    best = contenders[name](int(trials), Path(folder), Path(home))
    (Path(home) / "result.json").write_text(json.dumps({"auc": best}))
