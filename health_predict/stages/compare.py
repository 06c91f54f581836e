"""compare: two versions of the model on the same rows, and what the one would change where the other serves.

Nothing is decided by these figures: gates look at validation rows, these are test rows and encounters that arrived.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from health_predict.adapters import keys
from health_predict.adapters.data.arrivals import Arrivals
from health_predict.adapters.data.parts import stored_part
from health_predict.adapters.data.raw_data import origin_of
from health_predict.adapters.storage import Storage, open_storage
from health_predict.adapters.tracking import EVALUATION, ModelVersion, Tag, Tracking
from health_predict.adapters.tracking.history import approval_of, statement_of
from health_predict.core.data.cohort import target
from health_predict.core.data.contract import Contract
from health_predict.core.model import evaluation
from health_predict.core.model.changed_decisions import changed_decisions
from health_predict.core.model.evaluation import Groups, Scored
from health_predict.errors import StateError
from health_predict.report.compare_page import compare_page
from health_predict.settings import Settings

if TYPE_CHECKING:  # scikit-learn takes a third of what `status` needs to start
    from sklearn.pipeline import Pipeline

RESAMPLES = 300  # of each subgroup, as the card has them


class Comparison:
    """One version beside another, `against`: for instance the challenger beside the champion.

    `pipeline` is that of `version`, where it is loaded already. Whoever asks for more than the names gets a StateError
    when the model of one is gone, or they cannot stand beside each other.
    """

    def __init__(
        self, tracking: Tracking, version: ModelVersion, against: ModelVersion, pipeline: Pipeline | None = None
    ) -> None:
        self.tracking, self.version, self.against = tracking, version, against
        self.storage: Storage = open_storage(tracking.settings.storage, tracking.settings.s3_endpoint_url)
        self._own = pipeline

    @cached_property
    def _pipelines(self) -> tuple[Pipeline, Pipeline]:
        """Of the version and of the other, loaded once."""
        one = self._own or self.tracking.load_pipeline(self.version.version)
        other = self.tracking.load_pipeline(self.against.version)
        ours, theirs = (pipeline.named_steps["features"].contract for pipeline in (one, other))
        if theirs.target != ours.target or not {column.name for column in theirs.features} <= {*ours.by_name}:
            raise StateError(
                f"version {self.against.version} was trained by another data contract than version "
                f"{self.version.version}",
                "only versions whose columns and outcome agree can stand beside each other",
            )
        return one, other

    @property
    def contract(self) -> Contract:
        """The version's."""
        found: Contract = self._pipelines[0].named_steps["features"].contract
        return found

    def on_test(self, tested: pd.DataFrame) -> list[dict[str, Any]]:
        """Both on the version's own test rows; on those of `against`, too, when it has data of its own."""
        ours, theirs = origin_of(self.storage, self.version), origin_of(self.storage, self.against)
        frames = {"the test set of this version": tested}
        if ours.manifest and theirs.manifest:
            if ours.raw_sha256 != theirs.raw_sha256:
                theirs_tested = stored_part(self.storage, self.against.tags[Tag.DATASET_DIGEST], "test")
                frames[f"the test set of version {self.against.version}"] = theirs_tested
            elif ours.parameters.salt != theirs.parameters.salt:
                learned = f"version {self.against.version} learned from some patients (another salt)"
                frames = {f"the test set of this version, of which {learned}": tested}
        return [self._on(name, frame) for name, frame in frames.items()]

    def on_arrivals(self) -> list[dict[str, Any]]:
        """Decisions of both on the newest encounters that arrived, overall and by subgroup; empty without any."""
        frame = Arrivals(self.tracking.settings).newest(self.tracking.settings.shadow_rows)
        if frame.empty:
            return []
        return self._changes(*self.scored(frame), evaluation.subgroup_levels(frame, self.contract))

    def _on(self, name: str, frame: pd.DataFrame) -> dict[str, Any]:
        labels, patients = target(frame, self.contract), frame[self.contract.patient].to_numpy()
        one, other = self.scored(frame)
        groups = evaluation.subgroup_levels(frame, self.contract)
        subgroups = []
        for (attribute, level), mask in groups.items():
            if 0 < labels[mask].sum() < mask.sum():
                a, b = (Scored(scored.scores[mask], scored.threshold) for scored in (one, other))
                found = evaluation.compare(labels[mask], a, b, patients[mask], names=("auc",), resamples=RESAMPLES)
                subgroups.append({"attribute": attribute, "level": level, **asdict(found["auc"])})
        return {
            "against": self.against.version,
            "on": name,
            "rows": len(frame),
            "positives": int(labels.sum()),
            "metrics": evaluation.as_plain(evaluation.compare(labels, one, other, patients)),
            "subgroups": subgroups,
            "changes": self._changes(one, other, groups),
        }

    def scored(self, frame: pd.DataFrame) -> tuple[Scored, Scored]:
        """Both on the same encounters, cohort frame (n, columns); each with its own threshold."""
        one, other = (
            Scored(pipeline.predict_proba(frame)[:, 1].astype(np.float64), float(version.tags[Tag.THRESHOLD]))
            for pipeline, version in zip(self._pipelines, (self.version, self.against), strict=True)
        )
        return one, other

    @staticmethod
    def _changes(one: Scored, other: Scored, groups: Groups) -> list[dict[str, Any]]:
        before, after = (scored.scores >= scored.threshold for scored in (other, one))
        return [{**asdict(changed), "share": changed.share} for changed in changed_decisions(before, after, groups)]


