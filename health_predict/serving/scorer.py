"""The model of a Bento: its files, and scores of encounters."""

from __future__ import annotations

import json
import math
import uuid
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from health_predict.core.data.contract import Contract
from health_predict.core.model.contributions import PROBABILITY, Explainer, owners_of
from health_predict.core.model.risk_groups import GROUPS
from health_predict.core.model.row_encoder import RowEncoder
from health_predict.core.serving.scoring import GraphScorer
from health_predict.serving.schemas import Contribution, Explanation, Prediction

TOLERANCE = 1e-6
EXPLAINER = "explainer.npz"
SHOWN_CONTRIBUTIONS = 10
EXPLAINED_GOLDEN, EXPLAINED_TOLERANCE = 3, 1e-4
# Rows that the graph scores at once: enough that a call costs nothing, few enough for the processor's caches.
PORTION = 1000


class Identity(BaseModel):
    """Where the model comes from: the chain from the Bento back to the data."""

    model_name: str
    model_version: str
    run_id: str
    family: str
    contract_digest: str
    dataset_digest: str
    dataset_source: str
    git_commit: str
    bento_tag: str
    threshold: float
    training_prevalence: float
    risk_cutoffs: tuple[float, float, float]
    """Lowest probability of the groups medium, high and very high."""
    calibration: tuple[float, float] | None = None
    """Intercept and slope of the map behind the graph, see `core/serving/scoring.py`."""
    metrics: dict[str, float]


def contract_in(folder: Path) -> Contract:
    """The data contract of a Bento."""
    return Contract.from_json((folder / "contract.json").read_bytes())


class GoldenMismatchError(Exception):
    """The model does not answer as it did when the Bento was built."""


class Scorer:
    """Tables, graph and threshold of one model version, from the files in `folder`."""

    def __init__(self, folder: Path, encounter: Any, threads: int = 1) -> None:
        """`encounter` is the model of an encounter of the Bento's contract."""
        self._encounter = encounter
        self.identity = Identity.model_validate_json((folder / "identity.json").read_bytes())
        self.golden: list[dict[str, Any]] = json.loads((folder / "golden.json").read_bytes())
        # Its tables stand in the order of the contract's features.
        self._encoder = RowEncoder.from_json(json.loads((folder / "encoder.json").read_bytes()))
        self._score = GraphScorer((folder / "model.onnx").read_bytes(), self.identity.calibration, threads=threads)
        explanations = folder / EXPLAINER
        self.explainer = Explainer.from_bytes(explanations.read_bytes()) if explanations.is_file() else None
        self._owners = owners_of(self._encoder)

    def score(self, encounter: Any) -> tuple[Prediction, dict[str, int]]:
        """The prediction for an `Encounter`, and how many values of each column training never had."""
        row, unseen = self._encoder.encode(vars(encounter))
        return self.predictions(self._score(row[None, :]).tolist())[0], dict.fromkeys(unseen, 1)

    def score_many(self, encounters: Sequence[Any]) -> tuple[list[Prediction], Counter[str]]:
        """The predictions for several, in order, and how many values of each column training never had."""
        predictions: list[Prediction] = []
        unseen: Counter[str] = Counter()
        for start in range(0, len(encounters), PORTION):
            columns = zip(*(vars(one).values() for one in encounters[start : start + PORTION]), strict=True)
            rows, new = self._encoder.encode_columns([*columns][: len(self._encoder.tables)])
            predictions += self.predictions(self._score(rows).tolist())
            unseen.update(new)
        return predictions, unseen

    def predictions(self, scores: Sequence[float]) -> list[Prediction]:
        """Decisions and risk groups of probabilities (n,)."""
        identity = self.identity
        return [
            Prediction(
                prediction=1 if score >= identity.threshold else 0,
                probability_score=score,
                risk_group=GROUPS[bisect_right(identity.risk_cutoffs, score)],
                model_version=identity.model_version,
                prediction_id=str(uuid.uuid4()),
            )
            for score in scores
        ]

    def explain(self, encounter: Any) -> Explanation:
        """What the columns added to the score of an encounter, the largest amounts first."""
        explainer, values = self.explainer, vars(encounter)
        assert explainer is not None
        found = explainer.by_column(self._encoder.amounts(values), self._owners)
        order = np.argsort(-np.abs(found), kind="stable")
        names = list(values)
        return Explanation(
            unit=explainer.unit,
            base=explainer.base,
            score=explainer.base + float(found.sum()),
            contributions=[
                Contribution(column=names[at], value=values[names[at]], contribution=float(found[at]))
                for at in order[:SHOWN_CONTRIBUTIONS]
            ],
            others=float(found[order[SHOWN_CONTRIBUTIONS:]].sum()),
        )

    def check(self) -> None:
        """Answer the golden requests, one by one and together, and explain some.

        Raises GoldenMismatchError at the first other answer.
        """
        encounters = [self._encounter.model_validate(golden["request"]) for golden in self.golden]
        if not encounters:
            raise GoldenMismatchError("the Bento has no golden requests")
        singly, (together, _) = [self.score(one)[0] for one in encounters], self.score_many(encounters)
        expected = [golden["answer"] for golden in self.golden]
        for number, (golden, *answers) in enumerate(zip(expected, singly, together, strict=True)):
            if not all(_is(answer, golden) for answer in answers):
                raise GoldenMismatchError(f"golden request {number} is answered otherwise than at build time")
        if self.explainer is not None:
            self._check_explanations(
                list(zip(encounters, singly, strict=True))[:: max(1, len(singly) // EXPLAINED_GOLDEN)]
            )

    def _check_explanations(self, cases: Iterable[tuple[Any, Prediction]]) -> None:
        for encounter, answer in cases:
            explanation = self.explain(encounter)
            score = explanation.score if explanation.unit == PROBABILITY else 1 / (1 + math.exp(-explanation.score))
            if not abs(score - answer.probability_score) <= EXPLAINED_TOLERANCE:
                raise GoldenMismatchError("the contributions do not add up to the score")


def _is(answer: Prediction, golden: dict[str, Any]) -> bool:
    return bool(
        abs(answer.probability_score - golden["probability_score"]) <= TOLERANCE
        and answer.prediction == golden["prediction"]
        and answer.risk_group == golden["risk_group"]
    )