def compare(settings: Settings, version: str, against: str) -> dict[str, Any]:
    """Compare two versions, and write the page to storage; what it shows, as JSON can hold it.

    Raises StateError when a version, its model or its data are absent.
    """
    tracking = Tracking(settings)
    one, other = tracking.version(version), tracking.version(against)
    comparison = Comparison(tracking, one, other)
    tested = stored_part(comparison.storage, one.tags[Tag.DATASET_DIGEST], "test")
    return write_page(comparison, comparison.on_test(tested))


def write_page(comparison: Comparison, on_test: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the page of a comparison to storage; what it shows. `on_test` as `Comparison.on_test` gave it."""
    tracking, against = comparison.tracking, comparison.against
    version = tracking.version(comparison.version.version)  # with what was said of it since
    judged = tracking.read_json(version.run_id, EVALUATION)
    content = {
        "version": version.version,
        "against": against.version,
        # Gates compare with the champion of their time.
        "gates": judged["gates"] if judged["decided_against"] == against.version else [],
        "on_test": on_test,
        "on_arrivals": comparison.on_arrivals(),
    }
    key = keys.model(version.version, keys.compared_with(against.version, "json"))
    comparison.storage.write(key, json.dumps(content).encode())
    return _render(comparison.storage, version, against, comparison.contract, content)


def renew_page(tracking: Tracking, storage: Storage, version: ModelVersion, contract: Contract) -> None:
    """Write the page beside the champion of its time anew, with what a person has said since; nothing without one."""
    champion = version.tags.get(Tag.DECIDED_AGAINST, "none")
    key = keys.model(version.version, keys.compared_with(champion, "json"))
    if storage.exists(key):
        _render(storage, version, tracking.version(champion), contract, json.loads(storage.read(key)))


def _render(
    storage: Storage, version: ModelVersion, against: ModelVersion, contract: Contract, content: dict[str, Any]
) -> dict[str, Any]:
    """Write the page to storage; what it shows."""
    state, said = approval_of(version), statement_of(version)
    content = {**content, "approval": {"state": state.value if state else "", "said": str(said or "")}}
    key = keys.model(version.version, keys.compared_with(against.version))
    storage.write(key, compare_page(contract, version, against, content).encode())
    return {**content, "page": storage.uri(key)}
